"""Plain graphs: no functions, no operators of vendors; OpenVINO, which knows neither, gives ONNX Runtime's results."""

from __future__ import annotations

import zipfile
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from vsr_trt.engines.graphs import plain
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Network
from vsr_trt.runtime.bundle.symbols import dimension
from vsr_trt.runtime.errors import ExportError

SIZES = {"n": 1, "f": 1, "s": 1, "lr_h": 128, "lr_w": 128, "h": 64, "w": 64}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The self-test's, with a plain form of each graph."""
    folder = tmp_path_factory.mktemp("plain")
    with resources.files("vsr_trt.runtime.self_test").joinpath("bundle.zip").open("rb") as file:
        zipfile.ZipFile(file).extractall(folder)
    found = Bundle.open(folder)
    for network in found.manifest.networks.values():
        plain.write(folder / network.graphs["native"])
    return found


def path_of(bundle: Bundle, network: str) -> Path:
    native = bundle.path / bundle.manifest.networks[network].graphs["native"]
    return native.with_suffix(".plain.onnx")


def inputs(network: Network) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found: dict[str, np.ndarray] = {}
    for tensor in network.inputs:
        parts = [dimension(size) for size in tensor.shape]
        shape = tuple(factor * (SIZES[symbol] if symbol else 1) for factor, symbol in parts)
        if tensor.dtype == "float32":
            found[tensor.name] = rng.standard_normal(shape).astype(np.float32)
        else:
            found[tensor.name] = rng.integers(0, 200, shape).astype(tensor.dtype)
    return found


def test_no_functions_and_no_vendor_s_operators(bundle: Bundle) -> None:
    functions = 0
    for name, network in bundle.manifest.networks.items():
        native = onnx.load(str(bundle.path / network.graphs["native"]), load_external_data=False)
        written = onnx.load(str(path_of(bundle, name)), load_external_data=False)
        functions += len(native.functions)
        assert not written.functions
        assert {opset.domain for opset in written.opset_import} == {""}
        assert not list(plain._nodes(written.graph))
    assert functions


def test_an_operator_of_a_vendor_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ExportError, match=r"com\.microsoft"):
        plain.write(bundle.path / "onnx" / "unet.cpu.onnx")


@pytest.mark.thorough
def test_openvino_gives_what_onnx_runtime_gives(bundle: Bundle) -> None:
    openvino: Any = pytest.importorskip("openvino", reason="not run: OpenVINO is not installed")
    core = openvino.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    for name, network in bundle.manifest.networks.items():
        feed = inputs(network)
        native = bundle.path / network.graphs["native"]
        session = onnxruntime.InferenceSession(native, providers=["CPUExecutionProvider"])
        outputs = [tensor.name for tensor in network.outputs]
        expected = session.run(outputs, feed)
        compiled = core.compile_model(core.read_model(str(path_of(bundle, name))), "CPU", exact)
        results = compiled(feed)
        for output, other in zip(outputs, expected, strict=True):
            found = results[output]
            assert found.shape == other.shape
            assert found.dtype == other.dtype
            off = float(np.abs(found.astype(np.float64) - other.astype(np.float64)).max())
            if other.dtype == np.uint8:
                assert off <= 1, (name, output, off)  # levels
            else:
                assert off < 2e-3 * max(1.0, float(np.abs(other).max())), (name, output, off)
