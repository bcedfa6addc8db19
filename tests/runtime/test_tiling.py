"""Tiling: every latent is covered, seams vanish, and the plan is the published one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsr_trt.runtime.schedule.tiling import Blend, offsets, tiles_of, window

sizes = st.integers(1, 300)


@given(sizes, st.integers(2, 128), st.data())
def test_offsets_cover_the_side(length: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    starts = offsets(length, tile, overlap)
    covered = {position for start in starts for position in range(start, min(start + tile, length))}
    assert covered == set(range(length))
    assert starts == sorted(set(starts))
    if length > tile:
        assert starts[-1] + tile == length
        assert all(b - a <= tile - overlap for a, b in itertools.pairwise(starts))


def published_offsets(length: int, tile: int, overlap: int) -> list[int]:
    """The published code's loop, in words: count tiles until the end is reached, shift the last back."""
    count, reached = 0, 0
    while reached < length:
        reached = max(count * tile - overlap * count, 0) + tile
        count += 1
    return [max(i * (tile - overlap), 0) if i < count - 1 else length - tile for i in range(count)]


@given(st.integers(65, 600))
def test_offsets_are_the_published_ones(length: int) -> None:
    tile = min(96, length)
    assert offsets(length, tile, 32) == published_offsets(length, tile, 32)


def test_a_side_above_the_networks_bound_is_cut() -> None:
    assert len(tiles_of(64, 576, 192, 32, square=True)) == 1
    assert {tile.width for tile in tiles_of(64, 576, 192, 32, square=True, longest=192)} == {64}


@pytest.mark.parametrize("overlap", [-1, 8, 9])
def test_an_overlap_without_advance_is_refused(overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap"):
        offsets(20, 8, overlap)


@given(sizes, sizes, st.integers(8, 128), st.booleans())
def test_small_frames_are_one_tile(height: int, width: int, tile: int, square: bool) -> None:
    tiles = tiles_of(height, width, tile, tile // 3, square)
    if height * width <= tile * tile:
        assert [(t.top, t.left, t.height, t.width) for t in tiles] == [(0, 0, height, width)]
    else:
        shapes = {(t.height, t.width) for t in tiles}
        assert len(shapes) == 1  # one engine serves them all
        side = min(tile, height, width)
        assert shapes == ({(side, side)} if square else {(min(tile, height), min(tile, width))})


@given(
    st.integers(8, 60),
    st.integers(8, 60),
    st.integers(8, 24),
    st.integers(0, 8),
    st.sampled_from(["gaussian", "ramp"]),
    st.booleans(),
    st.sampled_from([1, 8]),
)
def test_blending_pieces_of_a_picture_gives_the_picture(
    height: int, width: int, tile: int, overlap: int, kind: str, square: bool, factor: int
) -> None:
    picture = (
        np.random.default_rng(0).standard_normal((1, 3, height * factor, width * factor)).astype(np.float32)
    )
    blend = Blend(height * factor, width * factor)
    for piece in tiles_of(height, width, tile, min(overlap, tile - 1), square):
        weights = window(kind, piece.height * factor, piece.width * factor, overlap * factor)
        blend.add(piece, piece.cut(picture, factor), weights, factor)
    assert np.abs(blend.result() - picture).max() < 1e-5


def test_the_gaussian_is_the_published_one() -> None:
    """exp(-(x-mid)^2 / w^2 / (2 * 0.01)) / sqrt(2 pi 0.01), mid (w-1)/2 across and h/2 down."""
    weights = window("gaussian", 4, 6, 0)
    for y in range(4):
        for x in range(6):
            across = math.exp(-((x - 2.5) ** 2) / 36 / 0.02) / math.sqrt(2 * math.pi * 0.01)
            down = math.exp(-((y - 2) ** 2) / 16 / 0.02) / math.sqrt(2 * math.pi * 0.01)
            assert weights[y, x] == pytest.approx(across * down, rel=1e-5)
