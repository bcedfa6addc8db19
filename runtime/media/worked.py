"""What the networks are given of a frame, and what is returned of their result."""

from __future__ import annotations

import numpy as np

from vsr_trt.runtime.bundle.manifest import Manifest
from vsr_trt.runtime.media.resample import resize_bicubic
from vsr_trt.runtime.schedule.canvas import FrameShape, Pixels


def given(pixels: Pixels, shape: FrameShape, manifest: Manifest) -> Pixels:
    """The frame (shape.frame, 3), enlarged if it is too small, on its canvas: (shape.given, 3)."""
    inner = resize_bicubic(pixels, *shape.inner) if shape.is_enlarged else np.ascontiguousarray(pixels)
    return shape.place(inner, manifest.canvas.border or 0)


def returned(pixels: Pixels, shape: FrameShape) -> Pixels:
    """The result of a frame that went through so: cut out of its canvas, and reduced again."""
    cropped = shape.crop(pixels)
    return resize_bicubic(cropped, *shape.result) if shape.is_enlarged else cropped
