"""The sampler's tables: times, noise levels and coefficients of every step.

DPM-Solver++(2M) SDE (Lu et al., 2022) in the form of k-diffusion, with eta 1 and the midpoint rule. With S = sigma /
alpha a step goes from S to S'; h = ln(S / S'), k = 1 - exp(-2h), and h_ is the step's before:

    xt = X / sqrt(1 + S^2)        v = the networks at xt        D = alpha xt - sigma v
    X' = S'/S exp(-h) X + k D + k h/(2 h_) (D - D_) + S' sqrt(k) n

n is standard normal noise. The last step gives D itself. alpha and sigma of D, as the time that the networks get, are
those of the step's time rounded to an integer; S is that of the time itself.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

START = 899
"""Time at which the clip's own latents get the noise that sampling begins with."""
_TIMES = 1000
_EDGE = 7.5  # of the cosine schedule in log-SNR, at either end
_SHIFTS = (
    2.0,
    4.0,
)  # of the log-SNR, as for pictures of so many times the side; from the last time to the first
_COARSE, _FINE = np.arange(START, 500, -100), 500 - np.arange(11) * (501 / 11)  # the fast list's two halves

Table = npt.NDArray[np.float32]

TIME, PREDICTION, COEFFICIENTS, BEGIN = slice(0, 1), slice(1, 3), slice(3, 8), slice(8, 12)
"""Columns of a packed table, see `Steps.packed`."""
ROW = 12
MOST_STEPS = 100
SOLVERS = ("fast", "normal")
FAST_STEPS = 14


@dataclass(frozen=True)
class Steps:
    """Tables of one sampler, float32 unless said.

    Attributes:
        times: (steps,) int64, which the networks get.
        levels: (steps + 1,): S of each step, then 0.
        prediction: (steps,2): alpha and sigma of D.
        coefficients: (steps,5): factors of X, D, D - D_, noise; and that which makes the next step's xt of X'.
        start: (4,): alpha and sigma of the noised latents, factor that makes X of them, factor that makes xt of X.
    """

    times: npt.NDArray[np.int64]
    levels: Table
    prediction: Table
    coefficients: Table
    start: Table

    def packed(self) -> Table:
        """(steps,12), a row for each step: its time, `prediction`, `coefficients`, and in every row `start`."""
        steps = len(self.times)
        columns = (self.times[:, None], self.prediction, self.coefficients, np.tile(self.start, (steps, 1)))
        return np.concatenate(columns, 1).astype(np.float32)


def sigmas() -> Tensor:
    """Noise level of each of the 1000 times, alpha^2 + sigma^2 = 1; (1000,) float32, by torch as in STAR's code.

    A cosine schedule in log-SNR that is shifted for large pictures (Hoogeboom et al., 2023). Near the end, the last
    digit of a level decides over the fifth of its alpha.
    """
    least, most = math.atan(math.exp(_EDGE)), math.atan(math.exp(-_EDGE))
    share = torch.linspace(1, 0, _TIMES)
    ratio = -2 * torch.log(torch.tan(least + share * (most - least)))
    near, far = (ratio + 2 * math.log(1 / shift) for shift in _SHIFTS)
    return torch.sqrt(torch.sigmoid(-(share * near + (1 - share) * far)))


def times_of(mode: str, steps: int = 15) -> npt.NDArray[np.float64]:
    """Times of the steps, not rounded, falling.

    Args:
        mode: `fast` for the list of 14 that STAR takes by default; `normal` for equal intervals.
        steps: of `normal`.

    Raises:
        ValueError: another mode, or less than one step.
    """
    if mode == "fast":
        return np.concatenate([_COARSE, _FINE])[:-1]  # the last one is left out
    if mode != "normal" or steps < 1:
        raise ValueError(f"{mode!r} with {steps} steps")
    return np.array([START - k * (START + 1) / (steps + 1) for k in range(steps)])


def steps_of(mode: str, steps: int = 15) -> Steps:
    """The tables of a sampler; for the arguments and errors see `times_of`."""
    exact = times_of(mode, steps)
    sigma = sigmas()
    alpha = torch.sqrt(1 - sigma**2)
    logarithms = torch.log(sigma / alpha)
    times = torch.from_numpy(exact).float()
    share = times.frac()
    between = (1 - share) * logarithms[times.floor().long()] + share * logarithms[times.ceil().long()]
    levels = torch.cat([between.exp(), torch.zeros(1)]).numpy()
    rounded = np.rint(exact).astype(np.int64)  # halves to the even number
    begin = (alpha[START], sigma[START], sigma[START] / alpha[START], 1 / (1 + between[0].exp() ** 2).sqrt())
    return Steps(
        rounded,
        levels,
        torch.stack([alpha, sigma], 1)[rounded].numpy(),
        _coefficients(levels.astype(np.float64)).astype(np.float32),
        torch.stack(begin).numpy(),
    )


def _coefficients(levels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(steps,5) from S of each step and the 0 behind them."""
    rows = []
    before = 0.0
    for now, then in itertools.pairwise(levels[:-1]):
        h = np.log(now / then)
        k = -np.expm1(-2 * h)
        rows.append(
            [
                then / now * np.exp(-h),
                k,
                0.5 * k * h / before if before else 0.0,
                then * np.sqrt(k),
                1 / np.sqrt(1 + then**2),
            ]
        )
        before = h
    return np.array([*rows, [0.0, 1.0, 0.0, 0.0, 1.0]])
