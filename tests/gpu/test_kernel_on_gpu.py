"""The Triton kernel on a GPU against the reference. Also what compute-sanitizer is to be run on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.examples import examples
from helpers.operands import exact_constants, is_clear_cut, random_constants
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vsr_trt.kernels import FoldedAttention, gated_topk_attention
from vsr_trt.kernels.gpu.build import KEYS, QUERIES, WARPS

pytestmark = pytest.mark.usefixtures("torch_on_gpu")


def launch(
    current: np.ndarray, previous: np.ndarray, folded: FoldedAttention, k: int | None = None
) -> np.ndarray:
    """One launch of the kernel, compiled for the GPU in the machine."""
    from vsr_trt.kernels.gated_topk.triton_kernel import gated_topk_attention as kernel

    pictures, _, height, width = current.shape
    latents = [torch.from_numpy(latent.copy()).cuda() for latent in (current, previous)]
    single = folded.astype(np.float32)
    constants = [torch.from_numpy(array).cuda() for array in (single.M, single.P, single.bias)]
    # canaries on both sides: the kernel writes its own numbers, all of them, and no others
    count = current.size
    memory = torch.full((count + 512,), 12345.0, dtype=latents[0].dtype, device="cuda")
    fused = memory[256 : 256 + count]
    kernel[(-(-height * width // QUERIES), pictures)](
        *latents,
        *constants,
        len(single.M),
        height * width,
        k or 0,
        fused,
        TOP_K=k is not None,
        BLOCK_P=QUERIES,
        BLOCK_Q=KEYS,
        num_warps=WARPS,
        enable_fp_fusion=False,
    )
    assert (memory[:256] == 12345).all()
    assert (memory[-256:] == 12345).all()
    return fused.cpu().numpy().reshape(current.shape)


@settings(deadline=None, max_examples=examples(100))
@given(
    n=st.integers(1, 3),
    h=st.integers(1, 70),
    w=st.integers(1, 70),
    heads=st.integers(1, 9),
    k=st.none() | st.integers(1, 5000),
    dtype=st.sampled_from(["float32", "float16"]),
    seed=st.integers(0, 10_000),
)
def test_agrees_with_the_reference(
    n: int, h: int, w: int, heads: int, k: int | None, dtype: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    folded = random_constants(rng, heads)
    current, previous = rng.standard_normal((2, n, 4, h, w)).astype(dtype)
    k = None if k is None else min(k, h * w)
    assume(is_clear_cut(current, previous, folded, k, 1e-6))
    wide = (latent.astype(np.float64) for latent in (current, previous))
    expected = gated_topk_attention(*wide, folded.astype(np.float32).astype(np.float64), k)
    got = launch(current, previous, folded, k)
    rounding = {"float32": 5e-6, "float16": 2**-11 * 1.02}[dtype]
    assert np.abs(got - expected).max() <= rounding * np.abs(expected).max()


@pytest.mark.parametrize(("h", "w"), [(64, 64), (96, 96), (135, 240)])
def test_agrees_at_full_size(h: int, w: int) -> None:
    rng = np.random.default_rng(0)
    folded = random_constants(rng, heads=9, width=64)
    current, previous = rng.standard_normal((2, 1, 4, h, w)).astype(np.float32)
    got = launch(current, previous, folded)
    flat_current, flat_previous = (z.astype(np.float64).reshape(4, -1) for z in (current, previous))
    for position in rng.choice(h * w, 64, replace=False):  # the reference is dense: some queries of all
        expected = _one_query(flat_current[:, position], flat_previous, folded)
        error = np.abs(got.reshape(4, -1)[:, position] - expected).max()
        assert error <= 5e-6 * np.abs(expected).max()


def _one_query(z: np.ndarray, keys: np.ndarray, folded: FoldedAttention) -> np.ndarray:
    """The reference for one position: z (4,), keys (4,positions)."""
    single = folded.astype(np.float32).astype(np.float64)
    ones = np.concatenate([keys, np.ones((1, keys.shape[1]))])
    scores = np.einsum("i,hij,jq->hq", np.append(z, 1), single.M, ones)
    retrieved = np.einsum("hq,jq->hj", np.maximum(scores, 0), ones)
    return z + single.bias + np.einsum("hoj,hj->o", single.P, retrieved)


@pytest.mark.parametrize("k", [1, 7, 300])
def test_ties_are_kept(k: int) -> None:
    rng = np.random.default_rng(0)
    current, previous = rng.integers(-2, 3, (2, 1, 4, 17, 19)).astype(np.float32)
    folded = exact_constants()
    expected = gated_topk_attention(current, previous, folded, k)
    assert np.array_equal(launch(current, previous, folded, k), expected)


@pytest.mark.parametrize("k", [None, 5])
def test_nan_shows_where_it_should(k: int | None) -> None:
    rng = np.random.default_rng(0)
    folded = random_constants(rng)
    current, previous = rng.standard_normal((2, 2, 4, 20, 20)).astype(np.float32)
    clean = launch(current, previous, folded, k)
    query = current.copy()
    query[1, 2, 3, 4] = np.nan
    got = launch(query, previous, folded, k)
    others = np.ones(got.shape, bool)
    others[1, :, 3, 4] = False
    assert np.isnan(got[~others]).all()
    assert np.array_equal(got[others], clean[others])
    key = previous.copy()
    key[1, 2, 19, 19] = np.nan
    got = launch(current, key, folded, k)
    assert np.isnan(got[1]).all()
    assert np.array_equal(got[0], clean[0])


def test_launches_agree_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    folded = random_constants(rng, heads=9)
    current, previous = rng.standard_normal((2, 2, 4, 64, 64)).astype(np.float32)
    first = launch(current, previous, folded)
    for _ in range(5):
        assert np.array_equal(launch(current, previous, folded), first)
