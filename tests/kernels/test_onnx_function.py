"""The ONNX local function computes what the reference does, in chunks, in little memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import onnx.checker
import onnx.helper
import onnx.numpy_helper
import onnxruntime
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kernels import (
    DOMAIN,
    OPERATOR,
    AttentionWeights,
    Chunking,
    FoldedAttention,
    attention_function,
    fold,
    gated_topk_attention,
)


def folded_random(
    rng: np.random.Generator, heads: int = 3, channels: int = 4, width: int = 8
) -> FoldedAttention:
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


def model_of(folded: FoldedAttention, chunking: Chunking, k: int | None) -> onnx.ModelProto:
    """A model with one call of the function."""
    channels = folded.P.shape[1]
    call = onnx.helper.make_node(
        OPERATOR, ["current", "previous", "M", "P", "bias"], ["fused"], domain=DOMAIN, k=k or 0
    )

    def latent(name: str) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(name, 1, ["n", channels, "h", "w"])

    single = folded.astype(np.float32)
    graph = onnx.helper.make_graph(
        [call],
        "attention",
        [latent("current"), latent("previous")],
        [latent("fused")],
        [onnx.numpy_helper.from_array(getattr(single, name), name) for name in ("M", "P", "bias")],
    )
    opsets = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid(DOMAIN, 1)]
    model = onnx.helper.make_model(
        graph, functions=[attention_function(chunking, k)], opset_imports=opsets, ir_version=11
    )
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto, current: np.ndarray, previous: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"current": current, "previous": previous})[0]


@settings(deadline=None, max_examples=40)
@given(
    chunking=st.sampled_from([Chunking.scan(1), Chunking.scan(7), Chunking.scan(64), Chunking.unrolled(1)])
    | st.builds(Chunking.unrolled, st.integers(2, 5)),
    n=st.integers(1, 3),
    h=st.integers(2, 9),
    w=st.integers(3, 9),
    k=st.none() | st.integers(1, 90),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_reference(
    chunking: Chunking, n: int, h: int, w: int, k: int | None, seed: int
) -> None:
    if chunking.form == "unrolled":
        assume(h * w >= chunking.size * (chunking.size - 1))  # as `Chunking.unrolled` says
    rng = np.random.default_rng(seed)
    folded = folded_random(rng)
    current, previous = (rng.standard_normal((n, 4, h, w)).astype(np.float32) for _ in range(2))
    got = run(model_of(folded, chunking, k), current, previous)
    dense_k = None if k is None or k >= h * w else k  # the function takes a k above the positions as all
    expected = gated_topk_attention(current, previous, folded.astype(np.float32), dense_k)
    assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("chunking", [Chunking.scan(4), Chunking.unrolled(2)], ids=["scan", "unrolled"])
def test_ties_at_the_kth_value_are_all_kept(chunking: Chunking) -> None:
    eye = np.eye(1)
    folded = fold(AttentionWeights(1, eye, eye, eye, eye, threshold=np.zeros(1), temperature=1.0))
    current = np.ones((1, 1, 2, 2), np.float32)
    previous = np.array([3.0, 2.0, 2.0, 1.0], np.float32).reshape(1, 1, 2, 2)
    got = run(model_of(folded, chunking, 2), current, previous)
    assert np.allclose(got - 1, 9 + 4 + 4)


@pytest.mark.parametrize(("chunking", "k"), [(Chunking.scan(0), None), (Chunking.scan(4), 0)])
def test_sizes_below_one_are_refused(chunking: Chunking, k: int | None) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        attention_function(chunking, k)


_MEMORY = """
import resource, sys
import numpy as np, onnxruntime
size = int(sys.argv[2])
options = onnxruntime.SessionOptions()
options.enable_cpu_mem_arena = False
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
small = np.zeros((1, 4, 8, 8), np.float32)
session.run(None, {"current": small, "previous": small})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
z = np.random.default_rng(0).standard_normal((2, 1, 4, size, size)).astype(np.float32)
session.run(None, {"current": z[0], "previous": z[1]})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000)
"""


@pytest.mark.parametrize("k", [None, 64])
def test_working_memory_at_96x96_stays_under_100_mb(tmp_path, k: int | None) -> None:
    folded = folded_random(np.random.default_rng(0), heads=9, width=64)
    path = tmp_path / "attention.onnx"
    path.write_bytes(model_of(folded, Chunking.scan(), k).SerializeToString())
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(path), "96"], capture_output=True, text=True, check=True
    )
    print(f"k={k}: {float(done.stdout):.0f} MB beyond the session's own")
    assert float(done.stdout) < 100
