"""What the sampler does around the networks: sample, start, guide, update. Each is a few lines, and FP32.

Their numbers come from tables (`sampler.Steps`), one row for a step.
"""

from __future__ import annotations

from torch import Tensor, nn

from vsr_trt.export.families.star.autoencoder import SCALING

_RESCALED = 0.2  # share of the guided prediction whose deviation is brought to that of the positive one
_LEAST = 1e-12


class Sample(nn.Module):
    """mean, deviation, noise (f,4,h,w) -> hint (1,4,f,h,w): a sample of the encoder's distribution, scaled."""

    def forward(self, mean: Tensor, deviation: Tensor, noise: Tensor) -> Tensor:
        """See the class."""
        return ((mean + deviation * noise) * SCALING).transpose(0, 1).unsqueeze(0)


class Start(nn.Module):
    """hint, noise (1,4,f,h,w), start (4,) -> x, xt (1,4,f,h,w): what the first step begins with.

    x is sigma / alpha times the noised latents, as STAR's code has it; with the rest of the sampler, 1 / alpha would
    be consistent, which is 0.09 % more.
    """

    def forward(self, hint: Tensor, noise: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        x = (start[0] * hint + start[1] * noise) * start[2]
        return x, x * start[3]


class Guide(nn.Module):
    """positive, negative, xt (1,4,f,h,w), prediction (2,), guidance (1,) -> denoised (1,4,f,h,w).

    v = negative + guidance (positive - negative), then brought in part to the deviation of `positive` (Lin et al.,
    2023); deviations are of all numbers of the chunk. `prediction` is alpha and sigma: denoised = alpha xt - sigma v.
    A guidance of 1 gives `positive` itself.
    """

    def forward(
        self, positive: Tensor, negative: Tensor, xt: Tensor, prediction: Tensor, guidance: Tensor
    ) -> Tensor:
        """See the class."""
        v = negative + guidance * (positive - negative)
        factor = _RESCALED * _deviation(positive) / (_deviation(v) + _LEAST) + (1 - _RESCALED)
        return prediction[0] * xt - prediction[1] * (v * factor)


class Update(nn.Module):
    """x, denoised, before, noise (1,4,f,h,w), coefficients (5,) -> x, xt (1,4,f,h,w) of the next step.

    `before` is what was denoised in the step before; its factor is 0 in the first one, so any finite numbers will do.
    """

    def forward(
        self, x: Tensor, denoised: Tensor, before: Tensor, noise: Tensor, coefficients: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See the class."""
        a, b, c, d, scale = coefficients.unbind()
        x = a * x + b * denoised + c * (denoised - before) + d * noise
        return x, x * scale


def _deviation(x: Tensor) -> Tensor:
    """The square root of the unbiased variance of all numbers, (1,1,1,1,1)."""
    centred = x - x.mean((1, 2, 3, 4), keepdim=True)
    count = x.shape[1] * x.shape[2] * x.shape[3] * x.shape[4]
    return (centred.pow(2).sum((1, 2, 3, 4), keepdim=True) / (count - 1)).sqrt()
