"""STAR's modules against what its published code computes, and the ways of computing them against each other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from helpers.golden import psnr, read_png
from helpers.star import GOLDEN, Noise, Run, Star, chunks, tokenize
from torch import Tensor

from vsr_trt.export.families.star import sampler, steps, text, weights
from vsr_trt.export.families.star.denoiser import ControlNet, Denoiser, UNet, spec
from vsr_trt.export.families.star.pictures import canvas_side, corner
from vsr_trt.export.families.star.sizes import Sizes
from vsr_trt.export.families.star.transformers import GatedNorm

pytestmark = pytest.mark.usefixtures("one_thread", "no_gradients")
Arrays = dict[str, Tensor]


@pytest.fixture(scope="module")
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def golden_star() -> Arrays:
    with np.load(GOLDEN / "golden.npz") as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def star() -> Star:
    return Star()


@pytest.fixture(scope="module")
def frames() -> Tensor:
    return torch.from_numpy(np.stack([read_png(path) for path in sorted((GOLDEN / "in").glob("*.png"))]))


@pytest.fixture(scope="module")
def run(star: Star, frames: Tensor, golden_star: Arrays, no_gradients: None, one_thread: None) -> Run:
    noise = (golden_star[name] for name in ("noise_vae", "noise_start", "noise_step"))
    return star.run(frames, Noise(*noise))


def difference(ours: Tensor, other: Tensor) -> float:
    """Relative, of the norms."""
    return float((ours - other).norm() / other.norm())


def evaluate(star: Star, golden: Arrays, **changed: Tensor) -> tuple[Tensor, Tensor]:
    """Both predictions of the first step."""
    inputs = first_step(star, golden)
    return star.denoiser(**(inputs | changed))


def first_step(star: Star, golden: Arrays) -> Arrays:
    return {
        "xt": golden["unet_input_0"][None],
        "hint": golden["hint_latent"][None],
        "time": star.time(torch.from_numpy(sampler.steps_of("fast").packed()))[0],
        "text": star.text(torch.stack([golden["text_positive"], golden["text_negative"]])),
    }


# ---------------------------------------------------------------- parity


def test_texts(star: Star, golden_star: Arrays) -> None:
    folder = GOLDEN / "text_encoder"
    for name, words in (("positive", text.caption("a good video")), ("negative", text.NEGATIVE)):
        ids, cut = tokenize(folder, words)
        assert torch.equal(ids, golden_star[f"tokens_{name}"])
        assert cut == 0
    ours = star.embed("a good video")
    for own, name in zip(ours, ("positive", "negative"), strict=True):
        assert difference(own, golden_star[f"text_{name}"]) < 1e-4


def test_a_long_prompt_is_cut_and_ends(star: Star, golden_star: Arrays) -> None:
    ids, cut = tokenize(GOLDEN / "text_encoder", text.caption("a good video " * 30))
    assert ids.shape == (77,)
    assert ids[-1] == golden_star["tokens_positive"].max()  # the end's
    assert cut > 60
    assert torch.isfinite(star.embed("a good video " * 30)).all()


@pytest.mark.parametrize(
    ("words", "ids"),
    [("!", [256]), ("a ! b", [320, 256, 321]), ("a!", [320, 256]), ("a! !b", [320, 256, 256, 321]), ("", [])],
)
def test_an_exclamation_mark_is_a_word(words: str, ids: list[int]) -> None:
    """OpenCLIP fills up with what is spelt like it; transformers would take it for that wherever it stands."""
    begin, end = 952, 953
    found = tokenize(GOLDEN / "text_encoder", words)[0].tolist()
    assert found == [begin, *ids, end] + [0] * (75 - len(ids))


@pytest.mark.parametrize(
    ("typed", "plain"),
    [
        ("don’t", "don't"),
        ("‘a’ ‚b‛", "'a' 'b'"),
        ("“a” „b‟", '"a" "b"'),
        ("ﬁeld, aﬄux, ﬆ", "field, afflux, st"),
    ],
)
def test_quotes_and_ligatures_are_made_plain(typed: str, plain: str) -> None:
    given, expected = (tokenize(GOLDEN / "text_encoder", words)[0].tolist() for words in (typed, plain))
    assert given == expected


def test_canvas_and_hint(star: Star, frames: Tensor, golden_star: Arrays) -> None:
    image, reference = star.preprocess(frames)
    assert float((image[0] - golden_star["canvas_frame_0"]).abs().max()) < 1e-6
    assert torch.equal(reference, frames)
    hint = star.encode(frames, golden_star["noise_vae"])
    assert difference(hint[0], golden_star["hint_latent"]) < 1e-4
    x, xt, before = steps.Start()(
        hint, golden_star["noise_start"][None], torch.from_numpy(sampler.steps_of("fast").packed())
    )
    assert torch.isfinite(before).all()
    assert difference(x[0], golden_star["noised_latent"] * float(golden_star["sigmas"][0])) < 1e-6
    assert difference(xt[0], golden_star["unet_input_0"]) < 1e-6


def test_first_evaluation(star: Star, golden_star: Arrays) -> None:
    positive, negative = evaluate(star, golden_star)
    assert difference(positive[0], golden_star["unet_cond_0"]) < 1e-4
    assert difference(negative[0], golden_star["unet_uncond_0"]) < 1e-4


def test_controls_and_networks_apart(star: Star, golden_star: Arrays) -> None:
    inputs = first_step(star, golden_star)
    control, unet = star.denoiser.control, star.denoiser.unet
    assert isinstance(control, ControlNet)
    assert isinstance(unet, UNet)
    times = inputs["time"].split([sum(control.shifts), sum(unet.shifts)])
    texts = inputs["text"][:1].split([sum(control.texts), sum(unet.texts)], 2)
    controls = control(inputs["xt"], inputs["hint"], times[0], texts[0])
    assert difference(controls[0], golden_star["control_0"]) < 1e-4
    assert difference(controls[6], golden_star["control_6"]) < 1e-4
    assert difference(controls[-1], golden_star["control_mid"]) < 1e-4
    deviations = torch.stack([own.std() for own in controls])
    assert torch.allclose(deviations, golden_star["control_std"], rtol=1e-4)
    v = unet(inputs["xt"], times[1], texts[1], *controls)
    assert difference(v[0], golden_star["unet_cond_0"]) < 1e-4


def test_every_step(run: Run, golden_star: Arrays) -> None:
    assert len(run.latents) == 14
    for index in range(14):
        assert difference(run.denoised[index][0], golden_star["denoised"][index]) < 2e-4
        assert difference(run.latents[index][0], golden_star["latent"][index]) < 2e-4


def test_frames(run: Run, golden_star: Arrays) -> None:
    cropped = run.decoded[:, :, 8:136, 8:184]
    assert difference(cropped, golden_star["decoded"]) < 2e-4
    published = [read_png(path) for path in sorted((GOLDEN / "out").glob("*.png"))]
    for ours, other in zip(run.result.numpy(), published, strict=True):
        assert np.abs(ours.astype(int) - other.astype(int)).max() <= 1
        assert psnr(ours, other) >= 60


def test_decoding_in_other_groups_is_another_picture(star: Star, run: Run) -> None:
    alone = torch.cat([star.decode(one) for one in run.latents[-1][:, :, :2].split(1, 2)])
    assert difference(alone, run.decoded[:2]) > 1e-2


# ---------------------------------------------------------------- the same in other ways


@pytest.mark.parametrize(
    ("slices", "batched"),
    [
        pytest.param(1, False, marks=pytest.mark.thorough),
        (2, True),
        pytest.param(3, True, marks=pytest.mark.thorough),
        pytest.param(8, False, marks=pytest.mark.thorough),
    ],
)
def test_slices_and_passes_apart_change_nothing(
    star: Star, golden_star: Arrays, slices: int, batched: bool
) -> None:
    other = weights.denoiser(star.checkpoint, slices, batched)
    inputs = {name: tensor.clone() for name, tensor in first_step(star, golden_star).items()}
    inputs["xt"], inputs["hint"] = inputs["xt"][:, :, :2], inputs["hint"][:, :, :2]
    for ours, its in zip(star.denoiser(**inputs), other(**inputs), strict=True):
        assert difference(its, ours) < 1e-5


def test_encoders_go_down_side_by_side() -> None:
    """Neither network's block begins before the other's one is done: so no compiler keeps an encoder's results."""
    small = Sizes(
        dim=32, multipliers=(1, 2), residuals=1, attends=(True, False), context=32, head=16, heads=1
    )
    torch.manual_seed(0)
    model = Denoiser(small)
    begun: list[Tensor] = []
    layers = [network.input_blocks[2] for network in (model.unet, model.control)]
    for layer in layers:
        layer.register_forward_pre_hook(lambda layer, given: begun.append(given[0]))
    given = spec(model).dummy_inputs({"f": 2, "h": 18, "w": 16}, torch.Generator().manual_seed(0))
    with torch.enable_grad():
        model(**given)
        for x in begun:
            for network in (model.unet, model.control):
                last = network.input_blocks[1][2].proj_out.weight
                (found,) = torch.autograd.grad(x.sum(), last, retain_graph=True, allow_unused=True)
                assert found is not None
    assert len(begun) == 2


@pytest.mark.thorough
def test_half_precision(star: Star, golden_star: Arrays) -> None:
    inputs = {name: tensor.half() for name, tensor in first_step(star, golden_star).items()}
    inputs["xt"], inputs["hint"] = inputs["xt"][:, :, :1], inputs["hint"][:, :, :1]
    half = weights.denoiser(star.checkpoint).half()
    single = star.denoiser(**{name: tensor.float() for name, tensor in inputs.items()})
    for ours, other in zip(half(**inputs), single, strict=True):
        assert ours.dtype == torch.float16
        assert difference(ours.float(), other) < 2e-2


@pytest.mark.parametrize("gate", [-60.0, -20.0, -8.0, 0.0, 8.0])
def test_folded_gate(gate: float) -> None:
    """The norm of gated tokens without the product, down to gates at which FP32 has nothing left of them."""
    norm = GatedNorm(24)
    tokens = torch.randn(5, 7, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.3
    wanted = torch.nn.functional.layer_norm(tokens * torch.tensor(gate).double().sigmoid(), (24,), eps=1e-5)
    ours = norm(tokens.float(), torch.full((5, 7, 1), gate))
    assert float((ours - wanted).abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("frames", "most", "expected"),
    [
        (1, 32, ["0-1 0-1"]),
        (40, 32, ["0-40 0-40"]),  # one chunk, where STAR's code fails
        (72, 32, ["0-32 0-24", "16-48 24-40", "32-72 40-72"]),
        (100, 32, ["0-32 0-24", "16-48 24-40", "32-64 40-56", "48-80 56-72", "64-100 72-100"]),
    ],
)
def test_chunks(frames: int, most: int, expected: list[str]) -> None:
    found = [f"{a.start}-{a.stop} {b.start}-{b.stop}" for a, b in chunks(frames, most)]
    assert found == expected


def test_chunks_and_other_options(star: Star, golden_star: Arrays) -> None:
    """Several chunks, equal intervals, another guidance: D of a step is put together by cuts."""
    table = sampler.steps_of("normal", 2)
    hint, draws = golden_star["hint_latent"][None], golden_star["noise_step"]
    noise = Noise(golden_star["noise_vae"], golden_star["noise_start"], draws[:1])
    embeddings = torch.stack([golden_star["text_positive"], golden_star["text_negative"]])
    denoised, latents = star.denoise(hint, embeddings, noise, table, 3.0, 2)
    parts = []
    for own, taken in chunks(5, 2):
        piece = Noise(noise.vae, noise.start[:, own], noise.steps[:, :, own])
        (first,), _ = star.denoise(hint[:, :, own], embeddings, piece, sampler.steps_of("normal", 1), 3.0, 9)
        parts.append(first[:, :, taken.start - own.start : taken.stop - own.start])
    assert len(parts) == 4
    assert difference(torch.cat(parts, 2), denoised[0]) < 1e-5
    assert torch.equal(latents[-1], denoised[-1])
    whole, _ = star.denoise(hint, embeddings, noise, sampler.steps_of("normal", 1), 3.0, 32)
    assert difference(whole[0], denoised[0]) > 1e-3


# ---------------------------------------------------------------- tables and small parts


def test_sampler_tables(golden_star: Arrays) -> None:
    levels = sampler.sigmas()
    assert torch.equal(levels, golden_star["schedule_sigmas"])
    assert [float(levels[i]) for i in (0, 500, 899, 999)] == pytest.approx(
        [0.00110626, 0.94300967, 0.99909365, 1], abs=5e-9
    )
    table = sampler.steps_of("fast")
    assert np.allclose(table.levels, golden_star["sigmas"], rtol=3e-7, atol=0)
    assert table.times.tolist() == golden_star["timesteps"].tolist()
    printed = (
        "23.47165 10.69216 6.36431 4.16477 2.83386 2.37842 1.99024 1.65495 1.36194 1.10319 0.87251 0.66502 0.47679 "
        "0.30460 0.00000"
    )
    assert [f"{level:.5f}" for level in table.levels] == printed.split()


def test_update_by_its_formula() -> None:
    """In double precision, as it is written down, at a step in the middle."""
    table = sampler.steps_of("fast")
    x, denoised, before, noise = torch.randn(4, 1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    last, now, then = (float(level) for level in table.levels[4:7])
    h, h_ = np.log(now / then), np.log(last / now)
    k = 1 - np.exp(-2 * h)
    wanted = then / now * np.exp(-h) * x + k * denoised + 0.5 * k * h / h_ * (denoised - before)
    wanted = wanted + noise * then * np.sqrt(k)
    ours, xt = steps.Update()(x, denoised, before, noise, torch.from_numpy(table.packed()[5]))
    assert difference(ours, wanted) < 1e-6
    assert difference(xt, wanted / np.sqrt(1 + then**2)) < 1e-6


def test_normal_times_round_halves_to_even() -> None:
    assert sampler.steps_of("normal", 7).times.tolist() == [899, 786, 674, 562, 449, 336, 224]
    assert [len(sampler.steps_of("normal", n).times) for n in (1, 15, 50, 94)] == [1, 15, 50, 94]
    for mode, count in (("normal", 0), ("slow", 5)):
        with pytest.raises(ValueError, match="steps"):
            sampler.steps_of(mode, count)


def test_guidance_of_one_is_the_first_text_alone() -> None:
    positive, negative, xt = torch.randn(3, 1, 4, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    row = torch.zeros(sampler.ROW)
    row[sampler.PREDICTION] = torch.tensor([0.6, 0.8])
    ours = steps.Guide()(positive, negative, xt, row, torch.tensor([1.0]))
    assert difference(ours, 0.6 * xt - 0.8 * positive) < 1e-6


@pytest.mark.parametrize(
    ("side", "least", "canvas", "before"),
    [
        (512, 720, 720, 104),
        (719, 720, 720, 0),
        (720, 720, 720, 0),
        (724, 720, 784, 0),
        (784, 720, 848, 0),  # a side that fits gains 64, too
        (1080, 720, 1104, 0),
        (512, 1280, 1280, 384),
        (1280, 1280, 1280, 0),
        (1284, 1280, 1344, 0),
        (1920, 1280, 1984, 0),
        (4096, 1280, 4160, 0),
    ],
)
def test_canvas(side: int, least: int, canvas: int, before: int) -> None:
    assert canvas_side(side, least) == canvas
    assert corner(side, least) == before


def test_published_sizes() -> None:
    shapes = Sizes().shapes()
    numbers = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    assert len(shapes) == 2247
    assert sum(numbers.values()) == 2_041_121_910
    assert sum(n for name, n in numbers.items() if name.startswith("VideoControlNet.")) == 629_886_414
