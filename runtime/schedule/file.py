"""A schedule as a file, for hosts in other languages, and back: executing it gives the bytes of one built in place.

The file holds all that a host needs beside the networks: steps, lanes and events, and where in memory each buffer lies.
`runtime/schedule.schema.json` says what may stand in it; docs/schedule.md explains it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from runtime.errors import BundleError
from runtime.schedule.events import Event, hazards
from runtime.schedule.graph import Action, Buffer, Grid, Kind, Lane, Schedule, Step

FORMAT = 1
ALIGNMENT = 512
"""Bytes: buffers begin at multiples, as the engines want it of addresses."""
_TYPES = ("uint8", "float32", "float16", "int32", "int64", "bool")
_BLOCKS: dict[Kind, str] = {
    "slot": "slot",
    "staging": "staging",
    "state": "shared",
    "constant": "shared",
    "scratch": "scratch",
}
"""Kind of a buffer -> the block of memory that it lies in."""


def as_json(schedule: Schedule, events: Iterable[Event]) -> dict[str, Any]:
    """All of it as JSON values."""
    offsets, blocks = layout(schedule)
    return {
        "format": FORMAT,
        "slots": schedule.slots,
        "frame": schedule.frame,
        "result": schedule.result,
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
    }


def layout(schedule: Schedule) -> tuple[dict[str, int], dict[str, int]]:
    """Where buffers lie: offset of each in its block, and the blocks' sizes, in bytes.

    Blocks `slot` and `staging` are needed once for each slot, `shared` once. Scratch has no size of its own: it is as
    large as the engines that work in it say, so each buffer of that kind begins at 0 of memory of its own.
    """
    offsets: dict[str, int] = {}
    blocks = {"slot": 0, "staging": 0, "shared": 0}
    for buffer in schedule.buffers.values():
        block = _BLOCKS[buffer.kind]
        if block not in blocks:
            offsets[buffer.name] = 0
            continue
        offsets[buffer.name] = blocks[block]
        blocks[block] += -(-buffer.bytes // ALIGNMENT) * ALIGNMENT
    return offsets, blocks


def write(path: Path, schedule: Schedule, events: Iterable[Event]) -> None:
    """Writes the file; OSError if it cannot be written."""
    path.write_text(json.dumps(as_json(schedule, events), indent=1) + "\n", encoding="utf-8")


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
            raise _MisfitError(f"it has format {found!r}, this runtime reads {FORMAT}")
        return _parsed(data)
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{path} is no schedule that can be executed: {error}. Write it again with: python build.py schedule "
            "BUNDLE --size WxH"
        ) from error


class _MisfitError(ValueError):
    """A value in the file that does not fit."""


def _step_as_json(step: Step) -> dict[str, Any]:
    values = {item.name: getattr(step, item.name) for item in dataclasses.fields(step)}
    values |= {"reads": dict(step.reads), "writes": dict(step.writes)}
    values["part"] = None if step.part is None else list(step.part)
    values["grid"] = None if step.grid is None else dataclasses.asdict(step.grid)
    return values


def _parsed(data: Mapping[str, Any]) -> tuple[Schedule, tuple[Event, ...]]:
    fields = ("format", "slots", "frame", "result", "blocks", "lanes", "buffers", "steps", "events")
    _expect(data, fields, "the file")
    lanes = [_record(Lane, item, "a lane") for item in _list(data["lanes"], "lanes")]
    buffers = [_buffer(item) for item in _list(data["buffers"], "buffers")]
    steps = tuple(_step(item) for item in _list(data["steps"], "steps"))
    events = tuple(_record(Event, item, "an event") for item in _list(data["events"], "events"))
    for names, what in (([b.name for b in buffers], "buffers"), ([lane.name for lane in lanes], "lanes")):
        if len(set(names)) != len(names):
            raise _MisfitError(f"two {what} have the same name")
    schedule = Schedule(
        {lane.name: lane for lane in lanes},
        {buffer.name: buffer for buffer in buffers},
        steps,
        _integer(data["slots"], "slots"),
        _name(data["frame"], "frame"),
        _name(data["result"], "result"),
    )
    _expect(data["blocks"], ("slot", "staging", "shared"), "blocks")
    if {schedule.frame, schedule.result} - set(schedule.buffers):
        raise _MisfitError("the staging buffers of frame and result are not among the buffers")
    if unknown := {name for event in events for name in (event.before, event.after)} - set(schedule.index):
        raise _MisfitError(f"an event names the unknown step {sorted(unknown)[0]!r}")
    offsets, blocks = layout(schedule)
    if [item["offset"] for item in data["buffers"]] != list(offsets.values()) or data["blocks"] != blocks:
        raise _MisfitError("buffers do not lie where their sizes put them")
    if found := hazards(schedule, events):
        raise _MisfitError(f"it has a race: {found[0]}")
    return schedule, events


def _buffer(item: Any) -> Buffer:
    _expect(item, ("name", "shape", "dtype", "kind", "block", "offset", "bytes"), "a buffer")
    if item["kind"] not in tuple(get_args(Kind)):
        raise _MisfitError(f"a buffer of the unknown kind {item['kind']!r}")
    shape = tuple(_integer(size, "a size of a buffer") for size in _list(item["shape"], "shape"))
    if not isinstance(item["name"], str) or item["dtype"] not in _TYPES:
        raise _MisfitError(f"a buffer {item['name']!r} of the type {item['dtype']!r}")
    buffer = Buffer(item["name"], shape, item["dtype"], item["kind"])
    if min(shape, default=0) < 0 or item["bytes"] != buffer.bytes:
        raise _MisfitError(f"the size of buffer {buffer.name} does not follow from its shape")
    return buffer


def _step(item: Any) -> Step:
    _expect(item, tuple(field.name for field in dataclasses.fields(Step)), "a step")
    if item["action"] not in get_args(Action):
        raise _MisfitError(f"a step with the unknown action {item['action']!r}")
    values = dict(item)
    for side in ("reads", "writes"):
        operands = item[side]
        if not isinstance(operands, dict) or not all(isinstance(name, str) for name in operands.values()):
            raise _MisfitError(f"what a step {side} is no object of names")
    if item["part"] is not None:
        part = tuple(_integer(value, "part") for value in _list(item["part"], "part"))
        if len(part) != 2:
            raise _MisfitError(f"a part of {len(part)} numbers")
        values["part"] = part
    if item["grid"] is not None:
        grid = dict(item["grid"]) if isinstance(item["grid"], dict) else {}
        _expect(grid, tuple(field.name for field in dataclasses.fields(Grid)), "a grid")
        for side in ("tops", "lefts"):
            grid[side] = tuple(_integer(value, side) for value in _list(grid[side], side))
        for side in ("height", "width", "overlap"):
            _integer(grid[side], side)
        if grid["window"] not in ("gaussian", "ramp"):
            raise _MisfitError(f"the unknown window {grid['window']!r}")
        values["grid"] = Grid(**grid)
    for field in ("name", "action", "lane", "stage"):
        if not isinstance(item[field], str):
            raise _MisfitError(f"{field} of a step is {item[field]!r}")
    for field in ("network", "workspace"):
        if not isinstance(item[field], str | None):
            raise _MisfitError(f"{field} of a step is {item[field]!r}")
    if _integer(item["factor"], "factor") < 1 or type(item["first"]) is not bool:
        raise _MisfitError(f"factor or first of step {item['name']!r} is of another kind")
    return Step(**values)


def _record(kind: Any, item: Any, what: str) -> Any:
    """A record of strings, whole numbers and booleans."""
    fields = dataclasses.fields(kind)
    _expect(item, tuple(field.name for field in fields), what)
    for field in fields:
        expected = {"str": str, "int": int, "bool": bool}[str(field.type)]
        if type(item[field.name]) is not expected:
            raise _MisfitError(f"{field.name} of {what} is {item[field.name]!r}")
    return kind(**item)


def _expect(item: Any, fields: tuple[str, ...], what: str) -> None:
    if not isinstance(item, dict):
        raise _MisfitError(f"{what} is no object")
    if wrong := set(item) ^ set(fields):
        name = sorted(wrong)[0]
        raise _MisfitError(f"{what} {'has the unknown field' if name in item else 'lacks'} {name!r}")


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise _MisfitError(f"{name} is no list")
    return value


def _name(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _MisfitError(f"{name} is {value!r}, no name")
    return value


def _integer(value: Any, name: str) -> int:
    if type(value) is not int:
        raise _MisfitError(f"{name} is {value!r}, no whole number")
    return value
