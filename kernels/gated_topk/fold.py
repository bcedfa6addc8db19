"""Folding: 1x1 convolutions around a dot-product attention become one small matrix a head.

Q, K and V are linear in a latent of C channels, and the gate's threshold is linear in Q. With
z' = [z, 1] (C + 1 numbers a position) the scores and the output are, exactly::

    s[h,p,q] / T = z'[p]^T  M_h  z'[q]
    y[p]         = z[p] + b_out + sum_h  P_h  sum_q relu(s/T) z'[q]

For the published module (9 heads of width 64, 4 channels) this takes 9 x (5 + 5) multiply-adds a pair
of positions instead of 9 x 128.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vsr_trt.kernels.errors import KernelError

FloatArray = npt.NDArray[np.floating]


@dataclass(frozen=True)
class AttentionWeights:
    """The module's own weights, 1x1 convolutions as matrices. Biases may be None (= zero).

    Shapes: query, key, value (heads * d, C); proj (C_out, heads * d); threshold (d,);
    query_bias, key_bias, value_bias (heads * d,); proj_bias (C_out,); threshold_bias a number.
    `temperature` is T, a constant of the published code and not a weight.
    """

    heads: int
    query: FloatArray
    key: FloatArray
    value: FloatArray
    proj: FloatArray
    threshold: FloatArray
    query_bias: FloatArray | None = None
    key_bias: FloatArray | None = None
    value_bias: FloatArray | None = None
    proj_bias: FloatArray | None = None
    threshold_bias: float = 0.0
    temperature: float = 3000.0

    def __post_init__(self) -> None:
        """Refuses shapes that do not fit each other."""
        if self.heads < 1 or self.query.shape[0] % self.heads:
            raise KernelError(f"{self.query.shape[0]} query rows do not divide into {self.heads} heads")
        rows = self.query.shape[0]
        width = rows // self.heads
        expected = {
            "key": (rows, self.key.shape[-1]),
            "value": (rows, self.key.shape[-1]),
            "proj": (self.proj.shape[0], rows),
            "threshold": (width,),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise KernelError(f"{name} has shape {getattr(self, name).shape}, expected {shape}")
        for name, size in (
            ("query_bias", rows),
            ("key_bias", rows),
            ("value_bias", rows),
            ("proj_bias", self.proj.shape[0]),
        ):
            bias = getattr(self, name)
            if bias is not None and bias.shape != (size,):
                raise KernelError(f"{name} has shape {bias.shape}, expected {(size,)}")
        if not self.temperature > 0:
            # relu(s) / T = relu(s / T) holds for positive T only
            raise KernelError(f"the temperature must be positive, not {self.temperature}")


@dataclass(frozen=True)
class FoldedAttention:
    """The operator's constants: M (heads, C+1, C+1), P (heads, C_out, C+1), bias (C_out,), all C-contiguous."""

    M: FloatArray
    P: FloatArray
    bias: FloatArray

    def __post_init__(self) -> None:
        """Lays the numbers out as kernels read them; einsum picks an order of its own."""
        for name in ("M", "P", "bias"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name)))

    def astype(self, dtype: npt.DTypeLike) -> FoldedAttention:
        """The same constants in another floating point type."""
        return FoldedAttention(self.M.astype(dtype), self.P.astype(dtype), self.bias.astype(dtype))


def _with_bias(weight: FloatArray, bias: FloatArray | None, heads: int) -> npt.NDArray[np.float64]:
    """[W | b] split by head: (heads, d, C+1) float64."""
    column = np.zeros(weight.shape[0]) if bias is None else bias
    joined = np.concatenate([weight, column[:, None]], axis=1, dtype=np.float64)
    return joined.reshape(heads, -1, joined.shape[1])


def fold(weights: AttentionWeights) -> FoldedAttention:
    """Folds the module's weights, in double precision whatever their type.

    Returns float64 constants; the caller rounds them once, to the type that the operator runs in.
    """
    query = _with_bias(weights.query, weights.query_bias, weights.heads)
    key = _with_bias(weights.key, weights.key_bias, weights.heads)
    value = _with_bias(weights.value, weights.value_bias, weights.heads)
    threshold = weights.threshold.astype(np.float64)
    width = query.shape[1]

    M = np.einsum("hdi,hdj->hij", query, key) / np.sqrt(width)
    # tau is linear in z'[p] and does not depend on q: it meets the constant 1 at the end of z'[q]
    M[:, :, -1] -= np.einsum("hdi,d->hi", query, threshold)
    M[:, -1, -1] -= weights.threshold_bias
    M /= weights.temperature

    out = weights.proj.astype(np.float64).reshape(-1, weights.heads, width)
    P = np.einsum("ohd,hdj->hoj", out, value)
    bias = np.zeros(P.shape[1]) if weights.proj_bias is None else weights.proj_bias.astype(np.float64)
    return FoldedAttention(M, P, bias)
