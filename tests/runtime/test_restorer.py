"""The Restorer: one result a frame, the same bytes however a clip is cut, and clear refusals."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers.golden import real_clip

from vsr_trt.runtime import FrameError, Restorer, media
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.errors import BundleError, DeviceError, InputError
from vsr_trt.runtime.media.resample import resize_bicubic
from vsr_trt.runtime.restore import small_frames


@pytest.fixture(scope="module")
def restorer(golden_bundle: Path):
    with Restorer(golden_bundle) as opened:
        yield opened


@pytest.fixture(scope="module")
def clip() -> list[np.ndarray]:
    """Six frames (128,128,3) of a real clip."""
    with media.open_source(real_clip("bikes.mp4"), frames=6) as source:
        return [np.ascontiguousarray(frame.rgb[60:188, 200:328]) for frame in source]


@pytest.fixture(scope="module")
def whole(restorer: Restorer, clip: list[np.ndarray]) -> list[np.ndarray]:
    return list(restorer.restore(clip))


def test_n_frames_in_n_frames_out(whole: list[np.ndarray], clip: list[np.ndarray]) -> None:
    assert [(result.shape, result.dtype) for result in whole] == [((512, 512, 3), np.uint8)] * len(clip)


def test_frames_depend_on_their_predecessor(restorer: Restorer, clip: list[np.ndarray], whole: list) -> None:
    (alone,) = restorer.restore(clip[3:4])
    assert not np.array_equal(alone, whole[3])


@pytest.mark.thorough
@pytest.mark.parametrize("cut", [1, 3])
def test_a_clip_cut_anywhere_with_one_frame_of_overlap_gives_the_same_bytes(
    restorer: Restorer, clip: list[np.ndarray], whole: list[np.ndarray], cut: int
) -> None:
    head = list(restorer.restore(clip[:cut]))
    tail = list(restorer.restore(clip[cut - 1 : cut + 1]))[1:]
    assert all(np.array_equal(a, b) for a, b in zip(head + tail, whole[: cut + 1], strict=True))


@pytest.mark.thorough
def test_two_runs_give_the_same_bytes(golden_bundle: Path, clip: list[np.ndarray], whole: list) -> None:
    with Restorer(golden_bundle) as another:
        assert all(np.array_equal(a, b) for a, b in zip(another.restore(clip[:2]), whole[:2], strict=True))


def test_push_and_flush_are_restore(restorer: Restorer, clip: list[np.ndarray], whole: list) -> None:
    restorer.reset()
    results = [result for frame in clip[:3] for result in restorer.push(frame)] + restorer.flush()
    assert all(np.array_equal(a, b) for a, b in zip(results, whole[:3], strict=True))


def test_reset_forgets_the_previous_frame(restorer: Restorer, clip: list[np.ndarray]) -> None:
    restorer.reset()
    (first,) = restorer.push(clip[0])
    restorer.push(clip[3])
    restorer.reset()
    (again,) = restorer.push(clip[0])
    assert np.array_equal(first, again)


def test_restore_reads_frames_as_needed(restorer: Restorer, clip: list[np.ndarray]) -> None:
    taken = []

    def frames():
        for index, frame in enumerate(clip):
            taken.append(index)
            yield frame

    results = restorer.restore(frames())
    next(results)
    assert taken == [0]


def test_every_frame_is_encoded_once(restorer: Restorer, clip: list[np.ndarray], monkeypatch) -> None:
    runs: list[str] = []
    device = restorer._device._networks
    run = device.run
    monkeypatch.setattr(
        device, "run", lambda network, inputs: (runs.append(network), run(network, inputs))[1]
    )
    list(restorer.restore(clip[:3]))
    assert runs.count("vae_encoder") == runs.count("unet") == runs.count("preprocess") == 3


@pytest.mark.thorough
@pytest.mark.parametrize(("height", "width"), [(131, 149), (40, 52), (1, 1), (90, 200)])
def test_any_size_is_restored_to_exactly_four_times(restorer: Restorer, height: int, width: int) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    (result,) = restorer.restore([frame])
    assert result.shape == (4 * height, 4 * width, 3)


@pytest.mark.thorough
def test_tiles_of_the_vae_are_blended_over_their_overlap(golden_bundle: Path, clip: list[np.ndarray]) -> None:
    """The decoder's tiles, computed one by one here, weighted by linear ramps: what the pipeline makes."""
    frame = resize_bicubic(clip[0], 128, 208)  # 64 x 104 latents: three tiles of 48 across, two down
    with Restorer(golden_bundle, tiles={"vae": 48}, statistics="tile") as restorer:
        device, seen = restorer._device._networks, []
        run = device.run

        def spy(network: str, inputs: dict) -> dict:
            outputs = run(network, inputs)
            seen.append((network, {name: value.copy() for name, value in inputs.items()}, outputs))
            return outputs

        device.run = spy
        list(restorer.restore([frame]))
        pieces = [(i["latent"], o["image"]) for name, i, o in seen if name == "vae_decoder"]
        (decoded,) = [i["image"] for name, i, _ in seen if name.startswith("postprocess")]
        (latent,) = [o["denoised"] for name, _, o in seen if name == "unet"]
    tops, lefts, overlap = (0, 16), (0, 36, 56), 12
    assert len(pieces) == len(tops) * len(lefts)
    distance = np.minimum(np.arange(384), np.arange(384)[::-1]) + 0.5
    ramp = np.minimum(distance / (overlap * 8), 1)
    total, weight = np.zeros(decoded.shape), np.zeros(decoded.shape)
    for (piece, image), (top, left) in zip(pieces, [(t, x) for t in tops for x in lefts], strict=True):
        assert np.array_equal(piece, latent[..., top : top + 48, left : left + 48])
        area = (..., slice(8 * top, 8 * top + 384), slice(8 * left, 8 * left + 384))
        total[area] += image * np.outer(ramp, ramp)
        weight[area] += np.outer(ramp, ramp)
    assert np.abs(decoded - total / weight).max() < 1e-4


@pytest.mark.thorough
def test_color_variants_differ_and_match_their_purpose(golden_bundle: Path, clip: list[np.ndarray]) -> None:
    target = resize_bicubic(clip[0], 512, 512).astype(float)
    results = {}
    for color in ("adain", "wavelet", "none"):
        with Restorer(golden_bundle, choices={"color": color}) as restorer:
            (results[color],) = restorer.restore(clip[:1])
    assert not np.array_equal(results["adain"], results["wavelet"])
    for color in ("adain", "wavelet"):
        error = np.abs(results[color].mean((0, 1)) - target.mean((0, 1))).max()
        assert error < np.abs(results["none"].mean((0, 1)) - target.mean((0, 1))).max()
        assert error < 6


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((128, 128), np.uint8), r"\(H,W,3\), not \(128, 128\)"),
        (np.zeros((128, 128, 4), np.uint8), r"not \(128, 128, 4\)"),
        (np.zeros((128, 128, 3), np.float32), "must be uint8, not float32"),
        (np.zeros((0, 128, 3), np.uint8), "nothing to restore"),
        ("frame", "not str"),
    ],
)
def test_frames_of_another_kind_are_refused(restorer: Restorer, frame: object, message: str) -> None:
    restorer.reset()
    with pytest.raises(InputError, match=message):
        restorer.push(frame)  # type: ignore[arg-type]


def test_a_change_of_size_needs_a_reset(restorer: Restorer, clip: list[np.ndarray]) -> None:
    restorer.reset()
    restorer.push(clip[0])
    with pytest.raises(InputError, match=r"changed from 128x128 to 130x128.*reset\(\)"):
        restorer.push(np.zeros((128, 130, 3), np.uint8))
    restorer.reset()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tiles": {"": 100}}, r"--tile latent=100: expected a multiple of 8 from 64 to"),
        ({"tiles": {"latent": 32}}, "--tile latent=32"),
        ({"tiles": {"latent": 4096}}, "--tile latent=4096"),
        ({"overlaps": {"latent": -1}}, "--overlap latent=-1"),
        ({"overlaps": {"": 64}}, "--overlap latent=64: expected 0 to half the tile, 48"),
        ({"tiles": {"vae": 20}}, "--tile vae=20"),
        ({"choices": {"color": "sepia"}}, "expected one of adain, wavelet, none"),
        ({"backend": "abacus"}, "no backend 'abacus'"),
    ],
)
def test_options_out_of_range_are_refused(golden_bundle: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Restorer(golden_bundle, **options)


def test_a_closed_restorer_says_so(golden_bundle: Path, clip: list[np.ndarray]) -> None:
    restorer = Restorer(golden_bundle)
    restorer.close()
    restorer.close()
    with pytest.raises(DeviceError, match="closed"):
        restorer.push(clip[0])


def test_a_second_thread_is_refused(golden_bundle: Path, clip: list[np.ndarray], monkeypatch) -> None:
    with Restorer(golden_bundle) as restorer:
        inside, go_on = threading.Event(), threading.Event()
        run = restorer._device._networks.run

        def slow(network: str, inputs: dict) -> dict:
            inside.set()
            go_on.wait(30)
            return run(network, inputs)

        monkeypatch.setattr(restorer._device._networks, "run", slow)
        thread = threading.Thread(target=restorer.push, args=(clip[0],))
        thread.start()
        assert inside.wait(30)
        with pytest.raises(DeviceError, match="another thread"):
            restorer.push(clip[0])
        go_on.set()
        thread.join()


@pytest.mark.thorough
def test_slots_change_no_byte(golden_bundle: Path, clip: list[np.ndarray], restorer: Restorer) -> None:
    expected = list(restorer.restore(clip[:4]))
    with Restorer(golden_bundle, slots=3) as several:
        assert several.push(clip[0]) == []
        several.flush()
        for got, wanted in zip(several.restore(clip[:4]), expected, strict=True):
            assert np.array_equal(got, wanted)
        assert len(several.timings()) == 5
        assert several.memory["buffers"] > 2 * restorer.memory["buffers"]


def test_loading_is_told_by_network(golden_bundle: Path) -> None:
    with Restorer(golden_bundle) as restorer:
        before = restorer.load_seconds
        networks = Options({"color": "adain"}).networks(restorer.manifest)
        assert list(before) == [*networks, "all"]
        assert 0 < sum(before[network] for network in networks) < before["all"]
        restorer.prepare(24, 32)
        assert restorer.load_seconds["all"] > before["all"]


def test_restorers_of_a_bundle_share_their_weights(golden_bundle: Path, restorer: Restorer) -> None:
    with Restorer(golden_bundle) as other:
        ours, its = (r._device._networks._sessions for r in (restorer, other))
        assert all(ours[name] is its[name] for name in its)
    with Restorer(golden_bundle, threads=1) as other:
        assert other._device._networks._sessions["unet"] is not ours["unet"], "threads belong to a session"


def test_frames_before_a_failure_are_yielded(
    golden_bundle: Path, clip: list[np.ndarray], monkeypatch
) -> None:
    with Restorer(golden_bundle, slots=2) as restorer:
        networks, calls = restorer._device._networks, []
        run = networks.run

        def fail(network: str, inputs: dict) -> dict:
            calls.append(network)
            if calls.count("unet") == 3:
                raise DeviceError("unet is out of order.")
            return run(network, inputs)

        monkeypatch.setattr(networks, "run", fail)
        results = []
        with pytest.raises(FrameError, match="frame 2: unet is out of order"):
            for result in restorer.restore(clip[:5]):
                results.append(result)
        assert len(results) == 2
        with pytest.raises(DeviceError, match="make a new one"):
            restorer.push(clip[0])


def test_frames_of_other_libraries_are_taken_without_a_copy(
    restorer: Restorer, clip: list[np.ndarray]
) -> None:
    import torch

    (expected,) = restorer.restore(clip[:1])
    restorer.reset()
    (got,) = restorer.push(torch.from_numpy(clip[0]))
    assert np.array_equal(got, expected)
    assert np.array_equal(torch.from_dlpack(got).numpy(), expected)


def test_gpu_frames_and_streams_need_an_engines_backend(golden_bundle: Path, restorer: Restorer) -> None:
    import types

    frame = types.SimpleNamespace(__cuda_array_interface__={"data": (1, False), "shape": (128, 128, 3)})
    with pytest.raises(
        InputError, match="lies on a GPU; the backend onnxruntime-cpu takes arrays of the CPU"
    ):
        restorer.push(frame)
    for wanted in ({"stream": 5}, {"device_results": True}):
        with pytest.raises(InputError, match="need the backend tensorrt_rtx or tensorrt"):
            Restorer(golden_bundle, backend="onnxruntime-cpu", **wanted)
    with pytest.raises(DeviceError, match="needs an NVIDIA GPU"):
        Restorer(golden_bundle, backend="tensorrt_rtx")


def test_memory_that_runs_out_names_the_way_out(
    golden_bundle: Path, clip: list[np.ndarray], monkeypatch
) -> None:
    class Session:
        def run(self, names: list, inputs: dict, options: object) -> list:
            raise RuntimeError("Non-zero status code: std::bad_alloc")

    with Restorer(golden_bundle) as restorer:
        monkeypatch.setitem(restorer._device._networks._sessions, "unet", Session())
        with pytest.raises(DeviceError, match=r"unet ran out of memory.*vsr plan"):
            restorer.push(clip[0])


def test_a_graph_that_cannot_be_loaded_is_named(golden_bundle: Path, tmp_path: Path) -> None:
    import json
    import shutil

    bundle = tmp_path / "bundle"
    shutil.copytree(golden_bundle, bundle)
    graph = bundle / "onnx" / "spynet.onnx"
    graph.write_bytes(b"\xff" * graph.stat().st_size)
    with pytest.raises(DeviceError, match=r"cannot load .*spynet\.onnx"):
        Restorer(bundle)
    with pytest.raises(BundleError, match=r"spynet\.onnx was changed"):
        Restorer(bundle, check=True)
    (bundle / "prompt.npy").write_bytes(b"x")
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"]["prompt.npy"]["bytes"] = 1
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    shutil.copy(golden_bundle / "onnx" / "spynet.onnx", graph)
    with pytest.raises(BundleError, match=r"prompt\.npy cannot be read"):
        Restorer(bundle)


def test_small_frames_are_noted_with_what_they_cost(golden_bundle: Path) -> None:
    manifest = Bundle.open(golden_bundle).manifest
    assert small_frames.note(manifest, "onnxruntime-cpu", 128, 300, 1) is None
    strip = small_frames.note(manifest, "onnxruntime-cpu", 8, 64, 3)
    assert strip is not None
    assert "64x8 are enlarged to 1024x128" in strip
    assert "256 times the pixels" in strip
    assert re.search(r"about \d\S* \S+ a frame, \S+ \S+ in all, estimated", strip)
    little = small_frames.note(manifest, "onnxruntime-cpu", 100, 120, 3)
    assert little is not None
    assert "estimated" not in little
    assert "estimated" not in (small_frames.note(manifest, "tensorrt", 8, 64, 3) or "")
