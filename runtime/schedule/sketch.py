"""A schedule in time, as far as it is known without measuring: every network takes as long as any other.

What lanes and events allow is done as soon as they allow it. This shows what may overlap, not how long it takes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from vsr_trt.runtime.schedule.events import Event
from vsr_trt.runtime.schedule.folding import Group, fold
from vsr_trt.runtime.schedule.graph import Schedule

_LENGTHS = {"network": 1.0, "receive": 0.75, "upload": 0.75, "download": 0.75, "deliver": 0.75}
_SHORT = 0.5  # cut, blend, copy


@dataclass(frozen=True)
class Box:
    """A group of steps of one frame, from `start` to `end`."""

    group: Group
    frame: int
    start: float
    end: float


@dataclass(frozen=True)
class Wait:
    """An event between two boxes: `after` waits for `before`."""

    before: Box
    after: Box


@dataclass(frozen=True)
class Sketch:
    """Some frames of a clip, from its first one on.

    Attributes:
        frames: how many.
        boxes: of all lanes.
        waits: every event between two of these frames.
        length: when the last box ends.
    """

    frames: int
    boxes: tuple[Box, ...]
    waits: tuple[Wait, ...]
    length: float


def sketch(schedule: Schedule, events: Iterable[Event], frames: int) -> Sketch:
    """Lists the boxes in time.

    Args:
        schedule: what happens to each frame.
        events: between its lanes.
        frames: how many to show.
    """
    groups = fold(schedule)
    place = {step.name: index for index, group in enumerate(groups) for step in group.steps}
    # of tiles that wait for tiles, one event is left
    between = sorted({(place[event.before], place[event.after], event.frames) for event in events})
    needs: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for before, after, later in between:
        needs[after].append((before, later))
    free: dict[str, float] = defaultdict(float)
    placed: dict[tuple[int, int], Box] = {}
    for frame in range(frames):
        for index, group in enumerate(groups):
            ready = [placed[before, frame - later].end for before, later in needs[index] if later <= frame]
            start = max([free[group.lane], *ready])
            length = _LENGTHS.get(group.action, _SHORT) if group.runs_for(frame == 0) else 0.0
            placed[index, frame] = Box(group, frame, start, start + length)
            free[group.lane] = start + length
    waits = [
        Wait(placed[before, frame], _shown(groups, placed, after, frame + later))
        for before, after, later in between
        for frame in range(frames - later)
    ]
    boxes = tuple(box for box in placed.values() if box.end > box.start)
    return Sketch(frames, boxes, tuple(waits), max(box.end for box in boxes))


def _shown(groups: list[Group], placed: dict[tuple[int, int], Box], index: int, frame: int) -> Box:
    """The box that waits: where a step is left out for this frame, the next one of its lane."""
    lane = groups[index].lane
    following = (other for other in range(index, len(groups)) if groups[other].lane == lane)
    return next(
        (placed[other, frame] for other in following if groups[other].runs_for(frame == 0)),
        placed[index, frame],
    )
