"""A picture to compare: the input enlarged by bicubic on the left, the result on the right."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np

from runtime import media
from runtime.errors import InputError, OutputError
from runtime.media.png import encode_png
from runtime.resample import resize_bicubic

SCALE = 4


def side_by_side(
    before: Path,
    after: Path,
    output: Path,
    *,
    index: int = 0,
    start: float = 0.0,
    crop: int | None = None,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Writes a PNG: one frame of `before`, enlarged x4, beside the same frame of `after`.

    Args:
        before: the input clip.
        after: what was restored from it, 4 times its size.
        output: a .png.
        index: which frame of `after`, from 0.
        start: the seconds that were skipped of `before`.
        crop: show only the middle, this many pixels of the result a side; None for all.
        overwrite: replace an existing file.

    Returns:
        Width and height of the PNG.

    Raises:
        InputError: no such frame, or the sizes do not belong together.
        OutputError: the file exists or cannot be written.
    """
    if output.suffix.lower() != ".png":
        raise InputError(f"{output} must end with .png.")
    if crop is not None and crop < 1:
        raise InputError(f"--crop is {crop}; expected 1 or more.")
    if output.exists():
        if any(path.exists() and output.samefile(path) for path in (before, after)):
            raise OutputError(f"{output} is one of the pictures to compare; choose another name.")
        if not overwrite:
            raise OutputError(f"{output} exists; choose another name or add --overwrite.")
    low, high = _frame(before, index, start), _frame(after, index, 0.0)
    expected = (low.shape[0] * SCALE, low.shape[1] * SCALE, 3)
    if high.shape != expected:
        raise InputError(
            f"{after} is {high.shape[1]}x{high.shape[0]}, expected {expected[1]}x{expected[0]}: "
            f"4 times {before}."
        )
    pair = [_middle(picture, crop) for picture in (resize_bicubic(low, *expected[:2]), high)]
    joined = np.concatenate(pair, axis=1)
    _write_png(output, joined)
    return joined.shape[1], joined.shape[0]


def _frame(path: Path, index: int, start: float) -> np.ndarray:
    if index < 0:
        raise InputError(f"the frame {index} is below 0.")
    with media.open_source(path, start=start) as source:
        for frame in itertools.islice(source, index, None):
            return frame.rgb
    raise InputError(f"{path} has no frame {index}.")


def _middle(picture: np.ndarray, crop: int | None) -> np.ndarray:
    if crop is None:
        return picture
    height, width = min(crop, picture.shape[0]), min(crop, picture.shape[1])
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return picture[top : top + height, left : left + width]


def _write_png(path: Path, picture: np.ndarray) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(encode_png(np.ascontiguousarray(picture)))
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}.") from error
    finally:
        temporary.unlink(missing_ok=True)
