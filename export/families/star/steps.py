"""What the sampler does around the networks: sample, start, guide, update. Each is a few lines, and FP32.

Their numbers come from a table (`sampler.Steps.packed`), one row for a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from vsr_trt.export.families.star.autoencoder import SCALING
from vsr_trt.export.families.star.sampler import BEGIN, COEFFICIENTS, PREDICTION, ROW
from vsr_trt.export.families.star.shapes import BOUNDS, CHUNK, LATENTS, MOMENTS, bounds
from vsr_trt.export.network import Input, NetworkSpec, Output
from vsr_trt.runtime.bundle.manifest import Bound

_Shapes = Mapping[str, tuple[int | str, ...]]

_RESCALED = 0.2  # share of the guided prediction whose deviation is brought to that of the positive one
_LEAST = 1e-12


class Sample(nn.Module):
    """mean, deviation, noise (f,4,h,w), spread (1,) -> hint (1,4,f,h,w): a sample of the encoder's distribution.

    It is scaled. `spread` is 1 in STAR's code; 0 gives the mean, which is also the mode.
    """

    def forward(self, mean: Tensor, deviation: Tensor, noise: Tensor, spread: Tensor) -> Tensor:
        """See the class."""
        return ((mean + spread * (deviation * noise)) * SCALING).transpose(0, 1).unsqueeze(0)


class Start(nn.Module):
    """hint, noise (1,4,f,h,w), table (s,12) -> x, xt, before (1,4,f,h,w): what the first step begins with.

    x is sigma / alpha times the noised latents, as STAR's code has it; with the rest of the sampler, 1 / alpha would
    be consistent, which is 0.09 % more. `before` stands for what the step before would have denoised; its factor is 0.
    """

    def forward(self, hint: Tensor, noise: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        alpha, sigma, scale, first = table[0, BEGIN].unbind()
        x = (alpha * hint + sigma * noise) * scale
        return x, x * first, x * 0


class Guide(nn.Module):
    """positive, negative, xt (1,4,f,h,w), row (12,), guidance (1,) -> denoised (1,4,f,h,w).

    v = negative + guidance (positive - negative), then brought in part to the deviation of `positive` (Lin et al.,
    2023); deviations are of all numbers of the chunk. Then denoised = alpha xt - sigma v. A guidance of 1 gives
    `positive` itself.
    """

    def forward(
        self, positive: Tensor, negative: Tensor, xt: Tensor, row: Tensor, guidance: Tensor
    ) -> Tensor:
        """See the class."""
        v = negative + guidance * (positive - negative)
        factor = _RESCALED * _deviation(positive) / (_deviation(v) + _LEAST) + (1 - _RESCALED)
        alpha, sigma = row[PREDICTION].unbind()
        return alpha * xt - sigma * (v * factor)


class Update(nn.Module):
    """x, denoised, before, noise (1,4,f,h,w), row (12,) -> x, xt (1,4,f,h,w) of the next step.

    `before` is what was denoised in the step before; its factor is 0 in the first one, so any finite numbers will do.
    """

    def forward(
        self, x: Tensor, denoised: Tensor, before: Tensor, noise: Tensor, row: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See the class."""
        a, b, c, d, scale = row[COEFFICIENTS].unbind()
        x = a * x + b * denoised + c * (denoised - before) + d * noise
        return x, x * scale


def _deviation(x: Tensor) -> Tensor:
    """The square root of the unbiased variance of all numbers, (1,1,1,1,1)."""
    centred = x - x.mean((1, 2, 3, 4), keepdim=True)
    count = x.shape[1] * x.shape[2] * x.shape[3] * x.shape[4]
    return (centred.pow(2).sum((1, 2, 3, 4), keepdim=True) / (count - 1)).sqrt()


_EXACT = "a few operations on latents that pass through all steps: nothing to gain, and errors would add up"
_TRACED = {"f": 6, "h": 18, "w": 24}
_CHECKED = ({"f": 1, "h": 10, "w": 16}, {"f": 5, "h": 26, "w": 8})


def sample_spec() -> NetworkSpec:
    """sample as it is exported."""
    names = ("mean", "deviation", "noise")
    return _spec("sample", Sample(), dict.fromkeys(names, MOMENTS) | {"spread": (1,)}, {"hint": LATENTS})


def start_spec() -> NetworkSpec:
    """start as it is exported."""
    inputs = {"hint": LATENTS, "noise": LATENTS, "table": ("s", ROW)}
    return _spec("start", Start(), inputs, dict.fromkeys(("x", "xt", "before"), LATENTS))


def guide_spec() -> NetworkSpec:
    """guide as it is exported: of a chunk."""
    inputs = dict.fromkeys(("positive", "negative", "xt"), LATENTS) | {"row": (ROW,), "guidance": (1,)}
    return _spec("guide", Guide(), inputs, {"denoised": LATENTS}, CHUNK)


def update_spec() -> NetworkSpec:
    """update as it is exported."""
    inputs = dict.fromkeys(("x", "denoised", "before", "noise"), LATENTS) | {"row": (ROW,)}
    return _spec("update", Update(), inputs, dict.fromkeys(("x_next", "xt_next"), LATENTS))


def _spec(
    name: str, module: nn.Module, inputs: _Shapes, outputs: _Shapes, frames: Bound = BOUNDS["f"]
) -> NetworkSpec:
    symbols = [size for size in ("h", "w", "s") if any(size in shape for shape in inputs.values())]
    more = {"s": 14} if "s" in symbols else {}
    return NetworkSpec(
        name=name,
        module=module,
        inputs=tuple(Input(each, torch.float32, shape) for each, shape in inputs.items()),
        outputs=tuple(Output(each, torch.float32, shape) for each, shape in outputs.items()),
        bounds=bounds(*symbols, frames=frames),
        dummy_inputs=_random(inputs),
        traced=_TRACED | more,
        checked=tuple(sizes | more for sizes in _CHECKED),
        always_fp32=_EXACT,
    )


def _random(shapes: _Shapes) -> Callable[[dict[str, int], torch.Generator], dict[str, Tensor]]:
    def draw(sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        return {
            name: torch.randn(
                [size if isinstance(size, int) else sizes[size] for size in shape], generator=generator
            )
            for name, shape in shapes.items()
        }

    return draw
