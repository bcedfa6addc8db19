"""How far a clip is on its way through the phases of its family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PhaseProgress:
    """How far a phase is.

    Attributes:
        phase: its name.
        number: its place, from 1.
        phases: how many there are.
        done: of the first phase, frames; of the others, runs of networks.
        total: of those; None while the clip's length is unknown. On a GPU, runs are counted window by window.
    """

    phase: str
    number: int
    phases: int
    done: int
    total: int | None


class Meter:
    """Counts what is done, and passes it on.

    Args:
        report: what it is passed to; None for nothing.
        phases: names, in order; fewer than two report nothing.
    """

    def __init__(self, report: Callable[[PhaseProgress], None] | None, phases: Sequence[str]) -> None:
        self._report = report if len(phases) > 1 else None
        self._phases = list(phases)
        self._number, self._done = 0, 0
        self._total: int | None = None

    def begin(self, phase: str, total: int | None) -> None:
        """A phase begins, of so many runs."""
        if self._report is not None:
            self._number, self._done, self._total = self._phases.index(phase), 0, total
            self._tell()

    def step(self) -> None:
        """A network was run."""
        if self._report is not None and self._number:
            self._done += 1
            self._tell()

    def reach(self, done: int) -> None:
        """So much is done at least."""
        if self._report is not None and done > self._done:
            self._done = done
            self._tell()

    def _tell(self) -> None:
        assert self._report is not None
        phase = self._phases[self._number]
        self._report(PhaseProgress(phase, self._number + 1, len(self._phases), self._done, self._total))
