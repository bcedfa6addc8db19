"""preprocess: u8 frame -> the x4 picture, as Pillow's bicubic makes it, and its 1/8 thumb.

The x4 picture is what the published code feeds to the VAE: `Image.resize` with bicubic (a = -0.5) on
u8, horizontally then vertically, rounded to u8 after each pass, weights renormalised where the kernel
leaves the picture. The thumb is what it feeds to the flow network: `F.interpolate(scale_factor=1/8,
mode="bicubic")` (a = -0.75, no antialiasing), which at this scale reads the same 4 of every 8 pixels.
Both are small convolutions here, which every runtime and compiler has a fast kernel for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsr_trt.export.network import Input, NetworkSpec, Output
from vsr_trt.runtime.bundle.manifest import Bound

SCALE = 4
THUMB = 8  # pixels of the x4 picture for one of the thumb, each way
FRAME_MULTIPLE = 64  # the VAE divides by 8, the UNet by another 8
_TAPS = 5  # input pixels under the kernel of any of the 4 output phases


def cubic(x: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel (1981, eq. 4) with parameter `a`."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _upscale_kernel() -> Tensor:
    """Weights of the 5 taps i-2..i+2 for the output pixels 4i..4i+3: (4, 5), rows sum to 1."""
    phases = (torch.arange(SCALE, dtype=torch.float64) + 0.5) / SCALE - 0.5
    taps = torch.arange(_TAPS, dtype=torch.float64) - _TAPS // 2
    kernel = cubic(phases[:, None] - taps[None, :], a=-0.5)
    return kernel / kernel.sum(1, keepdim=True)


def _thumb_kernel() -> Tensor:
    """Weights of the pixels 8i+2..8i+5 for the thumb's pixel i: (4,)."""
    return cubic(torch.tensor([1.5, 0.5, 0.5, 1.5], dtype=torch.float64), a=-0.75)


class Preprocess(nn.Module):
    """u8 (n,H,W,3) -> image (n,3,8h,8w) in [-1,1], thumb (n,3,h,w), reference u8 (n,3,4H,4W).

    8h and 8w are 4H and 4W rounded up to a multiple of 64, the picture's border repeated.
    """

    def __init__(self) -> None:
        super().__init__()
        kernel = _upscale_kernel().float()
        thumb = _thumb_kernel()
        self.register_buffer("horizontal", kernel.reshape(SCALE, 1, 1, _TAPS))
        self.register_buffer("vertical", kernel.reshape(SCALE, 1, _TAPS, 1))
        self.register_buffer(
            "thumb_kernel", torch.outer(thumb, thumb).float().expand(3, 1, 4, 4).contiguous()
        )

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        planes = frame.float().permute(0, 3, 1, 2)  # TensorRT lets u8 be cast, and nothing else
        wide = _round_u8(self._stretch(planes, self.horizontal, columns=True))
        scaled = _round_u8(self._stretch(wide, self.vertical, columns=False))
        height, width = scaled.shape[2], scaled.shape[3]
        rows = torch.arange(_padded(height)).clamp(max=height - 1)
        columns = torch.arange(_padded(width)).clamp(max=width - 1)
        image = scaled.index_select(2, rows).index_select(3, columns) / 127.5 - 1
        # the kernel's first pixel is the third of each 8
        thumb = F.conv2d(image[:, :, 2:, 2:], self.thumb_kernel, stride=THUMB, groups=3)
        return image, thumb, scaled.to(torch.uint8)

    def _stretch(self, planes: Tensor, kernel: Tensor, columns: bool) -> Tensor:
        """Upscales one direction x4: a convolution to 4 phases, interleaved."""
        n, channels, height, width = planes.shape
        single = planes.reshape(n * channels, 1, height, width)
        padding = (0, _TAPS // 2) if columns else (_TAPS // 2, 0)
        weight = F.conv2d(torch.ones_like(single[:1]), kernel, padding=padding)
        phases = F.conv2d(single, kernel, padding=padding) / weight
        if columns:
            return phases.permute(0, 2, 3, 1).reshape(n, channels, height, SCALE * width)
        return phases.permute(0, 2, 1, 3).reshape(n, channels, SCALE * height, width)


def _padded(side: int) -> int:
    return (side + FRAME_MULTIPLE - 1) // FRAME_MULTIPLE * FRAME_MULTIPLE


def _round_u8(values: Tensor) -> Tensor:
    """Rounds half up and clips, as Pillow does, and stays in floating point."""
    return (values + 0.5).floor().clamp(0, 255)


def dummy_inputs(sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
    """A frame of noise with a bright block, so that the kernel's overshoot meets the clipping."""
    shape = (sizes["n"], sizes["lr_h"], sizes["lr_w"], 3)
    frame = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    frame[:, : sizes["lr_h"] // 2, : sizes["lr_w"] // 3] = 255
    return {"frame": frame}


def spec() -> NetworkSpec:
    """The network as it is exported."""
    return NetworkSpec(
        name="preprocess",
        module=Preprocess(),
        inputs=(Input("frame", torch.uint8, ("n", "lr_h", "lr_w", 3)),),
        outputs=(
            Output("image", torch.float32, ("n", 3, "8*h", "8*w")),
            Output("thumb", torch.float32, ("n", 3, "h", "w")),
            Output("reference", torch.uint8, ("n", 3, "4*lr_h", "4*lr_w")),
        ),
        bounds={
            "n": Bound(1, 32),
            "lr_h": Bound(128, 4096),
            "lr_w": Bound(128, 4096),
            "h": Bound(64, 2048, 8),
            "w": Bound(64, 2048, 8),
        },
        dummy_inputs=dummy_inputs,
        traced={"n": 2, "lr_h": 130, "lr_w": 150},
        checked=({"n": 1, "lr_h": 128, "lr_w": 128}, {"n": 3, "lr_h": 141, "lr_w": 203}),
        always_fp32="integers, rounding and clipping decide the picture's levels",
    )
