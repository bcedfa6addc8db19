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
from torch import Tensor

from export.base_model import BaseModel
from export.checkpoint import load
from export.lora import adapter_weights, merge_into
from export.networks import cfr, unet, vae
from export.networks.postprocess import Postprocess
from export.networks.preprocess import Preprocess
from export.networks.spynet import SpyNet, warp
from kernels.torch_forms import DenseAttention


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
