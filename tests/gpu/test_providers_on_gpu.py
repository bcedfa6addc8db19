"""ONNX Runtime's GPU providers against its CPU provider; each where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from helpers.golden import psnr
from helpers.small_bundle import NETWORK, make, picture

from vsr_trt.runtime import Restorer
from vsr_trt.runtime.onnxruntime.cpu import CpuNetworks
from vsr_trt.runtime.onnxruntime.gpu import ProviderNetworks
from vsr_trt.runtime.onnxruntime.providers import CUDA, PROVIDERS, TENSORRT, is_available

# TensorRT multiplies FP32 in TF32, of 10 bits, and ONNX Runtime has no option against it.
TOLERANCE = dict.fromkeys(PROVIDERS, 5e-3) | {CUDA: 1e-5}


@pytest.fixture(params=list(PROVIDERS), scope="session")  # so that no bundle is built before it is looked for
def backend(request: Any) -> str:
    if not is_available(onnxruntime, request.param):
        pytest.skip(f"not run: {PROVIDERS[request.param].name} is not installed")
    return request.param


def test_a_small_network_gives_what_it_gives_on_the_cpu(backend: str, tmp_path: Path) -> None:
    bundle = make(tmp_path / "bundle")
    host, device = CpuNetworks(bundle), ProviderNetworks(bundle, backend, cache=tmp_path / "cache")
    for one in (host, device):
        one.load(NETWORK)
    for size in ((32, 40), (48, 40), (32, 40)):
        got, expected = (one.run(NETWORK, picture(*size))["y"] for one in (device, host))
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() <= TOLERANCE[backend] * np.abs(expected).max()
    if backend == TENSORRT:
        assert list((tmp_path / "cache").rglob("*.engine"))
        assert list((tmp_path / "cache").rglob("*.timing"))


def test_other_weights_of_the_same_graph_are_not_taken_from_the_cache(backend: str, tmp_path: Path) -> None:
    results = []
    for name, sign in (("one", 1), ("other", -1)):
        bundle = make(tmp_path / name, sign=sign)
        device = ProviderNetworks(bundle, backend, cache=tmp_path / "cache")
        device.load(NETWORK)
        results.append(device.run(NETWORK, picture())["y"])
        device.close()
    np.testing.assert_allclose(results[0], -results[1], atol=TOLERANCE[backend] * np.abs(results[0]).max())
    assert np.abs(results[0]).max() > 0.1


def test_a_clip_looks_as_it_does_on_the_cpu(
    backend: str, golden_bundle: Path, golden_frames: list[np.ndarray], tmp_path: Path
) -> None:
    with Restorer(golden_bundle) as restorer:
        expected = list(restorer.restore(golden_frames[:2]))
    with Restorer(golden_bundle, backend=backend, engine_cache=tmp_path) as restorer:
        got = list(restorer.restore(golden_frames[:2]))
    # the same native graphs on the CPU's own provider, whose normalisation loses digits, are 44.9 dB from its CPU form
    assert min(psnr(one, other) for one, other in zip(got, expected, strict=True)) > 40
