"""spynet: optical flow from the current thumb to the previous one (Ranjan & Black, CVPR 2017).

Six levels, coarse to fine; each warps the previous thumb by the flow so far and predicts what is
missing. Sides are resized to multiples of 32 for the pyramid and the flow is resized back.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsr_trt.export.network import Input, NetworkSpec, Output
from vsr_trt.runtime.bundle.manifest import Bound

LEVELS = 6
_MULTIPLE = 2 ** (LEVELS - 1)
_CHANNELS = (8, 32, 64, 32, 16, 2)
# The published code normalises by ImageNet's statistics as if thumbs lay in [0, 1]; they lie in
# [-1, 1]. The weights were trained that way, so it stays.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def warp(picture: Tensor, flow: Tensor, padding: str) -> Tensor:
    """Samples `picture` (n,c,h,w) at each pixel plus its flow (n,2,h,w), x first, in pixels."""
    height, width = picture.shape[2], picture.shape[3]
    x = torch.arange(width, dtype=flow.dtype) + flow[:, 0]
    y = torch.arange(height, dtype=flow.dtype)[:, None] + flow[:, 1]
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
    if torch.compiler.is_exporting():
        # the node itself: torch would trace its own decomposition twice, a minute for the pyramid
        attributes = {"mode": "linear", "padding_mode": padding, "align_corners": 1}
        return torch.onnx.ops.symbolic(
            "GridSample", (picture, grid), attributes, dtype=picture.dtype, shape=picture.shape, version=20
        )
    return F.grid_sample(picture, grid, mode="bilinear", padding_mode=padding, align_corners=True)


class SpyNet(nn.Module):
    """thumb, previous_thumb (n,3,h,w) in [-1,1] -> flow (n,2,h,w) in pixels, x first."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(self._level() for _ in range(LEVELS))
        self.register_buffer("mean", torch.tensor(_MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(_STD).reshape(1, 3, 1, 1))

    @staticmethod
    def _level() -> nn.Sequential:
        layers: list[nn.Module] = []
        for channels_in, channels_out in itertools.pairwise(_CHANNELS):
            layers += [nn.Conv2d(channels_in, channels_out, 7, padding=3), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    @staticmethod
    def from_checkpoint(weights: Mapping[str, Tensor]) -> SpyNet:
        """Takes `spynet.basic_module.L.basic_module.I.conv.{weight,bias}` of the checkpoint."""
        network = SpyNet()
        for level, module in enumerate(network.levels):
            convolutions = [layer for layer in module if isinstance(layer, nn.Conv2d)]
            for index, convolution in enumerate(convolutions):
                key = f"spynet.basic_module.{level}.basic_module.{index}.conv"
                convolution.weight.data = weights[f"{key}.weight"].float()
                convolution.bias.data = weights[f"{key}.bias"].float()
        return network

    def forward(self, thumb: Tensor, previous_thumb: Tensor) -> Tensor:
        """See the class."""
        height, width = thumb.shape[2], thumb.shape[3]
        rows = (height + _MULTIPLE - 1) // _MULTIPLE
        columns = (width + _MULTIPLE - 1) // _MULTIPLE
        size = (rows * _MULTIPLE, columns * _MULTIPLE)
        current = self._pyramid(F.interpolate(thumb, size, mode="bilinear"))
        previous = self._pyramid(F.interpolate(previous_thumb, size, mode="bilinear"))

        flow = thumb.new_zeros(thumb.shape[0], 2, rows, columns)
        for level, module in enumerate(self.levels):
            if level:
                flow = F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=True) * 2
            warped = warp(previous[level], flow, padding="border")
            flow = flow + module(torch.cat([current[level], warped, flow], dim=1))

        flow = F.interpolate(flow, (height, width), mode="bilinear")
        return torch.cat([flow[:, :1] * (width / size[1]), flow[:, 1:] * (height / size[0])], dim=1)

    def _pyramid(self, picture: Tensor) -> list[Tensor]:
        """Coarsest first."""
        levels = [(picture - self.mean) / self.std]
        while len(levels) < LEVELS:
            levels.append(F.avg_pool2d(levels[-1], 2))
        return levels[::-1]


def dummy_inputs(sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
    """A smooth picture and the same moved by two pixels, so that there is a flow to find."""
    n, height, width = sizes["n"], sizes["h"], sizes["w"]
    coarse = torch.rand(n, 3, height // 8 + 2, width // 8 + 2, generator=generator) * 2 - 1
    picture = F.interpolate(coarse, (height + 2, width + 2), mode="bicubic")
    return {
        "thumb": picture[:, :, 2:, 2:].contiguous(),
        "previous_thumb": picture[:, :, :-2, :-2].contiguous(),
    }


def spec(weights: Mapping[str, Tensor]) -> NetworkSpec:
    """The network as it is exported, with the checkpoint's weights."""
    return NetworkSpec(
        name="spynet",
        module=SpyNet.from_checkpoint(weights),
        inputs=(
            Input("thumb", torch.float32, ("n", 3, "h", "w")),
            Input("previous_thumb", torch.float32, ("n", 3, "h", "w")),
        ),
        outputs=(Output("flow", torch.float32, ("n", 2, "h", "w")),),
        bounds={"n": Bound(1, 32), "h": Bound(64, 2048, 8), "w": Bound(64, 2048, 8)},
        dummy_inputs=dummy_inputs,
        traced={"n": 2, "h": 72, "w": 88},
        checked=({"n": 1, "h": 64, "w": 96}, {"n": 3, "h": 96, "w": 80}),
        always_fp32="coordinates in pixels need more than FP16's 11 bits",
    )
