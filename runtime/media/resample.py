"""Pillow's bicubic resampling in numpy, for frames whose side is too short for the networks.

Only those go this way: they are small, and what matters is that they come out as everywhere else.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_SUPPORT = 2.0  # of the cubic kernel, in source pixels when enlarging
_BITS = 22  # behind the point of Pillow's weights: 32, less 8 of a level, less 2 for weights beyond one


def resize_bicubic(frame: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Resizes (H,W,3) u8 to (height,width,3) u8, as Pillow's `Image.resize(..., BICUBIC)` does, to the level.

    Horizontally, then vertically, rounded to u8 after each pass; the kernel (a = -0.5) widens when
    reducing, and is renormalised where it leaves the picture. Its weights are rounded to 22 bits behind the point, as
    Pillow's are: which way a tie goes depends on them, and the second pass makes two levels of one. (From version 13
    on, Pillow starts vertically where that is cheaper, which it is not when both sides grow or shrink alike.)
    """
    wide = _stretch(frame, width, axis=1)
    return _stretch(wide, height, axis=0)


def _stretch(frame: npt.NDArray[np.uint8], size: int, axis: int) -> npt.NDArray[np.uint8]:
    """One direction: a weighted sum of the few pixels under each target pixel's kernel."""
    if frame.shape[axis] == size:
        return frame
    pixels, weights = _taps(frame.shape[axis], size)
    shape = (-1, 1) if axis == 1 else (-1, 1, 1)
    total = np.full((*frame.shape[:axis], size, *frame.shape[axis + 1 :]), 1 << (_BITS - 1), np.int64)
    for tap in range(pixels.shape[1]):
        total += np.take(frame, pixels[:, tap], axis=axis) * weights[:, tap].reshape(shape)
    return np.clip(total >> _BITS, 0, 255).astype(np.uint8)


def _taps(source: int, target: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns for each target pixel the pixels under its kernel, and their weights in 2**-22: (target, taps) each.

    Every operation is Pillow's, in its order, so that the weights are its to the last bit.
    """
    scale = source / target
    stretch = max(scale, 1.0)
    support = _SUPPORT * stretch
    centres = (np.arange(target) + 0.5) * scale
    first = np.maximum(np.trunc(centres - support + 0.5), 0)
    last = np.minimum(np.trunc(centres + support + 0.5), source)
    pixels = (first[:, None] + np.arange(int((last - first).max()))).astype(np.int64)
    weights = _cubic((pixels - centres[:, None] + 0.5) * (1.0 / stretch)) * (pixels < last[:, None])
    sums = np.zeros((target, 1))
    for tap in range(pixels.shape[1]):  # one after another: numpy's own sum adds in another order
        sums += weights[:, tap : tap + 1]
    scaled = weights / sums * (1 << _BITS)
    return np.minimum(pixels, source - 1), np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int64)


def _cubic(x: npt.NDArray[np.float64], a: float = -0.5) -> npt.NDArray[np.float64]:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))
