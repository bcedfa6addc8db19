"""Winograd's form of a convolution against the convolution itself."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass

from engines.winograd import replace_convolutions, transforms


def model(
    inputs: int,
    outputs: int,
    rng: np.random.Generator,
    *,
    bias: bool = True,
    sides: tuple[object, object] = ("8*h", "8*w"),
    dtype: type = np.float32,
    **attributes: object,
) -> ir.Model:
    """One convolution; the kernel as `kernel_shape` says, 3x3 by default."""
    attributes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]} | attributes
    group = attributes.get("group", 1)
    weight = rng.standard_normal((outputs, inputs // group, *attributes["kernel_shape"])) / np.sqrt(
        9 * inputs
    )
    tensors = [numpy_helper.from_array(weight.astype(dtype), "weight")]
    if bias:
        tensors.append(numpy_helper.from_array(rng.standard_normal(outputs).astype(dtype), "bias"))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", *(tensor.name for tensor in tensors)], ["y"], **attributes)],
        "convolution",
        [helper.make_tensor_value_info("x", kind, ["n", inputs, *sides])],
        [helper.make_tensor_value_info("y", kind, None)],
        tensors,
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))


def run(network: ir.Model, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        ir.to_proto(network).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


@given(seed=st.integers(0, 2**32 - 1))
def test_the_transforms_are_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, taps = rng.standard_normal(6), rng.standard_normal(3)
    A, G, B = transforms()
    assert (A.shape, G.shape, B.shape) == ((4, 6), (6, 3), (6, 6))
    np.testing.assert_allclose(
        A @ ((G @ taps) * (B @ values)), np.correlate(values, taps, "valid"), atol=1e-12
    )


@settings(max_examples=30, deadline=None)
@given(
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 40),
    size=st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12)),
    bias=st.booleans(),
    offset=st.floats(-100, 100),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_gives_what_the_convolution_gives(
    inputs: int, outputs: int, size: tuple[int, int, int], bias: bool, offset: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    n, rows, columns = size
    x = (rng.standard_normal((n, inputs, 4 * rows, 4 * columns)) + offset).astype(np.float32)
    network = model(inputs, outputs, rng, bias=bias, sides=("4*h", "4*w"))
    expected = run(network, x)
    assert replace_convolutions(network.graph, 1, 40, max_growth=100) == 1
    RemoveUnusedNodesPass()(network)
    assert len(network.graph) > 5
    got = run(network, x)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 5e-5 * max(1.0, abs(offset))


@pytest.mark.parametrize(
    "settings",
    [
        {"strides": [2, 2]},
        {"dilations": [2, 2]},
        {"group": 4},
        {"pads": [0, 0, 0, 0]},
        {"pads": [0, 0, 0, 0], "kernel_shape": [1, 1]},
        {"pads": [2, 2, 2, 2], "kernel_shape": [5, 5]},
        {"auto_pad": "SAME_UPPER", "pads": [0, 0, 0, 0]},
        {"sides": ("2*h", "8*w")},
        {"sides": ("8*h", "w")},
        {"sides": ("8*h - 8", "8*w")},
        {"sides": (None, None)},
        {"dtype": np.float16},
    ],
    ids=str,
)
def test_other_convolutions_stay(settings: dict[str, object]) -> None:
    network = model(8, 8, np.random.default_rng(0), **settings)
    assert replace_convolutions(network.graph, 1, 40, max_growth=100) == 0
    assert [node.op_type for node in network.graph] == ["Conv"]


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [(256, 512, 1), (512, 256, 1), (128, 256, 0), (256, 128, 0), (640, 512, 0)],
)
def test_only_layers_that_gain_are_rewritten(inputs: int, outputs: int, expected: int) -> None:
    network = model(inputs, outputs, np.random.default_rng(0))
    assert replace_convolutions(network.graph, max_growth=100) == expected


def test_a_layer_that_would_become_the_largest_stays() -> None:
    network = model(256, 256, np.random.default_rng(0))
    assert replace_convolutions(network.graph) == 0
