"""DLoRAL as one would run it without bundles: torch modules, one after another, in FP32.

It does what the published code does for a frame: both frames of the window are encoded, the attention
is the dense module, the text encoder runs every time. In one thing it is kinder: the adapters are merged.
It exists to be timed next to the runtime, on the same weights, frames and machine: `vsr-build time torch`, and
`vsr-build time torch-compile` for `Compiled`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vsr_trt.export.families.dloral import cfr, unet
from vsr_trt.export.families.dloral.checkpoint import load
from vsr_trt.export.families.dloral.lora import adapter_weights, merge_into
from vsr_trt.export.families.dloral.postprocess import Postprocess
from vsr_trt.export.families.dloral.preprocess import Preprocess
from vsr_trt.export.families.dloral.spynet import SpyNet, warp
from vsr_trt.export.families.stable_diffusion import vae
from vsr_trt.export.families.stable_diffusion.base_model import BaseModel
from vsr_trt.kernels.gated_topk.torch_forms import DenseAttention
from vsr_trt.runtime.errors import DeviceError

_COMPILED = ("encoder", "spynet", "attention", "text_encoder", "unet", "decoder")
_COMPILERS = {"darwin": "clang++", "win32": "cl"}  # that inductor calls by itself; elsewhere g++


class Eager:
    """The whole model in memory; `frame` restores one frame and times its stages, `run` the next one of a clip.

    Attributes:
        seconds: of each stage of the last frame.
        versions: of what does the work.
        threads: that torch uses.
    """

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
        self.versions = {"torch": torch.__version__}
        self.threads = torch.get_num_threads()
        self._previous: Tensor | None = None

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

    def run(self, frame: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        """Restores the next frame (H,W,3) u8, of at least 128x128.

        Returns:
            The result (4H,4W,3) u8, and the seconds of each stage.

        Raises:
            DeviceError: torch failed, most often for lack of memory.
        """
        current = torch.from_numpy(frame)
        try:
            result = self.frame(current if self._previous is None else self._previous, current)
        except RuntimeError as error:  # of torch's allocator and compiler too
            raise DeviceError(f"torch failed on a frame: {_first_line(error)}") from error
        self._previous = current
        return result.numpy(), self.seconds

    def close(self) -> None:
        """Nothing is held but memory."""

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - started


class Compiled(Eager):
    """The same, with every module that has weights through `torch.compile`: inductor, static shapes.

    What is compiled is kept in a folder of its own, which `close` removes: an earlier run's code would make the
    first frame look quick.

    Args:
        sd, checkpoint, prompt: as for `Eager`.
        compile_module: torch's, or another one for tests.

    Raises:
        DeviceError: there is no C++ compiler, or torch cannot compile here.
    """

    def __init__(
        self, sd: Path, checkpoint: Path, prompt: str, compile_module: Callable[..., Any] = torch.compile
    ) -> None:
        compiler = _compiler_version()
        super().__init__(sd, checkpoint, prompt)
        self.versions["compiler"] = compiler
        self._cache = tempfile.TemporaryDirectory(prefix="vsr-trt-", ignore_cleanup_errors=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = self._cache.name
        try:
            for name in _COMPILED:
                setattr(self, name, compile_module(getattr(self, name), dynamic=False))
        except RuntimeError as error:
            raise DeviceError(f"torch.compile does not work here: {_first_line(error)}") from error

    def close(self) -> None:
        """Removes what was compiled."""
        self._cache.cleanup()


def _compiler_version() -> str:
    """The first line that the C++ compiler says of itself.

    Raises:
        DeviceError: there is none.
    """
    name = os.environ.get("CXX") or _COMPILERS.get(sys.platform, "g++")
    path = shutil.which(name)
    if path is None:
        raise DeviceError(
            f"torch.compile needs a C++ compiler, and there is no {name} here. Install one, e.g. with: apt install g++ "
            "(or name yours in the environment variable CXX)"
        )
    done = subprocess.run([path, "--version"], capture_output=True, text=True, errors="replace", check=False)
    return (done.stdout.strip() or path).splitlines()[0]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
