"""What must wait for what: found from the buffers, and proven from the graph alone.

Two accesses to the same memory, one of which writes, must be ordered. Lanes run in order, so within a lane
they are; between lanes an event orders them. `derive` finds the fewest events, `hazards` proves that a set of
events is enough - for any number of frames, although it looks at few:

Memory with period P (the number of slots, or 1 where there is a single copy) is the same in frames n, n+P,
n+2P and so on. Let every conflicting pair of accesses be ordered within frame n, and between frames n and n+P.
Then it is ordered between n and n+kP: if the earlier access writes, it comes before itself in n+P (a write
conflicts with itself), and so on to the frame before the later one; if it reads, the later one writes and comes
after itself P frames before, and so on down. Order never runs from a frame to an earlier one, so that frames n
to n+P are all that a path can pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vsr_trt.runtime.schedule.graph import Schedule


@dataclass(frozen=True, order=True)
class Event:
    """Step `after` of frame n + `frames` waits until step `before` of frame n is done."""

    frames: int
    before: str
    after: str

    def __str__(self) -> str:
        later = f" of the frame {self.frames} later" if self.frames > 1 else " of the next frame"
        return f"{self.before} -> {self.after}{later if self.frames else ''}"


@dataclass(frozen=True)
class Hazard:
    """Two accesses to a buffer that nothing orders: `before` in frame n, `after` in frame n + `frames`."""

    buffer: str
    before: str
    after: str
    frames: int

    def __str__(self) -> str:
        return (
            f"{self.buffer}: {self.before} of frame n and {self.after} of frame n+{self.frames} touch it, one writes, "
            "and neither waits for the other"
        )


def derive(schedule: Schedule) -> tuple[Event, ...]:
    """The events that a schedule needs; without any one of them it has a hazard.

    One is given, `slot_reuse`; what it implies needs no other.
    """
    reuse = slot_reuse(schedule)
    # far ones first: near ones often imply them
    events = sorted(set(_candidates(schedule)) - {reuse}, reverse=True)
    kept = [reuse, *events]
    for event in events:
        rest = [other for other in kept if other is not event]
        if Order(schedule, rest).holds(event.before, event.after, event.frames):
            kept = rest
    return tuple(sorted(kept))


def slot_reuse(schedule: Schedule) -> Event:
    """What slots mean: a frame is received when its slot's last result has been delivered."""
    before, after = (
        next(step.name for step in schedule.steps if step.action == action)
        for action in ("deliver", "receive")
    )
    return Event(schedule.slots, before, after)


def hazards(schedule: Schedule, events: Iterable[Event]) -> list[Hazard]:
    """Every pair of accesses that neither lanes nor `events` order; none is the proof that there is no race."""
    order = Order(schedule, events)
    return [
        Hazard(buffer, before, after, frames)
        for buffer, before, after, frames in _conflicts(schedule)
        if not order.holds(before, after, frames)
    ]


def waits_of(schedule: Schedule, events: Iterable[Event]) -> dict[str, list[Event]]:
    """Step -> the events that a device lets it wait for. Those of the host's steps are the host's business."""
    waits: dict[str, list[Event]] = {step.name: [] for step in schedule.device_steps}
    for event in events:
        if event.before in waits and event.after in waits:
            waits[event.after].append(event)
    return waits


class Order:
    """What comes before what, by lanes and events, over frames.

    A lane runs in order for ever, so what a step comes before in it is everything from some place on; that place
    is all that has to be known, and events are the only way from one lane into another.

    Args:
        schedule: whose lanes run in order, from frame to frame.
        events: between lanes.
    """

    def __init__(self, schedule: Schedule, events: Iterable[Event]) -> None:
        self._lane: dict[str, str] = {}
        self._place: dict[str, int] = {}  # in its lane, in frame 0
        self._length: dict[str, int] = defaultdict(int)
        for step in schedule.steps:
            self._lane[step.name], self._place[step.name] = step.lane, self._length[step.lane]
            self._length[step.lane] += 1
        self._events = [
            (
                self._lane[e.before],
                self._place[e.before],
                self._lane[e.after],
                self._at(e.after, e.frames),
                e.before,
            )
            for e in events
        ]
        self._reached: dict[str, dict[str, int]] = {}

    def holds(self, before: str, after: str, frames: int) -> bool:
        """Whether `before` of frame n is done when `after` of frame n + `frames` begins."""
        if before not in self._reached:
            self._reached[before] = self._from(before)
        found = self._reached[before].get(self._lane[after])
        return found is not None and found <= self._at(after, frames)

    def _at(self, step: str, frame: int) -> int:
        """A step's place in its lane, counted through all frames."""
        return frame * self._length[self._lane[step]] + self._place[step]

    def _from(self, start: str) -> dict[str, int]:
        """Lane -> the first place in it that comes after the step of frame 0."""
        reached = {self._lane[start]: self._place[start] + 1}
        changed = True
        while changed:
            changed = False
            for source, place, target, later, before in self._events:
                if before == start:
                    frame = 0
                elif source in reached:
                    frame = max(0, -(-(reached[source] - place) // self._length[source]))
                else:
                    continue
                found = later + frame * self._length[target]
                if found < reached.get(target, found + 1):
                    reached[target], changed = found, True
        return reached


def _conflicts(schedule: Schedule) -> Iterator[tuple[str, str, str, int]]:
    """(buffer, before, after, frames) of accesses that must be ordered.

    Of those with the same `after` and with `before` on the same lane only the last: whoever waits for it has waited
    for the ones before.
    """
    lane = {step.name: step.lane for step in schedule.steps}
    accesses: dict[str, dict[str, bool]] = defaultdict(dict)  # buffer -> step -> whether it writes
    for step in schedule.steps:
        for buffer, written in step.accesses():
            accesses[buffer][step.name] = accesses[buffer].get(step.name, False) or written
    for buffer, touched in accesses.items():
        period = schedule.period(buffer)
        last: dict[bool, dict[str, str]] = {True: {}, False: {}}  # writes only, or all -> lane -> step
        for name, writes in touched.items():
            for before in last[not writes].values():
                yield buffer, before, name, 0
            last[False][lane[name]] = name
            if writes:
                last[True][lane[name]] = name
        for name, writes in touched.items():
            for before in last[not writes].values():
                yield buffer, before, name, period


def _candidates(schedule: Schedule) -> Iterator[Event]:
    """Events that order every conflict. Of those between two lanes that imply each other, the tightest."""
    lane = {step.name: step.lane for step in schedule.steps}
    index = schedule.index
    tightest: dict[tuple[str, str, int], str] = {}  # after, lane of before, frames -> the last before
    for _, before, after, frames in _conflicts(schedule):
        if lane[before] == lane[after] and (frames > 0 or index[before] < index[after]):
            continue
        key = after, lane[before], frames
        if key not in tightest or index[tightest[key]] < index[before]:
            tightest[key] = before
    # a later step of a lane needs no event where an earlier one waits for the same or more already
    reached: dict[tuple[str, str, int], int] = {}  # lane of before, lane of after, frames -> the last before
    for (after, source, frames), before in sorted(tightest.items(), key=lambda item: index[item[0][0]]):
        way = source, lane[after], frames
        if index[before] > reached.get(way, -1):
            reached[way] = index[before]
            yield Event(frames, before, after)
