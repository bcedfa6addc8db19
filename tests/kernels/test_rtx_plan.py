"""The operator's function in TensorRT-RTX plans, built without a GPU."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from helpers.operands import random_constants

from vsr_trt.kernels import Chunking, KernelError
from vsr_trt.kernels.gated_topk.rtx_plan import activation_memory

rtx = pytest.mark.skipif(sys.platform != "linux", reason="the tests install TensorRT-RTX for Linux only")


@pytest.mark.thorough
@rtx
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("k", [None, 64])
def test_a_plan_at_96x96_takes_under_400_mb(dtype: str, k: int | None) -> None:
    folded = random_constants(np.random.default_rng(0), heads=9, width=64)
    memory = activation_memory(folded, 96, 96, Chunking.for_compilers(k), k, dtype)
    print(f"{dtype}, k={k}: {memory / 1e6:.1f} MB")
    scores = 9 * 96**2 * 96**2 * 4 / 16  # of one chunk with k, which has to keep them
    assert (0 if k is None else scores) <= memory < (10e6 if k is None else 400e6)


@pytest.mark.thorough
@rtx
@pytest.mark.parametrize("capability", ["SM75", "SM80", "SM120"])
@pytest.mark.parametrize("k", [None, 64])
def test_every_generation_has_it(capability: str, k: int | None) -> None:
    """Turing has no FP32 matrix product in TensorRT-RTX; the function needs none."""
    folded = random_constants(np.random.default_rng(0), heads=2, width=8)
    assert activation_memory(folded, 32, 32, Chunking.for_compilers(k), k, capability=capability) > 0


@rtx
def test_more_chunks_take_less() -> None:
    folded = random_constants(np.random.default_rng(0), heads=9, width=64)
    memory = [activation_memory(folded, 64, 64, Chunking.unrolled(chunks), k=8) for chunks in (1, 4, 16)]
    assert memory[0] > 3 * memory[1] > 6 * memory[2]


@rtx
def test_a_graph_that_is_refused_shows_the_parsers_words() -> None:
    folded = random_constants(np.random.default_rng(0))
    with pytest.raises(KernelError, match=r"TensorRT-RTX does not parse the operator: .+"):
        activation_memory(folded, 32, 32, Chunking.scan())


def test_missing_tensorrt_rtx_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(KernelError, match=r"TensorRT-RTX cannot be imported.*pip install"):
        activation_memory(random_constants(np.random.default_rng(0)), 32, 32, Chunking.unrolled(4))
