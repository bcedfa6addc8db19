"""The operator in torch: as the published module computes it, and folded. For comparing and timing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vsr_trt.kernels.gated_topk.fold import AttentionWeights, FloatArray


class DenseAttention(nn.Module):
    """The published module: 1x1 convolutions and whole score matrices, (N,heads,positions,positions)."""

    def __init__(self, weights: AttentionWeights) -> None:
        super().__init__()
        self.heads = weights.heads
        self.temperature = weights.temperature
        self.query = _convolution(weights.query, weights.query_bias)
        self.key = _convolution(weights.key, weights.key_bias)
        self.value = _convolution(weights.value, weights.value_bias)
        self.proj = _convolution(weights.proj, weights.proj_bias)
        self.threshold = nn.Linear(len(weights.threshold), 1)
        self.threshold.weight.data = torch.from_numpy(weights.threshold).float()[None]
        self.threshold.bias.data = torch.tensor([weights.threshold_bias], dtype=torch.float32)

    def forward(self, current: Tensor, previous: Tensor) -> Tensor:
        """current, previous (N,C,h,w) FP32 -> fused (N,C,h,w)."""
        query, key, value = (
            convolution(latent).unflatten(1, (self.heads, -1)).flatten(3).transpose(2, 3)
            for convolution, latent in ((self.query, current), (self.key, previous), (self.value, previous))
        )
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5 - self.threshold(query)
        retrieved = (scores.relu() / self.temperature) @ value
        return current + self.proj(retrieved.transpose(2, 3).reshape(len(current), -1, *current.shape[2:]))


def _convolution(weight: FloatArray, bias: FloatArray | None) -> nn.Conv2d:
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    layer.weight.data = torch.from_numpy(weight).float()[..., None, None]
    layer.bias = None if bias is None else nn.Parameter(torch.from_numpy(bias).float())
    return layer


def folded_attention(
    current: Tensor, previous: Tensor, M: Tensor, P: Tensor, bias: Tensor, k: int | None = None
) -> Tensor:
    """The folded form, dense; k above the positions means all of them.

    Shapes: current, previous (N,C,h,w), M (heads,C+1,C+1), P (heads,C,C+1), bias (C,); returns (N,C,h,w).
    """
    query, key = _homogeneous(current), _homogeneous(previous)
    scores = (query[:, None] @ M) @ key[:, None].transpose(2, 3)
    if k is not None and k < scores.shape[-1]:
        kth = scores.topk(k, dim=-1).values[..., -1:]
        scores = torch.where(scores >= kth, scores, 0.0)
    retrieved = scores.relu() @ key[:, None]
    update = torch.einsum("nhpj,hoj->nop", retrieved, P) + bias[:, None]
    return current + update.reshape(current.shape)


def _homogeneous(latent: Tensor) -> Tensor:
    flat = latent.flatten(2).transpose(1, 2)
    return torch.cat([flat, torch.ones_like(flat[..., :1])], dim=-1)
