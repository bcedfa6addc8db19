"""A schedule as a file: it comes back the same, executing it gives the same bytes, and a damaged one is refused."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from helpers import planned_bundle
from helpers.examples import examples
from helpers.pipelines import CONSTANTS, Mixing, frames, in_order, random_schedule
from helpers.stages import dloral_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsr_trt import build as build_command
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.devices.runner import Runner
from vsr_trt.runtime.devices.simulated import SimulatedDevice, any_move
from vsr_trt.runtime.errors import BundleError
from vsr_trt.runtime.schedule import file
from vsr_trt.runtime.schedule.build import build
from vsr_trt.runtime.schedule.events import derive
from vsr_trt.runtime.schedule.graph import Schedule
from vsr_trt.runtime.schedule.memory import ALIGNMENT

SCHEMA = json.loads((Path(file.__file__).with_name("schedule.schema.json")).read_text())


def real(size: tuple[int, int] = (270, 480), slots: int = 2) -> Schedule:
    return build(dloral_manifest(), *size, Options(), slots, {"unet": 2})


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("size", [(128, 128), (270, 480), (300, 200)])
def test_a_schedule_comes_back_the_same(tmp_path: Path, size: tuple[int, int], slots: int) -> None:
    schedule = real(size, slots)
    events = derive(schedule)
    file.write(tmp_path / "s.json", schedule, events)
    jsonschema.validate(json.loads((tmp_path / "s.json").read_text()), SCHEMA)
    assert file.read(tmp_path / "s.json") == (schedule, events)


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 4), st.integers(1, 9))
@settings(max_examples=examples(30), deadline=None)
def test_executing_the_file_gives_the_same_bytes(seed: int, slots: int, lanes: int, stages: int) -> None:
    schedule = random_schedule(seed, slots, lanes, stages)
    events = derive(schedule)
    data = json.loads(json.dumps(file.as_json(schedule, events)))
    jsonschema.validate(data, SCHEMA)
    again, found = file._parsed(data)
    clip = frames(6)
    device = SimulatedDevice(Mixing(), any_move, seed)
    device.open(again, found, CONSTANTS, None)
    runner = Runner(device, slots)
    results = [result for frame in clip for result in runner.push(frame)] + runner.flush()
    assert [result.tobytes() for result in results] == in_order(schedule, clip)


def test_buffers_of_a_block_do_not_overlap() -> None:
    schedule = real()
    data = file.as_json(schedule, derive(schedule))
    for block, size in data["blocks"].items():
        end = 0
        for buffer in data["buffers"]:
            if buffer["block"] == block:
                assert buffer["offset"] % ALIGNMENT == 0
                assert buffer["offset"] >= end
                end = buffer["offset"] + buffer["bytes"]
        assert end <= size


def damaged(data: dict[str, Any], chance: random.Random) -> None:
    """One value of the file replaced, dropped, doubled or added."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            places.append((value, key))
            if isinstance(item, dict | list):
                walk(item)

    walk(data)
    holder, key = chance.choice(places)
    kind = chance.randrange(3)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        holder[key] = chance.choice([None, -1, "x", [], {}, True, 10**30, 1.5])
    elif isinstance(holder, dict):
        holder["x"] = 1
    else:
        holder.append(copy.deepcopy(holder[key]))


@pytest.mark.thorough
@given(st.integers(0, 10**9))
@settings(max_examples=examples(300), deadline=None)
def test_a_damaged_file_is_refused_or_harmless(seed: int) -> None:
    schedule = real((128, 128))
    events = derive(schedule)
    data = json.loads(json.dumps(file.as_json(schedule, events)))
    damaged(data, random.Random(seed))
    try:
        file._parsed(data)
    except ValueError:
        return


def test_a_file_whose_events_leave_a_race_is_refused(tmp_path: Path) -> None:
    schedule = real()
    events = derive(schedule)
    for missing in events:
        file.write(tmp_path / "s.json", schedule, [event for event in events if event is not missing])
        with pytest.raises(BundleError, match=r"it has a race: .*vsr-build schedule"):
            file.read(tmp_path / "s.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 2}', "null"])
def test_what_is_no_schedule_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(BundleError, match="no schedule that can be executed"):
        file.read(tmp_path / "s.json")


def test_the_command_adds_schedules_to_a_bundle(tmp_path: Path) -> None:
    bundle = planned_bundle.make(tmp_path / "bundle")
    sizes = ["--size", "1920x1080", "--size", "512x512"]
    assert build_command.main(["schedule", str(bundle.path), *sizes, "--slots", "2"]) == 0
    again = Bundle.open(bundle.path)
    assert {"schedules/1920x1080-s2.json", "schedules/512x512-s2.json"} <= set(again.manifest.files)
    for written in (bundle.path / "schedules").iterdir():
        data = json.loads(written.read_text())
        jsonschema.validate(data, SCHEMA)
        assert set(data["host"]["networks"]) == {step["network"] for step in data["steps"]} - {None}
    found, events = file.read(bundle.path / "schedules" / "1920x1080-s2.json")
    expected = build(again.manifest, 270, 480, Options(), 2)
    assert found == expected
    assert events == derive(expected)
    before = {path: path.read_bytes() for path in bundle.path.rglob("*") if path.is_file()}
    assert build_command.main(["schedule", str(bundle.path), "--size", "513x512"]) == 2
    assert build_command.main(["schedule", str(bundle.path), "--size", "512x512", "--slots", "0"]) == 2
    assert {path: path.read_bytes() for path in bundle.path.rglob("*") if path.is_file()} == before
