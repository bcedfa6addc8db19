"""DLoRAL as one would run it without bundles: torch modules, one after another, in FP32.

It does what the published code does for a frame: both frames of the window are encoded, the attention
is the dense module, the text encoder runs every time. In one thing it is kinder: the adapters are merged.
It exists to be timed beside the runtime, on the same weights, frames and machine: `build.py eager`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import kernels
from export.base_model import BaseModel
from export.checkpoint import load
from export.lora import adapter_weights, merge_into
from export.networks import cfr, unet, vae
from export.networks.postprocess import Postprocess
from export.networks.preprocess import Preprocess
from export.networks.spynet import SpyNet, warp
from kernels.fold import FloatArray


class DenseAttention(nn.Module):
    """GatedTopKAttention as the published module computes it: 1x1 convolutions and whole score matrices."""

    def __init__(self, weights: kernels.AttentionWeights) -> None:
        super().__init__()
        self.heads = weights.heads
        self.temperature = weights.temperature
        self.query = _convolution(weights.query, weights.query_bias)
        self.key = _convolution(weights.key, weights.key_bias)
        self.value = _convolution(weights.value, weights.value_bias)
        self.proj = _convolution(weights.proj, weights.proj_bias)
        self.threshold = nn.Linear(len(weights.threshold), 1)
        self.threshold.weight.data = torch.from_numpy(weights.threshold).float()[None]
        self.threshold.bias.data = torch.tensor([weights.threshold_bias], dtype=torch.float32)

    def forward(self, current: Tensor, previous: Tensor) -> Tensor:
        """current, previous (n,4,h,w) -> fused (n,4,h,w)."""
        query, key, value = (
            convolution(latent).unflatten(1, (self.heads, -1)).flatten(3).transpose(2, 3)
            for convolution, latent in (
                (self.query, current),
                (self.key, previous),
                (self.value, previous),
            )
        )
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5 - self.threshold(query)
        retrieved = (scores.relu() / self.temperature) @ value
        return current + self.proj(retrieved.transpose(2, 3).reshape(len(current), -1, *current.shape[2:]))


def _convolution(weight: FloatArray, bias: FloatArray | None) -> nn.Conv2d:
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    layer.weight.data = torch.from_numpy(weight).float()[..., None, None]
    layer.bias = None if bias is None else nn.Parameter(torch.from_numpy(bias).float())
    return layer


class Eager:
    """The whole model in memory; `frame` restores one frame and times its stages."""

    def __init__(self, sd: Path, checkpoint: Path, prompt: str) -> None:
        base, loaded = BaseModel.open(sd), load(checkpoint)
        denoiser = base.empty_unet()
        merge_into(denoiser, loaded, adapter_weights("both"))
        model = base.vae()
        self.tokens = base.tokenize(prompt)[0][None]
        self.preprocess = Preprocess()
        self.encoder, self.decoder = vae.Encoder(model).eval(), vae.Decoder(model).eval()
        self.spynet = SpyNet.from_checkpoint(loaded.cfr).eval()
        self.attention = DenseAttention(cfr.attention_weights(loaded.cfr)).eval()
        self.text_encoder = base.text_encoder()
        self.unet = unet.UNet(denoiser, model.config.scaling_factor).eval()
        self.postprocess = Postprocess("adain")
        self.seconds: dict[str, float] = {}

    @torch.no_grad()
    def frame(self, previous: Tensor, current: Tensor) -> Tensor:
        """previous, current u8 (H,W,3) -> u8 (4H,4W,3); the stages' seconds are in `seconds`."""
        self.seconds = {}
        with self._timed("preprocess"):
            images, thumbs, references = self.preprocess(torch.stack([current, previous]))
        with self._timed("vae_encoder"):
            latent, previous_latent = (self.encoder(image[None]) for image in images)
        with self._timed("spynet"):
            flow = self.spynet(thumbs[:1], thumbs[1:])
        with self._timed("cfr"):
            warped = warp(previous_latent, flow, padding="zeros")
            fused = self.attention(latent, warped)
        with self._timed("text_encoder"):
            text = self.text_encoder(self.tokens).last_hidden_state[0]
        with self._timed("unet"):
            denoised = self.unet(warped, fused, text)
        with self._timed("vae_decoder"):
            decoded = self.decoder(denoised)
        with self._timed("postprocess"):
            return self.postprocess(decoded, references[:1])[0]

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - started


def measure(eager: Eager, frames: Iterable[np.ndarray]) -> dict[str, Any]:
    """Restores frames, u8 (H,W,3) of at least 128x128; the first is warm-up if there are more.

    Returns:
        `frames`, how many; `stages`, the median seconds of each.
    """
    runs: list[dict[str, float]] = []
    previous = None
    for frame in frames:
        current = torch.from_numpy(frame)
        eager.frame(current if previous is None else previous, current)
        previous = current
        runs.append(eager.seconds)
    measured = runs[1:] or runs
    stages = {stage: statistics.median(run[stage] for run in measured) for stage in measured[0]}
    return {"frames": len(runs), "stages": stages}
