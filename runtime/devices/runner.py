"""Frames through a device: slots handed out, results in order, failures reported with frame and stage."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vsr_trt.runtime.bundle.manifest import Window
from vsr_trt.runtime.devices.protocol import Device, StepError, Ticket
from vsr_trt.runtime.devices.windows import Gathered, Gatherer
from vsr_trt.runtime.errors import DeviceError, FrameError


@dataclass(frozen=True)
class _Flight:
    ticket: Ticket
    results: range  # of the window, those that are returned


class Runner:
    """Takes frames of one size through an opened device.

    Args:
        device: opened with a schedule.
        slots: of that schedule.
        timeout: seconds that a window may take once it is waited for; None for ever.
        finish: makes what is returned of what the device delivers.
        window: how many frames go through at once.
    """

    def __init__(
        self,
        device: Device,
        slots: int,
        timeout: float | None = None,
        finish: Callable[[Any], Any] = lambda result: result,
        window: Window | None = None,
    ) -> None:
        self._device, self._slots, self._timeout, self._finish = device, slots, timeout, finish
        self._window = window or Window()
        self._gatherer = Gatherer(self._window)
        self._flying: deque[_Flight] = deque()
        self._numbers: dict[int, int] = {}  # window under way -> the number in its clip of its first frame
        self._next = 0
        self._clip_began = 0
        self._broken: str | None = None

    @property
    def under_way(self) -> int:
        """Frames whose results were not returned."""
        return sum(len(flight.results) for flight in self._flying) + self._gatherer.waiting

    def begin(self) -> list[Any]:
        """The next frame has no predecessor. Frames under way go on; returns results of those that waited for more.

        Raises:
            FrameError: as for `push`.
        """
        results: list[Any] = []
        if self._gatherer.waiting:
            self._check()
            with self._breaking():
                self._submit(self._gatherer.flush(), results)
        self._gatherer = Gatherer(self._window)
        self._clip_began = self._next
        return results

    def push(self, frame: Any) -> list[Any]:
        """Takes a frame (H,W,3) u8; returns the results that are ready, in order.

        At most slots - 1 windows are under way afterwards.

        Raises:
            FrameError: this frame or an earlier one failed. The runner is of no use afterwards.
        """
        self._check()
        results: list[Any] = []
        if self._window.size > 1:  # it waits for others, and the caller may use its memory again
            frame = _copy(frame)
        self._submit(self._gatherer.push(frame), results)
        return results

    def _submit(self, windows: Iterable[Gathered], results: list[Any]) -> None:
        for window in windows:
            ticket = Ticket(self._next, self._next % self._slots, self._next == self._clip_began)
            for index, frame in enumerate(window.frames):
                self._device.receive(ticket.slot, frame, index)
            with self._breaking():
                self._numbers[ticket.frame] = window.first
                try:
                    self._device.submit(ticket)
                except StepError as error:
                    while self._flying:  # what was asked for before may well be finished
                        self._collect(results)
                    raise self._told(error, results) from error
                self._next += 1
                self._flying.append(_Flight(ticket, window.results))
                while len(self._flying) >= self._slots or (
                    self._flying and self._device.is_done(self._flying[0].ticket)
                ):
                    self._collect(results)

    def flush(self) -> list[Any]:
        """Waits for all frames under way; returns their results, in order.

        Raises:
            FrameError: as for `push`.
        """
        self._check()
        results: list[Any] = []
        self._submit(self._gatherer.flush(), results)
        with self._breaking():
            while self._flying:
                self._collect(results)
        return results

    def _collect(self, results: list[Any]) -> None:
        flight = self._flying[0]
        try:
            self._device.wait(flight.ticket, self._timeout)
        except StepError as error:
            raise self._told(error, results) from error
        for index in flight.results:
            results.append(self._finish(self._device.deliver(flight.ticket.slot, index)))
        self._flying.popleft()
        self._numbers.pop(flight.ticket.frame)

    def _told(self, error: StepError, results: list[Any]) -> FrameError:
        frame, text = self._numbers.get(error.frame, error.frame), str(error).rstrip(".")
        told = text if text.startswith(error.stage) else f"{error.stage}: {text}"
        return FrameError(f"frame {frame}: {told}.", frame, error.stage, results)

    def _check(self) -> None:
        if self._broken is not None:
            raise DeviceError(f"this Restorer failed ({self._broken.rstrip('.')}); make a new one.")

    @contextlib.contextmanager
    def _breaking(self) -> Iterator[None]:
        """Whatever leaves this block as an error, Ctrl-C too: what is under way may then be in any state."""
        try:
            yield
        except BaseException as error:
            self._broken = str(error) or type(error).__name__
            raise


def _copy(frame: Any) -> Any:
    if isinstance(frame, dict):
        return {name: _copy(part) for name, part in frame.items()}
    return frame.copy() if isinstance(frame, np.ndarray) else frame
