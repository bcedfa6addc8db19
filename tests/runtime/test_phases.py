"""A family in phases goes through the whole runtime, from its manifest alone; see `helpers.clip_family`."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import clip_family
from helpers.fake_gpu import FakeDriver, FakeTensorRT, blend
from helpers.media_clips import Clip, decoded, times

from vsr_trt.build import main as build_main
from vsr_trt.engines.tensorrt.shapes import Layout, Size, profiles
from vsr_trt.runtime.bundle.checks import check
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Chunks, Manifest, Stage, Window
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.bundle.records import MisfitError
from vsr_trt.runtime.cli import main as cli
from vsr_trt.runtime.cuda import engines
from vsr_trt.runtime.cuda.device import CudaDevice
from vsr_trt.runtime.cuda.driver import Driver
from vsr_trt.runtime.devices.simulated import SimulatedDevice, any_move, longest_first, newest_first
from vsr_trt.runtime.onnxruntime.cpu import CpuNetworks
from vsr_trt.runtime.restore import restorer as restorer_module
from vsr_trt.runtime.restore.restorer import Restorer
from vsr_trt.runtime.schedule import file
from vsr_trt.runtime.schedule.build import build
from vsr_trt.runtime.schedule.canvas import FrameShape
from vsr_trt.runtime.schedule.engine_choice import EngineChoice
from vsr_trt.runtime.schedule.events import derive, hazards
from vsr_trt.runtime.schedule.parts import parts, spans

SMALL, LARGE = (40, 60), (100, 148)  # smaller than the canvas; cut into tiles


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return clip_family.write(tmp_path_factory.mktemp("clip") / "bundle")


def clip(size: tuple[int, int], count: int, seed: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]


def by_hand(bundle: Bundle, frames: list[np.ndarray], window: int = 3) -> list[np.ndarray]:
    """What the family computes for frames that are not cut into tiles, written out step by step."""
    networks = CpuNetworks(bundle, threads=1)

    def run(name: str, **feeds: np.ndarray) -> list[np.ndarray]:
        networks.load(name)
        return list(networks.run(name, feeds).values())

    height, width = frames[0].shape[:2]
    top, left = (64 - height) // 2, (96 - width) // 2
    encoded = []
    for frame in frames:
        canvas = np.full((64, 96, 3), 255, np.uint8)
        canvas[top : top + height, left : left + width] = frame
        encoded.append(run("encode", frame=canvas[None]))
    hint = np.concatenate([latent for latent, _ in encoded], axis=2)
    x, last = run("start", latent=hint)
    count, overlap, longest = len(frames), window // 2, window * 1.25
    chunks = [(0, count)]
    if count > longest:
        chunks = []
        for start in itertools.count(0, window - overlap):
            chunks.append((start, count if start + longest >= count else start + window))
            if start + longest >= count:
                break
    for sigma in clip_family.SIGMAS:
        guesses = []
        for number, (start, end) in enumerate(chunks):
            (guess,) = run("predict", x=x[:, :, start:end], hint=hint[:, :, start:end], sigma=sigma)
            low = overlap // 2 if number else 0
            high = end - start - (0 if number == len(chunks) - 1 else overlap - overlap // 2)
            guesses.append(guess[:, :, low:high])
        guess = np.concatenate(guesses, axis=2)
        (x,) = run("update", x=x, guess=guess, last=last, sigma=sigma)
        last = guess
    results = []
    for start in range(0, count, 3):
        (picture,) = run("decode", refined=x[:, :, start : start + 3])
        level = np.concatenate([level for _, level in encoded[start : start + 3]])
        (pixels,) = run("leave", picture=picture, level=level)
        results += list(pixels[:, 2 * top : 2 * (top + height), 2 * left : 2 * (left + width)])
    return results


def assert_alike(one: Any, other: Any) -> None:
    """To a level here and there: a value that is rounded lies on the edge, and convolutions add up in any order."""
    difference = np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int))
    assert difference.max() <= 1
    assert difference.mean() < 1e-3


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 11])
def test_any_number_of_frames_comes_out_as_by_hand(bundle: Bundle, count: int, slots: int) -> None:
    frames = clip(SMALL, count)
    with Restorer(bundle.path, slots=slots, threads=1) as restorer:
        found = list(restorer.restore(frames))
        assert len(found) == count
        assert len(restorer.timings()) == count
        assert restorer.timings()[0].keys() == {stage.name for stage in clip_family.STAGES}
        again = list(restorer.restore(frames))
    assert_alike(found, by_hand(bundle, frames))
    np.testing.assert_array_equal(found, again)


def test_an_option_says_how_long_chunks_are(bundle: Bundle) -> None:
    frames = clip(SMALL, 9)
    with Restorer(bundle.path, choices={"window": 6}, threads=1) as restorer:
        found = list(restorer.restore(frames))
    assert_alike(found, by_hand(bundle, frames, window=6))
    assert np.abs(np.asarray(found).astype(int) - np.asarray(by_hand(bundle, frames))).max() > 1


def test_chunks_as_published(bundle: Bundle) -> None:
    """Chunks of 32 that share 16, of which the last may have 40."""
    chunks = {"near": Chunks(32, 0.5, 1.25)}
    manifest = dataclasses.replace(bundle.manifest, chunks=chunks)

    def found(frames: int) -> list[tuple[int, int]]:
        return [(span.start, span.end) for span in spans(manifest, "near", frames, Options())]

    assert found(32) == [(0, 32)]
    assert found(33) == [(0, 33)]
    assert found(40) == [(0, 40)]
    assert found(41) == [(0, 32), (16, 41)]
    assert found(72) == [(0, 32), (16, 48), (32, 72)]
    assert found(100) == [(0, 32), (16, 48), (32, 64), (48, 80), (64, 100)]
    for frames in range(1, 200):
        cut = spans(manifest, "near", frames, Options())
        assert [frame for span in cut for frame in range(span.first, span.last)] == list(range(frames))
        assert all(span.start <= span.first < span.last <= span.end for span in cut)


def test_frames_come_when_the_clip_has_ended(bundle: Bundle) -> None:
    frames = clip(SMALL, 5)
    with Restorer(bundle.path, threads=1) as restorer:
        expected = list(restorer.restore(frames))
        for frame in frames:
            assert restorer.push(frame) == []
        assert restorer.memory["clip"] > 0
        np.testing.assert_array_equal(restorer.flush(), expected)
        assert restorer.flush() == []
        for frame in frames:
            restorer.push(frame)
        drained = restorer.drain()
        first = next(drained)  # the others are not made yet
        np.testing.assert_array_equal([first, *drained], expected)


def test_scenes_do_not_see_each_other(bundle: Bundle) -> None:
    one, other = clip(SMALL, 5), clip(SMALL, 4, seed=4)
    with Restorer(bundle.path, threads=1) as restorer:
        expected = [*restorer.restore(one), *restorer.restore(other)]
        found = [result for frame in one for result in restorer.push(frame)]
        restorer.reset()
        found += [result for frame in other for result in restorer.push(frame)]
        np.testing.assert_array_equal([*found, *restorer.flush()], expected)


def test_a_clip_that_is_given_up_leaves_nothing(bundle: Bundle) -> None:
    frames = clip(SMALL, 5)
    with Restorer(bundle.path, threads=1) as restorer:
        expected = list(restorer.restore(frames))
        for frame in clip(SMALL, 3, seed=5):
            restorer.push(frame)
        np.testing.assert_array_equal(list(restorer.restore(frames)), expected)
        results = restorer.restore(frames)
        next(results)
        results.close()
        np.testing.assert_array_equal(list(restorer.restore(frames)), expected)


@pytest.mark.parametrize("frames", [1, 5, 6, 13])
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_the_schedules_have_no_race(
    bundle: Bundle, size: tuple[int, int], frames: int, tmp_path: Path
) -> None:
    shape = FrameShape.of(bundle.manifest, *size)
    for part in parts(bundle.manifest, frames):
        for slots in (1, 2):
            schedule = build(bundle.manifest, *shape.given, Options(), slots, part=part)
            events = derive(schedule)
            assert hazards(schedule, events) == []
            for missing in events:
                assert hazards(schedule, [event for event in events if event != missing])
            file.write(tmp_path / "schedule.json", schedule, events)
            assert file.read(tmp_path / "schedule.json") == (schedule, events)


def test_memory_grows_with_the_clip_by_its_latents_alone(bundle: Bundle) -> None:
    shape = FrameShape.of(bundle.manifest, *SMALL)

    def bytes_of(frames: int) -> int:
        schedule = build(bundle.manifest, *shape.given, Options(), part=parts(bundle.manifest, frames)[1])
        return sum(buffer.bytes for buffer in schedule.buffers.values() if buffer.kind == "slot")

    latents = 4 * 32 * 48 * 4
    steps = {bytes_of(frames + 2) - bytes_of(frames) for frames in (100, 200, 300)}
    assert steps == {2 * latents * 7}  # latent, x, last, guess twice, refined twice


def on(
    device: Callable[[], Any], bundle: Bundle, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> Restorer:
    """A Restorer on a device of the test's."""
    monkeypatch.setattr(restorer_module.backends, "open_device", lambda *_, **__: device())
    return Restorer(bundle.path, backend="onnxruntime-cpu", **settings)


@pytest.mark.parametrize("policy", [any_move, longest_first, newest_first])
def test_hostile_orders_give_the_same_bytes(
    bundle: Bundle, policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = clip(LARGE, 7)
    with Restorer(bundle.path, threads=1) as restorer:
        expected = list(restorer.restore(frames))
    networks = CpuNetworks(bundle, threads=1)
    for name in bundle.manifest.networks:
        networks.load(name)
    with on(lambda: SimulatedDevice(networks, policy, seed=1), bundle, monkeypatch, slots=2) as restorer:
        np.testing.assert_array_equal(list(restorer.restore(frames)), expected)


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_the_cuda_device_gives_the_same_bytes(
    tmp_path: Path, size: tuple[int, int], slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines._shared.clear()
    engines._libraries.clear()
    bundle = clip_family.with_engines(clip_family.write(tmp_path / "bundle"))
    frames, networks = clip(size, 7), CpuNetworks(bundle, threads=1)
    with Restorer(bundle.path, threads=1, backend="onnxruntime-cpu") as restorer:
        expected = list(restorer.restore(frames))
    for name in bundle.manifest.networks:
        networks.load(name)
    driver = FakeDriver(kernels={"blend_tiles": blend})
    trt = FakeTensorRT(bundle.manifest, networks, driver)
    records = {record.network: record for record in bundle.manifest.engines}
    loaded: list[set[str]] = []

    def choose(height: int, width: int, options: Options, part: Any) -> EngineChoice:
        needed = {stage.network for stage in part.stages}
        loaded.append(needed)
        return EngineChoice(options, {name: records[name] for name in needed}, {})

    def device() -> CudaDevice:
        return CudaDevice(bundle, "tensorrt_rtx", trt, Driver(driver), "sm_89", choose)

    with on(device, bundle, monkeypatch, slots=slots) as restorer:
        found, again = (list(restorer.restore(frames)) for _ in range(2))
    np.testing.assert_array_equal(found, again)
    if size == SMALL:
        np.testing.assert_array_equal(found, expected)
    assert_alike(found, expected)  # tiles are blended by other code, whose sums may round another way
    assert driver.live == []
    each = [{"encode"}, {"start", "predict", "update"}, {"decode", "leave"}, {"decode", "leave"}]
    assert loaded == each * 2  # only what the phase needs is on the device


def test_restore_as_typed(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Clip(pts=(0, 512, 1024, 2000, 2512), size=(60, 40), codec="ffv1", options={}, pix_fmt="bgr0")
    source.write(tmp_path / "in.mkv")
    output = tmp_path / "out.mkv"
    typed = ["restore", str(tmp_path / "in.mkv"), "-o", str(output), "--bundle", str(bundle.path)]
    assert cli.main([*typed, "--codec", "ffv1", "--window", "4", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["frames"], report["width"], report["height"]) == (5, 120, 80)
    assert set(report["stages"]) >= {"encode", "start", "predict", "update", "decode", "leave"}
    assert times(output) == times(tmp_path / "in.mkv")
    assert_alike(decoded(output), by_hand(bundle, decoded(tmp_path / "in.mkv"), window=4))


def test_plan_as_typed(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["plan", "--bundle", str(bundle.path), "--size", "296x200"]
    assert cli.main(typed) == 2
    assert "say how many frames it has" in capsys.readouterr().err
    assert cli.main([*typed, "--frames", "0"]) == 2
    capsys.readouterr()
    assert cli.main([*typed, "--frames", "40", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [phase["phase"] for phase in plan["phases"]] == ["enter", "sample", "leave"]
    assert [phase["frames"] for phase in plan["phases"]] == [1, 40, 3]
    assert plan["phase"] == "sample"  # which needs most
    latents = 4 * (104 // 2) * (152 // 2) * 4  # the canvas is larger than the frame
    assert plan["kept"] == 40 * (2 * latents + 3 * 4)  # latent, refined, level
    assert cli.main([*typed, "--frames", "40"]) == 0
    assert "between phases the host keeps" in capsys.readouterr().out
    assert cli.main([*typed, "--frames", "400", "--memory", "100MB"]) == 7
    assert "--memory allows" in capsys.readouterr().err


@pytest.mark.thorough
def test_bench_as_typed(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["bench", "--bundle", str(bundle.path), "--size", "120x80", "--seconds", "0", "--warmup", "0"]
    assert cli.main(typed) == 2
    assert "--frames" in capsys.readouterr().err
    report = tmp_path / "b.json"
    assert cli.main([*typed, "--frames", "5", "--json", str(report)]) == 0
    found = json.loads(report.read_text())
    assert found["settings"]["frames"] == 5
    for mode in found["modes"].values():
        assert mode["frames"] == 5 * len(mode["latency"]["samples"]) == len(mode["interval"]["samples"])
        assert mode["fps"] == pytest.approx(mode["frames"] / mode["seconds"])
        assert set(mode["observed"]["stages"]) >= {"encode", "predict", "update", "decode", "leave"}
    assert cli.main([*typed, "--frames", "6", "--compare", str(report)]) == 2
    assert "--frames 5" in capsys.readouterr().err


def test_schedules_and_doctor_as_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = clip_family.write(tmp_path / "bundle")
    typed = ["schedule", str(bundle.path), "--size", "120x80", "--frames", "7", "--json"]
    assert build_main([*typed, "--slots", "2"]) == 0
    written = json.loads(capsys.readouterr().out)["schedules"]
    assert [Path(item["file"]).name for item in written] == [
        "120x80-s2-enter-1f.json",
        "120x80-s1-sample-7f.json",
        "120x80-s2-leave-3f.json",
        "120x80-s2-leave-1f.json",
    ]
    schedule, _ = file.read(bundle.path / written[1]["file"])
    assert schedule.takes.keys() == {"latent"}
    assert not schedule.last
    assert build_main(typed[:4]) == 2
    assert cli.main(["doctor", "--bundle", str(bundle.path)]) == 0
    said = " ".join(word for word in capsys.readouterr().out.split() if word != "│")
    assert "phase sample all frames at once" in said
    assert "chunks near window frames, 50% shared, the last up to 1.25 x" in said


def test_engines_take_the_frames_of_their_phase(bundle: Bundle) -> None:
    sizes, layout = [Size(120, 80)], Layout(Options({"window": 8}))

    def frames(network: str) -> tuple[int, int, int]:
        ((ranges, _),) = profiles(bundle.manifest, network, sizes, layout)
        return ranges["f"]

    assert frames("encode") == (1, 1, 1)
    assert frames("predict") == (1, 8, 10)
    assert frames("update") == (1, 32, 4096)
    assert frames("leave") == (1, 3, 3)


def changed(manifest: Manifest, name: str, **values: Any) -> Manifest:
    stages = tuple(dataclasses.replace(s, **values) if s.name == name else s for s in manifest.stages)
    return dataclasses.replace(manifest, stages=stages)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: changed(m, "decode", phase=None), "each stage in one"),
        (lambda m: changed(m, "decode", phase="sample", chunks=None), None),
        (lambda m: changed(m, "start", phase="leave"), "expected"),
        (lambda m: dataclasses.replace(m, phases=dict(reversed(m.phases.items()))), "of the phases"),
        (lambda m: dataclasses.replace(m, phases=m.phases | {"enter": Window(None)}), "same number"),
        (lambda m: dataclasses.replace(m, phases=m.phases | {"leave": Window(3, 1, "short")}), "overlap"),
        (
            lambda m: dataclasses.replace(m, phases=m.phases | {"leave": Window(0)}),
            "phases.leave.frames is 0",
        ),
        (lambda m: dataclasses.replace(m, window=Window(None)), None),
        (lambda m: changed(m, "update", phase="leave"), "over the end|stand together"),
        (lambda m: changed(m, "update", chunks="far"), "chunks 'far'"),
        (lambda m: dataclasses.replace(m, chunks={"near": Chunks(0)}), "chunks.near.frames is 0"),
        (lambda m: dataclasses.replace(m, chunks={"near": Chunks("tone")}), "no option with a whole"),
        (lambda m: dataclasses.replace(m, chunks={"near": Chunks(4, 1.0)}), "overlap from 0"),
        (lambda m: dataclasses.replace(m, chunks={"near": Chunks(4, 0.5, 0.5)}), "stretch of 1"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(
    bundle: Bundle, change: Callable[[Manifest], Manifest], said: str | None
) -> None:
    check(bundle.manifest)
    if said is None:
        check(change(bundle.manifest))
        return
    with pytest.raises(MisfitError, match=said):
        check(change(bundle.manifest))


def test_what_passes_between_phases_has_frames(bundle: Bundle) -> None:
    late = Stage("late", "start", {"latent": "latent[n-1]"}, {"x": "y", "last": "z"}, phase="leave")
    manifest = dataclasses.replace(bundle.manifest, stages=(*bundle.manifest.stages, late))
    with pytest.raises(MisfitError, match=r"reads 'latent\[n-1\]' of another phase"):
        check(manifest)


def test_the_frame_is_the_first_phase_s(bundle: Bundle) -> None:
    late = Stage("late", "encode", {"frame": "frame"}, {"latent": "y", "level": "z"}, phase="leave")
    manifest = dataclasses.replace(bundle.manifest, stages=(*bundle.manifest.stages, late))
    with pytest.raises(MisfitError, match="reads the frame, which only the first phase does"):
        check(manifest)
