"""Tensors whose values are made only when they are written.

A model is described as names -> `LazyTensor`; the values of a tensor are made block by block while its file is written,
so a checkpoint of gigabytes costs a few megabytes of memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Block = np.ndarray
Progress = Callable[[str, float], None]

_BLOCK_BYTES = 1 << 24
NUMPY_DTYPES: dict[torch.dtype, type] = {
    torch.float16: np.float16,
    torch.float32: np.float32,
    torch.int64: np.int64,
}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor known by shape and type whose values are made only when they are written.

    `blocks` yields the values in row-major order as flat arrays of any lengths that sum up to the size.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: Callable[[], Iterator[Block]]

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the values in a file."""
        return self.numel * self.dtype.itemsize


def held(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> LazyTensor:
    """A lazy tensor of a tensor in memory (or mapped from a file); `dtype` converts it."""
    kind = dtype or tensor.dtype
    rows = tensor.detach()

    def blocks() -> Iterator[Block]:
        step = _BLOCK_BYTES // rows.element_size()
        flat = rows.contiguous().reshape(-1)
        for start in range(0, flat.numel(), step):
            yield flat[start : start + step].to(kind).numpy()

    return LazyTensor(tuple(tensor.shape), kind, blocks)


def total_bytes(tensors: Mapping[str, LazyTensor]) -> int:
    """Bytes that the tensors take in a file."""
    return sum(tensor.nbytes for tensor in tensors.values())


def copy_values(
    name: str, tensor: LazyTensor, write: Callable[[bytes], Any], advance: Callable[[int], None]
) -> None:
    """Writes a tensor's values; `advance` is passed the bytes of each block.

    Raises:
        ValueError: the blocks are not of the tensor's size.
    """
    written = 0
    for block in tensor.blocks():
        data = np.ascontiguousarray(block, dtype=NUMPY_DTYPES[tensor.dtype]).tobytes()
        write(data)
        written += len(data)
        advance(len(data))
    if written != tensor.nbytes:
        raise ValueError(f"{name}: its blocks hold {written} bytes, its shape {tensor.shape} {tensor.nbytes}")


def no_advance(count: int) -> None:
    """Nobody wants to know how many bytes were written."""
    del count
