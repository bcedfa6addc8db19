"""How far two results are apart, in the field's words; Polygraphy does the counting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vsr_trt.runtime.devices.actions import Buffers

QUANTILE = 0.999
_TINY = 1e-6  # below this a reference counts as zero, and differences from it as absolute


@dataclass(frozen=True)
class Difference:
    """Difference of a network's outputs from a reference, over all runs; the worst output counts.

    Errors are in units of the reference's largest value of that output.

    Attributes:
        max, mean, quantile: of |result - reference|; the quantile is 99.9 %.
        cosine: between result and reference, as vectors.
    """

    max: float
    mean: float
    quantile: float
    cosine: float


def difference(results: Sequence[Buffers], references: Sequence[Buffers]) -> Difference:
    """Compares the outputs of the same runs; a NaN or Inf gives an infinite error and a cosine of 0."""
    worst = Difference(0.0, 0.0, 0.0, 1.0)
    for result, reference in zip(results, references, strict=True):
        for name, want in reference.items():
            one = _compare(result[name], want)
            worst = Difference(
                max(worst.max, one.max),
                max(worst.mean, one.mean),
                max(worst.quantile, one.quantile),
                min(worst.cosine, one.cosine),
            )
    return worst


def _compare(result: np.ndarray, reference: np.ndarray) -> Difference:
    from polygraphy.comparator import IterationResult, SimpleCompareFunc
    from polygraphy.logger import G_LOGGER

    got, want = result.astype(np.float64), reference.astype(np.float64)
    if got.shape != want.shape or not np.isfinite(got).all() or not np.isfinite(want).all():
        return Difference(math.inf, math.inf, math.inf, 0.0)
    unit = max(float(np.abs(want).max(initial=0)), _TINY)
    # Polygraphy's own relative error divides by each number, which says nothing where one is nearly 0
    compare = SimpleCompareFunc(check_error_stat="quantile", error_quantile=QUANTILE)
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        (found,) = compare(
            IterationResult({"output": got / unit}), IterationResult({"output": want / unit})
        ).values()
    lengths = float(np.linalg.norm(got) * np.linalg.norm(want))
    cosine = float(np.vdot(got, want)) / lengths if lengths else float(not got.any() and not want.any())
    return Difference(found.max_absdiff, found.mean_absdiff, found.quantile_absdiff, min(cosine, 1.0))


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """In decibels, for uint8 pictures of one shape; inf where they are the same."""
    error = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
