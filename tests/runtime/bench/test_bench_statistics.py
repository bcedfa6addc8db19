"""Statistics against their definitions, and the bootstrap against distributions whose truth is known."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from helpers.examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from vsr_trt.runtime.bench.statistics import (
    Series,
    covered,
    grouped,
    percentile,
    ratio_of_means,
    ratio_of_medians,
    summarize,
)

times = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=60)
few = settings(max_examples=examples(50), deadline=None)  # other programs share the processor
percents = st.integers(1, 100)


@few
@given(times, percents)
def test_a_percentile_is_a_time_with_enough_below_and_not_too_many(
    samples: list[float], percent: int
) -> None:
    found = percentile(sorted(samples), percent)
    assert found in samples
    assert sum(s <= found for s in samples) * 100 >= percent * len(samples)
    assert sum(s < found for s in samples) * 100 < percent * len(samples)


@few
@given(times, st.integers(0, 100))
def test_percentiles_are_trtexecs(samples: list[float], percent: int) -> None:
    ordered, count = sorted(samples), len(samples)
    exclude = math.floor((1 - Fraction(percent, 100)) * count)  # sampleReporting.cpp, without its rounding
    assert percentile(ordered, percent) == ordered[max(count - 1 - exclude, 0)]


@pytest.mark.parametrize(
    ("count", "percent", "rank"),
    [
        (1, 99, 1),
        (10, 90, 9),
        (10, 95, 10),
        (10, 99, 10),
        (100, 99, 99),
        (101, 99, 100),
        (200, 99, 198),
        (20, 90, 18),
    ],
)
def test_ranks_by_hand(count: int, percent: int, rank: int) -> None:
    assert percentile(range(1, count + 1), percent) == rank


@few
@given(times, st.randoms(use_true_random=False))
def test_a_summary_is_ordered_and_knows_no_order(samples: list[float], random) -> None:
    found = summarize(samples)
    order = (found.min, found.median, found.p90, found.p95, found.p99, found.max)
    assert list(order) == sorted(order)
    assert found.min <= found.mean * (1 + 1e-12)
    assert found.mean <= found.max * (1 + 1e-12)
    shuffled = list(samples)
    random.shuffle(shuffled)
    assert summarize(shuffled) == found


@few
@given(times, st.floats(0.01, 100))
def test_a_summary_in_other_units_is_the_same(samples: list[float], factor: float) -> None:
    one, other = summarize(samples), summarize([s * factor for s in samples])
    assert other.cv == pytest.approx(one.cv, rel=1e-6, abs=1e-9)
    for name in ("min", "mean", "median", "p90", "p99", "max"):
        assert getattr(other, name) == pytest.approx(getattr(one, name) * factor)


@few
@given(times)
def test_against_numpy(samples: list[float]) -> None:
    found = summarize(samples)
    assert found.n == len(samples)
    assert found.mean == pytest.approx(np.mean(samples))
    assert found.median == pytest.approx(np.median(samples))
    assert found.p90 == np.quantile(samples, 0.9, method="inverted_cdf") or len(samples) % 10 == 0
    if len(samples) > 1:
        assert found.cv == pytest.approx(np.std(samples, ddof=1) / np.mean(samples), rel=1e-6, abs=1e-9)


def test_one_sample_and_zeros_have_no_variation() -> None:
    assert summarize([3.0]).cv == 0
    assert summarize([0.0, 0.0]).cv == 0


def test_a_series_keeps_its_order() -> None:
    assert Series.of([3.0, 1.0, 2.0]).samples == (3.0, 1.0, 2.0)


@few
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 10)), max_size=12))
def test_covered_time_counts_once(pairs: list[tuple[int, int]]) -> None:
    intervals = [(start, start + length) for start, length in pairs]
    ticks = {tick for start, end in intervals for tick in range(start, end)}
    assert covered(intervals) == len(ticks)


def test_groups() -> None:
    assert grouped([1.0, 3.0, 5.0, 7.0, 100.0], 2) == [2.0, 6.0]
    assert grouped([1.0, 2.0], 1) == [1.0, 2.0]
    assert grouped([1.0], 2) == []


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    truth, held = 1.1, 0
    for seed in range(30):
        numbers = np.random.default_rng(seed)
        old, new = numbers.lognormal(0, 0.05, 60), truth * numbers.lognormal(0, 0.05, 60)
        found = ratio_of_medians(new, old)
        assert found.low <= found.value <= found.high
        held += found.low <= truth <= found.high
    assert held >= 25  # 28.5 expected; fewer than 25 happens by chance once in 70 for 95 %


def test_neighbours_that_are_alike_widen_the_interval() -> None:
    """A clock that wanders: drawn one by one, the samples would look independent."""
    numbers = np.random.default_rng(3)
    wander = np.repeat(numbers.normal(1, 0.05, 50), 20)  # 50 independent values, not 1000
    mixed = numbers.permutation(wander)
    width = [r.high - r.low for r in (ratio_of_means(s, s) for s in (wander, mixed))]
    assert width[0] > 2 * width[1]


def test_a_handful_is_not_resampled() -> None:
    found = ratio_of_means([2.0, 4.0, 3.0], [1.0, 2.0, 1.5])
    assert (found.value, found.low, found.high) == (2, 1, 4)
    many = [1.0, 1.1] * 20
    assert ratio_of_medians([1.2, 1.3, 1.4], many).low == pytest.approx(1.2 / 1.1)
    assert ratio_of_medians(many, [1.2, 1.3, 1.4]).high == pytest.approx(1.1 / 1.2)


def test_the_same_samples_give_the_same_interval() -> None:
    samples = list(np.random.default_rng(0).normal(1, 0.1, 20))
    assert ratio_of_means(samples, samples) == ratio_of_means(samples, samples)
    assert ratio_of_means(samples, samples).value == 1
    assert ratio_of_means([2.0, 4.0], [1.0, 2.0]).value == 2
    assert ratio_of_medians([1.0, 2.0, 9.0], [1.0]).value == 2
