"""What is said about a list of times.

A percentile is a nearest rank, as in trtexec: of n times in ascending order, the p-th percentile is number
ceil(p * n / 100), counted from 1. It is always a time that was measured. (trtexec leaves out the
floor((1 - p/100) * n) largest and takes the largest of the rest, which is the same one.) The median of an even
number of times is the mean of the two in the middle. The coefficient of variation is the sample standard
deviation, which divides by n - 1, over the mean.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
FEW = 10  # samples, below which they are not resampled
_SEED = 20_240_917
_AT_ONCE = 1_000_000  # numbers, so that long runs need little memory


@dataclass(frozen=True)
class Summary:
    """Statistics of n times in seconds; `cv` is the coefficient of variation, a share."""

    n: int
    min: float
    mean: float
    median: float
    p90: float
    p95: float
    p99: float
    max: float
    cv: float


@dataclass(frozen=True)
class Series:
    """Times in the order in which they were measured, and what is said about them."""

    summary: Summary
    samples: tuple[float, ...]

    @staticmethod
    def of(samples: Sequence[float]) -> Series:
        """Returns the statistics of one time or more, in seconds."""
        return Series(summarize(samples), tuple(samples))


def summarize(samples: Sequence[float]) -> Summary:
    """The summary of one time or more."""
    ordered = sorted(samples)
    mean = math.fsum(ordered) / len(ordered)
    spread = statistics.stdev(ordered) if len(ordered) > 1 else 0.0
    return Summary(
        n=len(ordered),
        min=ordered[0],
        mean=mean,
        median=statistics.median(ordered),
        p90=percentile(ordered, 90),
        p95=percentile(ordered, 95),
        p99=percentile(ordered, 99),
        max=ordered[-1],
        cv=spread / mean if mean else 0.0,
    )


def percentile(ordered: Sequence[float], percent: int) -> float:
    """The nearest rank in an ascending sequence; `percent` is whole, so that no rounding moves the rank."""
    rank = -(-percent * len(ordered) // 100)
    return ordered[max(rank, 1) - 1]


def grouped(samples: Sequence[float], size: int) -> list[float]:
    """Means of `size` neighbours each; what is left at the end is not used."""
    return [math.fsum(samples[i : i + size]) / size for i in range(0, len(samples) - size + 1, size)]


def covered(intervals: Sequence[tuple[float, float]]) -> float:
    """How long at least one of the intervals (start, end) was under way."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


@dataclass(frozen=True)
class Ratio:
    """One statistic over another, and the 95 % interval that resampling gives."""

    value: float
    low: float
    high: float


def ratio_of_medians(new: Sequence[float], old: Sequence[float]) -> Ratio:
    """median(new) / median(old)."""
    return _ratio(new, old, np.median)


def ratio_of_means(new: Sequence[float], old: Sequence[float]) -> Ratio:
    """mean(new) / mean(old)."""
    return _ratio(new, old, np.mean)


def _ratio(new: Sequence[float], old: Sequence[float], statistic: Callable[..., np.ndarray]) -> Ratio:
    """Percentile bootstrap of two independent runs; the whole range where one has few samples.

    Resampling a handful gives intervals that are too narrow. That all of 3 samples lie above all of 3 others
    happens by chance once in 20 times.
    """
    value = float(statistic(new) / statistic(old))
    if min(len(new), len(old)) < FEW:
        return Ratio(value, min(new) / max(old), max(new) / min(old))
    numbers = np.random.default_rng(_SEED)  # the same files always give the same verdict
    ratios = _resampled(new, statistic, numbers) / _resampled(old, statistic, numbers)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return Ratio(value, float(low), float(high))


def _resampled(
    samples: Sequence[float], statistic: Callable[..., np.ndarray], numbers: np.random.Generator
) -> np.ndarray:
    """The statistic of as many samples, drawn with replacement, again and again.

    Whole blocks of neighbours are drawn, n ** (1/3) long and around the end, because neighbours are alike: a
    clock that sinks slows many frames in a row. Drawn one by one they would make the interval too narrow.
    """
    values, count = np.asarray(samples, np.float64), len(samples)
    block = max(1, math.floor(count ** (1 / 3) + 1e-9))
    blocks = -(-count // block)
    at_once = max(1, _AT_ONCE // count)
    found = []
    for first in range(0, RESAMPLES, at_once):
        starts = numbers.integers(0, count, (min(at_once, RESAMPLES - first), blocks, 1))
        places = (starts + np.arange(block)).reshape(len(starts), -1)[:, :count] % count
        found.append(statistic(values[places], axis=1))
    return np.concatenate(found)
