"""preprocess and postprocess: from a u8 frame to the canvas, and from the decoded canvas to a u8 frame.

A canvas is the frame, four times as large, on white. It is never below a least size, in whose middle smaller frames
stand. Larger frames stand in the upper left; the canvas is then always larger than they are, by up to 64 pixels. Its
height is 16 more than a multiple of 64, its width a multiple of 64: the UNet pads two rows above and below.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsr_trt.export.families.stable_diffusion.vae import PIXELS
from vsr_trt.export.families.star.shapes import FRAME, IMAGE, bounds
from vsr_trt.export.network import Input, NetworkSpec, Output

SCALE = 4
MULTIPLE = 64
_EPSILON = 1e-5  # of STAR's code
_FAR = 1 << 20  # beyond any side, for arithmetic without a case distinction


def canvas_side(side: int, least: int) -> int:
    """Side of the canvas for a side of the enlarged frame, in pixels; for a height as for a width.

    `least` itself stays. Without a comparison, so that a side may be a symbol of a graph: (n + far) // far is 1 for
    n >= 0, and 0 below.
    """
    offset = least % MULTIPLE
    larger = (side - least - 1 + _FAR) // _FAR
    # 48 is what STAR's code adds to a height before it rounds down: as much as is missing at an offset of 16
    rounded = (side + MULTIPLE - offset) // MULTIPLE * MULTIPLE + offset
    steps = (rounded - least) // MULTIPLE
    return least + MULTIPLE * steps * larger


def corner(side: int, least: int) -> int:
    """Rows above the frame, or columns left of it."""
    smaller = (least - side + _FAR) // _FAR
    return (least - side) // 2 * smaller


class Preprocess(nn.Module):
    """frame u8 (f,lr_h,lr_w,3) -> image (f,3,8h,8w) in [-1,1], reference u8 (f,lr_h,lr_w,3).

    The enlargement is bilinear and is not rounded. `reference` is the frame, which colours are aligned to at the end.

    Args:
        least: height and width of the least canvas, in pixels of the result.
    """

    def __init__(self, least: tuple[int, int]) -> None:
        super().__init__()
        self.least = least

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        planes = (
            frame.float().permute(0, 3, 1, 2).contiguous()
        )  # torch normalises interleaved ones less exactly
        planes = (planes / 255 - 0.5) / 0.5
        size = [SCALE * side for side in frame.shape[1:3]]
        large = F.interpolate(planes, size=size, mode="bilinear")
        sides, padding = (large.shape[2], large.shape[3]), []
        for side, least in zip(reversed(sides), reversed(self.least), strict=True):
            before = corner(side, least)
            padding += [before, canvas_side(side, least) - side - before]
        return F.pad(large, padding, value=1.0), frame


class Postprocess(nn.Module):
    """image (f,3,8h,8w), reference u8 (f,lr_h,lr_w,3) -> result u8 (f,4*lr_h,4*lr_w,3).

    Cut out of the canvas; each channel gets mean and deviation of the frame before it was enlarged; truncated.
    """

    def __init__(self, least: tuple[int, int]) -> None:
        super().__init__()
        self.least = least

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """See the class."""
        source = reference.float().permute(0, 3, 1, 2) / 255
        rows, columns = (
            corner(SCALE * side, least) + torch.arange(SCALE * side)
            for side, least in zip(reference.shape[1:3], self.least, strict=True)
        )
        # index_select crops without tying the canvas to the frame in the traced graph
        content = (image.index_select(2, rows).index_select(3, columns) * 0.5 + 0.5).clamp(0, 1)
        mean, deviation = _statistics(content)
        own_mean, own_deviation = _statistics(source)
        picture = (content - mean) / deviation * own_deviation + own_mean
        return (picture.clamp(0, 1) * 255).permute(0, 2, 3, 1).to(torch.uint8)


def _statistics(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of (f,3,H,W), (f,3,1,1); the variance is unbiased."""
    mean = picture.mean((2, 3), keepdim=True)
    count = picture.shape[2] * picture.shape[3]
    variance = (picture - mean).pow(2).sum((2, 3), keepdim=True) / (count - 1)
    return mean, (variance + _EPSILON).sqrt()


def preprocess_spec(least: tuple[int, int]) -> NetworkSpec:
    """preprocess as it is exported."""
    return NetworkSpec(
        name="preprocess",
        module=Preprocess(least),
        inputs=(Input("frame", torch.uint8, FRAME),),
        outputs=(Output("image", torch.float32, IMAGE), Output("reference", torch.uint8, FRAME)),
        bounds=bounds("lr_h", "lr_w", "h", "w"),
        dummy_inputs=lambda sizes, generator: {"frame": _frame(sizes, generator)},
        traced={"f": 2, "lr_h": 50, "lr_w": 60},
        checked=tuple(_sides(least)),
        always_fp32="one picture a frame, which is not rounded: its levels are what all else begins with",
    )


def postprocess_spec(least: tuple[int, int]) -> NetworkSpec:
    """postprocess as it is exported."""

    def dummy_inputs(sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        """A decoded canvas that leaves [-1,1] here and there, and a frame."""
        shape = (sizes["f"], 3, PIXELS * sizes["h"], PIXELS * sizes["w"])
        return {
            "image": torch.randn(shape, generator=generator) * 0.6,
            "reference": _frame(sizes, generator),
        }

    return NetworkSpec(
        name="postprocess",
        module=Postprocess(least),
        inputs=(Input("image", torch.float32, IMAGE), Input("reference", torch.uint8, FRAME)),
        outputs=(Output("result", torch.uint8, ("f", "4*lr_h", "4*lr_w", 3)),),
        bounds=bounds("lr_h", "lr_w", "h", "w"),
        dummy_inputs=dummy_inputs,
        traced={"f": 2, "lr_h": 50, "lr_w": 60} | _latents(least, 50, 60),
        checked=tuple(_sides(least)),
        always_fp32="sums over a whole picture, and the rounding of its levels",
        tolerance=1.01,  # one level, where the two libraries' sums fall on either side of a whole one
    )


def _sides(least: tuple[int, int]) -> Iterator[dict[str, int]]:
    """Sizes to try: a frame that is small, one that is high and not wide, and one that is neither."""
    high, wide = (side // SCALE for side in least)
    for frames, height, width in (
        (1, high // 2 + 1, wide // 2),
        (2, high + 1, wide - 2),
        (1, high, wide + 16),
    ):
        yield {"f": frames, "lr_h": height, "lr_w": width} | _latents(least, height, width)


def _latents(least: tuple[int, int], height: int, width: int) -> dict[str, int]:
    sides = (canvas_side(SCALE * side, own) for side, own in zip((height, width), least, strict=True))
    return dict(zip(("h", "w"), (side // PIXELS for side in sides), strict=True))


def _frame(sizes: dict[str, int], generator: torch.Generator) -> Tensor:
    shape = (sizes["f"], sizes["lr_h"], sizes["lr_w"], 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
