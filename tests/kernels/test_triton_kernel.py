"""The GPU kernel computes what the reference does: here in Triton's interpreter, on a GPU in tests/gpu."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from helpers.examples import examples
from helpers.interpreter import interpreter, run
from helpers.operands import exact_constants, is_clear_cut, random_constants
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vsr_trt.kernels import FoldedAttention, gated_topk_attention
from vsr_trt.kernels.gpu.build import KEYS, QUERIES

pytest.importorskip("triton", reason="Triton exists for Linux only")

Kernel = Callable[..., np.ndarray]
TILE = (QUERIES, KEYS)  # as it is compiled


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    with interpreter() as pool:

        def call(
            current: np.ndarray,
            previous: np.ndarray,
            folded: FoldedAttention,
            k: int | None = None,
            tile: tuple[int, int] = TILE,
        ) -> np.ndarray:
            return pool.apply(run, (current, previous, folded, k, tile))

        yield call


def reference(
    current: np.ndarray, previous: np.ndarray, folded: FoldedAttention, k: int | None = None
) -> np.ndarray:
    """In double precision, on the constants that the kernel gets."""
    wide = (latent.astype(np.float64) for latent in (current, previous))
    return gated_topk_attention(*wide, folded.astype(np.float32).astype(np.float64), k)


def latents(
    rng: np.random.Generator, n: int, h: int, w: int, dtype: str = "float32"
) -> tuple[np.ndarray, np.ndarray]:
    current, previous = rng.standard_normal((2, n, 4, h, w)).astype(dtype)
    return current, previous


def check(
    kernel: Kernel,
    n: int,
    h: int,
    w: int,
    heads: int,
    k: int | None,
    dtype: str,
    seed: int,
    tile: tuple[int, int],
) -> None:
    rng = np.random.default_rng(seed)
    folded = random_constants(rng, heads)
    current, previous = latents(rng, n, h, w, dtype)
    k = None if k is None else min(k, h * w)
    assume(is_clear_cut(current, previous, folded, k, 1e-5))
    got = kernel(current, previous, folded, k, tile)
    expected = reference(current, previous, folded, k)
    assert got.dtype == current.dtype
    rounding = {"float32": 2e-6, "float16": 2**-11 * 1.02}[dtype]
    assert np.abs(got - expected).max() <= rounding * np.abs(expected).max()


DTYPES = st.sampled_from(["float32", "float16"])
SEEDS = st.integers(0, 10_000)


@settings(deadline=None, max_examples=examples(12))
@given(
    n=st.integers(1, 3),
    h=st.integers(1, 9),
    w=st.integers(1, 11),
    heads=st.integers(1, 3),
    dtype=DTYPES,
    seed=SEEDS,
)
def test_agrees_with_the_reference(
    kernel: Kernel, n: int, h: int, w: int, heads: int, dtype: str, seed: int
) -> None:
    check(kernel, n, h, w, heads, None, dtype, seed, TILE)


@settings(deadline=None, max_examples=examples(5))
@given(h=st.integers(1, 5), w=st.integers(1, 5), dtype=DTYPES, seed=SEEDS)
def test_agrees_with_several_tiles_of_queries_and_keys(
    kernel: Kernel, h: int, w: int, dtype: str, seed: int
) -> None:
    check(kernel, 1, h, w, 1, None, dtype, seed, (4, 8))


# Each bisection walks over all keys: in the interpreter that takes a second or two.
@settings(deadline=None, max_examples=examples(6))
@given(h=st.integers(1, 8), w=st.integers(1, 9), k=st.integers(1, 72), dtype=DTYPES, seed=SEEDS)
def test_top_k_agrees_with_the_reference(
    kernel: Kernel, h: int, w: int, k: int, dtype: str, seed: int
) -> None:
    check(kernel, 1, h, w, 1, k, dtype, seed, TILE)


@pytest.mark.parametrize(("n", "heads"), [(2, 1), (1, 2)])
def test_top_k_is_of_each_picture_and_head(kernel: Kernel, n: int, heads: int) -> None:
    check(kernel, n, 4, 5, heads, 3, "float32", 0, TILE)


@pytest.mark.full_size
def test_agrees_at_the_size_and_heads_of_the_published_module(kernel: Kernel) -> None:
    rng = np.random.default_rng(0)
    folded = random_constants(rng, heads=9, width=64)
    current, previous = latents(
        rng, 1, 17, 19
    )  # 323 positions: neither queries nor keys fill their last tile
    got, expected = kernel(current, previous, folded), reference(current, previous, folded)
    assert np.abs(got - expected).max() <= 2e-6 * np.abs(expected).max()


# -- top-k ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=examples(5))
@given(
    values=st.lists(st.integers(-3, 3), min_size=12, max_size=12),
    asked=st.lists(st.integers(-2, 2), min_size=12, max_size=12),
    k=st.integers(1, 12),
)
def test_kth_score_is_exact_and_ties_are_kept(
    kernel: Kernel, values: list[int], asked: list[int], k: int
) -> None:
    """Small integers: no rounding anywhere, so the kernel keeps exactly what the reference keeps."""
    current, previous = np.zeros((2, 1, 4, 3, 4), np.float32)
    current[0, 0], previous[0, 0] = np.reshape(asked, (3, 4)), np.reshape(values, (3, 4))
    folded = exact_constants()
    got = kernel(current, previous, folded, k)
    assert np.array_equal(got, reference(current, previous, folded, k).astype(np.float32))


@pytest.mark.parametrize("k", [1, 5, 20])
def test_equal_scores_all_count(kernel: Kernel, k: int) -> None:
    current = np.ones((1, 4, 4, 5), np.float32)
    got = kernel(current, current, exact_constants(), k)
    assert np.array_equal(got, np.full_like(current, 1 + 20 * 4))


def test_k_of_all_positions_is_all(kernel: Kernel) -> None:
    rng = np.random.default_rng(0)
    folded = random_constants(rng, heads=1)
    current, previous = latents(rng, 1, 5, 6)
    assert np.array_equal(kernel(current, previous, folded, 30), kernel(current, previous, folded))


def test_neighbouring_floats_are_told_apart(kernel: Kernel) -> None:
    """The k-th and the next score differ in their last bit."""
    previous = np.zeros((1, 4, 1, 4), np.float32)
    previous[0, 0, 0] = [1, np.nextafter(np.float32(1), np.float32(2)), 1, 0.5]
    current = np.zeros_like(previous)
    current[:, 0] = 1
    for k, kept in ((1, [1]), (2, [0, 1, 2]), (4, [0, 1, 2, 3])):
        got = kernel(current, previous, exact_constants(), k)
        scores = previous[0, 0, 0, kept].astype(np.float64)
        assert abs(got[0, 0, 0, 0] - 1 - (scores**2).sum()) < 1e-5  # one kept too many adds 1


# -- adversarial values --------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [None, 3])
def test_negative_scores_leave_the_latent(kernel: Kernel, k: int | None) -> None:
    rng = np.random.default_rng(0)
    current, previous = (np.abs(latent) for latent in latents(rng, 1, 5, 7))
    folded = exact_constants()
    negative = FoldedAttention(-folded.M, folded.P, rng.standard_normal(4).astype(np.float32))
    expected = current + negative.bias[:, None, None]
    assert np.array_equal(kernel(current, previous, negative, k), expected)


@pytest.mark.parametrize("k", [None, 3])
def test_huge_values_keep_their_precision(kernel: Kernel, k: int | None) -> None:
    rng = np.random.default_rng(1)
    current, previous = (latent * np.float32(1e9) for latent in latents(rng, 1, 4, 6))
    folded = random_constants(rng, heads=1)
    assert is_clear_cut(current, previous, folded, k, 1e-5)
    expected = reference(current, previous, folded, k)
    assert np.abs(expected).max() > 1e25
    got = kernel(current, previous, folded, k)
    assert np.abs(got - expected).max() <= 2e-6 * np.abs(expected).max()


@pytest.mark.parametrize("k", [None, 3])
def test_overflow_shows(kernel: Kernel, k: int | None) -> None:
    current = np.full((1, 4, 2, 3), 1e30, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not np.isfinite(kernel(current, current, exact_constants(), k)).any()


@pytest.mark.parametrize("k", [None, 3])
def test_denormal_values_are_computed_with(kernel: Kernel, k: int | None) -> None:
    """Scores of 1e-40, far below the smallest normal number, still open the gate and rank."""
    previous = np.zeros((1, 4, 1, 5), np.float32)
    previous[0, 0, 0] = np.float32(1e-40) * np.array([1, 2, 3, 4, 5], np.float32)
    current = np.zeros_like(previous)
    current[:, 0] = 1
    folded = exact_constants()
    folded = FoldedAttention(folded.M, np.zeros_like(folded.P), folded.bias)
    folded.P[0, 1, 4] = 1e30  # the sum of the scores, brought back to where it can be seen
    got = kernel(current, previous, folded, k)
    kept = [3, 4, 5] if k else [1, 2, 3, 4, 5]
    assert np.allclose(got[0, 1], 1e30 * 1e-40 * sum(kept), rtol=1e-4, atol=0)


@pytest.mark.parametrize("k", [None, 4])
@pytest.mark.parametrize("channel", [0, 3])
def test_a_nan_in_a_query_shows_in_its_own_position_only(kernel: Kernel, k: int | None, channel: int) -> None:
    rng = np.random.default_rng(0)
    folded = random_constants(rng, heads=1)
    current, previous = latents(rng, 2, 3, 4)
    clean = kernel(current, previous, folded, k)
    current[1, channel, 2, 3] = np.nan
    got = kernel(current, previous, folded, k)
    assert np.isnan(got[1, :, 2, 3]).all()
    others = np.ones(got.shape, bool)
    others[1, :, 2, 3] = False
    assert np.array_equal(got[others], clean[others])


@pytest.mark.parametrize("k", [None, 4])
@pytest.mark.parametrize("position", [0, 11])
def test_a_nan_in_a_key_shows_everywhere_in_its_picture(kernel: Kernel, k: int | None, position: int) -> None:
    rng = np.random.default_rng(0)
    folded = random_constants(rng, heads=1)
    current, previous = latents(rng, 2, 3, 4)
    clean = kernel(current, previous, folded, k)
    previous[1, 2].flat[position] = np.nan
    got = kernel(current, previous, folded, k)
    assert np.isnan(got[1]).all()
    assert np.array_equal(got[0], clean[0])


def test_launches_agree_bit_for_bit(kernel: Kernel) -> None:
    rng = np.random.default_rng(0)
    folded = random_constants(rng, heads=1)
    current, previous = latents(rng, 2, 9, 9)
    first = kernel(current, previous, folded)
    assert np.array_equal(first, kernel(current, previous, folded))
    # a picture's result does not depend on those next to it
    assert np.array_equal(first[1:], kernel(current[1:], previous[1:], folded))
