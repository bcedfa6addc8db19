"""Pillow's bicubic resampling in numpy, for frames whose side is too short for the networks.

Only those go this way: they are small, and what matters is that they come out as everywhere else.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_SUPPORT = 2.0  # of the cubic kernel, in source pixels when enlarging


def resize_bicubic(frame: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Resizes (H,W,3) u8 to (height,width,3) u8, as Pillow's `Image.resize(..., BICUBIC)` does.

    Horizontally, then vertically, rounded to u8 after each pass; the kernel (a = -0.5) widens when
    reducing, and is renormalised where it leaves the picture. (From version 13 on, Pillow starts
    vertically where that is cheaper, which it is not when both sides grow or shrink alike.)
    """
    across, down = _weights(frame.shape[1], width), _weights(frame.shape[0], height)
    wide = _round(np.einsum("ox,yxc->yoc", across, frame, optimize=True))
    return _round(np.einsum("oy,yxc->oxc", down, wide, optimize=True))


def _weights(source: int, target: int) -> npt.NDArray[np.float64]:
    """(target, source) weights, rows summing to 1."""
    scale = source / target
    stretch = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    first = np.maximum(np.floor(centres - _SUPPORT * stretch + 0.5), 0)
    last = np.minimum(np.floor(centres + _SUPPORT * stretch + 0.5), source)
    pixels = np.arange(source)
    inside = (pixels >= first[:, None]) & (pixels < last[:, None])
    kernel = _cubic((pixels + 0.5 - centres[:, None]) / stretch) * inside
    return kernel / kernel.sum(axis=1, keepdims=True)


def _cubic(x: npt.NDArray[np.float64], a: float = -0.5) -> npt.NDArray[np.float64]:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _round(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)
