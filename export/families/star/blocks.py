"""Blocks of STAR's UNet and ControlNet that are convolutions: residual blocks, changes of resolution.

Frames stand in the batch, (b*f,c,h,w), one pass of the guidance after the other. What looks over frames takes them
as (b,c,f,h*w), where a convolution over 3 frames is one with a kernel of 3x1, and a normalisation over all frames
is an ordinary one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from vsr_trt.export.families.star.sizes import GROUPS


class Batch(NamedTuple):
    """What stands in the batch: clips, one for each pass of the guidance, of so many frames.

    Sizes are always given, none is left to a reshape: what it would compute of them grows from block to block.
    """

    clips: int
    frames: int


def by_pass(x: Tensor, batch: Batch) -> tuple[Tensor, ...]:
    """(b*f,c,h,w) -> b of (f,c,h,w)."""
    return x.reshape(*batch, *x.shape[1:]).unbind(0)


def by_channel(x: Tensor, batch: Batch) -> Tensor:
    """(b*f,c,h,w) -> (b,c,f,h*w)."""
    _, channels, height, width = x.shape
    return x.reshape(batch.clips, batch.frames, channels, height * width).transpose(1, 2)


def by_frame(x: Tensor, height: int, width: int) -> Tensor:
    """(b,c,f,h*w) -> (b*f,c,h,w)."""
    clips, channels, frames, _ = x.shape
    return x.transpose(1, 2).reshape(clips * frames, channels, height, width)


class Convolution(nn.Sequential):
    """A normalisation, SiLU and a convolution, whose place is the published one: dropout may stand before it."""

    def __init__(self, place: int, inputs: int, channels: int, kernel: tuple[int, int]) -> None:
        nothing = (nn.Identity() for _ in range(place - 2))
        padding = (kernel[0] // 2, kernel[1] // 2)
        convolution = nn.Conv2d(inputs, channels, kernel, padding=padding)
        super().__init__(nn.GroupNorm(GROUPS, inputs, eps=1e-5), nn.SiLU(), *nothing, convolution)


class TemporalConvolutions(nn.Module):
    """(b,c,f,h*w) -> the same: four convolutions over 3 frames each, with zeros at both ends of a chunk, added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Convolution(2, channels, channels, (3, 1))
        self.conv2 = Convolution(3, channels, channels, (3, 1))
        self.conv3 = Convolution(3, channels, channels, (3, 1))
        self.conv4 = Convolution(3, channels, channels, (3, 1))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x + self.conv4(self.conv3(self.conv2(self.conv1(x))))


class ResidualBlock(nn.Module):
    """x (b*f,inputs,h,w), shift (c,), its batch -> (b*f,c,h,w).

    `shift` is what the time adds to every position; it is made for all blocks at once (`features.TimeFeatures`).
    """

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.in_layers = Convolution(2, inputs, channels, (3, 3))
        self.out_layers = Convolution(3, channels, channels, (3, 3))
        self.skip_connection = nn.Conv2d(inputs, channels, 1) if inputs != channels else nn.Identity()
        self.temopral_conv = TemporalConvolutions(channels)  # so spelt in the checkpoint

    def forward(self, x: Tensor, shift: Tensor, batch: Batch) -> Tensor:
        """See the class."""
        update = self.in_layers(x) + shift[:, None, None]
        x = self.skip_connection(x) + self.out_layers(update)
        height, width = x.shape[2], x.shape[3]
        return by_frame(self.temopral_conv(by_channel(x, batch)), height, width)


class Downsample(nn.Module):
    """(n,c,h,w) -> (n,c,h/2+1,w/2): the rows are padded by two on either side, the columns by one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=(2, 1))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.op(x)


class Upsample(nn.Module):
    """(n,c,h,w) -> (n,c,2h-2,2w): doubled, without the first and the last row, and convolved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        doubled = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(doubled[:, :, 1:-1])
