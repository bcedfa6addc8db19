"""A family unlike the product's goes through the whole runtime, from its manifest alone; see `helpers.other_family`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import other_family
from helpers.fake_gpu import FakeDriver, FakeTensorRT, blend
from helpers.media_clips import Clip, decoded, times

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.options import Options, Settings
from vsr_trt.runtime.cli import main as cli
from vsr_trt.runtime.cuda import engines
from vsr_trt.runtime.cuda.device import CudaDevice
from vsr_trt.runtime.cuda.driver import Driver
from vsr_trt.runtime.devices.runner import Runner
from vsr_trt.runtime.devices.simulated import SimulatedDevice, any_move, longest_first, newest_first
from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.onnxruntime.cpu import CpuNetworks
from vsr_trt.runtime.restore.restorer import Restorer
from vsr_trt.runtime.schedule.build import build
from vsr_trt.runtime.schedule.canvas import FrameShape
from vsr_trt.runtime.schedule.constants import constants
from vsr_trt.runtime.schedule.engine_choice import EngineChoice
from vsr_trt.runtime.schedule.events import derive, hazards

SMALL, LARGE = (40, 60), (100, 148)  # smaller than the canvas; cut into tiles under all three tilings


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return other_family.write(tmp_path_factory.mktemp("other") / "bundle")


def clip(size: tuple[int, int], count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]


def by_hand(
    bundle: Bundle, frames: list[np.ndarray], tone: str = "plain", strength: float = 0.5
) -> list[np.ndarray]:
    """What the family computes, written out for frames that are not cut into tiles."""
    networks = CpuNetworks(bundle)

    def run(name: str, **feeds: np.ndarray) -> list[np.ndarray]:
        networks.load(name)
        return list(networks.run(name, feeds).values())

    height, width = frames[0].shape[:2]
    high, wide = max(64, -(-height // 8) * 8), max(96, -(-width // 8) * 8)
    top = (high - height) // 2 if height < 64 else 0
    left = (wide - width) // 2 if width < 96 else 0
    canvas = [np.full((high, wide, 3), 255, np.uint8) for _ in frames]
    for whole, frame in zip(canvas, frames, strict=True):
        whole[top : top + height, left : left + width] = frame
    starts = list(range(0, max(1, len(frames) - 2), 2))
    if starts[-1] + 3 < len(frames):
        starts.append(len(frames) - 3)
    results: list[np.ndarray] = []
    memory: Any = None
    for start in starts:
        window = canvas[start : start + 3]
        window += [window[-1]] * (3 - len(window))
        (image,) = run("enter", frame=np.stack(window))
        (latent,) = run("encode", image=image)
        for sigma in other_family.SIGMAS:
            (guess,) = run("predict", latent=latent, sigma=sigma, strength=np.float32([strength]))
            (latent,) = run("update", latent=latent, guess=guess, sigma=sigma)
        memory, mixed = run(
            "remember", refined=latent, before=np.zeros_like(latent) if memory is None else memory
        )
        (picture,) = run("decode", mixed=mixed)
        (pixels,) = run(f"leave_{tone}", picture=picture)
        cut = pixels[:, 2 * top : 2 * (top + height), 2 * left : 2 * (left + width)]
        last = start == starts[-1]
        end = len(frames) if last else start + 2  # the frame that two windows share is the later one's
        results += [cut[index - start] for index in range(len(results), end)]
    return results


def assert_alike(one: np.ndarray, other: np.ndarray) -> None:
    """To a level here and there: a value that is rounded lies on the edge, and convolutions add up in any order."""
    difference = np.abs(one.astype(int) - np.asarray(other).astype(int))
    assert difference.max() <= 1
    assert difference.mean() < 1e-3


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("slots", [1, 2])
def test_any_number_of_frames_comes_out_as_by_hand(bundle: Bundle, count: int, slots: int) -> None:
    frames = clip(SMALL, count)
    expected = by_hand(bundle, frames)
    with Restorer(bundle.path, slots=slots) as restorer:
        found = list(restorer.restore(frames))
        again = list(restorer.restore(frames))
    assert len(found) == count
    assert found[0].shape == (80, 120, 3)
    for one, other, third in zip(found, expected, again, strict=True):
        assert_alike(one, other)
        np.testing.assert_array_equal(one, third)


def test_a_clip_as_large_as_its_canvas(bundle: Bundle) -> None:
    frames = clip((64, 96), 3)
    with Restorer(bundle.path) as restorer:
        assert_alike(np.stack(list(restorer.restore(frames))), by_hand(bundle, frames))


def test_options_reach_the_networks(bundle: Bundle) -> None:
    frames = clip(SMALL, 4)
    plain = by_hand(bundle, frames)
    for choices, tone, strength in (
        ({"tone": "soft"}, "soft", 0.5),
        ({"strength": "0.25"}, "plain", 0.25),
        ({"tone": "soft", "strength": 1}, "soft", 1.0),
    ):
        expected = by_hand(bundle, frames, tone, strength)
        with Restorer(bundle.path, choices=choices) as restorer:
            found = list(restorer.restore(frames))
        assert_alike(np.stack(found), np.stack(expected))
        assert not np.array_equal(found, plain)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"choices": {"color": "adain"}}, "no option 'color'; it has tone, strength"),
        ({"choices": {"tone": "loud"}}, "tone is 'loud'; expected one of plain, soft"),
        ({"choices": {"strength": "much"}}, "strength is 'much'; expected a number"),
        ({"choices": {"strength": 2.0}}, "strength is 2.0; expected a number from 0 to 1"),
        ({"choices": {"strength": "nan"}}, "strength is 'nan'"),
        ({"tiles": {"latent": 64}}, "no tiling 'latent'; it has outer, inner, late"),
        ({"tiles": {"inner": 31}}, "--tile inner=31: expected a multiple of 4"),
        ({"overlaps": {"": 40}}, "--overlap outer=40: expected 0 to half the tile, 24"),
    ],
)
def test_what_the_family_does_not_have_is_refused(bundle: Bundle, settings: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Restorer(bundle.path, **settings)


def opened(bundle: Bundle, size: tuple[int, int], slots: int) -> tuple:
    manifest, options = bundle.manifest, Options()
    shape = FrameShape.of(manifest, *size)
    schedule = build(manifest, *shape.given, options, slots)
    return schedule, derive(schedule), constants(manifest, schedule, options, bundle.constants()), shape


def through(
    device: Any, bundle: Bundle, size: tuple[int, int], slots: int, frames: list[np.ndarray]
) -> list[bytes]:
    schedule, events, known, shape = opened(bundle, size, slots)
    device.arrange(*shape.given, Options()).open(schedule, events, known, None)
    runner = Runner(device, slots, timeout=600, window=bundle.manifest.window)
    placed = [shape.place(frame, 255) for frame in frames]
    return [r.tobytes() for frame in placed for r in runner.push(frame)] + [
        r.tobytes() for r in runner.flush()
    ]


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_the_schedule_has_no_race(bundle: Bundle, size: tuple[int, int], slots: int) -> None:
    schedule, events, _, _ = opened(bundle, size, slots)
    assert hazards(schedule, events) == []
    names = [step.name for step in schedule.steps if step.stage == "update"]
    assert names == [f"update@{index}" for index in range(4)]
    if size == LARGE:
        assert {step.action for step in schedule.steps} >= {"cut", "blend"}
        assert sum(step.stage == "predict" and step.action == "network" for step in schedule.steps) >= 4 * 4
    for missing in events:
        assert hazards(schedule, [event for event in events if event != missing])


@pytest.mark.parametrize("policy", [any_move, longest_first, newest_first])
def test_hostile_orders_give_the_same_bytes(bundle: Bundle, policy: Any) -> None:
    frames = clip(LARGE, 7)
    networks = CpuNetworks(bundle, threads=1)
    for name in bundle.manifest.networks:
        networks.load(name)
    with Restorer(bundle.path, threads=1) as restorer:
        shape = FrameShape.of(bundle.manifest, *LARGE)
        expected = [frame.tobytes() for frame in restorer.restore(frames)]
    found = through(SimulatedDevice(networks, policy, seed=1), bundle, LARGE, 2, frames)
    whole = [np.frombuffer(data, np.uint8).reshape(*(2 * side for side in shape.given), 3) for data in found]
    assert [shape.crop(pixels).tobytes() for pixels in whole] == expected


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_the_cuda_device_gives_the_same_bytes(tmp_path: Path, size: tuple[int, int], slots: int) -> None:
    engines._shared.clear()
    engines._libraries.clear()
    bundle = other_family.with_engines(other_family.write(tmp_path / "bundle"))
    frames, networks = clip(size, 7), CpuNetworks(bundle, threads=1)
    for name in bundle.manifest.networks:
        networks.load(name)
    driver = FakeDriver(kernels={"blend_tiles": blend})
    trt = FakeTensorRT(bundle.manifest, networks, driver)
    records = {record.network: record for record in bundle.manifest.engines if record.network != "leave_soft"}
    device = CudaDevice(
        bundle,
        "tensorrt_rtx",
        trt,
        Driver(driver),
        "sm_89",
        lambda h, w, options, part: EngineChoice(options, records, {}),
    )
    found = through(device, bundle, size, slots, frames)
    device.close()
    assert driver.live == []
    assert found == through(SimulatedDevice(networks, any_move, seed=2), bundle, size, slots, frames)


def test_restore_as_typed(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = Clip(pts=(0, 512, 1024, 2000, 2512), size=(60, 40), codec="ffv1", options={}, pix_fmt="bgr0")
    clip.write(tmp_path / "in.mkv")
    output = tmp_path / "out.mkv"
    common = [
        "restore",
        str(tmp_path / "in.mkv"),
        "-o",
        str(output),
        "--bundle",
        str(bundle.path),
        "--codec",
        "ffv1",
    ]
    assert cli.main([*common, "--strength", "0.25", "--set", "tone=soft", "--json"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert (report["frames"], report["width"], report["height"]) == (5, 120, 80)
    assert set(report["stages"]) >= {"enter", "encode", "predict", "update", "remember", "decode", "leave"}
    assert "stand on a canvas of 96x64" in " ".join(printed.err.split())
    assert times(output) == times(tmp_path / "in.mkv")
    expected = by_hand(bundle, decoded(tmp_path / "in.mkv"), "soft", 0.25)
    assert_alike(np.stack(decoded(output)), np.stack(expected))


def test_its_options_are_in_the_help(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["restore", "--bundle", str(bundle.path), "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "options of this bundle (other)" in text
    assert "--tone plain|soft how light the result is (default: plain)" in text
    assert "--strength X how much is taken away (default: 0.5)" in text
    assert "--color" not in text


def test_plan_and_bench_as_typed(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--bundle", str(bundle.path), "--size", "296x200"]
    assert cli.main(["plan", *size, "--slots", "2", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["options"]["tiles"] == {"outer": 48, "inner": 32, "late": 40}
    assert {lane["name"] for lane in plan["lanes"]} >= {"in", "work", "out"}
    assert cli.main(["plan", *size, "--draw", str(tmp_path / "a.svg")]) == 0
    bench = [
        "bench",
        *size,
        "--slots",
        "2",
        "--seconds",
        "0",
        "--warmup",
        "0",
        "--json",
        str(tmp_path / "b.json"),
    ]
    assert cli.main([*bench, "--tone", "soft"]) == 0
    report = json.loads((tmp_path / "b.json").read_text())
    assert report["settings"]["choices"] == {"tone": "soft"}
    assert set(report["modes"]["throughput"]["observed"]["stages"]) >= {"predict", "update"}
    assert cli.main(["doctor", "--bundle", str(bundle.path)]) == 0


def test_settings_are_one_record(bundle: Bundle) -> None:
    frames = clip(LARGE, 3)
    settings = Settings(tiles={"inner": 28}, overlaps={"inner": 8}, slots=2)
    with Restorer(bundle.path, settings) as one, Restorer(bundle.path, settings, slots=1) as other:
        for a, b in zip(one.restore(frames), other.restore(frames), strict=True):
            np.testing.assert_array_equal(a, b)


def test_28_steps_of_30_tiles_and_more_are_proven(bundle: Bundle) -> None:
    """`vsr-build schedule` prints how long that takes: it was a minute before, and is a tenth of a second."""
    loop = dataclasses.replace(bundle.manifest.loops["sampler"], steps=28)
    manifest = dataclasses.replace(bundle.manifest, loops={"sampler": loop})
    schedule = build(manifest, 180, 320, Options(), 2)
    assert sum(step.stage == "predict" and step.action == "network" for step in schedule.steps) >= 28 * 30
    events = derive(schedule)
    assert hazards(schedule, events) == []
    for missing in events:
        assert hazards(schedule, [event for event in events if event != missing])
