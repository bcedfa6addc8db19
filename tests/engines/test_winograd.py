"""The transforms of convolutions against the convolutions they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsr_trt.engines.graphs.winograd import TAPS, Filter, direct, upsampling, winograd


def one_window(filter: Filter, values: np.ndarray, taps: np.ndarray) -> np.ndarray:
    return filter.A @ ((filter.G @ taps) * (filter.B @ values))


@pytest.mark.parametrize("results", [2, 3, 4])
@given(seed=st.integers(0, 2**32 - 1))
def test_winograd_is_exact(results: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, taps = rng.standard_normal(results + 2), rng.standard_normal(TAPS)
    filter = winograd(results)
    assert (filter.results, filter.window, filter.products) == (results, results + 2, results + 2)
    got = one_window(filter, values, taps)
    np.testing.assert_allclose(got, np.correlate(values, taps, "valid"), atol=1e-12)


@given(seed=st.integers(0, 2**32 - 1))
def test_upsampling_is_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, taps = rng.standard_normal(3), rng.standard_normal(TAPS)
    doubled = np.correlate(np.repeat(values, 2), taps, "valid")
    np.testing.assert_allclose(one_window(upsampling(), values, taps), doubled[1:3], atol=1e-12)


def test_direct_is_the_sum_of_products() -> None:
    rng = np.random.default_rng(0)
    values, taps = rng.standard_normal(3), rng.standard_normal(TAPS)
    assert direct(2, 0).is_direct
    assert not winograd(4).is_direct
    assert not upsampling().is_direct
    np.testing.assert_allclose(one_window(direct(2, 0), values, taps), [values @ taps])
