"""The meaning of GatedTopKAttention, dense and in numpy."""

from __future__ import annotations

import numpy as np

from vsr_trt.kernels.errors import KernelError
from vsr_trt.kernels.gated_topk.fold import FloatArray, FoldedAttention


def gated_topk_attention(
    current: FloatArray, previous: FloatArray, folded: FoldedAttention, k: int | None = None
) -> FloatArray:
    """Fuses the current latent with what it retrieves from the warped previous one.

    Args:
        current: z[n], (N, C, h, w).
        previous: z[n-1] warped to frame n, (N, C', h, w); h and w as in `current`.
        folded: M (heads, C+1, C'+1), P (heads, C, C'+1), bias (C,).
        k: how many positions a query may retrieve from; None for all of them. Scores that tie
            with the k-th are all kept.

    Returns:
        The fused latent, (N, C, h, w), in the widest of the argument types.

    Raises:
        KernelError: shapes that do not fit, or k below 1 or above the number of positions.
    """
    if current.ndim != 4 or previous.ndim != 4 or current.shape[0] != previous.shape[0]:
        raise KernelError(f"expected two (N,C,h,w) latents, got {current.shape} and {previous.shape}")
    if current.shape[2:] != previous.shape[2:]:
        raise KernelError(f"the latents differ in size: {current.shape[2:]} and {previous.shape[2:]}")
    sides = (current.shape[1] + 1, previous.shape[1] + 1)
    if folded.M.shape[1:] != sides or folded.P.shape[1:] != (current.shape[1], sides[1]):
        raise KernelError(f"M {folded.M.shape} and P {folded.P.shape} do not fit latents of {sides} numbers")
    positions = current.shape[2] * current.shape[3]
    if k is not None and not 1 <= k <= positions:
        raise KernelError(f"k = {k} is not between 1 and the number of positions, {positions}")

    query, key = _homogeneous(current), _homogeneous(previous)
    scores = np.einsum("npi,hij,nqj->nhpq", query, folded.M, key, optimize=True)
    if k is not None and k < positions:
        kth = np.partition(scores, positions - k, axis=-1)[..., positions - k, None]
        scores = np.where(scores >= kth, scores, 0)
    retrieved = np.einsum("nhpq,nqj->nhpj", np.maximum(scores, 0), key)
    update = np.einsum("nhpj,hoj->nop", retrieved, folded.P) + folded.bias[:, None]
    return current + update.reshape(current.shape)


def _homogeneous(latent: FloatArray) -> FloatArray:
    """z' = [z, 1]: (N, C, h, w) -> (N, h*w, C+1)."""
    flat = latent.reshape(latent.shape[0], latent.shape[1], -1).transpose(0, 2, 1)
    return np.concatenate([flat, np.ones_like(flat[..., :1])], axis=-1)
