"""Which shapes engines are built for, from the sizes of restored pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import clip_family
from helpers.examples import examples
from helpers.manifests import minimal_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsr_trt.engines.tensorrt import shapes
from vsr_trt.engines.tensorrt.shapes import Layout, Size
from vsr_trt.export.families.dloral import family as dloral
from vsr_trt.runtime.bundle.manifest import Bound, Manifest, Network, Tensor
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.bundle.reading import read_manifest
from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.schedule import tiling


def network(inputs: dict[str, tuple[int | str, ...]], bounds: dict[str, Bound]) -> Network:
    tensors = tuple(Tensor(name, "float32", shape) for name, shape in inputs.items())
    return Network(tensors, (), bounds, {"native": "x.onnx"}, 1, 1)


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """DLoRAL's stages with the bounds of its networks, without graphs."""
    n, latents = Bound(1, 32), Bound(32, 192, 8)
    picture = {"n": n, "h": Bound(32, 2048, 8), "w": Bound(32, 2048, 8)}
    flow = {"n": n, "h": Bound(64, 2048, 8), "w": Bound(64, 2048, 8)}
    frame = {"lr_h": Bound(128, 4096), "lr_w": Bound(128, 4096)}
    latent, thumb = ("n", 4, "h", "w"), ("n", 3, "h", "w")
    networks = {
        "preprocess": network({"frame": ("n", "lr_h", "lr_w", 3)}, {"n": n, **frame, **flow}),
        "vae_encoder": network({"image": ("n", 3, "8*h", "8*w")}, picture),
        "spynet": network({"thumb": thumb, "previous_thumb": thumb}, flow),
        "warp": network(
            {"previous_latent": latent, "flow": ("n", 2, "h", "w")}, {"n": n, "h": latents, "w": latents}
        ),
        "cfr": network({"latent": latent, "warped": latent}, {"n": n, "h": latents, "w": latents}),
        "unet": network(
            {"warped": latent, "fused": latent, "prompt": (77, 32)}, {"n": n, "h": latents, "w": latents}
        ),
        "vae_decoder": network({"latent": latent}, picture),
    }
    for variant in ("adain", "wavelet", "none"):
        inputs = {"image": ("n", 3, "8*h", "8*w"), "reference": ("n", 3, "4*lr_h", "4*lr_w")}
        networks[f"postprocess_{variant}"] = network(inputs, {**picture, **frame})
    return minimal_manifest(networks=networks, stages=dloral.STAGES, options=dloral.OPTIONS)


def shape_of(manifest: Manifest, name: str, size: str, layout: Layout | None = None) -> list[tuple[int, ...]]:
    found = shapes.profiles(manifest, name, [shapes.parse_size(size, manifest)], layout or Layout())
    return [next(iter(profile.values())).opt for _, profile in found]


@pytest.mark.parametrize(
    ("size", "name", "shape"),
    [
        ("512x512", "preprocess", (1, 128, 128, 3)),
        ("512x512", "unet", (1, 4, 64, 64)),
        ("512x512", "vae_decoder", (1, 4, 64, 64)),
        ("1280x720", "preprocess", (1, 180, 320, 3)),
        ("1280x720", "vae_encoder", (1, 3, 768, 1280)),  # in one piece, padded to multiples of 64
        ("1280x720", "spynet", (2, 3, 96, 96)),  # 2 tiles
        ("1280x720", "unet", (2, 4, 96, 96)),
        ("1920x1080", "unet", (4, 4, 96, 96)),  # 8 tiles, of which 4 pay off
        ("1920x1080", "vae_decoder", (1, 4, 136, 240)),  # whole, whatever the size
        ("3840x2160", "vae_decoder", (1, 4, 272, 480)),
        ("1920x1080", "postprocess_adain", (1, 3, 1088, 1920)),
        ("80x160", "preprocess", (1, 256, 128, 3)),  # 20x40 is enlarged to 128x256
        ("80x160", "unet", (1, 4, 128, 64)),
    ],
)
def test_a_size_gives_the_shapes_that_the_runtime_will_ask_for(
    manifest: Manifest, size: str, name: str, shape: tuple[int, ...]
) -> None:
    assert shape_of(manifest, name, size) == [shape]


def test_one_engine_serves_every_size_that_is_tiled(manifest: Manifest) -> None:
    sizes = [shapes.parse_size(text, manifest) for text in ("1280x720", "1920x1080", "3840x2160")]
    assert len(shapes.profiles(manifest, "unet", sizes, Layout())) == 1
    assert len(shapes.profiles(manifest, "vae_decoder", sizes, Layout())) == 3
    tiles = Layout(Options(statistics="tile"))
    assert len(shapes.profiles(manifest, "vae_decoder", sizes, tiles)) == 2
    assert shape_of(manifest, "vae_decoder", "1920x1080", tiles) == [(1, 4, 136, 136)]
    assert len(shapes.profiles(manifest, "preprocess", sizes, Layout())) == 3


def test_one_engine_takes_any_number_of_tiles_up_to_the_largest_of_the_sizes(manifest: Manifest) -> None:
    sizes = [Size(1280, 720), Size(1920, 1080)]

    def tiles(*sizes: Size, **layout: Any) -> tuple[int, int, int]:
        ((ranges, _),) = shapes.profiles(manifest, "unet", sizes, Layout(**layout))
        return ranges["n"]

    assert tiles(sizes[0]) == (1, 2, 2)
    assert tiles(*sizes) == tiles(*reversed(sizes)) == (1, 4, 4)
    assert tiles(*sizes, usual_batch=shapes.usual_batch(["sm_90"])) == (1, 8, 8)
    assert tiles(*sizes, usual_batch=shapes.usual_batch(["sm_89", "sm_90"])) == (1, 4, 4)
    assert tiles(Size(512, 512)) == (1, 1, 1)  # it is no more than a tile
    assert tiles(sizes[0], batch=6) == (1, 6, 6)  # whoever asks for more gets it


def test_a_batch_is_for_tiles_only(manifest: Manifest) -> None:
    (ranges, profile), *_ = shapes.profiles(manifest, "unet", [Size(1920, 1080)], Layout(batch=4))
    assert ranges["n"] == (1, 4, 4)
    assert (profile["warped"].min[0], profile["warped"].max[0]) == (1, 4)
    assert profile["prompt"].min == profile["prompt"].max == (77, 32)
    (ranges, _), *_ = shapes.profiles(manifest, "vae_decoder", [Size(1920, 1080)], Layout(batch=4))
    assert ranges["n"] == (1, 1, 1)


def test_dynamic_engines_reach_from_the_bounds_to_the_largest_size(manifest: Manifest) -> None:
    sizes = [Size(512, 512), Size(1920, 1080)]
    ((ranges, profile),) = shapes.profiles(manifest, "unet", sizes, Layout(dynamic=True))
    assert (ranges["h"], ranges["w"]) == ((32, 64, 96), (32, 64, 96))
    ((ranges, profile),) = shapes.profiles(manifest, "preprocess", sizes, Layout(dynamic=True))
    assert profile["frame"].min == (1, 128, 128, 3)
    assert profile["frame"].max == (1, 270, 480, 3)
    ((ranges, _),) = shapes.profiles(manifest, "preprocess", [], Layout(dynamic=True))
    assert ranges["lr_w"][2] == 3840 // 4
    ((ranges, _),) = shapes.profiles(manifest, "vae_decoder", [], Layout(dynamic=True))
    assert (ranges["h"][2], ranges["w"][2]) == (272, 480)
    tiles = Layout(Options(statistics="tile"), dynamic=True)
    ((ranges, _),) = shapes.profiles(manifest, "vae_decoder", [], tiles)
    assert (ranges["h"][2], ranges["w"][2]) == (136, 160)  # 1280x720 goes through in one piece


def test_sides_that_one_network_of_a_group_cannot_take_are_cut_for_all(manifest: Manifest) -> None:
    """spynet takes 256 latents, the UNet 192: the runtime cuts both, and so are engines built."""
    layout = Layout(Options(tiles={"latent": 136}))
    assert shape_of(manifest, "spynet", "2048x512", layout) == [(4, 3, 64, 64)]
    assert shape_of(manifest, "unet", "2048x512", layout) == [(4, 4, 64, 64)]


@settings(deadline=None, max_examples=examples(200))
@given(
    width=st.integers(1, 1000),
    height=st.integers(1, 1000),
    tile=st.integers(8, 24).map(lambda n: 8 * n),
    dynamic=st.booleans(),
)
def test_every_tile_that_the_runtime_cuts_has_its_shape(
    manifest: Manifest, width: int, height: int, tile: int, dynamic: bool
) -> None:
    """The runtime pads, cuts tiles, and asks for their shape: a static engine has it, a dynamic one covers it."""
    size = Size(4 * width, 4 * height)
    layout = Layout(Options(tiles={"latent": tile}), dynamic=dynamic)
    ((ranges, _),) = shapes.profiles(manifest, "unet", [size], layout)
    factor = max(1.0, 128 / min(width, height))
    frame = [max(128, round(side * factor)) if factor > 1 else side for side in (height, width)]
    latents = [-(-4 * side // 64) * 8 for side in frame]
    for piece in tiling.tiles_of(*latents, tile, tile // 3, square=True, longest=192):
        for side, value in (("h", piece.height), ("w", piece.width)):
            low, _, high = ranges[side]
            assert low <= value <= high
            assert dynamic or low == high


@pytest.mark.parametrize("text", ["720p", "1280", "1280x", "0x0", "-4x4", "1280 x 720", ""])
def test_what_is_no_size_is_refused(manifest: Manifest, text: str) -> None:
    with pytest.raises(InputError, match="--size"):
        shapes.parse_size(text, manifest)


def test_a_size_that_is_no_multiple_of_four_is_refused_with_one_that_is(manifest: Manifest) -> None:
    with pytest.raises(InputError, match=r"multiples of 4, e\.g\. 1280x720"):
        shapes.parse_size("1281x719", manifest)


def test_a_size_beyond_the_bounds_is_refused(manifest: Manifest) -> None:
    with pytest.raises(InputError, match=r"lr_w of preprocess would be 5000.* end at 4096"):
        shapes.parse_size("20000x1080", manifest)


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (Layout(Options(tiles={"latent": 200})), "would be built for h = "),
        (Layout(Options(tiles={"latent": 100})), "in steps of 8"),
        (Layout(batch=64), "n = 1 to 64; it takes 1 to 32.*--batch"),
    ],
)
def test_tiles_and_batches_outside_the_bounds_are_refused(
    manifest: Manifest, layout: Layout, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        shapes.profiles(manifest, "unet", [Size(3840, 2160)], layout)


def test_a_family_in_phases_gets_engines_for_clips_of_any_length_and_any_number_of_steps(
    tmp_path: Path,
) -> None:
    manifest = clip_family.write(tmp_path / "bundle").manifest
    size = shapes.parse_size("128x96", manifest)
    options = Options({"window": 8})

    def found(name: str) -> dict[str, shapes.Range]:
        [(ranges, _)] = shapes.profiles(manifest, name, [size], Layout(options))
        return {symbol: sizes for symbol, sizes in ranges.items() if symbol in ("f", "s")}

    assert found("encode") == {"f": (1, 1, 1)}
    assert found("features") == {"s": (1, 4, 100)}  # as many steps as the user likes
    assert found("predict") == {"f": (1, 8, 10)}  # a chunk, or the longest that is taken whole
    assert found("update") == {"f": (1, 32, 4096)}  # a whole clip
    assert found("decode") == {"f": (1, 3, 3)}  # the last group may be shorter


def test_names_say_what_an_engine_takes() -> None:
    assert shapes.describe({"n": (1, 1, 1), "h": (96, 96, 96), "w": (64, 64, 64)}) == "n1-96x64"
    assert shapes.describe({"n": (1, 4, 4), "h": (32, 64, 96), "w": (8, 8, 8)}) == "n1..4-32..96x8"
    ranges = {"n": (1, 1, 1), "lr_h": (2, 2, 2), "lr_w": (3, 3, 3), "h": (4, 4, 4), "w": (5, 5, 5)}
    assert shapes.describe(ranges) == "n1-lr2x3-4x5"


def test_the_golden_bundles_networks_all_get_a_profile(golden_bundle: Path) -> None:
    found = read_manifest(golden_bundle)
    for name in shapes.networks(found):
        for _, profile in shapes.profiles(found, name, [Size(512, 512)], Layout()):
            for tensor in found.networks[name].inputs:
                assert len(profile[tensor.name].opt) == len(tensor.shape)
                assert np.prod(profile[tensor.name].opt) > 0
