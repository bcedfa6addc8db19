"""Memory for results that is used again when nobody has a result in it any more."""

from __future__ import annotations

import sys

import numpy as np


class Recycled:
    """Copies arrays into memory that earlier copies were in, as soon as those are gone.

    A fresh array's pages are first made by the system as they are written, which takes longer than the copy itself.
    Whoever keeps a result, or a view of it, keeps its memory.

    Args:
        kept: how many pieces of memory wait to be used again, at most.
    """

    def __init__(self, kept: int = 4) -> None:
        self._kept = kept
        self._blocks: list[np.ndarray] = []
        [self._unused] = _counts([np.empty(1, np.uint8)])

    def copy(self, source: np.ndarray) -> np.ndarray:
        """Returns a copy of an array."""
        target = self._block(source.nbytes).view(source.dtype).reshape(source.shape)
        np.copyto(target, source)
        return target

    def _block(self, size: int) -> np.ndarray:
        self._blocks = [block for block in self._blocks if block.nbytes == size]
        for block, count in zip(self._blocks, _counts(self._blocks), strict=True):
            if count == self._unused:
                return block
        block = np.empty(size, np.uint8)
        if len(self._blocks) < self._kept:
            self._blocks.append(block)
        return block


def _counts(blocks: list[np.ndarray]) -> list[int]:
    """How often each is referred to, as counted from here."""
    return [sys.getrefcount(block) for block in blocks]
