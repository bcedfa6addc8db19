"""Networks with the channels last and in bands against the networks as they were written."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from helpers.convolutions import PADS, Network, run
from helpers.examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vsr_trt.engines.graphs.channels_last import replace_convolutions


def rewritten(network: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """The network after the pass, and the types of its nodes that compute."""
    model = ir.from_proto(network)
    replace_convolutions(model.graph, min_channels=1)
    RemoveUnusedNodesPass()(model)
    onnx.checker.check_model(ir.to_proto(model))
    return ir.to_proto(model), [node.op_type for node in model.graph]


def compare(network: onnx.ModelProto, x: np.ndarray, tolerance: float = 2e-5) -> list[str]:
    """Asserts that the pass keeps the result; returns the types of the nodes after it."""
    other, types = rewritten(network)
    expected, got = run(network, x), run(other, x)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= tolerance * max(1.0, np.abs(expected).max())
    return types


@settings(max_examples=examples(40), deadline=None)
@given(
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 40),
    factors=st.sampled_from([(1, 1), (4, 4), (8, 8), (4, 8), (6, 2), (16, 8)]),
    size=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    bias=st.booleans(),
    offset=st.floats(-100, 100),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_gives_what_the_convolution_gives(
    inputs: int,
    outputs: int,
    factors: tuple[int, int],
    size: tuple[int, int, int],
    bias: bool,
    offset: float,
    seed: int,
) -> None:
    network = Network(seed)
    y = network.conv("x", inputs, outputs, bias=bias)
    shape = (size[0], inputs, factors[0] * size[1], factors[1] * size[2])
    x = (network.rng.standard_normal(shape) + offset).astype(np.float32)
    model = network.model(y, inputs, [f"{factor}*{side}" for factor, side in zip(factors, "hw", strict=True)])
    assert "Conv" not in compare(model, x)


@pytest.mark.parametrize(("before", "pads"), [(0, [0, 0, 1, 1]), (1, PADS)])
@pytest.mark.parametrize("size", [(1, 2, 2), (2, 6, 10), (1, 64, 34)])
def test_every_second_result(before: int, pads: list[int], size: tuple[int, int, int]) -> None:
    network = Network()
    y = network.conv("x", 5, 7, strides=[2, 2], pads=pads)
    x = network.rng.standard_normal((size[0], 5, *size[1:])).astype(np.float32)
    assert "Conv" not in compare(network.model(y, 5, ["2*h", "2*w"]), x)


@pytest.mark.parametrize("size", [(1, 2, 2), (2, 4, 6), (1, 66, 2), (1, 50, 48)])
def test_a_doubled_picture_is_not_made(size: tuple[int, int, int]) -> None:
    network = Network()
    y = network.conv(network.double("x"), 5, 7)
    x = network.rng.standard_normal((size[0], 5, *size[1:])).astype(np.float32)
    model = network.model(y, 5, ["2*h", "2*w"])
    for value in model.graph.value_info:  # as the exporter names them
        if value.type.tensor_type.shape.dim[1].dim_value == 5:
            for axis, name in ((2, "4*h"), (3, "4*w")):
                value.type.tensor_type.shape.dim[axis].dim_param = name
    types = compare(model, x)
    assert "Resize" not in types
    assert "Conv" not in types


def block(network: Network, x: str, inputs: int, outputs: int, groups: int) -> str:
    """A residual block as diffusion models have them."""
    y = network.conv(network.silu(network.norm(x, inputs, groups)), inputs, outputs)
    y = network.conv(network.silu(network.norm(y, outputs, groups)), outputs, outputs)
    return network.node("Add", x if inputs == outputs else network.conv(x, inputs, outputs, side=1), y)


def as_exported(model: onnx.ModelProto, sides: tuple[str, str] = ("8*h", "8*w")) -> onnx.ModelProto:
    """Names the sides of all pictures: onnx's shape inference loses them."""
    for value in model.graph.value_info:
        for axis, side in zip((2, 3), sides, strict=True):
            if len(value.type.tensor_type.shape.dim) == 4:
                value.type.tensor_type.shape.dim[axis].dim_param = side
                value.type.tensor_type.shape.dim[0].dim_param = "n"
    return model


@settings(max_examples=examples(15), deadline=None)
@given(
    size=st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 6)),
    offset=st.sampled_from([0.0, 50.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_blocks_become_scans(size: tuple[int, int, int], offset: float, seed: int) -> None:
    network = Network(seed)
    y = block(network, network.conv("x", 3, 8), 8, 8, 4)
    y = block(network, network.node("Concat", y, y, axis=1), 16, 12, 4)
    x = network.rng.standard_normal((size[0], 3, 8 * size[1], 8 * size[2])) + offset
    types = compare(as_exported(network.model(y, 3)), x.astype(np.float32), 1e-4)
    assert types.count("Scan") == 5
    assert not {"Conv", "GroupNormalization", "Sigmoid"} & set(types)
    assert types.count("Transpose") == 2 + 2 * 5 + 1  # x, y; kernels; the shortcut's


def test_an_attention_takes_the_channels_last() -> None:
    network = Network()
    y = block(network, network.conv("x", 4, 8), 8, 8, 2)
    rows = network.node("Transpose", network.norm(y, 8, 2), perm=[0, 2, 3, 1])
    scaled = network.node("Mul", rows, rows)
    y = network.node("Add", network.node("Transpose", scaled, perm=[0, 3, 1, 2]), y)
    model = as_exported(network.model(block(network, y, 8, 8, 2), 4))
    x = network.rng.standard_normal((2, 4, 16, 8)).astype(np.float32)
    types = compare(model, x, 1e-4)
    assert "GroupNormalization" not in types


def test_a_flat_picture_is_normalised_exactly() -> None:
    network = Network()
    y = network.conv(network.silu(network.norm("x", 8, 2)), 8, 8, bias=False)
    model = as_exported(network.model(y, 8))
    x = (0.5 + 1e-3 * network.rng.standard_normal((1, 8, 512, 256))).astype(np.float32)
    got = run(rewritten(model)[0], x)
    scale, bias, weight = (
        numpy_helper.to_array(tensor).astype(np.float64) for tensor in model.graph.initializer
    )
    groups = x.astype(np.float64).reshape(2, -1)
    groups = (groups - groups.mean(1, keepdims=True)) / np.sqrt(groups.var(1, keepdims=True) + 1e-6)
    data = groups.reshape(8, 512, 256) * scale[:, None, None] + bias[:, None, None]
    data = np.pad(data / (1 + np.exp(-data)), ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(data, (3, 3), (1, 2))
    expected = np.einsum("chwij,ocij->ohw", windows, weight)
    assert np.abs(got[0] - expected).max() <= 2e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    "settings",
    [
        {"dilations": [2, 2], "pads": [2, 2, 2, 2]},
        {"group": 4},
        {"pads": [0, 0, 0, 0]},
        {"side": 1},
        {"side": 5, "pads": [2, 2, 2, 2]},
        {"auto_pad": "SAME_UPPER", "pads": [0, 0, 0, 0]},
        {"strides": [2, 2], "sides": ("3*h", "8*w")},
        {"strides": [2, 2], "sides": ("h", "w")},
        {"dtype": np.float16},
    ],
    ids=str,
)
def test_other_convolutions_stay(settings: dict[str, object]) -> None:
    settings = dict(settings)
    sides = settings.pop("sides", ("8*h", "8*w"))
    network = Network(dtype=settings.pop("dtype", np.float32))
    model = network.model(network.conv("x", 8, 8, **settings), 8, sides)
    assert rewritten(model)[1] == ["Conv", "Identity"]


@pytest.mark.parametrize(
    ("channels", "sides", "stays"),
    [(128, "8", False), (64, "8", True), (1280, "8", False), (1280, "1", True), (512, "1", False)],
)
def test_only_layers_that_gain_are_rewritten(channels: int, sides: str, stays: bool) -> None:
    network = Network()
    model = ir.from_proto(network.model(network.conv("x", 16, channels), 16, (f"{sides}*h", f"{sides}*w")))
    weight = model.graph.initializers["c0"]
    assert weight.const_value is not None
    shape = (channels, channels, 3, 3)
    weight.const_value = ir.tensor(np.zeros(shape, np.float32))
    assert replace_convolutions(model.graph) == (0 if stays else 1)
    RemoveUnusedNodesPass()(model)
    assert any(node.op_type == "Conv" for node in model.graph) == stays


def test_rows_that_divide_nothing_are_bands_of_their_own() -> None:
    network = Network()
    y = network.conv("x", 2, 2)
    x = network.rng.standard_normal((2, 2, 8 * 7, 8)).astype(np.float32)
    compare(network.model(y, 2), x)
