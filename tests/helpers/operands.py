"""What the operator's tests feed it."""

from __future__ import annotations

import numpy as np

from vsr_trt.kernels import AttentionWeights, FoldedAttention, fold


def random_constants(
    rng: np.random.Generator, heads: int = 3, channels: int = 4, width: int = 8
) -> FoldedAttention:
    """Constants whose gate opens for about half of the scores, in float64."""
    rows = heads * width
    weights = AttentionWeights(
        heads,
        *(rng.standard_normal((rows, channels)) for _ in range(3)),
        proj=rng.standard_normal((channels, rows)),
        threshold=rng.standard_normal(width),
        proj_bias=rng.standard_normal(channels),
        temperature=30.0,
    )
    return fold(weights)


def exact_constants(heads: int = 1) -> FoldedAttention:
    """Constants of ones and zeros: s = <z[p], z[q]>, y = z + sum of s z[q]. Small integers stay exact in FP32."""
    M = np.zeros((heads, 5, 5), np.float32)
    P = np.zeros((heads, 4, 5), np.float32)
    for channel in range(4):
        M[:, channel, channel] = 1
        P[:, channel, channel] = 1
    return FoldedAttention(M, P, np.zeros(4, np.float32))


def is_clear_cut(
    current: np.ndarray, previous: np.ndarray, folded: FoldedAttention, k: int | None, margin: float
) -> bool:
    """Whether rounding cannot change which scores are among the k largest.

    margin: between the k-th positive score of a query and the next, in units of its largest absolute term.
    """
    positions = current.shape[2] * current.shape[3]
    if k is None or k >= positions:
        return True

    def rows(latent: np.ndarray) -> np.ndarray:
        flat = latent.astype(np.float64).reshape(len(latent), latent.shape[1], -1).transpose(0, 2, 1)
        return np.concatenate([flat, np.ones_like(flat[..., :1])], -1)

    query, key = rows(current), rows(previous)
    scores = np.sort(np.einsum("npi,hij,nqj->nhpq", query, folded.M, key), axis=-1)
    size = np.einsum("npi,hij,nqj->nhpq", abs(query), abs(folded.M), abs(key)).max()
    kth, after = scores[..., positions - k], scores[..., positions - k - 1]
    return bool(((kth - after > margin * size) | (kth < -margin * size)).all())
