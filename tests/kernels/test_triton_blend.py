"""The blending kernel computes what the runtime does in numpy: here in Triton's interpreter, on a GPU in tests/gpu."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from helpers.blending import Picture, picture
from helpers.examples import examples
from helpers.interpreter import blend, interpreter
from hypothesis import given, settings
from hypothesis import strategies as st

from vsr_trt.kernels.gpu.build import PIXELS

pytest.importorskip("triton", reason="Triton exists for Linux only")

Kernel = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    with interpreter() as pool:

        def call(case: Picture, block: int = PIXELS) -> np.ndarray:
            return pool.apply(blend, (case.tiles, case.starts, case.windows, case.shape, block))

        yield call


def check(kernel: Kernel, case: Picture, block: int = PIXELS) -> None:
    got = kernel(case, block)
    assert got.dtype == np.float32
    assert np.abs(got - case.expected).max() <= 1e-6 * np.abs(case.tiles).max()


# The interpreter takes a millisecond for each row of tiles that a program goes over.
@settings(max_examples=examples(6))
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 16),
    tile=st.integers(2, 8),
    overlap=st.integers(0, 4),
    kind=st.sampled_from(["gaussian", "ramp"]),
    square=st.booleans(),
    channels=st.integers(1, 2),
    block=st.sampled_from([4, 16]),
)
def test_agrees_with_the_runtimes_blending(
    kernel: Kernel,
    height: int,
    width: int,
    tile: int,
    overlap: int,
    kind: str,
    square: bool,
    channels: int,
    block: int,
) -> None:
    rng = np.random.default_rng(height * 100 + width)
    case = picture(rng, height, width, tile, min(overlap, tile - 1), kind, square, channels)  # type: ignore[arg-type]
    check(kernel, case, block)


def test_agrees_at_pixels_with_the_block_that_is_compiled(kernel: Kernel) -> None:
    case = picture(np.random.default_rng(0), 2, 80, 12, 4, "ramp", square=False, channels=1, factor=8)
    assert [len(starts) for starts in case.starts] == [1, 10]
    assert case.shape[1] % PIXELS  # the last block is not full
    check(kernel, case)


def test_one_tile_is_the_picture(kernel: Kernel) -> None:
    case = picture(np.random.default_rng(0), 9, 7, 16, 4)
    assert len(case.tiles) == 1
    assert np.abs(kernel(case) - case.tiles[0]).max() <= 1e-6


def test_a_nan_shows_under_its_tile_and_nowhere_else(kernel: Kernel) -> None:
    case = picture(np.random.default_rng(0), 12, 12, 8, 4)
    clean = kernel(case)
    case.tiles[0, 1, 2, 3] = np.nan
    got = kernel(case)
    assert np.isnan(got[1, 2, 3])
    got[1, 2, 3] = clean[1, 2, 3]
    assert np.array_equal(got, clean)


def test_launches_agree_bit_for_bit(kernel: Kernel) -> None:
    case = picture(np.random.default_rng(0), 12, 12, 8, 4)
    assert np.array_equal(kernel(case), kernel(case, 8))
