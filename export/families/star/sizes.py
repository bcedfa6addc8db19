"""Sizes of STAR's UNet and ControlNet, and the names and shapes of the weights that follow from them.

The two networks share a layout: the ControlNet is the UNet's first half with weights of its own. Blocks keep their
published names, `input_blocks.I.J`, where J is 0 for the residual block, 1 for the spatial transformer and 2 for the
temporal one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

Shapes = dict[str, tuple[int, ...]]

GROUPS = 32  # of every group normalisation
TOKENS = 77
CONTROL = "VideoControlNet."
"""What stands before the ControlNet's names."""


@dataclass(frozen=True)
class Block:
    """A block of the encoder or the decoder.

    Attributes:
        name: published, e.g. `input_blocks.4`.
        level: 0 for the latents' own resolution, then half of it each.
        inputs, channels: of its residual block; of the decoder's, the skip's among the inputs.
        attends: whether transformers follow the residual block.
        resamples: `down` for a block that is a downsampling alone, `up` where an upsampling ends it.
    """

    name: str
    level: int
    inputs: int
    channels: int
    attends: bool = False
    resamples: str = ""


@dataclass(frozen=True)
class Sizes:
    """Sizes of both networks; the defaults are the published ones.

    Attributes:
        latent: channels of a latent, in and out.
        dim: channels of the first level.
        multipliers: channels of each level, in units of `dim`.
        residuals: residual blocks a level of the encoder; the decoder has one more.
        attends: whether each level has transformers.
        context: width of the text embedding.
        head: channels of an attention's head.
        heads: of the first temporal transformer alone; all others have their channels / `head`.
        canvas: height and width in pixels below which no canvas goes.
        group: frames that the VAE decodes together.
    """

    latent: int = 4
    dim: int = 320
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    residuals: int = 2
    attends: tuple[bool, ...] = (True, True, True, False)
    context: int = 1024
    head: int = 64
    heads: int = 8
    canvas: tuple[int, int] = (720, 1280)
    group: int = 3

    @property
    def embedding(self) -> int:
        """Width of the time embedding."""
        return 4 * self.dim

    @property
    def middle(self) -> int:
        """Channels of the middle block."""
        return self.dim * self.multipliers[-1]

    def encoder(self) -> tuple[Block, ...]:
        """`input_blocks` from 1 on; block 0 is a convolution and a temporal transformer."""
        blocks: list[Block] = []
        inputs, last = self.dim, len(self.multipliers) - 1
        for level, multiplier in enumerate(self.multipliers):
            channels = self.dim * multiplier
            for _ in range(self.residuals):
                name = f"input_blocks.{len(blocks) + 1}"
                blocks.append(Block(name, level, inputs, channels, self.attends[level]))
                inputs = channels
            if level < last:
                name = f"input_blocks.{len(blocks) + 1}"
                blocks.append(Block(name, level, channels, channels, resamples="down"))
        return tuple(blocks)

    def decoder(self) -> tuple[Block, ...]:
        """`output_blocks`, the lowest level first."""
        skips = [self.dim, *(block.channels for block in self.encoder())]
        blocks: list[Block] = []
        inputs = self.middle
        for level in reversed(range(len(self.multipliers))):
            channels = self.dim * self.multipliers[level]
            for index in range(self.residuals + 1):
                up = "up" if level and index == self.residuals else ""
                name = f"output_blocks.{len(blocks)}"
                blocks.append(Block(name, level, inputs + skips.pop(), channels, self.attends[level], up))
                inputs = channels
        return tuple(blocks)

    def skips(self) -> list[int]:
        """Channels of the encoder's results, block 0 first: what the decoder joins to its own."""
        return [self.dim, *(block.channels for block in self.encoder())]

    def residual_layers(self, control: bool) -> list[tuple[str, int]]:
        """Names and channels of a network's residual blocks, in the order in which it runs them."""
        return self._layers(control, ".emb_layers.1.bias")

    def spatial_layers(self, control: bool) -> list[tuple[str, int]]:
        """Names and channels of a network's spatial transformers, in the order in which it runs them."""
        temporal = {name for name, _ in self._layers(control, ".transformer_blocks.0.local2.conv1.weight")}
        return [layer for layer in self._layers(control, ".proj_out.bias") if layer[0] not in temporal]

    def _layers(self, control: bool, ending: str) -> list[tuple[str, int]]:
        shapes = self._control() if control else self._unet()
        return [(name.removesuffix(ending), shape[0]) for name, shape in shapes if name.endswith(ending)]

    def shapes(self) -> Shapes:
        """Every name of a checkpoint, and its shape."""
        shapes = dict(self._unet())
        shapes |= {CONTROL + name: shape for name, shape in self._control()}
        return shapes

    def _trunk(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The part that both networks have."""
        wide = self.embedding
        yield from _affine("time_embed.0", wide, self.dim)
        yield from _affine("time_embed.2", wide, wide)
        yield from _affine("input_blocks.0.0", self.dim, self.latent, 3, 3)
        yield from self._temporal("input_blocks.0.1", self.dim, self.heads * self.head)
        for block in self.encoder():
            if block.resamples:
                yield from _affine(f"{block.name}.op", block.channels, block.channels, 3, 3)
            else:
                yield from self._block(block)
        middle = self.middle
        yield from self._residual("middle_block.0", middle, middle)
        yield from self._spatial("middle_block.1", middle)
        yield from self._temporal("middle_block.2", middle, middle)
        yield from self._residual("middle_block.3", middle, middle)

    def _control(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from self._trunk()
        yield from _affine("input_hint_block", self.dim, self.latent, 3, 3)
        for index, channels in enumerate(self.skips()):
            yield from _affine(f"zero_convs.{index}.0", channels, channels, 1, 1)
        yield from _affine("middle_block_out.0", self.middle, self.middle, 1, 1)

    def _unet(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from self._trunk()
        for block in self.decoder():
            yield from self._block(block)
            if block.resamples:
                name = f"{block.name}.{3 if block.attends else 1}.conv"
                yield from _affine(name, block.channels, block.channels, 3, 3)
        yield from _affine("out.0", self.dim)
        yield from _affine("out.2", self.latent, self.dim, 3, 3)

    def _block(self, block: Block) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from self._residual(f"{block.name}.0", block.inputs, block.channels)
        if block.attends:
            yield from self._spatial(f"{block.name}.1", block.channels)
            yield from self._temporal(f"{block.name}.2", block.channels, block.channels)

    def _residual(self, name: str, inputs: int, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from _affine(f"{name}.in_layers.0", inputs)
        yield from _affine(f"{name}.in_layers.2", channels, inputs, 3, 3)
        yield from _affine(f"{name}.emb_layers.1", channels, self.embedding)
        yield from _affine(f"{name}.out_layers.0", channels)
        yield from _affine(f"{name}.out_layers.3", channels, channels, 3, 3)
        if inputs != channels:
            yield from _affine(f"{name}.skip_connection", channels, inputs, 1, 1)
        for index in range(1, 5):
            conv = f"{name}.temopral_conv.conv{index}"  # so spelt
            yield from _affine(f"{conv}.0", channels)
            yield from _affine(f"{conv}.{2 if index == 1 else 3}", channels, channels, 3, 1, 1)

    def _spatial(self, name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from _affine(f"{name}.norm", channels)
        yield from _affine(f"{name}.proj_in", channels, channels)
        yield from _transformer(name, channels, self.context)
        yield f"{name}.transformer_blocks.0.local1.conv1.weight", (1, 2, 7, 7)
        yield from _affine(f"{name}.proj_out", channels, channels)

    def _temporal(self, name: str, channels: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from _affine(f"{name}.norm", channels)
        yield from _affine(f"{name}.proj_in", inner, channels, 1)
        yield from _transformer(name, inner, inner)
        for index in (1, 2):
            yield f"{name}.transformer_blocks.0.local{index}.conv1.weight", (1, 2)
        yield from _affine(f"{name}.proj_out", channels, inner, 1)


def _affine(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _transformer(name: str, channels: int, context: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    block = f"{name}.transformer_blocks.0"
    for index, keys in ((1, channels), (2, context)):
        yield f"{block}.attn{index}.to_q.weight", (channels, channels)
        yield f"{block}.attn{index}.to_k.weight", (channels, keys)
        yield f"{block}.attn{index}.to_v.weight", (channels, keys)
        yield from _affine(f"{block}.attn{index}.to_out.0", channels, channels)
    yield from _affine(f"{block}.ff.net.0.proj", 8 * channels, channels)
    yield from _affine(f"{block}.ff.net.2", channels, 4 * channels)
    for index in (1, 2, 3):
        yield from _affine(f"{block}.norm{index}", channels)
