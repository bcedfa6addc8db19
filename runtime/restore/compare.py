"""To compare by eye: the input enlarged by bicubic on the left, the result on the right; a picture, or a video."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vsr_trt.runtime import media
from vsr_trt.runtime.errors import InputError, OutputError
from vsr_trt.runtime.media.png import encode_png
from vsr_trt.runtime.media.resample import resize_bicubic
from vsr_trt.runtime.media.staging import Staging, write_failure
from vsr_trt.runtime.media.video_sink import VideoSink


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
    """Writes a PNG: one frame of `before`, enlarged to its size, next to the same frame of `after`.

    Args:
        before: the input clip.
        after: what was restored from it.
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
        raise InputError(
            f"{output} must end with .png for one picture, or as a video does, such as .mp4, for all frames."
        )
    if crop is not None and crop < 1:
        raise InputError(f"--crop is {crop}; expected 1 or more.")
    if output.exists() and any(path.exists() and output.samefile(path) for path in (before, after)):
        raise OutputError(f"{output} is one of the pictures to compare; choose another name.")
    staging = Staging(output, overwrite=overwrite)
    try:
        joined = _pair(before, after, index, start, crop)
        try:
            staging.temporary.write_bytes(encode_png(joined))
        except OSError as error:
            raise write_failure(error, staging.final, staging.temporary) from error
        staging.commit()
    finally:
        staging.discard()  # nothing is there after a commit
    return joined.shape[1], joined.shape[0]


def side_by_side_video(
    before: Path,
    after: Path,
    output: Path,
    *,
    start: float = 0.0,
    crop: int | None = None,
    overwrite: bool = False,
    done: Callable[[int], None] = lambda frames: None,
    note: Callable[[str], None] = lambda text: None,
) -> tuple[int, int, int]:
    """Writes a video: every frame of `after` next to that of `before`, enlarged; with times and sound of `after`.

    Args:
        before, after, output, start, crop, overwrite: as for `side_by_side`; the output is a video.
        done: is passed how many frames are written.
        note: is passed what the user should know, such as sound that the container cannot hold.

    Returns:
        Width, height and number of frames.

    Raises:
        InputError: the sizes do not belong together, or `before` ends first.
        OutputError: the file exists or cannot be written.
    """
    if crop is not None and crop < 1:
        raise InputError(f"--crop is {crop}; expected 1 or more.")
    if output.exists() and any(path.exists() and output.samefile(path) for path in (before, after)):
        raise OutputError(f"{output} is one of the clips to compare; choose another name.")
    with media.open_source(before, start=start) as left, media.open_source(after) as right:
        height, width = right.info.height, right.info.width
        shown = [min(crop, side) if crop is not None else side for side in (height, width)]
        high, wide = shown[0] // 2 * 2, shown[1] // 2 * 2  # codecs take pairs of pixels
        sink = VideoSink(
            output, right, 2 * wide, high, fps=media.DEFAULT_FPS, codec=None, crf=None, overwrite=overwrite
        )
        frames = 0
        with sink:
            others = iter(left)
            for frame in right:
                other = next(others, None)
                if other is None:
                    raise InputError(f"{before} ends after {frames} frames, and {after} goes on.")
                joined = _joined(before, after, other.rgb, frame.rgb, crop)
                sink.write(_even(joined, wide, high), frame)
                frames += 1
                done(frames)
            sink.close(partial=right.damage is not None)
        for text in sink.notes:
            note(text)
    return 2 * wide, high, frames


def _even(joined: np.ndarray, wide: int, high: int) -> np.ndarray:
    """Both halves without their last column, where that has no neighbour."""
    half = joined.shape[1] // 2
    return np.ascontiguousarray(
        np.concatenate((joined[:high, :wide], joined[:high, half : half + wide]), axis=1)
    )


def _pair(before: Path, after: Path, index: int, start: float, crop: int | None) -> np.ndarray:
    """The picture, (H,W,3) uint8."""
    return _joined(before, after, _frame(before, index, start), _frame(after, index, 0.0), crop)


def _joined(before: Path, after: Path, low: np.ndarray, high: np.ndarray, crop: int | None) -> np.ndarray:
    """Two frames next to each other, the first one enlarged to the other's size."""
    scale = max(1, high.shape[0] // low.shape[0])
    expected = (low.shape[0] * scale, low.shape[1] * scale, 3)
    if high.shape != expected:
        raise InputError(
            f"{after} is {high.shape[1]}x{high.shape[0]}, expected a whole multiple of {before}, which is "
            f"{low.shape[1]}x{low.shape[0]}."
        )
    pair = [_middle(picture, crop) for picture in (resize_bicubic(low, *expected[:2]), high)]
    return np.ascontiguousarray(np.concatenate(pair, axis=1))


def _frame(path: Path, index: int, start: float) -> np.ndarray:
    if index < 0:
        raise InputError(f"the frame {index} is below 0.")
    with media.open_source(path, start=start) as source:
        for frame in itertools.islice(source, min(index, sys.maxsize), None):
            return frame.rgb
    raise InputError(f"{path} has no frame {index}.")


def _middle(picture: np.ndarray, crop: int | None) -> np.ndarray:
    if crop is None:
        return picture
    height, width = min(crop, picture.shape[0]), min(crop, picture.shape[1])
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return picture[top : top + height, left : left + width]
