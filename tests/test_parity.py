"""Parity with the published code, on its own results (tests/data/golden)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from helpers.golden import GOLDEN, PROMPT, psnr

from vsr_trt.export.eager import Eager
from vsr_trt.export.families.dloral import cfr, checkpoint, lora, spynet, unet, warp
from vsr_trt.export.families.dloral.postprocess import adain
from vsr_trt.export.families.stable_diffusion import vae
from vsr_trt.export.families.stable_diffusion.base_model import BaseModel
from vsr_trt.export.network import export
from vsr_trt.runtime import Restorer
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.devices.in_order import Pipeline
from vsr_trt.runtime.media.resample import resize_bicubic
from vsr_trt.runtime.onnxruntime.cpu import CpuNetworks
from vsr_trt.runtime.schedule import forms
from vsr_trt.runtime.schedule.tiling import offsets, window


class Recorder(CpuNetworks):
    """The host device, keeping what each network returned last."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self.last: dict[str, dict[str, np.ndarray]] = {}

    def run(self, network: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.last[network] = super().run(network, inputs)
        return self.last[network]


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def test_golden_frames(
    golden_bundle: Path,
    golden_frames: list[np.ndarray],
    golden_results: list[np.ndarray],
    golden_arrays: dict[str, np.ndarray],
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = Bundle.open(golden_bundle)
    scaling_factor = BaseModel(GOLDEN / "sd").config("vae")["scaling_factor"]
    device = Recorder(bundle)
    pipeline = Pipeline(bundle.manifest, device, Options(), bundle.constants())
    rows = []
    for index, frame in enumerate(golden_frames):
        result, _ = pipeline.run(frame)
        latent = device.last["unet"]["denoised"][0] * scaling_factor
        raw = (device.last["vae_decoder"]["image"][0].clip(-1, 1) + 1) / 2
        rows.append(
            (
                relative(latent, golden_arrays[f"latent_{index}"]),
                float(np.abs(raw - golden_arrays[f"raw_{index}"]).mean()),
                psnr(result, golden_results[index]),
            )
        )
    with capsys.disabled():
        print("\nparity with the published code, FP32 bundle on the CPU")
        print("frame  latent (relative norm)  picture (mean abs)  PNG (dB)")
        for index, (latent_error, raw_error, decibels) in enumerate(rows):
            print(f"{index:5d}  {latent_error:22.1e}  {raw_error:18.1e}  {decibels:8.1f}")
    for latent_error, raw_error, decibels in rows:
        assert latent_error <= 1e-4
        assert raw_error <= 5e-4
        assert decibels >= 49


def test_prompt_embedding(golden_bundle: Path, golden_arrays: dict[str, np.ndarray]) -> None:
    got = np.load(golden_bundle / "prompt.npy")
    assert np.abs(got - golden_arrays["prompt_embeds"].reshape(got.shape)).max() <= 1e-5


@pytest.mark.thorough
def test_fp16_bundle_is_near_the_fp32_one(
    golden_bundle: Path,
    golden_bundle_fp16: Path,
    golden_frames: list[np.ndarray],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Restorer(golden_bundle) as fp32, Restorer(golden_bundle_fp16) as fp16:
        pairs = zip(fp32.restore(golden_frames), fp16.restore(golden_frames), strict=True)
        decibels = [psnr(one, other) for one, other in pairs]
    with capsys.disabled():
        print("\nFP16 bundle against FP32, dB a frame:", ", ".join(f"{value:.1f}" for value in decibels))
    assert min(decibels) >= 40


class TorchChain:
    """The same frames through torch modules, dense, tiled as published, in double precision unless asked otherwise."""

    def __init__(self, stage: lora.Stage = "both", dtype: torch.dtype = torch.float64) -> None:
        self.dtype = dtype
        base = BaseModel.open(GOLDEN / "sd")
        loaded = checkpoint.load(GOLDEN / "model.pkl")
        network = base.empty_unet()
        lora.merge_into(network, loaded, lora.adapter_weights(stage))
        model = base.vae()
        self.encoder = vae.Encoder(model).to(dtype).eval()
        self.decoder = vae.Decoder(model).to(dtype).eval()
        self.unet = unet.UNet(network, model.config.scaling_factor).to(dtype).eval()
        self.spynet = spynet.SpyNet.from_checkpoint(loaded.cfr).to(dtype).eval()
        self.warp = warp.spec().module.to(dtype).eval()
        self.cfr = cfr.spec(loaded.cfr, None).module.to(dtype).eval()
        text = base.text_encoder()
        self.prompt = text(base.tokenize(PROMPT)[0][None]).last_hidden_state[0].to(dtype)

    @torch.no_grad()
    def latents(
        self, previous: torch.Tensor, current: torch.Tensor, tile: int = 96, overlap: int = 32
    ) -> torch.Tensor:
        """The denoised latent of `current`; both images (1,3,8h,8w) in [-1,1]."""
        previous, current = previous.to(self.dtype), current.to(self.dtype)
        z_previous, z = self.encoder(previous), self.encoder(current)
        thumbs = [F.interpolate(x, scale_factor=0.125, mode="bicubic") for x in (current, previous)]
        height, width = z.shape[2:]
        if height * width <= tile * tile:
            return self._denoise(z, z_previous, *thumbs)
        side = min(tile, height, width)
        weights = torch.from_numpy(window("gaussian", side, side, overlap)).to(self.dtype)
        total, count = torch.zeros_like(z), torch.zeros(height, width).to(self.dtype)
        for top in offsets(height, side, overlap):
            for left in offsets(width, side, overlap):
                area = (..., slice(top, top + side), slice(left, left + side))
                part = self._denoise(z[area], z_previous[area], thumbs[0][area], thumbs[1][area])
                total[area] += part * weights
                count[area[1:]] += weights
        return total / count

    @torch.no_grad()
    def picture(self, latent: torch.Tensor, frame: np.ndarray) -> np.ndarray:
        """The result (4H,4W,3) u8 of a denoised latent: decoded whole, colours aligned to the frame's, rounded."""
        height, width = 4 * frame.shape[0], 4 * frame.shape[1]
        decoded = (self.decoder(latent)[..., :height, :width].clamp(-1, 1) + 1) / 2
        source = (images(frame)[..., :height, :width] + 1) / 2
        levels = adain(decoded, source).clamp(0, 1) * 255
        return levels.add(0.5).floor()[0].permute(1, 2, 0).numpy().astype(np.uint8)

    def _denoise(self, z, z_previous, thumb, thumb_previous):
        warped = self.warp(z_previous, self.spynet(thumb, thumb_previous))
        fused = self.cfr(z, warped)
        return self.unet(warped, fused, self.prompt)


def images(frame: np.ndarray) -> torch.Tensor:
    """The x4 picture as Pillow makes it, padded to multiples of 64, (1,3,8h,8w) in [-1,1]."""
    from PIL import Image

    height, width = frame.shape[0] * 4, frame.shape[1] * 4
    scaled = np.array(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
    padded = np.pad(scaled, ((0, -height % 64), (0, -width % 64), (0, 0)), mode="edge")
    return torch.from_numpy(padded.astype(np.float64) / 127.5 - 1).permute(2, 0, 1)[None]


@pytest.fixture(scope="module")
def chain() -> TorchChain:
    return TorchChain()


def restored_latents(
    bundle: Path, frames: list[np.ndarray], options: Options
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The last frame's denoised latent, and all results."""
    opened = Bundle.open(bundle)
    captured: list[np.ndarray] = []

    class Capture(CpuNetworks):
        def run(self, network: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            if network == "vae_decoder":
                captured.append(inputs["latent"].copy())
            return super().run(network, inputs)

    pipeline = Pipeline(opened.manifest, Capture(opened), options, opened.constants())
    results = [pipeline.run(frame)[0] for frame in frames]
    return captured[-1], results


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap"),
    [
        pytest.param(128, 128, 96, 32, id="whole", marks=pytest.mark.full_size),
        pytest.param(131, 141, 96, 32, id="odd", marks=pytest.mark.full_size),
        pytest.param(176, 144, 64, 32, id="tiled", marks=pytest.mark.full_size),
        pytest.param(129, 140, 64, 16, id="odd-and-tiled"),
    ],
)
def test_odd_sizes_and_tiles_agree_with_torch(
    golden_bundle: Path, chain: TorchChain, height: int, width: int, tile: int, overlap: int
) -> None:
    rng = np.random.default_rng(height)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.float64)
    large = resize_bicubic(coarse.astype(np.uint8), height + 3, width + 2)
    frames = [large[:height, :width], large[3:, 2:]]  # the same scene, moved
    got, results = restored_latents(
        golden_bundle, frames, Options(tiles={"latent": tile, "vae": 128}, overlaps={"latent": overlap})
    )
    expected = chain.latents(images(frames[0]), images(frames[1]), tile, overlap).numpy()
    assert relative(got, expected) <= 1e-4
    assert [result.shape for result in results] == [(4 * height, 4 * width, 3)] * 2


SIZES = {"1024x640": (160, 256), "odd": (171, 301), "1280x704": (176, 320)}


def moving(height: int, width: int) -> list[np.ndarray]:
    """Two frames of a scene that moves, smooth on the left and rough on the right: statistics differ."""
    rng = np.random.default_rng(height)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    large = resize_bicubic(coarse, height + 3, width + 2).astype(np.float64)
    large += rng.normal(0, 40, large.shape) * np.linspace(0, 1, width + 2)[None, :, None] ** 2
    scene = large.clip(0, 255).astype(np.uint8)
    return [scene[:height, :width], scene[3:, 2:]]


@pytest.fixture(scope="module")
def published() -> Callable[[str], tuple[list[np.ndarray], np.ndarray]]:
    """Frames of a size, and what torch makes of the second in FP32: whole VAE, tiles as published in between."""
    chain = TorchChain(dtype=torch.float32)

    @functools.cache
    def made(size: str) -> tuple[list[np.ndarray], np.ndarray]:
        frames = moving(*SIZES[size])
        return frames, chain.picture(chain.latents(images(frames[0]), images(frames[1])), frames[1])

    return made


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("size", "options", "form"),
    [
        ("1024x640", {}, "strips"),
        ("1024x640", {"tiles": {"vae": 128}}, "whole"),
        pytest.param("odd", {}, "strips", marks=pytest.mark.full_size),
        pytest.param("1024x640", {"tiles": {"vae": 32}}, "strips", marks=pytest.mark.full_size),
        pytest.param("1280x704", {"memory": None}, "strips", marks=pytest.mark.full_size),
    ],
)
def test_the_whole_picture_is_torchs_at_real_sizes(
    golden_bundle: Path, published, size: str, options: dict[str, int | None], form: str, capsys
) -> None:
    """By default options, above what once was cut into tiles; and with no more memory than strips take."""
    frames, expected = published(size)
    if "memory" in options:
        opened = Bundle.open(golden_bundle)
        need = forms.estimate(opened, *SIZES[size], Options(), 1, in_strips=True)
        assert need is not None
        options = options | {"memory": need + 1}
    with Restorer(golden_bundle, **options) as restorer:
        result = list(restorer.restore(frames))[1]
        assert restorer.form is not None
        assert restorer.form.name == form
    decibels = psnr(result, expected)
    with capsys.disabled():
        print(f"\n{size}, {form}: {decibels:.1f} dB from torch")
    assert decibels >= 60


@pytest.mark.thorough
def test_an_fp16_bundle_at_a_real_size(golden_bundle_fp16: Path, published, capsys) -> None:
    frames, expected = published("1024x640")
    with Restorer(golden_bundle_fp16) as restorer:
        decibels = psnr(list(restorer.restore(frames))[1], expected)
    with capsys.disabled():
        print(f"\n1024x640, FP16 bundle: {decibels:.1f} dB from torch")
    assert decibels >= 40


@pytest.mark.full_size
def test_consistency_stage_agrees_with_torch(
    chain: TorchChain, golden_frames: list[np.ndarray], tmp_path: Path
) -> None:
    """The UNet exported with the three consistency adapters, and torch's in double precision."""
    base, loaded = BaseModel.open(GOLDEN / "sd"), checkpoint.load(GOLDEN / "model.pkl")
    network = base.empty_unet()
    lora.merge_into(network, loaded, lora.adapter_weights("consistency"))
    unet.fold_timestep(network)
    exported = export(unet.spec(network, base.config("vae")["scaling_factor"]), tmp_path, "fp32")

    inputs: list[torch.Tensor] = []
    consistency = TorchChain("consistency")
    consistency.unet.register_forward_pre_hook(lambda _, arguments: inputs.extend(arguments))
    pair = [images(frame) for frame in golden_frames[:2]]
    expected = consistency.latents(*pair).numpy()
    feeds = dict(
        zip(("warped", "fused", "prompt"), (x.detach().float().numpy() for x in inputs), strict=True)
    )
    for graph in exported.record.graphs.values():
        session = onnxruntime.InferenceSession(
            tmp_path / Path(graph).name, providers=["CPUExecutionProvider"]
        )
        assert relative(session.run(None, feeds)[0], expected) <= 1e-4
    assert relative(chain.latents(*pair).numpy(), expected) > 0.1  # the quality adapters do matter


@pytest.mark.thorough
def test_the_eager_model_is_the_published_one(
    golden_frames: list[np.ndarray], golden_results: list[np.ndarray]
) -> None:
    """What `build.py time torch` times must compute the same: the dense attention above all."""
    eager = Eager(GOLDEN / "sd", GOLDEN / "model.pkl", PROMPT)
    for frame, expected in zip(golden_frames[:2], golden_results, strict=False):
        result, seconds = eager.run(frame)
        assert psnr(result, expected) >= 49
        assert set(seconds) >= {"vae_encoder", "spynet", "cfr", "text_encoder", "unet", "vae_decoder"}
        assert all(value > 0 for value in seconds.values())
