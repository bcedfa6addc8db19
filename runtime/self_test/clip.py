"""The clip that a self-test restores, and what is looked at of the result."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from vsr_trt.runtime import media
from vsr_trt.runtime.errors import OutputError

FRAMES, SIDE, SCALE = 2, 128, 4
BLOCK = 32  # pixels of the restored picture, each way, whose mean is compared


def frames() -> list[npt.NDArray[np.uint8]]:
    """The frames (128, 128, 3), u8 RGB: a ramp in each direction, and a bright square that moves."""
    ramp = np.arange(SIDE, dtype=np.uint8)
    found = []
    for index in range(FRAMES):
        frame = np.empty((SIDE, SIDE, 3), np.uint8)
        frame[..., 0], frame[..., 1], frame[..., 2] = 40 + ramp, 40 + ramp[:, None], 120
        left = 32 + 16 * index
        frame[40:88, left : left + 48] = (230, 200, 40)
        found.append(frame)
    return found


def write(path: Path) -> None:
    """Writes them as a lossless video.

    Raises:
        OutputError: FFmpeg cannot.
    """
    try:
        with av.open(str(path), "w") as container:
            stream = container.add_stream("ffv1", rate=25)
            stream.width = stream.height = SIDE
            stream.pix_fmt = "bgr0"
            for pixels in frames():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
    except (OSError, ValueError) as error:
        raise OutputError(f"the clip of the self-test cannot be written: {error}") from error


def read(path: Path) -> list[npt.NDArray[np.uint8]]:
    """All frames of a video, u8 RGB (H, W, 3).

    Raises:
        InputError: it is none.
    """
    with media.open_source(path) as source:
        return [frame.rgb for frame in source]


def means(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Means of blocks of 32x32 pixels, (H/32, W/32, 3): a codec changes them little, a network that is off much."""
    height, width, _ = pixels.shape
    blocks = pixels.reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK, 3)
    return blocks.mean((1, 3), dtype=np.float64)
