"""The native host gives the bytes that the Python runtime gives with the same provider and threads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import native_host, star
from helpers.golden import read_png
from helpers.native_host import Host, Library, frames
from helpers.once import shared

from vsr_trt.runtime.restore.restorer import Restorer

pytestmark = pytest.mark.native


def same(results: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(results) == len(expected)
    for number, (result, other) in enumerate(zip(results, expected, strict=True)):
        assert np.array_equal(result, other), f"frame {number}"


TILES = {"latent": 64, "vae": 64}  # above this side pictures of DLoRAL are cut, and its VAE works in strips


def compare(
    library: Library,
    bundle: Path,
    clip: list[np.ndarray],
    slots: int = 1,
    tiles: dict[str, int] | None = None,
    **choices: str,
) -> None:
    settings = {"threads": 2, "slots": slots, "tiles": tiles or {}, "choices": choices}
    with Restorer(bundle, backend="onnxruntime-cpu", **settings) as restorer:  # type: ignore[arg-type]
        expected = list(restorer.restore(clip))
    with Host(library, bundle, choices) as host:
        same(host.restore(clip), expected)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
def test_windows_that_overlap(library: Library, other: Path, count: int) -> None:
    compare(library, other, frames(count, 80, 80, count))


@pytest.mark.parametrize(("height", "width"), [(100, 120), (160, 200), (45, 30)])
def test_tiles_canvas_and_loop(library: Library, other: Path, height: int, width: int) -> None:
    compare(library, other, frames(4, height, width))


def test_options_that_choose_a_network_and_a_value(library: Library, other: Path) -> None:
    clip = frames(3, 80, 80)
    compare(library, other, clip, tone="soft")
    compare(library, other, clip, strength="0.3")
    compare(library, other, clip, slots=2)


@pytest.mark.parametrize("count", [1, 2, 4, 7, 8])
def test_phases_chunks_and_noise(library: Library, clip: Path, count: int) -> None:
    compare(library, clip, frames(count, 80, 80))
    compare(library, clip, frames(count, 100, 150), seed=str(2**63 + 12345 * count))


@pytest.mark.parametrize(
    ("height", "width"),
    [(128, 128), pytest.param(40, 50, id="enlarged"), (137, 131)],
)
def test_the_model_of_the_self_test(library: Library, tiny: Path, height: int, width: int) -> None:
    compare(library, tiny, frames(3, height, width))


def test_tiles_and_strips(library: Library, tiny: Path, tmp_path: Path) -> None:
    bundle = native_host.copied(tiny, tmp_path / "bundle")
    native_host.schedules(bundle, "544x544", tiles=TILES)
    stored = json.loads((bundle / "schedules" / "544x544-s1.json").read_text())
    assert any(step["action"] == "blend" for step in stored["steps"])
    assert any("strips" in graphs["cpu"] for graphs in stored["host"]["networks"].values())
    compare(library, bundle, frames(2, 136, 136), tiles=TILES)


def test_another_colour(library: Library, tiny: Path) -> None:
    compare(library, tiny, frames(2, 128, 128), color="wavelet")


@pytest.mark.parametrize("side", [80, 160])
def test_half_precision_between_networks(library: Library, in_half: Path, side: int) -> None:
    """Tiles are cut and blended in FP16."""
    height, width = (80, 80) if side == 80 else (160, 200)
    stored = json.loads(next((in_half / "schedules").glob(f"{2 * width}x*")).read_text())
    dtypes = {buffer["name"]: buffer["dtype"] for buffer in stored["buffers"]}
    blends = [step for step in stored["steps"] if step["action"] == "blend"]
    assert all(dtypes[step["writes"]["picture"]] == "float16" for step in blends)
    assert blends or side == 80
    compare(library, in_half, frames(4, height, width))


@pytest.mark.thorough
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_golden_model(
    library: Library, golden_bundle: Path, golden_bundle_fp16: Path, tmp_path: Path, precision: str
) -> None:
    bundle = native_host.copied(
        golden_bundle if precision == "fp32" else golden_bundle_fp16, tmp_path / precision
    )
    native_host.schedules(bundle, "512x512", "524x548", "240x200")
    for size in ((128, 128), (137, 131), (50, 60)):
        compare(library, bundle, frames(2, *size))
    native_host.schedules(bundle, "544x544", tiles=TILES)
    compare(library, bundle, frames(2, 136, 136), tiles=TILES)


@pytest.mark.thorough
def test_the_golden_model_that_takes_clips_at_once(
    library: Library, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """14 steps, noise in three places, chunks of a clip, groups of 3 and 2 at its end."""
    made = shared(tmp_path_factory, "star-fp32", lambda out: star.build_bundle(out, "fp32"))
    bundle = native_host.copied(made, tmp_path / "bundle")
    clip = [read_png(path) for path in sorted((star.GOLDEN / "in").glob("*.png"))]
    height, width = clip[0].shape[:2]
    size = f"{4 * width}x{4 * height}"
    native_host.schedules(bundle, size, frames=len(clip))
    compare(library, bundle, clip)
    native_host.schedules(bundle, size, frames=len(clip), set="window=2")
    compare(library, bundle, clip, window="2", seed="5")


@pytest.mark.parametrize("family", ["other", "clip", "tiny"])
def test_clips_one_after_another(library: Library, other: Path, clip: Path, tiny: Path, family: str) -> None:
    """Cuts, flushes in between and frames afterwards: whatever Python returns, in the same order."""
    bundle = {"other": other, "clip": clip, "tiny": tiny}[family]
    side = 128 if family == "tiny" else 80
    clips = [frames(count, side, side, count) for count in (4, 2, 1)]
    with (
        Restorer(bundle, backend="onnxruntime-cpu", threads=2) as restorer,
        Host(library, bundle) as host,
    ):
        host.open(side, side)
        expected, results = list[np.ndarray](), list[np.ndarray]()
        for number, found in enumerate(clips):
            for frame in found:
                expected += restorer.push(frame)
                results += host.push(frame)
            if number == 1:
                expected += restorer.flush()
                results += host.flush()
            else:
                restorer.reset()
                host.reset()
        expected += restorer.flush()
        results += host.flush()
    same(results, expected)


def test_rows_may_have_gaps(library: Library, other: Path) -> None:
    wide = np.random.default_rng(3).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    with Host(library, other) as host:
        host.open(80, 80)
        results = host.push(wide[:, :80]) + host.flush()
    with Host(library, other) as host:
        same(results, host.restore([np.ascontiguousarray(wide[:, :80])]))
