"""The VAE's attention as a local function: one node for narrow heads, chunks for wide ones, the same numbers."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from helpers.examples import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from vsr_trt.kernels import DOMAIN, SOFTMAX_ATTENTION, KernelError, softmax_attention_function
from vsr_trt.kernels.softmax_attention import FUSED_CHANNELS


def run(function: object, *inputs: np.ndarray) -> np.ndarray:
    """Query, key, value (N,L,C), or (N,L,C) and (N,M,C), through ONNX Runtime."""
    kind = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16}[inputs[0].dtype.type]
    names = ["query", "key", "value"]
    node = helper.make_node(SOFTMAX_ATTENTION, names, ["retrieved"], domain=DOMAIN)
    graph = helper.make_graph(
        [node],
        "attention",
        [
            helper.make_tensor_value_info(name, kind, array.shape)
            for name, array in zip(names, inputs, strict=True)
        ],
        [helper.make_tensor_value_info("retrieved", kind, inputs[0].shape)],
    )
    imports = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip(names, inputs, strict=True)))[0]


def reference(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    scores = query.astype(np.float64) @ key.astype(np.float64).transpose(0, 2, 1)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True) @ value.astype(np.float64)


@settings(deadline=None, max_examples=examples(40))
@given(
    n=st.integers(1, 2),
    positions=st.integers(1, 40),
    channels=st.sampled_from([1, 8, FUSED_CHANNELS, FUSED_CHANNELS + 1]),
    chunks=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_it_is_a_softmax_attention(n: int, positions: int, channels: int, chunks: int, seed: int) -> None:
    assume(positions >= chunks * (chunks - 1) and positions >= chunks)
    rng = np.random.default_rng(seed)
    inputs = [rng.standard_normal((n, positions, channels), dtype=np.float32) for _ in range(3)]
    inputs[0] /= np.sqrt(channels)
    got = run(softmax_attention_function(channels, chunks), *inputs)
    expected = reference(*inputs)
    assert np.abs(got - expected).max() <= 2e-6 * max(np.abs(expected).max(), 1)


def test_half_precision_sums_in_single() -> None:
    """A thousand equal shares: their sum in FP16 would be off by a few percent."""
    channels = FUSED_CHANNELS + 4
    rng = np.random.default_rng(0)
    query = (rng.standard_normal((1, 1024, channels)) * 0.01).astype(np.float16)
    key, value = (rng.standard_normal((1, 1024, channels)).astype(np.float16) for _ in range(2))
    value += np.float16(1)
    got = run(softmax_attention_function(channels, 16), query, key, value)
    assert got.dtype == np.float16
    assert np.abs(got - reference(query, key, value)).max() <= 3e-3


def test_wide_heads_are_chunked_and_narrow_ones_are_not() -> None:
    def kinds(channels: int) -> list[str]:
        return [node.op_type for node in softmax_attention_function(channels, 5).node]

    assert kinds(FUSED_CHANNELS).count("Attention") == 1
    assert "Softmax" not in kinds(FUSED_CHANNELS)
    assert kinds(FUSED_CHANNELS + 1).count("Softmax") == 5
    assert "Attention" not in kinds(FUSED_CHANNELS + 1)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_ties_the_chunks_carries_nothing_along(poison: float) -> None:
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((1, 32, 300), dtype=np.float32) for _ in range(3))
    clean = run(softmax_attention_function(300, 4), query, key, value)
    query[0, 3] = poison  # in the first chunk
    got = run(softmax_attention_function(300, 4), query, key, value)
    assert np.isnan(got[0, 3]).all()
    np.testing.assert_array_equal(np.delete(got, 3, axis=1), np.delete(clean, 3, axis=1))


@pytest.mark.parametrize(("channels", "chunks"), [(0, 4), (8, 0)])
def test_sizes_below_one_are_refused(channels: int, chunks: int) -> None:
    with pytest.raises(KernelError, match="at least 1"):
        softmax_attention_function(channels, chunks)
