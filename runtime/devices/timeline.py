"""What was done when: one record for each step of each frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """One step of the schedule, done. Seconds on one clock for all spans of a Restorer.

    Attributes:
        frame: running number since the Restorer was made, from 0.
        slot: that the frame was in.
        step: of the schedule, e.g. `unet[3]`.
        stage: that the step is part of, e.g. `unet`.
        lane: that it ran on.
        action: what kind of step, see `runtime.schedule.graph.Action`.
        start, end: seconds.
        enqueue: seconds that the host spent on asking for it; 0 where the host does the work itself.
    """

    frame: int
    slot: int
    step: str
    stage: str
    lane: str
    action: str
    start: float
    end: float
    enqueue: float = 0.0


Observer = Callable[[Span], None]
