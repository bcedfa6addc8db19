"""The schedule: its events are enough, and each is needed; what it costs in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from helpers.examples import examples
from helpers.pipelines import CONSTANTS, Mixing, frames, in_order, random_schedule
from helpers.stages import dloral_manifest, shrunk
from hypothesis import given, settings
from hypothesis import strategies as st

from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.devices.runner import Runner
from vsr_trt.runtime.devices.simulated import (
    POISON,
    Policy,
    RaceError,
    SimulatedDevice,
    any_move,
    longest_first,
    newest_first,
    starving,
)
from vsr_trt.runtime.schedule.build import build, tile_grid
from vsr_trt.runtime.schedule.events import Event, Order, derive, hazards, slot_reuse
from vsr_trt.runtime.schedule.graph import Schedule
from vsr_trt.runtime.schedule.memory import add_up

SIZES = [(128, 128), (270, 480), (300, 200)]
schedules = st.builds(
    random_schedule,
    seed=st.integers(0, 10**6),
    slots=st.integers(1, 4),
    lanes=st.integers(1, 4),
    stages=st.integers(1, 9),
)


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_event_of_the_real_schedule_is_needed(height: int, width: int, slots: int) -> None:
    schedule = build(dloral_manifest(), height, width, Options(), slots)
    events = derive(schedule)
    assert hazards(schedule, events) == []
    for event in events:
        rest = [other for other in events if other is not event]
        assert hazards(schedule, rest), f"without {event} nothing would be noticed"


@given(schedules)
@settings(max_examples=examples(60), deadline=None)
def test_derived_events_are_enough_for_any_pipeline(schedule: Schedule) -> None:
    events = derive(schedule)
    assert hazards(schedule, events) == []
    for event in events:
        if event != slot_reuse(schedule):
            assert hazards(schedule, [other for other in events if other is not event])


@given(schedules, st.integers(1, 3))
@settings(max_examples=examples(30), deadline=None)
def test_the_proof_holds_for_any_number_of_frames(schedule: Schedule, turns: int) -> None:
    """The proof looks at two frames of a buffer; here all pairs of frames are looked at, one by one."""
    order = Order(schedule, derive(schedule))
    touched: dict[str, list[tuple[str, bool]]] = {}
    for step in schedule.steps:
        for buffer, written in step.accesses():
            touched.setdefault(buffer, []).append((step.name, written))
    for buffer, accesses in touched.items():
        for one, writes in accesses:
            for other, also in accesses:
                if writes or also:
                    assert order.holds(one, other, turns * schedule.period(buffer))


@given(schedules, st.integers(0, 10**6))
@settings(max_examples=examples(60), deadline=None)
def test_any_order_gives_the_same_bytes(schedule: Schedule, seed: int) -> None:
    clip = frames(2 * schedule.slots + 3)
    expected = in_order(schedule, clip)
    for policy in (any_move, longest_first, newest_first, *map(starving, schedule.lanes)):
        device = SimulatedDevice(Mixing(), policy, seed)
        device.open(schedule, derive(schedule), CONSTANTS, None)
        runner = Runner(device, schedule.slots)
        results = [result.tobytes() for frame in clip for result in runner.push(frame)]
        results += [result.tobytes() for result in runner.flush()]
        assert results == expected


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_without_an_event_some_order_goes_wrong(slots: int) -> None:
    """The simulated device is as strict as the proof: it notices each event that is missing."""
    schedule = shrunk(build(dloral_manifest(), 128, 128, Options(), slots))
    events = derive(schedule)
    clip = frames(3 * slots)
    expected = _results(schedule, events, clip, any_move, 0)
    own = [event for event in events if not {event.before, event.after} & {"receive", "deliver"}]
    assert own, "the others are the host's: no device sees them"
    for event in own:
        rest = [other for other in events if other is not event]
        assert any(
            _results(schedule, rest, clip, policy, seed) != expected
            for seed, policy in enumerate((newest_first, longest_first, *map(starving, schedule.lanes)))
        ), f"nothing noticed that {event} was missing"


def _results(schedule: Schedule, events: Sequence[Event], clip: list, policy: Policy, seed: int) -> list:
    device = SimulatedDevice(Mixing(), policy, seed)
    device.open(schedule, events, dict.fromkeys(["prompt"], CONSTANTS["constant"]), None)
    runner = Runner(device, schedule.slots)
    try:
        results = [result for frame in clip for result in runner.push(frame)] + runner.flush()
    except RaceError:
        return ["a race"]
    return [result.tobytes() for result in results]


def test_the_next_frame_is_encoded_while_one_is_decoded() -> None:
    schedule = build(dloral_manifest(), 270, 480, Options(), 2)
    order = Order(schedule, derive(schedule))
    for step in ("upload", "preprocess", "vae_encoder", "spynet[0]"):
        for busy in ("unet[0]", "vae_decoder", "download"):
            assert not order.holds(busy, step, 1), f"{step} of the next frame waits for {busy}"
    assert order.holds("spynet[7]", "cfr[0]", 0)


def test_only_latent_and_thumb_pass_from_frame_to_frame() -> None:
    schedule = build(dloral_manifest(), 270, 480, Options(), 3)
    assert sorted(name for name, b in schedule.buffers.items() if b.kind == "state") == [
        "latent[n-1]",
        "thumb[n-1]",
    ]


def test_memory_adds_up() -> None:
    manifest = dloral_manifest()
    one, three = (build(manifest, 128, 128, Options(), slots) for slots in (1, 3))
    needs = {"unet": 50, "vae_decoder": 70, "vae_encoder": 20}
    small, large = add_up(one, needs, {"unet": 7, "text_encoder": 9}), add_up(three, needs, {"unet": 7})
    assert small.scratch == {"scratch": 70}, "nothing overlaps with one slot: all share"
    assert large.scratch == {"scratch of encode": 20, "scratch of decode": 70}
    assert small.weights == {"unet": 7}, "only what a stage runs"
    frame, image, latent = 128 * 128 * 3, 3 * 512 * 512 * 4, 4 * 64 * 64 * 4
    thumb, flow, reference, result = 3 * 64 * 64 * 4, 2 * 64 * 64 * 4, 512 * 512 * 3, 512 * 512 * 3
    assert small.slot == frame + 2 * image + 4 * latent + thumb + flow + reference + result
    assert small.shared == latent + thumb + 77 * 32 * 4
    assert small.pinned == frame + result
    assert large.pinned == 3 * small.pinned
    assert large.device == 3 * small.slot + small.shared + 90 + 7


def test_tiles_of_a_batch_cover_all() -> None:
    manifest = dloral_manifest()
    schedule = build(manifest, 270, 480, Options(), 1, {"unet": 3})
    grid = tile_grid(manifest, "latent", {"n": 1, "h": 136, "w": 240}, Options())
    assert grid is not None
    assert grid.tiles == 8
    parts = [step.part for step in schedule.steps if step.network == "unet"]
    assert parts == [(0, 3), (3, 6), (5, 8)], "the last batch is moved back: every one has the engine's size"


def test_mistakes_in_a_schedule_are_refused() -> None:
    schedule = build(dloral_manifest(), 128, 128, Options(), 1)
    with pytest.raises(ValueError, match="same name"):
        dataclasses.replace(schedule, steps=(*schedule.steps, schedule.steps[0]))
    stray = dataclasses.replace(schedule.steps[2], name="stray", lane="nowhere")
    with pytest.raises(ValueError, match="nowhere"):
        dataclasses.replace(schedule, steps=(*schedule.steps, stray))
    writer = dataclasses.replace(schedule.steps[2], name="writer", writes={"x": "prompt"})
    with pytest.raises(ValueError, match="constant"):
        dataclasses.replace(schedule, steps=(*schedule.steps, writer))
    with pytest.raises(ValueError, match="0 slots"):
        dataclasses.replace(schedule, slots=0)


def test_what_was_not_written_is_poison() -> None:
    schedule = shrunk(build(dloral_manifest(), 128, 128, Options(), 2))
    device = SimulatedDevice(Mixing())
    device.open(schedule, derive(schedule), dict.fromkeys(["prompt"], CONSTANTS["constant"]), None)
    for arrays in device._arrays:
        assert all((array == POISON).all() for name, array in arrays.items() if name != "prompt")
    assert POISON not in (0, 0xFF), "zeros and ones are what memory often holds by chance"
