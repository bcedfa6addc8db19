"""Overlapping tiles of a picture blended into one, in Triton: one launch, every number read and written once.

A program takes BLOCK pixels of one row of one channel and goes over the tiles in reading order; rows and columns
of tiles that miss its pixels cost it a comparison. So a pixel's sum has a fixed order, that of the tiles, and
nothing is added up in memory. It is bound by the memory: the tiles are read where they are not skipped, the
picture is written, the rest stays in caches.

This file needs Triton; nothing that merely uses the compiled kernel imports it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def blend_tiles(
    tiles,
    tops,
    lefts,
    row_window,
    column_window,
    out,
    rows,
    columns,
    channels,
    tile_height,
    tile_width,
    height,
    width,
    BLOCK: tl.constexpr,
):
    """One program of the grid (ceil(width / BLOCK), height, channels).

    Args:
        tiles: (rows,columns,channels,tile_height,tile_width), FP32.
        tops, lefts: first pixel of each row and column of tiles, (rows,), (columns,), int32.
        row_window, column_window: a tile's weight is their outer product, (tile_height,), (tile_width,), FP32.
        out: the picture, (channels,height,width), FP32. Every pixel must lie in a tile.
        rows, columns, channels, tile_height, tile_width, height, width: int32.
        BLOCK: pixels of a program.
    """
    first = tl.program_id(0) * BLOCK
    x = first + tl.arange(0, BLOCK)
    y = tl.program_id(1)
    channel = tl.program_id(2)
    area = tile_height * tile_width
    total = tl.zeros((BLOCK,), tl.float32)
    weights = tl.zeros((BLOCK,), tl.float32)
    for i in range(rows):
        row = y - tl.load(tops + i)
        if (row >= 0) & (row < tile_height):
            row_weight = tl.load(row_window + row)
            for j in range(columns):
                left = tl.load(lefts + j)
                if (left < first + BLOCK) & (left + tile_width > first):
                    column = x - left
                    covered = (column >= 0) & (column < tile_width)
                    # 64 bits: the tiles of a large picture are more than 2^31 bytes, and may be as many numbers
                    tile = ((i * columns + j) * channels + channel).to(tl.int64)
                    value = tl.load(tiles + tile * area + row * tile_width + column, mask=covered, other=0.0)
                    weight = row_weight * tl.load(column_window + column, mask=covered, other=0.0)
                    total += value * weight
                    weights += weight
    at = out + (channel.to(tl.int64) * height + y) * width + x
    tl.store(at, tl.div_rn(total, weights), mask=x < width)
