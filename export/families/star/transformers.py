"""Transformers of STAR's UNet and ControlNet, each with the paper's local enhancement (LIEM) before self-attention.

The enhancement is a gate, one number g for each token, that multiplies what a layer normalisation reads. The
normalisation takes all of it away again but for its epsilon:

    LN(g v) = (v - mean) / sqrt(var + eps / g^2) * weight + bias                exactly, for every g > 0

So it is computed in this form: nothing is multiplied, and in FP16 no g v underflows. With g = sigmoid(z), 1 / g is
1 + exp(-z), which may become infinite: the normalised token is 0 then, as it should be.

Memory: what is wide here are the feed-forward layers, of 12 times the channels. They are computed in slices, each of
some of the positions; and where there are slices, at the upper levels, a spatial transformer takes one pass of the
guidance after the other, but for the first one, which both passes enter as one. Attention over a picture and to the
text has no slices within a pass: compilers fuse it and keep no scores, and TensorRT-RTX 1.7.1 crashes where several
attentions of more than one head share keys, or queries.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsr_trt.export.families.star.blocks import Batch, by_channel, by_pass
from vsr_trt.export.families.star.sizes import GROUPS


def in_slices(work: Callable[..., Tensor], tensors: tuple[Tensor, ...], dim: int, slices: int) -> Tensor:
    """`work` on slices of tensors along a dimension, joined again; each token's result is its own.

    Args:
        work: takes as many tensors as there are.
        tensors: of one size along `dim`, which a graph wants to be divisible by `slices`.
        dim: of the tokens.
        slices: how many; 1 for no slicing.
    """
    if slices == 1:
        return work(*tensors)
    if (
        torch.compiler.is_exporting()
    ):  # equal parts, so that no part depends on the remainder of a symbolic size
        parts = [t.unflatten(dim, (slices, t.shape[dim] // slices)).unbind(dim) for t in tensors]
    else:
        parts = [torch.tensor_split(tensor, slices, dim) for tensor in tensors]
    return torch.cat([work(*part) for part in zip(*parts, strict=True)], dim)


def _slices_of(slices: int, passes: int) -> int:
    """How many of the slices that both passes are computed in are for some of them: a pass alone has half."""
    return max(1, slices * passes // 2)


def _wide_slices(slices: int) -> int:
    """How many slices of each slice a feed-forward layer, the widest of all, takes."""
    return 1 if slices == 1 else 2


class GatedNorm(nn.LayerNorm):
    """tokens (...,c), logits (...,1) of their gates -> the normalisation of gated tokens, (...,c)."""

    def forward(self, tokens: Tensor, logits: Tensor) -> Tensor:
        """See the class; the statistics are FP32."""
        single = tokens.float()
        centred = single - single.mean(-1, keepdim=True)
        variance = centred.pow(2).mean(-1, keepdim=True)
        # squared at the end: a graph that is converted to FP16 keeps squares and roots in FP32
        spread = (self.eps**0.5 * (1 + (-logits.float()).exp())).pow(2)
        normal = centred / (variance + spread).sqrt()
        return normal.to(tokens.dtype) * self.weight + self.bias


class Gate(nn.Module):
    """tokens (...,c) -> logits (...,1): a weighted sum of each token's largest channel and of their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Linear(2, 1, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        return self.conv1(torch.cat([tokens.amax(-1, keepdim=True), tokens.mean(-1, keepdim=True)], -1))


class PictureGate(nn.Module):
    """tokens (n,h*w,c), h, w -> logits (n,h*w,1): the same numbers of 7x7 neighbours, the largest channel first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """See the class."""
        maps = torch.stack([tokens.amax(-1), tokens.mean(-1)], 1)
        logits = self.conv1(maps.reshape(maps.shape[0], 2, height, width))
        return logits.reshape(maps.shape[0], height * width, 1)


class Attention(nn.Module):
    """q (n,l,c), k, v (n,m,c) -> (n,l,c): softmax(q k^T / sqrt(d)) v by heads of d channels, then a linear layer.

    With `own_keys`, the layer has the keys' and values' weights, too.
    """

    def __init__(self, channels: int, head: int, own_keys: bool = True) -> None:
        super().__init__()
        self.heads = channels // head
        self.to_q = nn.Linear(channels, channels, bias=False)
        if own_keys:
            self.to_k = nn.Linear(channels, channels, bias=False)
            self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See the class; all three are projected already."""
        found = F.scaled_dot_product_attention(self._split(query), self._split(key), self._split(value))
        return self.to_out(found.transpose(1, 2).reshape(query.shape))

    def over(self, tokens: Tensor) -> Tensor:
        """Self-attention: tokens (n,l,c) -> (n,l,c)."""
        return self(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))

    def _split(self, tokens: Tensor) -> Tensor:
        batch, length, channels = tokens.shape
        return tokens.reshape(batch, length, self.heads, channels // self.heads).transpose(1, 2)


class _Gelu(nn.Module):
    """(...,c) -> (...,4c): half of a linear layer's results, gated by the exact GELU of the others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 8 * channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        straight, gate = self.proj(tokens).chunk(2, dim=-1)
        return straight * F.gelu(gate)


class FeedForward(nn.Module):
    """(...,c) -> (...,c), through 8c and 4c channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(_Gelu(channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        return self.net(tokens)


class _SpatialBlock(nn.Module):
    """The layers of a spatial transformer's one block."""

    def __init__(self, channels: int, head: int) -> None:
        super().__init__()
        self.local1 = PictureGate()
        self.norm1, self.norm2, self.norm3 = (
            GatedNorm(channels),
            nn.LayerNorm(channels),
            nn.LayerNorm(channels),
        )
        self.attn1 = Attention(channels, head)
        self.attn2 = Attention(channels, head, own_keys=False)
        self.ff = FeedForward(channels)


class SpatialTransformer(nn.Module):
    """x (b*f,c,h,w), its batch, key and value (B,77,c) of the text -> (B*f,c,h,w), where b is B or 1.

    Every frame by itself: attention over its positions, then to the text, then the feed-forward layer. The text's keys
    and values are made for all transformers at once (`features.TextFeatures`); they are the same for all frames,
    so a frame's positions stand next to each other's as queries, and no key is repeated.
    """

    def __init__(self, channels: int, head: int, slices: int = 1) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([_SpatialBlock(channels, head)])
        self.proj_out = nn.Linear(channels, channels)
        self.slices = slices

    def forward(self, x: Tensor, batch: Batch, key: Tensor, value: Tensor) -> Tensor:
        """See the class."""
        if self.slices == 1 or batch.clips == 1:
            return self.with_text(x, self.without_text(x), batch, key, value)
        alone, texts = Batch(1, batch.frames), zip(key.split(1), value.split(1), strict=True)
        parts = zip(by_pass(x, batch), texts, strict=True)
        return torch.cat(
            [self.with_text(part, self.without_text(part), alone, *text) for part, text in parts]
        )

    def without_text(self, x: Tensor) -> Tensor:
        """The part that no text reaches: x (n,c,h,w) -> tokens (n,h*w,c)."""
        height, width = x.shape[2], x.shape[3]
        block = self.transformer_blocks[0]
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        normal = block.norm1(tokens, block.local1(tokens, height, width))
        attention = block.attn1
        return tokens + attention(
            *(layer(normal) for layer in (attention.to_q, attention.to_k, attention.to_v))
        )

    def with_text(self, x: Tensor, tokens: Tensor, batch: Batch, key: Tensor, value: Tensor) -> Tensor:
        """The rest: x (b*f,c,h,w), tokens (b*f,h*w,c) -> (B*f,c,h,w)."""
        block = self.transformer_blocks[0]
        passes, _, channels = key.shape
        _, _, height, width = x.shape
        clips, frames = batch
        flat = tokens.reshape(clips, frames * height * width, channels)
        query = block.attn2.to_q(block.norm2(flat))
        if clips != passes:  # both passes ask the same: here they part
            query = query.expand(passes, -1, -1)
        read = (flat + block.attn2(query, key, value)).reshape(passes, frames, height * width, channels)

        def widen(part: Tensor) -> Tensor:
            return self.proj_out(part + block.ff(block.norm3(part)))

        slices = _slices_of(self.slices, passes) * _wide_slices(self.slices)
        update = in_slices(widen, (read,), 2, slices).transpose(2, 3)
        both = x.reshape(clips, frames, channels, height * width) + update
        return both.reshape(passes * frames, channels, height, width)


class _TemporalBlock(nn.Module):
    """The layers of a temporal transformer's one block; both attentions are over frames."""

    def __init__(self, channels: int, head: int, slices: int) -> None:
        super().__init__()
        self.slices = slices
        self.local1, self.local2 = Gate(), Gate()
        self.norm1, self.norm2, self.norm3 = GatedNorm(channels), GatedNorm(channels), nn.LayerNorm(channels)
        self.attn1, self.attn2 = Attention(channels, head), Attention(channels, head)
        self.ff = FeedForward(channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """(n,f,c) -> (n,f,c)."""
        tokens = tokens + self.attn1.over(self.norm1(tokens, self.local1(tokens)))
        tokens = tokens + self.attn2.over(self.norm2(tokens, self.local2(tokens)))

        def widen(part: Tensor) -> Tensor:
            return part + self.ff(self.norm3(part))

        return in_slices(widen, (tokens,), 0, self.slices)


class TemporalTransformer(nn.Module):
    """x (b*f,c,h,w), its batch -> the same shape: each position by itself, frames as tokens, in slices of positions."""

    def __init__(self, channels: int, inner: int, head: int, slices: int = 1) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner)
        self.transformer_blocks = nn.ModuleList([_TemporalBlock(inner, head, _wide_slices(slices))])
        self.proj_out = nn.Linear(inner, channels)
        self.slices = slices

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        """See the class."""
        channels = x.shape[1]
        positions = self.norm(by_channel(x, batch)).permute(0, 3, 2, 1)  # (b,h*w,f,c)

        def attend(part: Tensor) -> Tensor:
            tokens = self.proj_in(part.reshape(part.shape[0] * part.shape[1], batch.frames, channels))
            tokens = self.proj_out(self.transformer_blocks[0](tokens))
            return tokens.reshape(part.shape)

        update = in_slices(attend, (positions,), 1, _slices_of(self.slices, batch.clips))
        return x + update.permute(0, 2, 3, 1).reshape(x.shape)
