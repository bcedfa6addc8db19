"""STAR's networks as ONNX, its bundle, and the bundle's way from frames to frames against what STAR's code computes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import captures
from helpers.chain import Chain
from helpers.golden import GOLDEN as DLORAL_GOLDEN
from helpers.golden import psnr, read_png
from helpers.once import shared
from helpers.star import GOLDEN, build_bundle, tokenize

from vsr_trt.build import main
from vsr_trt.engines.graphs.work import count
from vsr_trt.export.families.stable_diffusion import text_encoder
from vsr_trt.export.families.star import denoiser, family, features, pictures, steps, text
from vsr_trt.export.families.star.denoiser import Denoiser
from vsr_trt.export.families.star.sizes import Sizes
from vsr_trt.export.network import NetworkSpec, export
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Bound
from vsr_trt.runtime.bundle.options import Settings
from vsr_trt.runtime.bundle.reading import read_manifest
from vsr_trt.runtime.bundle.symbols import evaluate
from vsr_trt.runtime.restore.prompts import embed
from vsr_trt.runtime.restore.restorer import Restorer

Arrays = dict[str, np.ndarray]
SMALL = Sizes(dim=32, multipliers=(1, 2), residuals=1, attends=(True, False), context=32, head=16, heads=1)


def random_denoiser(slices: int = 2, batched: bool = True) -> Denoiser:
    """Two levels, with one block each; every kind of layer is there."""
    torch.manual_seed(0)
    return Denoiser(SMALL, slices, batched).eval()


# ---------------------------------------------------------------- networks one by one


@pytest.mark.parametrize(
    "make",
    [
        steps.sample_spec,
        steps.start_spec,
        steps.guide_spec,
        steps.update_spec,
        lambda: pictures.preprocess_spec((144, 192)),
        lambda: pictures.postprocess_spec((144, 192)),
        lambda: features.time_spec(features.TimeFeatures(SMALL).eval()),
        lambda: features.text_spec(features.TextFeatures(SMALL).eval()),
    ],
    ids=["sample", "start", "guide", "update", "preprocess", "postprocess", "time", "text"],
)
def test_a_small_network(make: object, tmp_path: Path) -> None:
    """What they compute is compared with torch by the exporter."""
    exported = export(make(), tmp_path, "fp32")  # type: ignore[operator]
    assert exported.uncounted is None
    assert list(exported.record.graphs) == ["native"]


@pytest.mark.parametrize("make", [pictures.preprocess_spec, pictures.postprocess_spec])
@pytest.mark.parametrize(
    ("height", "width"),
    [(30, 41), *(pytest.param(*size, marks=pytest.mark.thorough) for size in ((36, 48), (37, 130)))],
)
def test_work_on_a_canvas_depends_on_its_sides_and_the_frames(
    make: Callable[[tuple[int, int]], NetworkSpec], height: int, width: int, tmp_path: Path
) -> None:
    """A canvas grows in steps from a least one on, which is no polynomial of the frame's sides."""
    least = (144, 192)
    record = export(make(least), tmp_path, "fp32").record
    high, wide = (
        pictures.canvas_side(4 * side, own) for side, own in zip((height, width), least, strict=True)
    )
    sizes = {"f": 2, "lr_h": height, "lr_w": width, "h": high // 8, "w": wide // 8}
    counted = count(onnx.load(tmp_path.parent / record.graphs["native"]), sizes)
    assert record.work is not None
    for field in ("multiply_adds", "activations", "integer_bytes"):
        assert evaluate(getattr(record.work, field), sizes) == getattr(counted, field)
    assert record.work.activations["f*h*w"] >= 3 * 64  # the canvas, written or read


@pytest.mark.thorough
def test_a_small_denoiser(tmp_path: Path) -> None:
    for precision, most in (("fp32", 1e-5), ("fp16", 2e-2)):
        with captures.kept(tmp_path / "captures"):
            exported = export(denoiser.spec(random_denoiser()), tmp_path, precision)  # type: ignore[arg-type]
        assert exported.worst < most
    work = exported.record.work
    assert work is not None
    assert any("f*f" in product for product in work.multiply_adds)  # frames look at each other
    assert any(product.count("w") == 2 for product in work.multiply_adds)  # and positions


# ---------------------------------------------------------------- the bundle


@pytest.fixture(scope="session")
def star_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden STAR model's bundle in FP32. Read it only."""
    return shared(tmp_path_factory, "star-fp32", lambda out: build_bundle(out, "fp32"))


@pytest.fixture(scope="session")
def star_bundle_fp16(tmp_path_factory: pytest.TempPathFactory, star_bundle: Path) -> Path:
    """The same in FP16; modules are captured once for both."""
    return shared(tmp_path_factory, "star-fp16", lambda out: build_bundle(out, "fp16"))


@pytest.fixture(scope="session")
def recorded() -> Arrays:
    with np.load(GOLDEN / "golden.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def clip() -> np.ndarray:
    return np.stack([read_png(path) for path in sorted((GOLDEN / "in").glob("*.png"))])


def test_tables_are_there_for_every_choice() -> None:
    tables = family.tables()
    assert len(tables) == 101
    assert tables["steps/fast-14.npy"].shape == (14, 12)
    assert tables["steps/normal-100.npy"].shape == (100, 12)
    assert all(table.dtype == np.float32 and np.isfinite(table).all() for table in tables.values())
    assert (tables["steps/fast-14.npy"][-1, 3:8] == [0, 1, 0, 0, 1]).all()


def test_stages_feed_their_networks() -> None:
    specs: dict[str, NetworkSpec] = {
        "sample": steps.sample_spec(),
        "start": steps.start_spec(),
        "guide": steps.guide_spec(),
        "update": steps.update_spec(),
        "preprocess": pictures.preprocess_spec((144, 192)),
        "postprocess": pictures.postprocess_spec((144, 192)),
        "denoiser": denoiser.spec(random_denoiser()),
    }
    for stage in family.STAGES:
        assert stage.network in family.STAR.network_names
        if stage.network in specs:
            assert list(stage.reads) == [tensor.name for tensor in specs[stage.network].inputs]
            assert list(stage.writes) == [tensor.name for tensor in specs[stage.network].outputs]


@pytest.mark.parametrize("least", [(720, 1280), (144, 192)])
def test_the_canvas_is_the_networks(least: tuple[int, int]) -> None:
    canvas = family.canvas(least)
    for side in range(1, 900):
        for axis in (0, 1):
            small, offset = canvas.least[axis], canvas.offset[axis]
            if side <= small:
                expected = small
            else:
                expected = (side - offset) // canvas.multiple * canvas.multiple + offset + canvas.multiple
            assert pictures.canvas_side(4 * side, least[axis]) == 4 * expected


# ---------------------------------------------------------------- parity


def difference(ours: np.ndarray, other: np.ndarray) -> float:
    """Relative, of the norms."""
    return float(np.linalg.norm(ours - other) / np.linalg.norm(other))


@pytest.mark.thorough
def test_the_chain(star_bundle: Path, clip: np.ndarray, recorded: Arrays) -> None:
    chain = Chain(star_bundle, clip, recorded)
    result = chain.run()
    for embedding, name in zip(np.load(star_bundle / "prompts.npy"), ("positive", "negative"), strict=True):
        assert difference(embedding, recorded[f"text_{name}"]) < 1e-4
    assert difference(chain.clip["hint"][0], recorded["hint_latent"]) < 1e-4
    assert difference(chain.steps[0]["positive"][0], recorded["unet_cond_0"]) < 1e-4
    assert difference(chain.steps[0]["negative"][0], recorded["unet_uncond_0"]) < 1e-4
    assert len(chain.steps) == 14
    for index, step in enumerate(chain.steps):
        assert difference(step["denoised"][0], recorded["denoised"][index]) < 2e-4
        assert difference(step["x_next"][0], recorded["latent"][index]) < 2e-4
    published(result)


@pytest.mark.thorough
def test_the_runtime(star_bundle: Path, clip: np.ndarray, recorded: Arrays) -> None:
    noise = {name: array for name, array in recorded.items() if name.startswith("noise_")}
    prompts = {"prompt": text.PROMPT, "negative_prompt": text.NEGATIVE}  # embedded anew: the same
    with Restorer(star_bundle, noise=noise, **prompts) as restorer:
        results = list(restorer.restore(iter(clip)))
    published(np.stack(results))


@pytest.mark.thorough
def test_prompts_of_a_run(star_bundle: Path) -> None:
    given = Settings(prompt="wow! a cat", negative_prompt="grey")
    opened = Bundle.open(star_bundle)
    found = embed(opened, given, opened.constants()).constants["prompts"]
    encoder = text_encoder.TextEncoder(text.open_text_encoder(GOLDEN / "text_encoder")).eval()
    texts = ("wow! a cat" + text.POSITIVE, "grey")
    with torch.no_grad():
        theirs = [encoder(tokenize(GOLDEN / "text_encoder", each)[0]).numpy() for each in texts]
    assert difference(found, np.stack(theirs)) < 1e-5


@pytest.mark.thorough
def test_several_chunks_and_other_options(star_bundle: Path, clip: np.ndarray, recorded: Arrays) -> None:
    chosen = {"window": 2, "solver": "normal", "steps": 2, "guidance": 3.0}
    noise = {name: recorded[f"noise_{name}"] for name in ("vae", "start", "step")}
    noise = {f"noise_{name}": array[:1] if name == "step" else array for name, array in noise.items()}
    result = Chain(star_bundle, clip, noise, **chosen).run()
    with Restorer(star_bundle, choices=chosen, noise=noise) as restorer:
        ours = np.stack(list(restorer.restore(iter(clip))))
    assert np.abs(ours.astype(int) - result.astype(int)).max() <= 1
    assert psnr(ours, result) >= 60


@pytest.mark.thorough
def test_the_manifest(star_bundle: Path) -> None:
    manifest = read_manifest(star_bundle)
    assert manifest.family == "star"
    assert set(manifest.networks) == set(family.STAR.network_names)
    assert manifest.prompt is not None
    assert manifest.prompt.text == text.PROMPT
    assert manifest.prompt.negative == text.NEGATIVE
    assert manifest.networks["denoiser"].bounds["h"] == Bound(10, 1026, 8, 2)
    assert {f"steps/normal-{count}.npy" for count in range(1, 101)} <= set(manifest.files)
    provenance = manifest.provenance
    assert provenance is not None
    assert provenance.checkpoint_layout == "star-pt"
    assert {source.name.split("/")[0] for source in provenance.base_model} == {"vae", "text_encoder"}


@pytest.mark.thorough
def test_in_fp16(star_bundle_fp16: Path, clip: np.ndarray, recorded: Arrays) -> None:
    chain = Chain(star_bundle_fp16, clip, recorded)
    result = chain.run()
    assert difference(chain.steps[0]["positive"][0], recorded["unet_cond_0"]) < 5e-3
    for ours, path in zip(result, sorted((GOLDEN / "out").glob("*.png")), strict=True):
        assert psnr(ours, read_png(path)) >= 45


def published(result: np.ndarray) -> None:
    """Whether these are the published code's frames."""
    for ours, path in zip(result, sorted((GOLDEN / "out").glob("*.png")), strict=True):
        other = read_png(path)
        assert np.abs(ours.astype(int) - other.astype(int)).max() <= 1
        assert psnr(ours, other) >= 60


# ---------------------------------------------------------------- bad input


def command(capsys: pytest.CaptureFixture[str], out: Path, *arguments: object) -> tuple[int, str]:
    """The command's exit code, and what it says."""
    code = main(["bundle", *map(str, arguments), "--out", str(out / "bundle"), "--no-kernels"])
    assert not (out / "bundle").exists()
    return code, " ".join(capsys.readouterr().err.split())


STAR = ("--checkpoint", GOLDEN / "model.pt")
PARTS = ("--vae", GOLDEN, "--text-encoder", GOLDEN / "text_encoder")
DLORAL = ("--checkpoint", DLORAL_GOLDEN / "model.pkl")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (STAR, 2, "is made from --vae and --text-encoder; add --vae DIR"),
        ((*STAR, *PARTS[:2]), 2, "add --text-encoder DIR"),
        ((*STAR, "--sd", DLORAL_GOLDEN / "sd"), 2, "is made from --vae and --text-encoder"),
        ((*DLORAL, *PARTS), 2, "is made from --sd"),
        (
            (*DLORAL, *PARTS, "--family", "star"),
            5,
            "is a checkpoint of the family dloral, and star was asked for",
        ),
        (
            (*STAR, *PARTS, "--family", "dloral"),
            5,
            "is a checkpoint of the family star, and dloral was asked for",
        ),
        ((*STAR, *PARTS, "--top-k", 3), 2, "has nothing that --top-k could change"),
        (
            (*STAR, *PARTS, "--canvas", "512x512"),
            2,
            "expected a width that is a multiple of 64, and a height",
        ),
        ((*STAR, *PARTS, "--canvas", "0x16"), 2, "expected a width that is a multiple of 64"),
        ((*STAR, *PARTS, "--canvas", "small"), 2, "expected WIDTHxHEIGHT"),
        ((*STAR, "--vae", DLORAL_GOLDEN / "sd", *PARTS[2:]), 5, "is the VAE of Stable Diffusion"),
        ((*STAR, *PARTS[:2], "--text-encoder", GOLDEN), 5, "hidden_act"),
        (("--checkpoint", GOLDEN / "nothing.pt", *PARTS), 5, "does not exist; expected STAR's checkpoint"),
    ],
)
def test_bad_input_is_a_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: tuple[object, ...], code: int, said: str
) -> None:
    got, told = command(capsys, tmp_path, *arguments)
    assert said in told
    assert got == code


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (lambda name: not name.startswith("VideoControlNet."), "has no ControlNet"),
        (lambda name: name != "out.2.bias", "lacks out.2.bias"),
    ],
)
def test_an_incomplete_checkpoint(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, names: Callable[[str], bool], said: str
) -> None:
    weights = torch.load(GOLDEN / "model.pt", weights_only=True)
    torch.save({name: tensor for name, tensor in weights.items() if names(name)}, tmp_path / "a.pt")
    shutil.copy(GOLDEN / "config.json", tmp_path)
    code, told = command(capsys, tmp_path, "--checkpoint", tmp_path / "a.pt", *PARTS)
    assert said in told
    assert code == 5


def test_the_form_on_cogvideox(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    name = "model.diffusion_model.transformer.layers.0.attention.query_key_value.weight"
    torch.save({"module": {name: torch.zeros(1)}}, tmp_path / "1.pt")
    code, told = command(capsys, tmp_path, "--checkpoint", tmp_path / "1.pt", *PARTS)
    assert "CogVideoX form" in told
    assert code == 5
