"""GatedTopKAttention for GPUs, in Triton: one launch from two latents to the fused one.

A program takes BLOCK_P queries of one picture and goes through all keys once for each head (with top-k,
up to 32 times more to find the k-th score). Scores live in registers only: each thread keeps partial sums
for its own part of a BLOCK_P x BLOCK_Q tile, and they are added up over the tile when the head is done. So
nothing but the latents is read, nothing but the result is written, and the order of every sum is fixed.

The folded form needs no matrix units: a pair of positions costs a head 4 multiply-adds for the score,
a maximum, and 5 for the sums, all in FP32 (see docs/operator.md).

Latents have 4 channels, as Stable Diffusion's do; the number is written out, because the code then reads
like the formula. This file needs Triton; nothing that merely uses the compiled kernel imports it.
"""

from __future__ import annotations

import triton
import triton.language as tl

CHANNELS = 4
# Bits of the positive floats in their order: the first pattern behind infinity.
_BEHIND_INFINITY = tl.constexpr(0x7F800001)


@triton.jit
def _column(M, j: tl.constexpr, z0, z1, z2, z3):
    """Entry j of z'^T M_h for each query: (BLOCK_P, 1). M points at the head's 5x5 matrix."""
    a = tl.fma(z0, tl.load(M + j), tl.load(M + 20 + j))
    a = tl.fma(z1, tl.load(M + 5 + j), a)
    a = tl.fma(z2, tl.load(M + 10 + j), a)
    return tl.fma(z3, tl.load(M + 15 + j), a)[:, None]


@triton.jit
def _keys(previous, positions, start, BLOCK_Q: tl.constexpr, WHOLE: tl.constexpr):
    """The four channels of BLOCK_Q keys, each (1, BLOCK_Q) FP32, and which of them there are."""
    q = start + tl.arange(0, BLOCK_Q)
    there = q < positions
    at = previous + q
    if WHOLE:
        k0 = tl.load(at)
        k1 = tl.load(at + positions)
        k2 = tl.load(at + 2 * positions)
        k3 = tl.load(at + 3 * positions)
    else:
        k0 = tl.load(at, mask=there, other=0.0)
        k1 = tl.load(at + positions, mask=there, other=0.0)
        k2 = tl.load(at + 2 * positions, mask=there, other=0.0)
        k3 = tl.load(at + 3 * positions, mask=there, other=0.0)
    return (
        k0.to(tl.float32)[None, :],
        k1.to(tl.float32)[None, :],
        k2.to(tl.float32)[None, :],
        k3.to(tl.float32)[None, :],
        there[None, :],
    )


@triton.jit
def _scores(a0, a1, a2, a3, a4, k0, k1, k2, k3):
    """s/T of a tile, (BLOCK_P, BLOCK_Q). The same operations wherever scores are needed, so the same bits."""
    s = tl.fma(a0, k0, a4)
    s = tl.fma(a1, k1, s)
    s = tl.fma(a2, k2, s)
    return tl.fma(a3, k3, s)


@triton.jit
def _count(previous, positions, a0, a1, a2, a3, a4, threshold, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr):
    """How many scores of each query reach its threshold: (BLOCK_P, 1)."""
    counts = tl.zeros((BLOCK_P, BLOCK_Q), tl.int32)
    whole = positions // BLOCK_Q * BLOCK_Q
    for start in range(0, whole, BLOCK_Q):
        k0, k1, k2, k3, there = _keys(previous, positions, start, BLOCK_Q, True)
        counts += (_scores(a0, a1, a2, a3, a4, k0, k1, k2, k3) >= threshold).to(tl.int32)
    if whole < positions:
        k0, k1, k2, k3, there = _keys(previous, positions, whole, BLOCK_Q, False)
        counts += ((_scores(a0, a1, a2, a3, a4, k0, k1, k2, k3) >= threshold) & there).to(tl.int32)
    return tl.sum(counts, 1)[:, None]


@triton.jit
def _kth_score(
    previous, positions, k, inside, a0, a1, a2, a3, a4, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr
):
    """A threshold that keeps each query's k best scores and their ties: (BLOCK_P, 1).

    Only positive scores pass the gate, and positive floats are ordered like their bits, so it is found by
    bisection over bits: `low` is reached by k scores or more (or is 0), `high` by fewer. A threshold that
    exactly k scores reach ends the search early: then nothing ties.
    """
    low = tl.zeros((BLOCK_P, 1), tl.int32)
    high = tl.where(inside, _BEHIND_INFINITY, 1)  # rows behind the last query search nothing
    while tl.max(high - low) > 1:
        middle = low + (high - low) // 2
        threshold = middle.to(tl.float32, bitcast=True)
        count = _count(previous, positions, a0, a1, a2, a3, a4, threshold, BLOCK_P, BLOCK_Q)
        open_row = high - low > 1
        low = tl.where(open_row & (count >= k), middle, low)
        high = tl.where(open_row & (count < k), middle, high)
        high = tl.where(open_row & (count == k), middle + 1, high)
    return low.to(tl.float32, bitcast=True)


@triton.jit
def _projected(y, P, s0, s1, s2, s3, s4):
    """y + P s', for one output channel; P points at its row of 5."""
    y = tl.fma(s0, tl.load(P), y)
    y = tl.fma(s1, tl.load(P + 1), y)
    y = tl.fma(s2, tl.load(P + 2), y)
    y = tl.fma(s3, tl.load(P + 3), y)
    return tl.fma(s4, tl.load(P + 4), y)


@triton.jit
def gated_topk_attention(
    current,
    previous,
    M,
    P,
    bias,
    heads,
    positions,
    k,
    fused,
    TOP_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """One program of the grid (ceil(positions / BLOCK_P), N).

    Args:
        current, previous: z[n] and the warped z[n-1], (N,4,positions), FP32 or FP16.
        M, P, bias: the folded constants, (heads,5,5), (heads,4,5), (4,), FP32.
        heads, positions, k: int32; k is read with TOP_K only, and is between 1 and positions.
        fused: the result, (N,4,positions), of the latents' type.
        TOP_K: whether to keep each query's k best scores only.
        BLOCK_P, BLOCK_Q: queries and keys of a tile.
    """
    rows = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = rows < positions
    picture = tl.program_id(1) * 4 * positions
    at = current + picture + rows
    previous += picture
    z0 = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    z1 = tl.load(at + positions, mask=inside, other=0.0).to(tl.float32)
    z2 = tl.load(at + 2 * positions, mask=inside, other=0.0).to(tl.float32)
    z3 = tl.load(at + 3 * positions, mask=inside, other=0.0).to(tl.float32)
    y0 = z0 + tl.load(bias)
    y1 = z1 + tl.load(bias + 1)
    y2 = z2 + tl.load(bias + 2)
    y3 = z3 + tl.load(bias + 3)
    whole = positions // BLOCK_Q * BLOCK_Q

    for head in range(heads):
        a0 = _column(M + head * 25, 0, z0, z1, z2, z3)
        a1 = _column(M + head * 25, 1, z0, z1, z2, z3)
        a2 = _column(M + head * 25, 2, z0, z1, z2, z3)
        a3 = _column(M + head * 25, 3, z0, z1, z2, z3)
        a4 = _column(M + head * 25, 4, z0, z1, z2, z3)
        if TOP_K:
            least = _kth_score(previous, positions, k, inside[:, None], a0, a1, a2, a3, a4, BLOCK_P, BLOCK_Q)

        r0 = tl.zeros((BLOCK_P, BLOCK_Q), tl.float32)
        r1 = tl.zeros((BLOCK_P, BLOCK_Q), tl.float32)
        r2 = tl.zeros((BLOCK_P, BLOCK_Q), tl.float32)
        r3 = tl.zeros((BLOCK_P, BLOCK_Q), tl.float32)
        r4 = tl.zeros((BLOCK_P, BLOCK_Q), tl.float32)
        for start in range(0, whole, BLOCK_Q):
            k0, k1, k2, k3, there = _keys(previous, positions, start, BLOCK_Q, True)
            s = _scores(a0, a1, a2, a3, a4, k0, k1, k2, k3)
            gate = tl.maximum(s, 0.0)
            if TOP_K:
                gate = tl.where(s >= least, gate, 0.0)
            r0 = tl.fma(gate, k0, r0)
            r1 = tl.fma(gate, k1, r1)
            r2 = tl.fma(gate, k2, r2)
            r3 = tl.fma(gate, k3, r3)
            r4 += gate
        if whole < positions:
            k0, k1, k2, k3, there = _keys(previous, positions, whole, BLOCK_Q, False)
            s = _scores(a0, a1, a2, a3, a4, k0, k1, k2, k3)
            gate = tl.where(there, tl.maximum(s, 0.0), 0.0)
            if TOP_K:
                gate = tl.where(s >= least, gate, 0.0)
            r0 = tl.fma(gate, k0, r0)
            r1 = tl.fma(gate, k1, r1)
            r2 = tl.fma(gate, k2, r2)
            r3 = tl.fma(gate, k3, r3)
            r4 += gate

        # The hardware's maximum drops a NaN. One in a key comes back as 0 x NaN in the sums; one in a query
        # is put back here, or it would show in its own channel alone.
        mixed = tl.sum(a0 + a1 + a2 + a3 + a4, 1)
        lost = tl.where(mixed != mixed, mixed, 0.0)
        s0 = tl.sum(r0, 1) + lost
        s1 = tl.sum(r1, 1)
        s2 = tl.sum(r2, 1)
        s3 = tl.sum(r3, 1)
        s4 = tl.sum(r4, 1)
        row = P + head * 20
        y0 = _projected(y0, row, s0, s1, s2, s3, s4)
        y1 = _projected(y1, row + 5, s0, s1, s2, s3, s4)
        y2 = _projected(y2, row + 10, s0, s1, s2, s3, s4)
        y3 = _projected(y3, row + 15, s0, s1, s2, s3, s4)

    at = fused + picture + rows
    tl.store(at, y0.to(fused.dtype.element_ty), mask=inside)
    tl.store(at + positions, y1.to(fused.dtype.element_ty), mask=inside)
    tl.store(at + 2 * positions, y2.to(fused.dtype.element_ty), mask=inside)
    tl.store(at + 3 * positions, y3.to(fused.dtype.element_ty), mask=inside)
