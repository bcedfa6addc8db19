"""postprocess: the decoded picture, its colours aligned to the input's, cropped and as u8.

Three variants, as the published code offers them: `adain` matches mean and standard deviation of each
channel, `wavelet` takes the low frequencies from the input, `none` leaves the colours alone. The
published code converts to u8 by truncation before and after; this one rounds, once, at the end.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsr_trt.export.network import Input, NetworkSpec, Output
from vsr_trt.runtime.bundle.manifest import Bound

VARIANTS = ("adain", "wavelet", "none")
_EPSILON = 1e-5  # of the published code
_LEVELS = 5  # of the published wavelet decomposition: radii 1 to 16


class Postprocess(nn.Module):
    """image (n,3,8h,8w) in [-1,1], reference u8 (n,3,4H,4W) -> result u8 (n,4H,4W,3)."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.variant = variant
        binomial = torch.tensor([0.25, 0.5, 0.25])
        kernel = torch.outer(binomial, binomial).expand(3, 1, 3, 3).contiguous()
        self.register_buffer("blur", kernel, persistent=False)

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """See the class."""
        source = reference.float() / 255
        height, width = source.shape[2], source.shape[3]
        # index_select crops without tying the padded size to the cropped one in the traced graph
        cropped = image.index_select(2, torch.arange(height)).index_select(3, torch.arange(width))
        picture = (cropped.clamp(-1, 1) + 1) / 2
        if self.variant == "adain":
            picture = adain(picture, source)
        elif self.variant == "wavelet":
            picture = picture - self._low(picture) + self._low(source)
        levels = (picture.clamp(0, 1) * 255 + 0.5).floor()
        return levels.permute(0, 2, 3, 1).to(torch.uint8)

    def _low(self, picture: Tensor) -> Tensor:
        """The low frequencies: blurred with radii 1, 2, 4, 8, 16, borders repeated."""
        for level in range(_LEVELS):
            radius = 2**level
            padded = F.pad(picture, (radius, radius, radius, radius), mode="replicate")
            picture = F.conv2d(padded, self.blur, groups=3, dilation=radius)
        return picture


def adain(content: Tensor, style: Tensor) -> Tensor:
    """Gives each channel of (n,3,H,W) `content` the mean and deviation of `style`."""

    def statistics(picture: Tensor) -> tuple[Tensor, Tensor]:
        mean = picture.mean((2, 3), keepdim=True)
        count = picture.shape[2] * picture.shape[3]
        variance = ((picture - mean) ** 2).sum((2, 3), keepdim=True) / (count - 1)
        return mean, (variance + _EPSILON).sqrt()

    content_mean, content_deviation = statistics(content)
    style_mean, style_deviation = statistics(style)
    return (content - content_mean) / content_deviation * style_deviation + style_mean


def dummy_inputs(sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
    """A decoded picture that leaves [-1,1] here and there, and a reference of noise."""
    n = sizes["n"]
    image = torch.randn(n, 3, 8 * sizes["h"], 8 * sizes["w"], generator=generator) * 0.6
    shape = (n, 3, 4 * sizes["lr_h"], 4 * sizes["lr_w"])
    reference = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return {"image": image, "reference": reference}


def spec(variant: str) -> NetworkSpec:
    """The network as it is exported, for one of `VARIANTS`."""
    return NetworkSpec(
        name=f"postprocess_{variant}",
        module=Postprocess(variant),
        inputs=(
            Input("image", torch.float32, ("n", 3, "8*h", "8*w")),
            Input("reference", torch.uint8, ("n", 3, "4*lr_h", "4*lr_w")),
        ),
        outputs=(Output("result", torch.uint8, ("n", "4*lr_h", "4*lr_w", 3)),),
        bounds={
            "n": Bound(1, 32),
            "h": Bound(64, 2048, 8),
            "w": Bound(64, 2048, 8),
            "lr_h": Bound(128, 4096),
            "lr_w": Bound(128, 4096),
        },
        dummy_inputs=dummy_inputs,
        traced={"n": 2, "h": 72, "w": 80, "lr_h": 135, "lr_w": 155},
        checked=(
            {"n": 1, "h": 64, "w": 64, "lr_h": 128, "lr_w": 128},
            {"n": 3, "h": 80, "w": 72, "lr_h": 150, "lr_w": 141},
        ),
        always_fp32="sums over a whole picture, and the rounding of its levels",
        tolerance=1.01,  # one level, where the two libraries' sums fall on either side of .5
    )
