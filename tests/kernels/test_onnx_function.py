"""The ONNX local function computes what the reference does, in chunks, in little memory."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import onnx.helper
import onnxruntime
import pytest
from helpers import processes
from helpers.examples import examples
from helpers.operands import random_constants
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vsr_trt.kernels import (
    DOMAIN,
    OPERATORS,
    PLUGIN_ATTRIBUTES,
    AttentionWeights,
    Chunking,
    FoldedAttention,
    KernelError,
    attention_function,
    attention_model,
    fold,
    gated_topk_attention,
)
from vsr_trt.kernels.gated_topk.onnx_function import DType


def model_of(
    folded: FoldedAttention, chunking: Chunking, k: int | None, dtype: DType = "fp32"
) -> onnx.ModelProto:
    model = attention_model(folded, chunking, k, dtype)
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto, current: np.ndarray, previous: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"current": current, "previous": previous})[0]


@settings(deadline=None, max_examples=examples(40))
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
    folded = random_constants(rng)
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
    with pytest.raises(KernelError, match="at least 1"):
        attention_function(chunking, k)


@pytest.mark.parametrize("k", [None, 7])
@pytest.mark.parametrize("chunking", [Chunking.scan(4), Chunking.unrolled(3)], ids=["scan", "unrolled"])
def test_half_precision_latents_are_computed_in_single(chunking: Chunking, k: int | None) -> None:
    rng = np.random.default_rng(3)
    folded = random_constants(rng)
    current, previous = (rng.standard_normal((2, 4, 5, 7)).astype(np.float16) for _ in range(2))
    got = run(model_of(folded, chunking, k, "fp16"), current, previous)
    assert got.dtype == np.float16
    wide = (latent.astype(np.float32) for latent in (current, previous))
    expected = gated_topk_attention(*wide, folded.astype(np.float32), k)
    # the latents are exact in FP32, so only the result is rounded
    assert np.abs(got - expected).max() <= 2**-11 * np.abs(expected).max() * 1.01


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_call_and_function_carry_the_plugins_attributes(dtype: DType) -> None:
    model = model_of(random_constants(np.random.default_rng(0)), Chunking.unrolled(2), 5, dtype)
    (call,) = model.graph.node
    assert (call.domain, call.op_type) == (DOMAIN, OPERATORS[dtype])
    found = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in call.attribute}
    expected = {name: v.encode() if isinstance(v, str) else v for name, v in PLUGIN_ATTRIBUTES.items()}
    assert found == {"k": 5, **expected}
    (function,) = model.functions
    assert set(function.attribute) == set(found)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_one_chunks_values_do_not_reach_the_next(poison: float) -> None:
    """The chunks are tied one after another; what ties them must not carry a NaN or infinity along."""
    rng = np.random.default_rng(0)
    folded = random_constants(rng)
    current, previous = (rng.standard_normal((1, 4, 6, 6)).astype(np.float32) for _ in range(2))
    clean = run(model_of(folded, Chunking.unrolled(4), None), current, previous)
    current[0, 1, 0, 2] = poison  # in the first chunk
    got = run(model_of(folded, Chunking.unrolled(4), None), current, previous)
    assert not np.isfinite(got[..., 0, 2]).all()
    others = np.ones((6, 6), bool)
    others[0, 2] = False
    assert np.array_equal(got[..., others], clean[..., others])


_MEMORY = """
import sys
from pathlib import Path
import numpy as np, onnxruntime

def resident(field):  # ru_maxrss would start from what the parent process held
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024

size, runs = int(sys.argv[2]), int(sys.argv[3])
providers = [("CPUExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})]  # as in scratch.py
session = onnxruntime.InferenceSession(sys.argv[1], providers=providers)
small = np.zeros((1, 4, 8, 8), np.float32)
session.run(None, {"current": small, "previous": small})
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
z = np.random.default_rng(0).standard_normal((2, 1, 4, size, size)).astype(np.float32)
for _ in range(runs):  # what earlier runs left behind in the heap counts too
    session.run(None, {"current": z[0], "previous": z[1]})
print((resident("VmHWM") - before) / 1e6)
"""


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the process's peak memory")
@pytest.mark.parametrize(("k", "runs"), [(None, 4), (64, 1)], ids=["all", "64"])
def test_working_memory_at_96x96_stays_under_100_mb(tmp_path: Path, k: int | None, runs: int) -> None:
    folded = random_constants(np.random.default_rng(0), heads=9, width=64)
    path = tmp_path / "attention.onnx"
    path.write_bytes(model_of(folded, Chunking.scan(), k).SerializeToString())
    done = processes.run([sys.executable, "-c", _MEMORY, str(path), "96", str(runs)], check=True)
    print(f"k={k}: {float(done.stdout):.0f} MB beyond the session's own")
    scores = 9 * 16 * 96**2 * 4 / 1e6  # of one chunk: less than that cannot be
    assert scores < float(done.stdout) < 100
