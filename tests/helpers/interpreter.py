"""Runs the GPU kernels in Triton's interpreter, in a process of its own.

The interpreter is chosen by a variable of the environment that Triton reads when it is imported, and the other
tests compile the kernel.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import Pool

import numpy as np

from vsr_trt.kernels import FoldedAttention


@contextmanager
def interpreter() -> Iterator[Pool]:
    """A process whose Triton interprets; give it `run` or `blend`."""
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        pool = multiprocessing.get_context("spawn").Pool(1)
    finally:
        if before is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = before
    with pool:
        yield pool


def run(
    current: np.ndarray,
    previous: np.ndarray,
    folded: FoldedAttention,
    k: int | None,
    tile: tuple[int, int],
) -> np.ndarray:
    """One launch; the result's type is the latents', the constants are rounded to FP32. In that process only."""
    import torch

    from vsr_trt.kernels.gated_topk.triton_kernel import gated_topk_attention

    pictures, channels, height, width = current.shape
    positions = height * width
    shape = (pictures, channels, positions)
    latents = [torch.from_numpy(latent.reshape(shape).copy()) for latent in (current, previous)]
    single = folded.astype(np.float32)
    constants = [torch.from_numpy(array) for array in (single.M, single.P, single.bias)]
    fused = torch.full(shape, 12345.0, dtype=latents[0].dtype)  # every number must be written
    gated_topk_attention[(-(-positions // tile[0]), pictures)](
        *latents,
        *constants,
        len(single.M),
        positions,
        k or 0,
        fused,
        TOP_K=k is not None,
        BLOCK_P=tile[0],
        BLOCK_Q=tile[1],
    )
    return fused.numpy().reshape(current.shape)


def blend(
    tiles: np.ndarray,
    starts: tuple[np.ndarray, np.ndarray],
    windows: tuple[np.ndarray, np.ndarray],
    shape: tuple[int, int],
    block: int,
) -> np.ndarray:
    """One launch: tiles (T,C,h,w) float32 at (tops, lefts) int32 -> (C,H,W). In that process only."""
    import torch

    from vsr_trt.kernels.blend import blend_tiles

    _, channels, tile_height, tile_width = tiles.shape
    height, width = shape
    arrays = [torch.from_numpy(array) for array in (tiles, *starts, *windows)]
    out = torch.full((channels, height, width), 12345.0)  # every number must be written
    blend_tiles[(-(-width // block), height, channels)](
        *arrays,
        out,
        *map(len, starts),
        channels,
        tile_height,
        tile_width,
        height,
        width,
        BLOCK=block,
    )
    return out.numpy()
