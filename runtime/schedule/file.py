"""A schedule as a file, for hosts in other languages, and back: executing it gives the bytes of one built in place.

The file holds all that a host needs next to the networks: steps, lanes and events, where each buffer is stored, and
what `runtime.schedule.hosting` adds.
`schedule.schema.json` says what may stand in it; docs/schedule.md explains it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vsr_trt.runtime.bundle.records import MisfitError, parse
from vsr_trt.runtime.errors import BundleError
from vsr_trt.runtime.schedule.events import Event, hazards
from vsr_trt.runtime.schedule.graph import Buffer, Kind, Lane, Port, Schedule, Step
from vsr_trt.runtime.schedule.hosting import Host
from vsr_trt.runtime.schedule.memory import arrange

FORMAT = 3
_Dtype = Literal["uint8", "float32", "float16", "int32", "int64", "bool"]
_BLOCKS: dict[Kind, str] = {
    "slot": "slot",
    "staging": "staging",
    "state": "shared",
    "constant": "shared",
    "scratch": "scratch",
}
"""Kind of a buffer -> the block of memory that it lies in."""


def as_json(schedule: Schedule, events: Iterable[Event], host: Host | None = None) -> dict[str, Any]:
    """All of it as JSON values; without `host` for those who execute it with a manifest and this package."""
    offsets, blocks = layout(schedule)
    return {
        "format": FORMAT,
        "slots": schedule.slots,
        "takes": {name: dataclasses.asdict(port) for name, port in schedule.takes.items()},
        "gives": {name: dataclasses.asdict(port) for name, port in schedule.gives.items()},
        "last": schedule.last,
        "blocks": blocks,
        "lanes": [dataclasses.asdict(lane) for lane in schedule.lanes.values()],
        "buffers": [
            {
                "name": buffer.name,
                "shape": list(buffer.shape),
                "dtype": buffer.dtype,
                "kind": buffer.kind,
                "block": _BLOCKS[buffer.kind],
                "offset": offsets[buffer.name],
                "bytes": buffer.bytes,
            }
            for buffer in schedule.buffers.values()
        ],
        "steps": [_step_as_json(step) for step in schedule.steps],
        "events": [dataclasses.asdict(event) for event in sorted(events)],
        "host": None if host is None else dataclasses.asdict(host),
    }


def layout(schedule: Schedule) -> tuple[dict[str, int], dict[str, int]]:
    """Where buffers lie: offset of each in its block, and the blocks' sizes, in bytes.

    Blocks `slot` and `staging` are needed once for each slot, `shared` once. Scratch has no size of its own: it is as
    large as the engines that work in it say, so each buffer of that kind begins at 0 of memory of its own.
    """
    offsets = dict.fromkeys(schedule.buffers, 0)
    blocks = {}
    for block in ("slot", "staging", "shared"):
        sizes = {b.name: b.bytes for b in schedule.buffers.values() if _BLOCKS[b.kind] == block}
        places, blocks[block] = arrange(sizes)
        offsets |= places
    return offsets, blocks


def write(path: Path, schedule: Schedule, events: Iterable[Event], host: Host | None = None) -> None:
    """Writes the file; OSError if it cannot be written."""
    path.write_text(json.dumps(as_json(schedule, events, host), indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> tuple[Schedule, tuple[Event, ...]]:
    """The schedule and its events, checked as far as can be: with them nothing races.

    Raises:
        BundleError: the file cannot be read, has another format, a field missing, unknown or of another type, a name
            that refers to nothing, or events that leave a race.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else None
            raise MisfitError(f"it has format {found!r}, this runtime reads {FORMAT}")
        return _parsed(data)
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{path} is no schedule that can be executed: {error}. Write it again with: vsr-build schedule "
            "BUNDLE --size WxH"
        ) from error


@dataclass(frozen=True)
class _Blocks:
    slot: int
    staging: int
    shared: int


@dataclass(frozen=True)
class _Placed:
    """A buffer and where it lies."""

    name: str
    shape: tuple[int, ...]
    dtype: _Dtype
    kind: Kind
    block: str
    offset: int
    bytes: int

    @property
    def buffer(self) -> Buffer:
        """Without its place, which follows from all buffers' sizes."""
        return Buffer(self.name, self.shape, self.dtype, self.kind)


@dataclass(frozen=True)
class _File:
    format: int
    slots: int
    takes: dict[str, Port]
    gives: dict[str, Port]
    last: bool
    blocks: _Blocks
    lanes: tuple[Lane, ...]
    buffers: tuple[_Placed, ...]
    steps: tuple[Step, ...]
    events: tuple[Event, ...]
    host: Host | None


def _step_as_json(step: Step) -> dict[str, Any]:
    values = {item.name: getattr(step, item.name) for item in dataclasses.fields(step)}
    values |= {"reads": dict(step.reads), "writes": dict(step.writes)}
    values["part"] = None if step.part is None else list(step.part)
    for name in ("grid", "span"):
        values[name] = None if values[name] is None else dataclasses.asdict(values[name])
    return values


def _parsed(data: Any) -> tuple[Schedule, tuple[Event, ...]]:
    found: _File = parse(_File, data, "the file", whole=True)
    for named, what in ((found.buffers, "buffers"), (found.lanes, "lanes")):
        if len({item.name for item in named}) != len(named):
            raise MisfitError(f"two {what} have the same name")
    for placed in found.buffers:
        if min(placed.shape, default=0) < 0 or placed.bytes != placed.buffer.bytes:
            raise MisfitError(f"the size of buffer {placed.name} does not follow from its shape")
    if wrong := [step.name for step in found.steps if step.factor < 1]:
        raise MisfitError(f"the factor of step {wrong[0]!r} is below 1")
    sizes = {placed.name: placed.shape for placed in found.buffers}
    for step in found.steps:
        if (step.action == "frames") != (step.span is not None) or not _span_fits(step, sizes):
            raise MisfitError(f"the frames that step {step.name!r} copies are not in its buffers")
    schedule = Schedule(
        {lane.name: lane for lane in found.lanes},
        {placed.name: placed.buffer for placed in found.buffers},
        found.steps,
        found.slots,
        found.takes,
        found.gives,
        found.last,
    )
    if unknown := {name for e in found.events for name in (e.before, e.after)} - set(schedule.index):
        raise MisfitError(f"an event names the unknown step {sorted(unknown)[0]!r}")
    offsets, blocks = layout(schedule)
    lies = {placed.name: (placed.block, placed.offset) for placed in found.buffers}
    if lies != {n: (_BLOCKS[b.kind], offsets[n]) for n, b in schedule.buffers.items()}:
        raise MisfitError("buffers do not lie where their sizes put them")
    if dataclasses.asdict(found.blocks) != blocks:
        raise MisfitError("the blocks are not as large as their buffers")
    if races := hazards(schedule, found.events):
        raise MisfitError(f"it has a race: {races[0]}")
    return schedule, found.events


def _span_fits(step: Step, sizes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the frames that a step copies are there, and its buffers differ in their number alone."""
    span = step.span
    if span is None:
        return True
    source, target = (
        sizes.get(side.get(name, ""), ()) for side, name in ((step.reads, "source"), (step.writes, "target"))
    )
    if span.axis == 0 and span.count == 1 and len(target) == len(source) - 1:
        target = (1, *target)
    if (
        not 0 <= span.axis < min(len(source), len(target))
        or span.count < 1
        or min(span.source, span.target) < 0
    ):
        return False
    rest = [shape[: span.axis] + shape[span.axis + 1 :] for shape in (source, target)]
    inside = span.source + span.count <= source[span.axis] and span.target + span.count <= target[span.axis]
    return inside and rest[0] == rest[1]
