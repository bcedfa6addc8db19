"""Cutting large frames into overlapping tiles and blending the results. Pure maths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Window = Literal["gaussian", "ramp"]


@dataclass(frozen=True)
class Tile:
    """A rectangle of the latent: rows top..top+height, columns left..left+width."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, array: np.ndarray, factor: int) -> np.ndarray:
        """The part of (..., H, W) `array` under the tile; `factor` pixels of it for one latent."""
        rows = slice(self.top * factor, (self.top + self.height) * factor)
        columns = slice(self.left * factor, (self.left + self.width) * factor)
        return array[..., rows, columns]


def offsets(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along one side; the last one is shifted back to end at the border.

    Raises:
        ValueError: an overlap that leaves no advance.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"the overlap {overlap} must be at least 0 and below the tile {tile}")
    if length <= tile:
        return [0]
    starts = list(range(0, length - tile, tile - overlap))
    return [*starts, length - tile]


def tiles_of(
    height: int, width: int, tile: int, overlap: int, square: bool, longest: int | None = None
) -> list[Tile]:
    """The tiles of a latent, in reading order; a single one if its area is at most tile * tile.

    Args:
        height, width: of the latent.
        tile: side of a tile; a side that is shorter than this is not cut.
        overlap: of neighbouring tiles, at least.
        square: tiles are squares of the shortest of tile, height, width (as the published code cuts
            for the UNet) instead of as wide as possible.
        longest: a side above this is cut in any case, None for no such limit.
    """
    if height * width <= tile * tile and max(height, width) <= (longest or max(height, width)):
        return [Tile(0, 0, height, width)]
    tile_height, tile_width = min(tile, height), min(tile, width)
    if square:
        tile_height = tile_width = min(tile_height, tile_width)
    # a square cut down to a short side keeps its overlap below its own size
    tops = offsets(height, tile_height, min(overlap, tile_height - 1))
    lefts = offsets(width, tile_width, min(overlap, tile_width - 1))
    return [Tile(top, left, tile_height, tile_width) for top in tops for left in lefts]


def window(kind: Window, height: int, width: int, overlap: int) -> npt.NDArray[np.float32]:
    """Weights (height, width) of a tile's results; they are divided by their sum where tiles overlap.

    `gaussian` is the published one: variance 0.01 on coordinates in units of the tile's side; the
    midpoint is (w-1)/2 across and h/2 down. `ramp` rises linearly over the overlap.
    """
    return np.outer(*window_sides(kind, height, width, overlap)).astype(np.float32)


def window_sides(
    kind: Window, height: int, width: int, overlap: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The (height,) and (width,) whose outer product `window` is."""
    if kind == "gaussian":
        return _gaussian(height, height / 2), _gaussian(width, (width - 1) / 2)
    return _ramp(height, overlap), _ramp(width, overlap)


def _gaussian(size: int, middle: float) -> npt.NDArray[np.float64]:
    variance = 0.01
    position = (np.arange(size) - middle) / size
    return np.exp(-(position**2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


def _ramp(size: int, overlap: int) -> npt.NDArray[np.float64]:
    distance = np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5
    return np.minimum(distance / max(overlap, 0.5), 1.0)


class Blend:
    """Adds up weighted tiles of one tensor and divides by the weights."""

    def __init__(self, height: int, width: int) -> None:
        self._weights = np.zeros((height, width), np.float32)
        self._sum: npt.NDArray[np.float32] | None = None

    def add(self, tile: Tile, values: np.ndarray, weights: npt.NDArray[np.float32], factor: int) -> None:
        """Adds (..., h, w) `values` of a tile, `factor` numbers a latent each way."""
        if self._sum is None:
            self._sum = np.zeros((*values.shape[:-2], *self._weights.shape), np.float32)
        target = tile.cut(self._sum, factor)
        target += values * weights
        tile.cut(self._weights, factor)[...] += weights

    def result(self) -> npt.NDArray[np.float32]:
        """The blended tensor (..., H, W), float32."""
        assert self._sum is not None
        self._sum /= self._weights
        return self._sum
