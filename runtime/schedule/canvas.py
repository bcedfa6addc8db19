"""The size that frames are worked on: enlarged, padded, put in their place. Pure maths, and copies of pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vsr_trt.runtime.bundle.manifest import Canvas, Manifest

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class FrameShape:
    """What becomes of frames of a size, made once and passed on. All sizes are (height, width).

    Attributes:
        frame: of the clip's frames.
        inner: of what stands on the canvas: the frame, or what it is enlarged to.
        given: of what the networks are given: `inner`, or the canvas where this side pads.
        corner: row and column of the canvas at which the upper left pixel stands.
        latents: of the whole canvas.
        scale: upscaling factor of the sides.
    """

    frame: tuple[int, int]
    inner: tuple[int, int]
    given: tuple[int, int]
    corner: tuple[int, int]
    latents: tuple[int, int]
    scale: int

    @staticmethod
    def of(manifest: Manifest, height: int, width: int) -> FrameShape:
        """Returns the shape for frames (height, width, 3) of a clip."""
        canvas = manifest.canvas
        inner = (height, width)
        if canvas.small == "enlarge":
            inner = enlarged_size(height, width, canvas.least)
        sides = canvas_size(canvas, *inner)
        padded = canvas.border is not None
        corner = (0, 0)
        if padded and canvas.centred:
            corner = tuple(  # type: ignore[assignment]
                (side - own) // 2 if side == least else 0
                for side, own, least in zip(sides, inner, canvas.least, strict=True)
            )
        high, wide = (side * manifest.scale // manifest.latent_scale for side in sides)
        return FrameShape(
            (height, width), inner, sides if padded else inner, corner, (high, wide), manifest.scale
        )

    @staticmethod
    def of_result(manifest: Manifest, width: int, height: int) -> FrameShape:
        """Returns the shape for frames that are restored to pictures of (width, height)."""
        return FrameShape.of(manifest, height // manifest.scale, width // manifest.scale)

    @property
    def is_plain(self) -> bool:
        """Whether the networks are given the frame as it is."""
        return self.given == self.frame

    @property
    def is_enlarged(self) -> bool:
        """Whether the frame is too small, and is made larger first."""
        return self.inner != self.frame

    @property
    def result(self) -> tuple[int, int]:
        """The restored picture's size."""
        return self.frame[0] * self.scale, self.frame[1] * self.scale

    def place(self, pixels: Pixels, border: int) -> Pixels:
        """Puts a frame of size `inner` onto the canvas, (given, 3); `border` is the value around it."""
        if self.given == self.inner:
            return pixels
        placed = np.full((*self.given, 3), border, np.uint8)
        top, left = self.corner
        placed[top : top + self.inner[0], left : left + self.inner[1]] = pixels
        return placed

    def crop(self, pixels: Pixels) -> Pixels:
        """The restored frame out of the restored canvas."""
        if self.given == self.inner:
            return pixels
        (top, left), (height, width) = self.corner, self.inner
        rows = slice(top * self.scale, (top + height) * self.scale)
        return np.ascontiguousarray(pixels[rows, left * self.scale : (left + width) * self.scale])


def canvas_size(canvas: Canvas, height: int, width: int) -> tuple[int, int]:
    """Height and width of the canvas for a frame of a size, in pixels of the frame."""
    more = 1 if canvas.ample else 0
    high, wide = (
        least if side <= least else side + more + (offset - side - more) % canvas.multiple
        for side, least, offset in zip((height, width), canvas.least, canvas.offset, strict=True)
    )
    return high, wide


def enlarged_size(height: int, width: int, least: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a picture that is enlarged, in its own shape, until no side is below the least."""
    if height >= least[0] and width >= least[1]:
        return height, width
    factor = max(least[0] / height, least[1] / width)
    return max(least[0], round(height * factor)), max(least[1], round(width * factor))
