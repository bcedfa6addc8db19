"""A schedule's steps in runs that go to a stream in one piece: what waits, runs, and is waited for.

A run of steps on one lane between two events can be captured as one CUDA graph. Events stay outside of graphs:
graphs of different frames may then wait for each other, and none holds an event that means another frame.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vsr_trt.runtime.schedule.events import Event, waits_of
from vsr_trt.runtime.schedule.graph import Schedule, Step


@dataclass(frozen=True)
class Segment:
    """Steps of one lane.

    Attributes:
        lane: whose stream they go to.
        waits: events to wait for first.
        steps: in order.
        records: whether other lanes wait for its end.
        capture: whether it may become a graph: every time the same work on the same addresses.
    """

    lane: str
    waits: tuple[Event, ...]
    steps: tuple[Step, ...]
    records: bool
    capture: bool


def segments(schedule: Schedule, events: Iterable[Event], loose: Sequence[str] = ()) -> list[Segment]:
    """Cuts the steps that are not the host's; an order in which the host may ask for them.

    Args:
        schedule: whose steps they are.
        events: between its lanes; those of the host's lanes are left out.
        loose: buffers whose address may change from frame to frame: their readers and writers stay out of graphs.
    """
    waits = waits_of(schedule, events)
    sources = {event.before for found in waits.values() for event in found}
    found: list[Segment] = []
    open_steps: dict[str, list[Step]] = defaultdict(list)

    def close(lane: str) -> None:
        steps = open_steps.pop(lane, [])
        if steps:
            found.append(
                Segment(
                    lane,
                    tuple(waits[steps[0].name]),
                    tuple(steps),
                    steps[-1].name in sources,
                    len(steps) > 1 or steps[0].action == "network",
                )
            )

    for step in schedule.device_steps:
        touched = {buffer for buffer, _ in step.accesses()}
        alone = step.first or step.action in ("upload", "download") or bool(touched & set(loose))
        if waits[step.name] or alone:
            close(step.lane)
        open_steps[step.lane].append(step)
        if alone:
            open_steps.pop(step.lane)
            found.append(
                Segment(step.lane, tuple(waits[step.name]), (step,), step.name in sources, capture=False)
            )
        elif step.name in sources:
            close(step.lane)
    for lane in list(open_steps):
        close(lane)
    return found
