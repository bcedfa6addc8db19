"""Noise is what its page says: Philox 4x32-10 as published, and normal quantiles to the last digits."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsr_trt.runtime.restore.noise import draw, philox, quantile


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_published_vectors_of_philox(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    words = philox([np.array([word], np.uint64) for word in counter], key)
    assert tuple(int(word[0]) for word in words) == expected


def test_quantiles_are_the_standard_librarys() -> None:
    edges = [0.5 / 2**32, 1 - 0.5 / 2**32, 0.075, 0.925, 0.5, 1e-11, 1.4e-11]
    p = np.concatenate([edges, (np.random.default_rng(0).integers(0, 2**32, 5000) + 0.5) / 2**32])
    expected = [NormalDist().inv_cdf(value) for value in p]
    np.testing.assert_allclose(quantile(p), expected, rtol=0, atol=4e-15)


EXPECTED = ["0x1.41f0620000000p+0", "0x1.3a739c0000000p+0", "-0x1.cf3c760000000p-7", "-0x1.6a8fe20000000p+0"]


def test_bytes_that_other_languages_are_held_to() -> None:
    """The words of the first block, and the numbers that they become."""
    drawn = draw(666, "start", 0, 0, 6)
    assert drawn.dtype == np.float32
    assert [value.hex() for value in drawn[:4].astype(float)] == EXPECTED
    np.testing.assert_array_equal(drawn, draw(666, "start", 0, 0, 100)[:6])


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 99), st.integers(1, 3000))
def test_every_place_has_a_number_of_its_own(seed: int, frame: int, step: int, count: int) -> None:
    one = draw(seed, "step", step, frame, count)
    assert one.shape == (count,)
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one, draw(seed, "step", step, frame, count + 5)[:count])
    if count > 40:
        others = (
            draw(seed ^ 1, "step", step, frame, count),
            draw(seed ^ 1 << 40, "step", step, frame, count),
            draw(seed, "step", step + 1, frame, count),
            draw(seed, "step", step, frame ^ 1, count),
            draw(seed, "start", step, frame, count),
        )
        for other in others:
            assert (one == other).mean() < 0.1


def test_the_numbers_are_standard_normal() -> None:
    found = np.sort(draw(1, "a", 0, 0, 400_000).astype(float))
    assert abs(found.mean()) < 0.01
    assert abs(found.std() - 1) < 0.01
    expected = np.array([NormalDist().inv_cdf((k + 0.5) / 400) for k in range(400)])
    np.testing.assert_allclose(found[500::1000], expected, atol=0.06)
