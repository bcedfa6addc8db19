"""Folding is exact: against the unfolded module, in double precision."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.examples import examples
from helpers.operands import random_constants
from hypothesis import given, settings
from hypothesis import strategies as st

from vsr_trt.kernels import AttentionWeights, fold, gated_topk_attention


def unfolded(z: np.ndarray, previous: np.ndarray, w: AttentionWeights, k: int | None) -> np.ndarray:
    """The module as it is written: convolutions, dot products, gate, top-k, sum, projection."""

    def convolve(weight: np.ndarray, bias: np.ndarray | None, x: np.ndarray) -> np.ndarray:
        flat = np.einsum("oc,ncp->nop", weight, x.reshape(*x.shape[:2], -1))
        flat = flat if bias is None else flat + bias[:, None]
        return flat.reshape(x.shape[0], w.heads, -1, flat.shape[-1])

    query = convolve(w.query, w.query_bias, z)
    key = convolve(w.key, w.key_bias, previous)
    value = convolve(w.value, w.value_bias, previous)
    tau = np.einsum("nhdp,d->nhp", query, w.threshold) + w.threshold_bias
    scores = np.einsum("nhdp,nhdq->nhpq", query, key) / np.sqrt(query.shape[2]) - tau[..., None]
    if k is not None:
        kth = np.sort(scores, axis=-1)[..., -k, None]
        scores = np.where(scores >= kth, scores, 0)
    gated = np.maximum(scores, 0) / w.temperature
    retrieved = np.einsum("nhpq,nhdq->nhdp", gated, value).reshape(z.shape[0], -1, gated.shape[2])
    update = np.einsum("oc,ncp->nop", w.proj, retrieved)
    if w.proj_bias is not None:
        update = update + w.proj_bias[:, None]
    return z + update.reshape(z.shape)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, AttentionWeights, int | None]:
    heads, width, channels = draw(st.integers(1, 9)), draw(st.integers(1, 64)), draw(st.integers(1, 6))
    n, h, w = draw(st.integers(1, 3)), draw(st.integers(1, 7)), draw(st.integers(1, 7))
    biased = draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = heads * width

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape)

    weights = AttentionWeights(
        heads,
        normal(rows, channels),
        normal(rows, channels),
        normal(rows, channels),
        normal(channels, rows),
        normal(width),
        *((normal(rows), normal(rows), normal(rows), normal(channels)) if biased else ()),
        threshold_bias=float(normal(1)[0]) if biased else 0.0,
        temperature=draw(st.sampled_from([1.0, 3000.0])),
    )
    k = draw(st.none() | st.integers(1, h * w))
    return normal(n, channels, h, w), normal(n, channels, h, w), weights, k


@settings(deadline=None, max_examples=examples(150))
@given(cases())
def test_folded_agrees_with_the_module_to_1e_12(case: tuple) -> None:
    z, previous, weights, k = case
    expected = unfolded(z, previous, weights, k)
    got = gated_topk_attention(z, previous, fold(weights), k)
    assert np.abs(got - expected).max() <= 1e-12 * max(1.0, np.abs(expected).max())


def test_folded_sizes() -> None:
    rows = 9 * 64
    weights = AttentionWeights(
        9, *(np.ones((rows, 4)) for _ in range(3)), proj=np.ones((4, rows)), threshold=np.ones(64)
    )
    folded = fold(weights)
    assert (folded.M.shape, folded.P.shape, folded.bias.shape) == ((9, 5, 5), (9, 4, 5), (4,))
    assert folded.M.dtype == np.float64


def test_ties_at_the_kth_value_are_all_kept() -> None:
    folded = fold(
        AttentionWeights(
            1, np.eye(1), np.eye(1), np.eye(1), np.eye(1), threshold=np.zeros(1), temperature=1.0
        )
    )
    z = np.ones((1, 1, 1, 4))
    previous = np.array([3.0, 2.0, 2.0, 1.0]).reshape(1, 1, 1, 4)
    one, two, three = (gated_topk_attention(z, previous, folded, k)[0, 0, 0, 0] - 1 for k in (1, 2, 3))
    assert one == pytest.approx(9)
    assert two == pytest.approx(9 + 4 + 4)  # both of the second largest
    assert three == pytest.approx(two)


@pytest.mark.parametrize("k", [0, -1, 5])
def test_k_out_of_range_is_refused(k: int) -> None:
    folded = fold(AttentionWeights(1, *(np.eye(1) for _ in range(4)), threshold=np.zeros(1)))
    z = np.ones((1, 1, 2, 2))
    with pytest.raises(ValueError, match="between 1 and the number of positions, 4"):
        gated_topk_attention(z, z, folded, k)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((1, 4, 2, 2), (1, 4, 2, 3)), "differ in size"),
        (((1, 4, 2, 2), (2, 4, 2, 2)), "two \\(N,C,h,w\\)"),
        (((1, 3, 2, 2), (1, 3, 2, 2)), "do not fit"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes: tuple, message: str) -> None:
    rows = np.ones((2, 4))
    folded = fold(AttentionWeights(1, rows, rows, rows, rows.T, threshold=np.ones(2)))
    with pytest.raises(ValueError, match=message):
        gated_topk_attention(np.ones(shapes[0]), np.ones(shapes[1]), folded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "divide into 3 heads"),
        ({"key": np.ones((3, 4))}, "key has shape"),
        ({"proj": np.ones((4, 3))}, "proj has shape"),
        ({"value_bias": np.ones(3)}, "value_bias has shape"),
        ({"temperature": 0.0}, "must be positive"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    rows = np.ones((2, 4))
    good = {"heads": 1, "query": rows, "key": rows, "value": rows, "proj": rows.T, "threshold": np.ones(2)}
    with pytest.raises(ValueError, match=message):
        AttentionWeights(**(good | change))


def test_constants_lie_in_memory_as_kernels_read_them() -> None:
    folded = random_constants(np.random.default_rng(0), heads=9, width=64)
    for constants in (folded, folded.astype(np.float32)):
        assert all(array.flags.c_contiguous for array in (constants.M, constants.P, constants.bias))
