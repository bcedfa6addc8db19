"""A schedule for people: neighbouring steps that do the same to many tiles become one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from vsr_trt.runtime.schedule.graph import Action, Schedule, Step


@dataclass(frozen=True)
class Group:
    """Neighbouring steps of one lane, stage and action.

    Attributes:
        steps: in order, at least one.
    """

    steps: tuple[Step, ...]

    @property
    def name(self) -> str:
        """E.g. `unet[0..7]`, `cut`, `keep latent`."""
        first, last = self.steps[0], self.steps[-1]
        if first.part is not None and last.part is not None:
            tiles = (first.part[0], last.part[1] - 1)
            return f"{first.stage}[{'..'.join(str(tile) for tile in dict.fromkeys(tiles))}]"
        return first.action if first.action in ("cut", "blend") else first.name

    @property
    def lane(self) -> str:
        """Lane of all its steps."""
        return self.steps[0].lane

    @property
    def action(self) -> Action:
        """Action of all its steps."""
        return self.steps[0].action

    @property
    def reads(self) -> list[str]:
        """Buffers, each once."""
        return list(dict.fromkeys(buffer for step in self.steps for buffer in step.reads.values()))

    @property
    def writes(self) -> list[str]:
        """Buffers, each once."""
        return list(dict.fromkeys(buffer for step in self.steps for buffer in step.writes.values()))

    def runs_for(self, first: bool) -> bool:
        """Whether it is done for a frame that has no predecessor, or for one that has."""
        return first or not self.steps[0].first


def fold(schedule: Schedule) -> list[Group]:
    """All steps, in order."""
    alike = groupby(schedule.steps, key=lambda step: (step.lane, step.stage, step.action, step.first))
    return [Group(tuple(steps)) for _, steps in alike]
