"""denoiser: STAR's ControlNet and UNet, one evaluation for both texts of the guidance.

What does not change within a clip or a step comes in ready: what the time adds to each residual block, and keys and
values of the texts (`features`). Up to the first attention to the text, which is in the second block, both passes are
the same, and are computed once.

The convolution of the hint does not change within a clip, either. It is computed in every step nevertheless: it is
0.002 % of an evaluation's work, and its result has 80 times the hint's own size, for every frame of the clip.

The ControlNet sees the noisy latents, the time and the text, as the UNet does, and the hint besides. What it gives is
added to the UNet's skips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vsr_trt.export.families.star.blocks import (
    Batch,
    Convolution,
    Downsample,
    ResidualBlock,
    Upsample,
    by_pass,
)
from vsr_trt.export.families.star.shapes import CHUNK, LATENTS, bounds
from vsr_trt.export.families.star.sizes import TOKENS, Block, Sizes
from vsr_trt.export.families.star.transformers import SpatialTransformer, TemporalTransformer
from vsr_trt.export.network import Input, NetworkSpec, Output


@dataclass(frozen=True)
class Shared:
    """What an encoder computes for both passes at once.

    Attributes:
        first: result of block 0, (f,c,h,w).
        x: of the residual block of block 1.
        tokens: of its spatial transformer, before the text, (f,h*w,c).
    """

    first: Tensor
    x: Tensor
    tokens: Tensor


class Inputs:
    """A network's share of the packed inputs, taken piece by piece in the order of its layers.

    Args:
        shifts: (c,) for each residual block.
        texts: key and value, (B,77,c) each, for each spatial transformer.
        frames: of the chunk; `batch` is that of both passes, `shared` of what they share.
    """

    def __init__(self, shifts: Sequence[Tensor], texts: Sequence[Tensor], frames: int) -> None:
        self._shifts, self._texts = list(shifts), list(texts)
        self.frames, self.passes = frames, texts[0].shape[0]
        self.batch, self.shared = Batch(self.passes, frames), Batch(1, frames)

    def of_pass(self, index: int) -> Inputs:
        """What is left, for one of the texts."""
        return Inputs(self._shifts, [text[index : index + 1] for text in self._texts], self.frames)

    def shift(self) -> Tensor:
        """The next residual block's."""
        return self._shifts.pop(0)

    def text(self) -> tuple[Tensor, Tensor]:
        """Key and value for the next spatial transformer."""
        return self._texts.pop(0), self._texts.pop(0)


def _layers(sizes: Sizes, block: Block, slices: int) -> nn.ModuleList:
    """The layers of a block that is more than a downsampling, at their published places."""
    layers: list[nn.Module] = [ResidualBlock(block.inputs, block.channels)]
    if block.attends:
        share = max(
            1, slices >> block.level
        )  # a level down, a quarter of the positions and twice the channels
        layers.append(SpatialTransformer(block.channels, sizes.head, share))
        layers.append(TemporalTransformer(block.channels, block.channels, sizes.head, share))
    if block.resamples == "up":
        layers.append(Upsample(block.channels))
    return nn.ModuleList(layers)


def _run(layers: nn.ModuleList, x: Tensor, given: Inputs) -> Tensor:
    for layer in layers:
        if isinstance(layer, ResidualBlock):
            x = layer(x, given.shift(), given.batch)
        elif isinstance(layer, SpatialTransformer):
            x = layer(x, given.batch, *given.text())
        elif isinstance(layer, TemporalTransformer):
            x = layer(x, given.batch)
        else:
            x = layer(x)
    return x


class Encoder(nn.Module):
    """The first half of either network.

    Args:
        sizes: of both networks.
        slices: see `Denoiser`.
        control: whether it is the ControlNet's.
    """

    def __init__(self, sizes: Sizes, slices: int, control: bool) -> None:
        super().__init__()
        first = nn.Conv2d(sizes.latent, sizes.dim, 3, padding=1)
        temporal = TemporalTransformer(sizes.dim, sizes.heads * sizes.head, sizes.head, slices)
        blocks: list[nn.Module] = [nn.ModuleList([first, temporal])]
        for block in sizes.encoder():
            down = block.resamples == "down"
            blocks.append(Downsample(block.channels) if down else _layers(sizes, block, slices))
        self.input_blocks = nn.ModuleList(blocks)
        middle = Block("middle_block", len(sizes.multipliers) - 1, sizes.middle, sizes.middle, True)
        self.middle_block = _layers(sizes, middle, slices)
        self.middle_block.append(ResidualBlock(sizes.middle, sizes.middle))
        self.shifts = [channels for _, channels in sizes.residual_layers(control)]
        self.texts = [channels for _, channels in sizes.spatial_layers(control) for _ in ("key", "value")]

    def unpack(self, time: Tensor, text: Tensor, frames: int) -> Inputs:
        """Takes this network's share (T,), (B,77,K) of the packed inputs apart."""
        return Inputs(torch.split(time, self.shifts), torch.split(text, self.texts, 2), frames)

    def before_text(self, xt: Tensor, hint: Tensor | None, given: Inputs) -> Shared:
        """xt (f,4,h,w), hint (f,c,h,w), convolved -> what both passes share."""
        convolution, temporal = self.input_blocks[0]
        x = convolution(xt)
        first = temporal(x if hint is None else x + hint, given.shared)
        residual, spatial, _ = self.input_blocks[1]
        x = residual(first, given.shift(), given.shared)
        return Shared(first, x, spatial.without_text(x))

    def after_text(self, shared: Shared, given: Inputs) -> Iterator[Tensor]:
        """The skips, block 0 first, which is still one for both passes; then the middle block's result."""
        yield shared.first
        x = shared.x
        for stage in self.stages(shared, given):
            x = stage(x)
            yield x

    def stages(self, shared: Shared, given: Inputs) -> Iterator[Callable[[Tensor], Tensor]]:
        """What reads the text: blocks 1 to 11 and the middle one, each a function of what the one before gives.

        The first reads `shared.x`. They have to be run in this order.
        """
        _, spatial, temporal = self.input_blocks[1]

        def meet_text(x: Tensor) -> Tensor:
            x = spatial.with_text(x, shared.tokens, given.shared, *given.text())
            return temporal(x, given.batch)

        yield meet_text
        for block in self.input_blocks[2:]:
            yield block if isinstance(block, Downsample) else partial(_run, block, given=given)
        yield partial(_run, self.middle_block, given=given)


class ControlNet(Encoder):
    """xt, hint (1,4,f,h,w), time (T',), text (B,77,K') -> 13 tensors for the UNet, (B*f,c',h',w') each.

    The first 12 are added to the UNet's skips, the last one to its middle. The first one is the same for all passes,
    (f,c,h,w). T' and K' are the ControlNet's shares of the packed inputs, their first parts.
    """

    def __init__(self, sizes: Sizes, slices: int = 1) -> None:
        super().__init__(sizes, slices, control=True)
        self.input_hint_block = nn.Conv2d(sizes.latent, sizes.dim, 3, padding=1)
        self.zero_convs = nn.ModuleList(_point(channels) for channels in sizes.skips())
        self.middle_block_out = _point(sizes.middle)

    def forward(self, xt: Tensor, hint: Tensor, time: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        given = self.unpack(time, text, xt.shape[2])
        seen = self.before_text(frames_first(xt), self.input_hint_block(frames_first(hint)), given)
        results = self.after_text(seen, given)
        return tuple(layer(result) for layer, result in zip(self.outputs, results, strict=True))

    @property
    def outputs(self) -> tuple[nn.Module, ...]:
        """What makes a control of each result, block 0's first, the middle's last."""
        return (*self.zero_convs, self.middle_block_out)


class UNet(Encoder):
    """xt (1,4,f,h,w), time (T'',), text (B,77,K''), the ControlNet's 13 tensors -> v (B,4,f,h,w)."""

    def __init__(self, sizes: Sizes, slices: int = 1) -> None:
        super().__init__(sizes, slices, control=False)
        self.output_blocks = nn.ModuleList(_layers(sizes, block, slices) for block in sizes.decoder())
        self.top = sum(block.level == 0 for block in sizes.decoder())
        self.out = Convolution(2, sizes.dim, sizes.latent, (3, 3))

    def forward(self, xt: Tensor, time: Tensor, text: Tensor, *controls: Tensor) -> Tensor:
        """See the class."""
        given = self.unpack(time, text, xt.shape[2])
        own = self.after_text(self.before_text(frames_first(xt), None, given), given)
        return self.predict([skip + control for skip, control in zip(own, controls, strict=True)], given)

    def predict(self, joined: Iterable[Tensor], given: Inputs) -> Tensor:
        """The second half, of skips and the middle with the ControlNet's results added -> v (B,4,f,h,w).

        The decoder's first level, where memory is at its peak, takes one pass after the other.
        """
        first, *skips, x = joined
        upper, lower = skips[: self.top - 1], skips[self.top - 1 :]
        x = self._rise(self.output_blocks[: -self.top], x, lower, given)
        parts = zip(*(by_pass(tensor, given.batch) for tensor in (x, *upper)), strict=True)
        found = [
            self.out(self._rise(self.output_blocks[-self.top :], part, [first, *skips], given.of_pass(index)))
            for index, (part, *skips) in enumerate(parts)
        ]
        v = torch.cat(found)
        return v.reshape(*given.batch, *v.shape[1:]).transpose(1, 2)

    def _rise(self, blocks: Iterable[nn.ModuleList], x: Tensor, skips: list[Tensor], given: Inputs) -> Tensor:
        """The decoder's blocks, each with the last of the skips that are left."""
        for block, skip in zip(blocks, reversed(skips), strict=True):
            x = _run(block, torch.cat([x, skip], dim=1), given)
        return x


class Denoiser(nn.Module):
    """xt, hint (1,4,f,h,w), time (T,), text (2,77,K) -> v with the first text, and with the second.

    FP32, both (1,4,f,h,w). h is 2 more than a multiple of 8, w a multiple of 8; f is the frames of a chunk. `hint` are
    the latents of the enlarged clip; `time` and `text` are what `features` makes of the step's time and of the two
    embeddings.

    Args:
        sizes: of both networks.
        slices: in how many parts the first level's wide layers are computed; lower levels take fewer. 1, 2, 4 or 8 in
            a graph, for other numbers do not divide every latent's positions at every level.
        batched: whether both passes run as one batch. Two runs take half of the memory, and read weights twice.
    """

    def __init__(self, sizes: Sizes, slices: int = 1, batched: bool = True) -> None:
        super().__init__()
        self.control, self.unet = ControlNet(sizes, slices), UNet(sizes, slices)
        self.batched = batched

    def forward(self, xt: Tensor, hint: Tensor, time: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        x, frames = frames_first(xt), xt.shape[2]
        networks = (self.control, self.unet)
        times = torch.split(time, [sum(network.shifts) for network in networks])
        texts = torch.split(text, [sum(network.texts) for network in networks], 2)
        control = self.control.unpack(times[0], texts[0], frames)
        unet = self.unet.unpack(times[1], texts[1], frames)
        convolved = self.control.input_hint_block(frames_first(hint))
        seen = self.control.before_text(x, convolved, control)
        begun = self.unet.before_text(x, None, unet)
        if self.batched:
            positive, negative = self.unet.predict(self._descend(seen, begun, control, unet), unet).chunk(2)
            return positive, negative
        passes = [(control.of_pass(index), unet.of_pass(index)) for index in (0, 1)]
        positive, negative = (self.unet.predict(self._descend(seen, begun, *own), own[1]) for own in passes)
        return positive, negative

    def _descend(self, seen: Shared, begun: Shared, control: Inputs, unet: Inputs) -> Iterator[Tensor]:
        """Both encoders side by side: the sum of a skip and its control, block 0 first, then the middle's.

        Neither goes on before the sum is made. Left alone, a compiler runs one encoder to its end first, and keeps all
        that it gives until the other one comes to it.
        """
        layers = iter(self.control.outputs)
        yield begun.first + next(layers)(seen.first)
        x, y = begun.x, seen.x
        stages = zip(self.unet.stages(begun, unet), self.control.stages(seen, control), layers, strict=True)
        for own, other, layer in stages:
            x, y = own(x), other(y)
            joined = x + layer(y)
            yield joined
            x, y = after(x, joined), after(y, joined)


def after(x: Tensor, other: Tensor) -> Tensor:
    """x, for what shall not be computed before `other`: a graph has no other way to say so."""
    return x + 0 * other[:1, :1, :1, :1]


def frames_first(x: Tensor) -> Tensor:
    """(1,c,f,h,w) -> (f,c,h,w)."""
    return x[0].transpose(0, 1)


_SCRATCH = 15
"""Tensors of the first level, of both passes in FP32, that a run on the CPU works in. Measured at full size: 13 to 15,
and 17 for a single frame."""


def _point(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, channels, 1))


def spec(denoiser: Denoiser) -> NetworkSpec:
    """The network as it is exported."""
    networks = (denoiser.control, denoiser.unet)
    channels = denoiser.unet.out[-1].in_channels
    time, text = sum(sum(n.shifts) for n in networks), sum(sum(n.texts) for n in networks)

    def dummy_inputs(sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Latents of about unit deviation, and features."""
        latents = (1, 4, sizes["f"], sizes["h"], sizes["w"])
        return {
            "xt": torch.randn(latents, generator=generator),
            "hint": torch.randn(latents, generator=generator),
            "time": torch.randn(time, generator=generator) / 4,
            "text": torch.randn(2, TOKENS, text, generator=generator),
        }

    return NetworkSpec(
        name="denoiser",
        module=denoiser,
        inputs=(
            Input("xt", torch.float32, LATENTS),
            Input("hint", torch.float32, LATENTS),
            Input("time", torch.float32, (time,)),
            Input("text", torch.float32, (2, TOKENS, text)),
        ),
        outputs=(Output("positive", torch.float32, LATENTS), Output("negative", torch.float32, LATENTS)),
        bounds=bounds("h", "w", frames=CHUNK),
        dummy_inputs=dummy_inputs,
        traced={"f": 6, "h": 26, "w": 32},
        checked=({"f": 1, "h": 18, "w": 24}, {"f": 3, "h": 26, "w": 16}),
        scratch={"f*h*w": _SCRATCH * 2 * channels * 4.0},
        narrow=True,
    )
