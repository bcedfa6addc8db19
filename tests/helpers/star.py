"""STAR as one would run it without bundles: the exported modules one after another, in FP32, on given noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from helpers import captures
from helpers.golden import DATA
from torch import Tensor

from vsr_trt.export.bundle import build
from vsr_trt.export.families.stable_diffusion.text_encoder import TextEncoder
from vsr_trt.export.families.star import autoencoder, features, sampler, steps, text, weights
from vsr_trt.export.families.star.checkpoint import load
from vsr_trt.export.families.star.denoiser import Denoiser
from vsr_trt.export.families.star.pictures import Postprocess, Preprocess
from vsr_trt.export.request import BundleRequest
from vsr_trt.runtime.bundle.tokens import encode

GOLDEN = DATA / "golden" / "case_s"


def build_bundle(out: Path, precision: Literal["fp32", "fp16"]) -> None:
    """The golden model's bundle; modules are captured once for both precisions."""
    parts = {"vae": GOLDEN, "text-encoder": GOLDEN / "text_encoder"}
    request = BundleRequest(GOLDEN / "model.pt", out, parts, precision=precision, kernels=False, jobs=1)
    with captures.kept(out.parent / "star-captures"):
        build(request)


def tokenize(folder: Path, words: str) -> tuple[Tensor, int]:
    """A text's ids (77,) int64 by a folder's tokenizer, and how many tokens were cut off at its end."""
    ids, cut = encode(text.open_tokenizer(folder), words)
    return torch.from_numpy(ids), cut


@dataclass(frozen=True)
class Noise:
    """Standard normal numbers: for the encoder (f,4,h,w), the start (4,f,h,w) and each step (steps-1,4,f,h,w)."""

    vae: Tensor
    start: Tensor
    steps: Tensor


@dataclass(frozen=True)
class Run:
    """What a run gave: D and X after each step (1,4,f,h,w), the decoded canvas, and the frames, u8."""

    denoised: list[Tensor]
    latents: list[Tensor]
    decoded: Tensor
    result: Tensor


def chunks(frames: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Frames that go through together, and those of the clip that are taken from them."""
    overlap = most // 2
    cut = overlap // 2
    start = taken = 0
    while start + 1.25 * most < frames:
        stop = start + most - (overlap - cut)
        yield slice(start, start + most), slice(taken, stop)
        start, taken = start + most - overlap, stop
    yield slice(start, frames), slice(taken, frames)


class Star:
    """The whole model in memory."""

    def __init__(self, folder: Path = GOLDEN, slices: int = 1, batched: bool = True) -> None:
        self.folder = folder
        self.checkpoint = load(folder / "model.pt")
        sizes, own = self.checkpoint.sizes, self.checkpoint.weights
        self.denoiser: Denoiser = weights.denoiser(self.checkpoint, slices, batched)
        self.time = features.TimeFeatures.from_checkpoint(sizes, own)
        self.text = features.TextFeatures.from_checkpoint(sizes, own)
        self.preprocess, self.postprocess = Preprocess(sizes.canvas), Postprocess(sizes.canvas)

    def embed(self, prompt: str) -> Tensor:
        """Both texts' embeddings, (2,77,c)."""
        encoder = TextEncoder(text.open_text_encoder(self.folder / "text_encoder"))
        texts = (text.caption(prompt), text.NEGATIVE)
        return torch.stack([encoder(tokenize(self.folder / "text_encoder", each)[0]) for each in texts])

    def encode(self, frames: Tensor, noise: Tensor) -> Tensor:
        """frames u8 (f,h,w,3) -> hint latents (1,4,f,h,w)."""
        encoder = autoencoder.Encoder(autoencoder.open_vae(self.folder))
        images = self.preprocess(frames)[0].split(1)
        moments = [encoder(image) for image in images]
        each = (
            steps.Sample()(*own, one, torch.ones(1)) for own, one in zip(moments, noise.split(1), strict=True)
        )
        return torch.cat(list(each), 2)

    def denoise(
        self, hint: Tensor, embeddings: Tensor, noise: Noise, table: sampler.Steps, guidance: float, most: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """D and X after each step."""
        rows = torch.from_numpy(table.packed())
        times, given = self.time(rows), self.text(embeddings)
        guide, update = steps.Guide(), steps.Update()
        x, xt, before = steps.Start()(hint, noise.start[None], rows)
        denoised, latents = [], []
        steps_noise = [*noise.steps[:, None], torch.zeros_like(x)]
        for index, time in enumerate(times):
            clip = torch.empty_like(x)
            for frames, taken in chunks(x.shape[2], most):
                part = xt[:, :, frames]
                both = self.denoiser(part, hint[:, :, frames], time, given)
                found = guide(*both, part, rows[index], torch.tensor([guidance]))
                begin_at = taken.start - frames.start
                clip[:, :, taken] = found[:, :, begin_at : begin_at + taken.stop - taken.start]
            x, xt = update(x, clip, before, steps_noise[index], rows[index])
            before = clip
            denoised.append(clip)
            latents.append(x)
        return denoised, latents

    def decode(self, latents: Tensor) -> Tensor:
        """(1,4,f,h,w) -> canvas (f,3,8h,8w), in groups."""
        decoder = autoencoder.Decoder(autoencoder.open_vae(self.folder)).eval()
        return torch.cat([decoder(group) for group in latents.split(self.checkpoint.sizes.group, 2)])

    def run(
        self,
        frames: Tensor,
        noise: Noise,
        prompt: str = text.PROMPT,
        mode: str = "fast",
        count: int = 15,
        guidance: float = 7.5,
        most: int = 32,
    ) -> Run:
        """Restores a clip, frames u8 (f,h,w,3)."""
        hint, table = self.encode(frames, noise.vae), sampler.steps_of(mode, count)
        denoised, latents = self.denoise(hint, self.embed(prompt), noise, table, guidance, most)
        decoded = self.decode(latents[-1])
        return Run(denoised, latents, decoded, self.postprocess(decoded, frames))
