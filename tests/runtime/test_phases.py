"""A family in phases goes through the whole runtime, from its manifest alone; see `helpers.clip_family`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import clip_family
from helpers.clip_family import GROUP
from helpers.fake_gpu import FakeDriver, FakeTensorRT, blend
from helpers.matrix import matrix
from helpers.media_clips import Clip, decoded, times

from vsr_trt.build import main as build_main
from vsr_trt.engines.tensorrt.shapes import Layout, Size, profiles
from vsr_trt.runtime.bundle.checks import check
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Chunks, Input, Manifest, Stage, Window
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.bundle.records import MisfitError
from vsr_trt.runtime.cli import main as cli
from vsr_trt.runtime.cuda import engines
from vsr_trt.runtime.cuda.device import CudaDevice
from vsr_trt.runtime.cuda.driver import Driver
from vsr_trt.runtime.devices.simulated import SimulatedDevice, any_move, longest_first, newest_first
from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.onnxruntime.cpu import CpuNetworks
from vsr_trt.runtime.plan.plan import PlanRequest, make
from vsr_trt.runtime.restore import fit, job
from vsr_trt.runtime.restore import restorer as restorer_module
from vsr_trt.runtime.restore.noise import draw
from vsr_trt.runtime.restore.progress import PhaseProgress
from vsr_trt.runtime.restore.restorer import Restorer
from vsr_trt.runtime.restore.segments import Segments
from vsr_trt.runtime.schedule import file
from vsr_trt.runtime.schedule.build import build
from vsr_trt.runtime.schedule.canvas import FrameShape
from vsr_trt.runtime.schedule.engine_choice import EngineChoice
from vsr_trt.runtime.schedule.events import derive, hazards
from vsr_trt.runtime.schedule.parts import clip_parts, parts, spans

SMALL, LARGE = (40, 60), (100, 148)  # smaller than the canvas; cut into tiles


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return clip_family.write(tmp_path_factory.mktemp("clip") / "bundle")


def clip(size: tuple[int, int], count: int, seed: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]


def noise_for(frames: list[np.ndarray], steps: int = 4, seed: int = 7) -> dict[str, np.ndarray]:
    """What is drawn for a clip, in the arrays of a recording."""
    h, w = (-(-max(least, side) // 8) * 4 for least, side in zip((64, 96), frames[0].shape[:2], strict=True))

    def rows(name: str, step: int = 0) -> list[np.ndarray]:
        return [draw(seed, name, step, frame, 4 * h * w).reshape(4, h, w) for frame in range(len(frames))]

    return {
        "noise_grain": np.stack(rows("grain")),
        "noise_start": np.stack(rows("start"), axis=1),
        "noise_step": np.stack([np.stack(rows("step", step), axis=1) for step in range(steps)]),
    }


def by_hand(
    bundle: Bundle,
    frames: list[np.ndarray],
    window: int = 3,
    table: tuple[str, int] = ("fast", 4),
    noise: dict[str, np.ndarray] | None = None,
) -> list[np.ndarray]:
    """What the family computes for frames that are not cut into tiles, written out step by step."""
    networks = CpuNetworks(bundle, threads=1)
    sigmas = clip_family.SIGMAS[table]
    noise = noise_for(frames, len(sigmas)) if noise is None else noise

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
    sampled = [
        run("sample", latent=latent, noise=grain[None])[0]
        for (latent, _), grain in zip(encoded, noise["noise_grain"], strict=True)
    ]
    hint = np.concatenate(sampled, axis=2)
    x, last = run("start", latent=hint, noise=noise["noise_start"][None])
    count, overlap, longest = len(frames), window // 2, window * 1.25
    chunks = [(0, count)]
    if count > longest:
        chunks = []
        for start in itertools.count(0, window - overlap):
            chunks.append((start, count if start + longest >= count else start + window))
            if start + longest >= count:
                break
    for step, sigma in enumerate(sigmas):
        guesses = []
        for number, (start, end) in enumerate(chunks):
            (guess,) = run(
                "predict", x=x[:, :, start:end], hint=hint[:, :, start:end], sigma=sigma * np.float32(0.5)
            )
            low = overlap // 2 if number else 0
            high = end - start - (0 if number == len(chunks) - 1 else overlap - overlap // 2)
            guesses.append(guess[:, :, low:high])
        guess = np.concatenate(guesses, axis=2)
        each = noise["noise_step"][step] if step < len(noise["noise_step"]) else np.zeros_like(x[0])
        (x,) = run("update", x=x, guess=guess, last=last, sigma=sigma, noise=each[None])
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


@pytest.mark.parametrize(
    ("slots", "count"),
    matrix([1, 2], [1, 2, 3, 4, 5, 6, 7, 8, 11], fast=lambda slots, count: slots == 1 + count % 2),
)
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


@pytest.mark.parametrize("table", [("fast", 4), ("normal", 1), ("normal", 3)])
def test_options_choose_the_table_and_how_often_the_loop_runs(bundle: Bundle, table: tuple[str, int]) -> None:
    frames = clip(SMALL, 4)
    choices = {"solver": table[0], "steps": table[1]}
    with Restorer(bundle.path, choices=choices, threads=1) as restorer:
        assert_alike(list(restorer.restore(frames)), by_hand(bundle, frames, table=table))


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        (
            {"steps": 5},
            r"solver=fast, steps=5: .* solver=normal with steps=1 to 3; solver=fast with steps=4\.",
        ),
        ({"solver": "normal"}, "solver=normal, steps=4: this bundle was not built for that"),
        ({"steps": 0}, "steps is 0; expected a whole number from 1 to 100"),
    ],
)
def test_a_table_that_the_bundle_lacks_is_refused(bundle: Bundle, choices: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Restorer(bundle.path, choices=choices)


def test_noise_depends_on_the_seed_and_the_frame_alone(bundle: Bundle) -> None:
    frames = clip(SMALL, 5)
    with Restorer(bundle.path, choices={"seed": 8}, threads=1) as restorer:
        other = list(restorer.restore(frames))
        assert_alike(other, by_hand(bundle, frames, noise=noise_for(frames, seed=8)))
        for frame in frames:  # a second clip begins with the noise of its first frame
            restorer.push(frame)
        np.testing.assert_array_equal(restorer.flush(), other)
    assert np.abs(np.asarray(other).astype(int) - np.asarray(by_hand(bundle, frames))).max() > 1


@pytest.mark.parametrize("last", [False, True])
def test_recorded_noise_takes_the_place_of_drawn(bundle: Bundle, tmp_path: Path, last: bool) -> None:
    frames, rng = clip(SMALL, 4), np.random.default_rng(0)
    noise = {k: rng.standard_normal(v.shape, np.float32) for k, v in noise_for(frames).items()}
    if not last:
        noise["noise_step"] = noise["noise_step"][:-1]
    expected = by_hand(bundle, frames, noise=noise)
    with Restorer(bundle.path, noise=noise, threads=1) as restorer:
        found = list(restorer.restore(frames))
    assert_alike(found, expected)
    np.savez(tmp_path / "noise.npz", **noise, other=np.zeros(3))
    with Restorer(bundle.path, noise=tmp_path / "noise.npz", threads=1) as restorer:
        np.testing.assert_array_equal(list(restorer.restore(frames)), found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda n: n.pop("noise_start"), "no array noise_start; it has noise_grain, noise_step"),
        (lambda n: n.update(noise_step=n["noise_step"][:2]), "noise_step has 2 steps; expected 4, or 3"),
        (lambda n: n.update(noise_start=n["noise_start"][:, :2]), "noise_start is for 2 frames"),
        (
            lambda n: n.update(noise_grain=n["noise_grain"][..., :3]),
            r"noise_grain is \[4, 32, 3\] for a frame",
        ),
        (lambda n: n.update(noise_grain=n["noise_grain"].astype(int)), "expected floating point numbers"),
        (lambda n: n.update(noise_start=n["noise_start"][0, 0, 0]), "frames along axis 1"),
    ],
)
def test_recorded_noise_that_does_not_fit_is_refused(
    bundle: Bundle, change: Callable[[dict[str, np.ndarray]], object], said: str
) -> None:
    frames = clip(SMALL, 4)
    noise = noise_for(frames)
    change(noise)
    with pytest.raises(InputError, match=said), Restorer(bundle.path, noise=noise) as restorer:
        list(restorer.restore(frames))


def test_a_recording_that_is_none_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    for name, content in {"text.npz": b"no zip", "empty.npz": b"", "cut.npz": b"PK\x03\x04abc"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            Restorer(bundle.path, noise=tmp_path / name)
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name in ("one.npy", "none.npz"):
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            Restorer(bundle.path, noise=tmp_path / name)


def test_how_far_each_phase_is_can_be_seen(bundle: Bundle) -> None:
    told: list[PhaseProgress] = []
    with Restorer(bundle.path, threads=1, progress=told.append) as restorer:
        assert len(list(restorer.restore(clip(SMALL, 7)))) == 7
    assert [now.phase for now in told] == sorted(
        (now.phase for now in told), key=list(clip_family.PHASES).index
    )
    enter, sample, leave = (
        [now for now in told if now.phase == phase] for phase in ("enter", "sample", "leave")
    )
    assert [now.done for now in enter if now.done] == sorted(now.done for now in enter if now.done)
    assert enter[-1].done >= 7
    runs = 2 + 4 * (6 + 1)  # features, start; in each step 6 chunks, and the update
    assert (sample[0].done, sample[-1].done, {now.total for now in sample}) == (0, runs, {runs})
    assert (leave[-1].done, leave[-1].total, leave[-1].number, leave[-1].phases) == (6, 6, 3, 3)


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


def test_a_clip_that_is_shorter_than_a_window_is_taken_as_such(bundle: Bundle) -> None:
    lengths = {frames: [part.frames for part in clip_parts(bundle.manifest, frames)] for frames in (1, 3, 9)}
    assert lengths == {1: [1, 1, 1], 3: [1, 3, GROUP], 9: [1, 9, GROUP]}
    request = PlanRequest(120, 80, 1, None, Options(), frames=1)
    assert [plan.part.frames for plan in make(bundle, request).phases] == lengths[1]


def test_memory_grows_with_the_clip_by_its_latents_alone(bundle: Bundle) -> None:
    shape = FrameShape.of(bundle.manifest, *SMALL)

    def bytes_of(frames: int) -> int:
        schedule = build(bundle.manifest, *shape.given, Options(), part=parts(bundle.manifest, frames)[1])
        return sum(buffer.bytes for buffer in schedule.buffers.values() if buffer.kind == "slot")

    latents = 4 * 32 * 48 * 4
    steps = {bytes_of(frames + 2) - bytes_of(frames) for frames in (100, 200, 300)}
    assert steps == {
        2 * latents * 9
    }  # hint, x, last, guess twice, refined twice, noise of the start, of a step


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


@pytest.mark.parametrize(
    ("slots", "size"),
    matrix([1, 2], [SMALL, LARGE], fast=lambda slots, size: (slots == 2) == (size == LARGE)),
)
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
    middle = {"features", "start", "predict", "update"}
    each = [{"encode", "sample"}, middle, {"decode", "leave"}, {"decode", "leave"}]
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


def test_restore_with_recorded_noise_as_typed(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Clip(pts=(0, 512, 1024), size=(60, 40), codec="ffv1", options={}, pix_fmt="bgr0")
    source.write(tmp_path / "in.mkv")
    frames = decoded(tmp_path / "in.mkv")
    rng = np.random.default_rng(2)
    noise = {name: rng.standard_normal(array.shape, np.float32) for name, array in noise_for(frames).items()}
    np.savez(tmp_path / "noise.npz", **noise)
    typed = [
        "restore",
        str(tmp_path / "in.mkv"),
        "-o",
        str(tmp_path / "out.mkv"),
        "--bundle",
        str(bundle.path),
    ]
    typed += ["--codec", "ffv1", "--noise", str(tmp_path / "noise.npz")]
    assert cli.main(typed) == 0
    assert_alike(decoded(tmp_path / "out.mkv"), by_hand(bundle, frames, noise=noise))
    assert cli.main([*typed[:-1], str(tmp_path / "gone.npz"), "--overwrite"]) == 2
    assert "gone.npz cannot be read" in capsys.readouterr().err
    assert_alike(decoded(tmp_path / "out.mkv"), by_hand(bundle, frames, noise=noise))  # as it was


def test_a_clip_that_does_not_fit_is_refused_before_anything_is_loaded(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Clip(pts=tuple(range(0, 512 * 30, 512)), size=(60, 40), codec="ffv1", options={}, pix_fmt="bgr0")
    source.write(tmp_path / "in.mkv")
    typed = [
        "restore",
        str(tmp_path / "in.mkv"),
        "-o",
        str(tmp_path / "out.mkv"),
        "--bundle",
        str(bundle.path),
    ]
    limit = fit.need(bundle, 40, 60, 12, Options())
    assert fit.need(bundle, 40, 60, 30, Options()) > limit > fit.need(bundle, 40, 60, 11, Options())
    with monkeypatch.context() as patch:
        patch.setattr(job, "Restorer", None)
        assert cli.main([*typed, "--memory", f"{limit / 1e6:.6f}MB"]) == 7
        told = capsys.readouterr().err
        assert "30 frames of 120x80" in told
        found = re.search(r"What fits: --frames (\d+),.* or --segment (\d+)", told)
        assert found is not None
        assert fit.need(bundle, 40, 60, int(found[1]), Options()) <= limit
        assert cli.main([*typed, "--memory", "1MB"]) == 7
        assert "One frame takes" in capsys.readouterr().err
        assert cli.main([*typed, "--memory", "1MB", "--engine-cache", "x"]) == 2
        assert "leave --engine-cache out" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "in.mkv"]
    assert cli.main([*typed, "--memory", f"{limit / 1e6:.6f}MB", "--frames", found[1]]) == 0
    assert cli.main([*typed, "--memory", f"{limit / 1e6:.6f}MB", "--segment", found[2], "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("count", "size", "overlap", "cuts"),
    [
        (11, 5, 2, [(0, 5, 0, 4), (3, 8, 1, 4), (6, 11, 1, 5)]),
        (7, 4, 0, [(0, 4, 0, 4), (3, 7, 1, 4)]),
        (3, 5, 2, [(0, 3, 0, 3)]),
        (5, 5, 2, [(0, 5, 0, 5)]),
    ],
)
def test_segments_are_clips_of_their_own_with_the_frames_noise(
    bundle: Bundle, count: int, size: int, overlap: int, cuts: list[tuple[int, int, int, int]]
) -> None:
    frames = clip(SMALL, count)
    noise = noise_for(frames)
    expected = []
    for start, end, first, last in cuts:
        part = {name: array[..., start:end, :, :] for name, array in noise.items() if name != "noise_grain"}
        part["noise_grain"] = noise["noise_grain"][start:end]
        expected += by_hand(bundle, frames[start:end], noise=part)[first:last]
    with Restorer(bundle.path, threads=1) as restorer:
        segments = Segments(restorer, size, overlap)
        found = [result for frame in frames for result in segments.push(frame)]
        found += list(segments.drain())
    assert_alike(found, expected)


def test_segments_as_typed(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Clip(pts=tuple(range(0, 512 * 9, 512)), size=(60, 40), codec="ffv1", options={}, pix_fmt="bgr0")
    source.write(tmp_path / "in.mkv")
    typed = ["restore", str(tmp_path / "in.mkv"), "-o", str(tmp_path / "out.mkv"), "--codec", "ffv1"]
    typed += ["--overwrite", "--bundle", str(bundle.path), "--segment"]
    assert cli.main([*typed, "4"]) == 0
    assert len(decoded(tmp_path / "out.mkv")) == 9
    for text, said in (
        ("0", "expected 2 or more"),
        ("4,3", "half of them at most"),
        ("4,", "or two: 32, or 32,8"),
    ):
        assert cli.main([*typed, text]) == 2
        assert said in " ".join(capsys.readouterr().err.split())


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
    assert list(schedule.takes) == ["hint", "begin", "each[0]", "each[1]", "each[2]", "each[3]"]
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


def looped(manifest: Manifest, **changes: Any) -> Manifest:
    loop = dataclasses.replace(manifest.loops["sampler"], **changes)
    return dataclasses.replace(manifest, loops={"sampler": loop})


def given(manifest: Manifest, name: str, value: Input) -> Manifest:
    return dataclasses.replace(manifest, inputs=manifest.inputs | {name: value})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: changed(m, "decode", phase=None), "each stage in one"),
        (lambda m: changed(m, "decode", phase="sample", chunks=None), None),
        (lambda m: changed(m, "start", phase="leave"), "stand together"),
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
        (lambda m: looped(m, steps="window"), None),
        (lambda m: looped(m, steps="tone"), "'tone' is no option with a whole number from 1"),
        (lambda m: looped(m, steps=0), "loops.sampler.steps is 0"),
        (lambda m: looped(m, rows=("sigmas", "features", "each", "hint")), "no stage before the loop"),
        (lambda m: looped(m, rows=("sigmas", "features", "each", "refined")), "no file holds 'refined'"),
        (lambda m: given(m, "begin", Input("noise", "start", "window")), None),
        (
            lambda m: given(m, "begin", Input("noise", "start")),
            "None is no option with a whole number from 0",
        ),
        (lambda m: given(m, "begin", Input("noise", seed="seed")), "noise needs a name"),
        (lambda m: given(m, "sigmas", Input("file", "sigmas-fast-4.npy", "seed")), "noise has a seed"),
        (
            lambda m: given(m, "sigmas", Input("file", "sigmas-{tone}.npy")),
            "'tone' is no option with choices",
        ),
        (lambda m: given(m, "sigmas", Input("file", "sigmas-{solver")), "expected '}'"),
        (lambda m: given(m, "sigmas", Input("file", "{solver.__class__}")), "expected names of options"),
        (lambda m: given(m, "sigmas", Input("file", "../{solver}")), "leaves the bundle"),
        (lambda m: given(m, "sigmas", Input("file", "s-{solver}.npy")), "'s-fast.npy' is used but not among"),
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
