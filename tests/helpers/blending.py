"""Tiles for the tests of the kernel that blends them, and what numpy makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vsr_trt.runtime.schedule import tiling


@dataclass(frozen=True)
class Picture:
    """A picture in tiles, as the kernel takes it, and as the reference blends it.

    Attributes:
        tiles: (T,C,h,w) float32, in reading order.
        starts: tops and lefts in pixels, int32.
        windows: of rows and columns, float32.
        shape: height and width.
        expected: (C,H,W) float32.
    """

    tiles: np.ndarray
    starts: tuple[np.ndarray, np.ndarray]
    windows: tuple[np.ndarray, np.ndarray]
    shape: tuple[int, int]
    expected: np.ndarray


def picture(
    rng: np.random.Generator,
    height: int,
    width: int,
    tile: int,
    overlap: int,
    kind: tiling.Window = "gaussian",
    square: bool = True,
    channels: int = 3,
    factor: int = 1,
) -> Picture:
    """A latent of height x width cut as the runtime cuts it. Tiles are random, and differ where they overlap.

    factor: pixels of the picture for one latent, each way.
    """
    plan = tiling.tiles_of(height, width, tile, overlap, square)
    sides = (plan[0].height * factor, plan[0].width * factor)
    tiles = rng.standard_normal((len(plan), channels, *sides), dtype=np.float32)
    blend = tiling.Blend(height * factor, width * factor)
    weights = tiling.window(kind, *sides, overlap * factor)
    for place, values in zip(plan, tiles, strict=True):
        blend.add(place, values, weights, factor)
    tops = np.array(sorted({place.top for place in plan}), np.int32) * np.int32(factor)
    lefts = np.array(sorted({place.left for place in plan}), np.int32) * np.int32(factor)
    rows, columns = tiling.window_sides(kind, *sides, overlap * factor)
    return Picture(
        tiles,
        (tops, lefts),
        (rows.astype(np.float32), columns.astype(np.float32)),
        (height * factor, width * factor),
        blend.result(),
    )
