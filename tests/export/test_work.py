"""What networks take, held against counts by hand, and polynomials against counts at other sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from vsr_trt.engines.graphs.work import Count, count, measure
from vsr_trt.export import network
from vsr_trt.export.families.dloral import preprocess
from vsr_trt.kernels.gated_topk.onnx_function import DOMAIN
from vsr_trt.runtime.bundle.manifest import Bound
from vsr_trt.runtime.bundle.reading import read_manifest
from vsr_trt.runtime.bundle.symbols import evaluate
from vsr_trt.runtime.errors import ExportError

SIDES = {"n": Bound(1, 4), "h": Bound(8, 512, 8), "w": Bound(8, 512, 8)}
SIZES = {"h": 16, "w": 24}


def node(op: str, inputs: str, outputs: str = "y", domain: str = "", **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), domain=domain, **attributes)


def model(
    nodes: list[NodeProto],
    inputs: dict[str, tuple[int | str, ...]],
    weights: dict[str, tuple[int, ...]] | None = None,
    values: dict[str, np.ndarray] | None = None,
    kinds: dict[str, int] | None = None,
) -> onnx.ModelProto:
    """A graph whose output is `y`; weights are zeros of a shape, values are given."""
    kinds = kinds or {}

    def tensor(name: str, shape: tuple[int | str, ...] | None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape)

    constants = {name: np.zeros(shape, np.float32) for name, shape in (weights or {}).items()}
    constants |= values or {}
    graph = helper.make_graph(
        nodes,
        "g",
        [tensor(name, shape) for name, shape in inputs.items()],
        [tensor("y", None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


PICTURE = ("n", 4, "h", "w")  # 4 channels of 16 x 24: 1536 numbers
PIXELS = 16 * 24


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        pytest.param(
            model([node("Conv", "x w b", pads=[1, 1, 1, 1])], {"x": PICTURE}, {"w": (8, 4, 3, 3), "b": (8,)}),
            Count(8 * PIXELS * 4 * 9, 8 * 4 * 9 + 8, (4 + 8) * PIXELS, 0),
            id="convolution",
        ),
        pytest.param(
            model(
                [node("Conv", "x w", strides=[2, 2], pads=[0, 0, 1, 1], group=2)],
                {"x": PICTURE},
                {"w": (6, 2, 3, 3)},
            ),
            Count(6 * PIXELS // 4 * 2 * 9, 6 * 2 * 9, 4 * PIXELS + 6 * PIXELS // 4, 0),
            id="strided convolution in groups",
        ),
        pytest.param(
            model([node("ConvTranspose", "x w", strides=[2, 2])], {"x": PICTURE}, {"w": (4, 8, 2, 2)}),
            Count(4 * PIXELS * 8 * 4, 4 * 8 * 4, 4 * PIXELS + 8 * 4 * PIXELS, 0),
            id="transposed convolution",
        ),
        pytest.param(
            model([node("MatMul", "x w")], {"x": ("n", "h", "w", 5)}, {"w": (5, 7)}),
            Count(PIXELS * 5 * 7, 35, PIXELS * 12, 0),
            id="product with weights",
        ),
        pytest.param(
            model([node("MatMul", "a b")], {"a": ("n", 3, "h", "w"), "b": ("n", 3, "w", "h")}),
            Count(3 * 16 * 16 * 24, 0, 3 * (2 * PIXELS + 256), 0),
            id="product of activations",
        ),
        pytest.param(
            model([node("Gemm", "x w b", transB=1)], {"x": ("h", 5)}, {"w": (7, 5), "b": (7,)}),
            Count(16 * 5 * 7, 35 + 7, 16 * 12, 0),
            id="general product",
        ),
        pytest.param(
            model([node("Gemm", "x w", transA=1)], {"x": (5, "h")}, {"w": (5, 7)}),
            Count(16 * 5 * 7, 35, 16 * 12, 0),
            id="general product, transposed",
        ),
        pytest.param(
            model(
                [node("Attention", "q k v")],
                {"q": ("n", 2, "h", 6), "k": ("n", 2, "w", 6), "v": ("n", 2, "w", 10)},
            ),
            Count(2 * 16 * 24 * (6 + 10), 0, 2 * (16 * 6 + 24 * 6 + 24 * 10 + 16 * 10), 0),
            id="attention",
        ),
        pytest.param(
            model(
                [node("Attention", "q k v", q_num_heads=4, kv_num_heads=2)],
                {"q": ("n", "h", 24), "k": ("n", "w", 12), "v": ("n", "w", 20)},
            ),
            Count(4 * 16 * 24 * (6 + 10), 0, 16 * 24 + 24 * 12 + 24 * 20 + 16 * 40, 0),
            id="attention, heads side by side, keys shared",
        ),
        pytest.param(
            model(
                [node("SoftmaxAttention", "q k v", domain=DOMAIN)],
                {"q": ("n", "h", 6), "k": ("n", "w", 6), "v": ("n", "w", 6)},
            ),
            Count(16 * 24 * 12, 0, 6 * (2 * 16 + 2 * 24), 0),
            id="softmax attention",
        ),
        *(
            pytest.param(
                model(
                    [node(operator, "a b M P bias", domain=DOMAIN, k=0)],
                    {"a": PICTURE, "b": PICTURE},
                    {"M": (9, 5, 5), "P": (9, 4, 5), "bias": (4,)},
                ),
                Count(9 * (5 + 5) * PIXELS**2, 9 * 25 + 9 * 20 + 4, 3 * 4 * PIXELS, 0),
                id=operator,
            )
            for operator in ("GatedTopKAttention", "GatedTopKAttentionFP16")
        ),
        pytest.param(
            model(
                [node("GroupNormalization", "x s b", num_groups=2)], {"x": PICTURE}, {"s": (4,), "b": (4,)}
            ),
            Count(0, 8, 8 * PIXELS, 0),
            id="group normalisation",
        ),
        pytest.param(
            model([node("LayerNormalization", "x s", axis=-1)], {"x": ("n", "h", 8)}, {"s": (8,)}),
            Count(0, 8, 2 * 16 * 8, 0),
            id="layer normalisation",
        ),
        pytest.param(
            model(
                [node("Resize", "x r scales", mode="nearest")],
                {"x": PICTURE},
                values={"scales": np.array([1, 1, 2, 2], np.float32), "r": np.zeros(0, np.float32)},
            ),
            Count(0, 4, (4 + 16) * PIXELS, 0),  # the scales are weights, too
            id="resize",
        ),
        pytest.param(
            model([node("GridSample", "x g")], {"x": PICTURE, "g": ("n", "h", "w", 2)}),
            Count(0, 0, (4 + 2 + 4) * PIXELS, 0),
            id="grid sample",
        ),
        pytest.param(
            model([node("AveragePool", "x", kernel_shape=[2, 2], strides=[2, 2])], {"x": PICTURE}),
            Count(0, 0, 5 * PIXELS, 0),
            id="pooling",
        ),
        pytest.param(
            model(
                [node("Gather", "table x")],
                {"x": ("h",)},
                {"table": (1000, 8)},
                kinds={"x": TensorProto.INT64},
            ),
            Count(0, 0, 2 * 16 * 8, 8 * 16),  # rows are read, and written as the output
            id="a table that rows are gathered from",
        ),
        pytest.param(
            model([node("Sigmoid", "x", "s"), node("Mul", "x s", "y")], {"x": PICTURE}),
            Count(0, 0, 8 * PIXELS, 0),
            id="elementwise alone: only in and out",
        ),
        pytest.param(
            model(
                [
                    node("Cast", "x", "f", to=TensorProto.FLOAT),
                    node("Relu", "f", "r"),
                    node("Cast", "r", "y", to=2),
                ],
                {"x": PICTURE},
                kinds={"x": TensorProto.UINT8, "y": TensorProto.UINT8},
            ),
            Count(0, 0, 0, 8 * PIXELS),
            id="integers are bytes in any precision",
        ),
        pytest.param(
            model(
                [
                    node("Conv", "x w", "a"),
                    node("Relu", "a", "b"),
                    node("Conv", "b w", "c"),
                    node("Add", "b c", "d"),
                    node("Cast", "d", "y", to=TensorProto.FLOAT16),
                ],
                {"x": PICTURE},
                {"w": (4, 4, 1, 1)},
                kinds={"y": TensorProto.FLOAT16},
            ),
            # 2 in and 2 out; the sum is written by a kernel that is elsewhere counted as writing c
            Count(2 * 16 * PIXELS, 16, (4 * 4 + 4) * PIXELS, 0),
            id="shared weights once, elementwise inside, a last one that nothing counted writes",
        ),
        pytest.param(
            model(
                [node("Cast", "x", "a", to=1), node("Conv", "a w", "b"), node("Cast", "b", "y", to=10)],
                {"x": PICTURE},
                {"w": (4, 4, 1, 1)},
                kinds={"x": TensorProto.FLOAT16, "y": TensorProto.FLOAT16},
            ),
            Count(16 * PIXELS, 16, 8 * PIXELS, 0),
            id="casts at the ends are views",
        ),
        pytest.param(
            model(
                [node("Transpose", "w", "t", perm=[1, 0]), node("MatMul", "x t")],
                {"x": ("n", "h", 5)},
                {"w": (7, 5)},
            ),
            Count(16 * 35, 35, 16 * 12, 0),
            id="what is computed of weights is no activation",
        ),
        pytest.param(
            model(
                [
                    node("Shape", "x", "length", start=2, end=3),
                    node("Add", "length more", "longer"),
                    node("Div", "longer unit", "units"),
                    node("Mul", "units unit", "padded"),
                    node("Concat", "one one padded padded", "shape", axis=0),
                    node("Expand", "w shape", "z"),
                    node("Conv", "z w"),
                ],
                {"x": ("n", 4, "h", "w")},
                {"w": (1, 1, 1, 1)},
                {name: np.array([i], np.int64) for name, i in (("more", 31), ("unit", 32), ("one", 1))},
            ),
            # 16 rows are padded to 32; x is read by nothing that counts
            Count(32 * 32, 1, 2 * 32 * 32 + 4 * PIXELS, 0),
            id="shapes that are computed",
        ),
    ],
)
def test_counts_are_those_by_hand(graph: onnx.ModelProto, expected: Count) -> None:
    assert count(graph, SIZES) == expected


@pytest.mark.parametrize(
    "unknown",
    [node("Einsum", "x x", equation="nchw,nchw->n"), node("Other", "x", domain="somewhere")],
    ids=["einsum", "another domain"],
)
def test_what_has_no_rule_is_refused(unknown: NodeProto) -> None:
    graph = model([unknown], {"x": PICTURE})
    graph.opset_import.append(helper.make_opsetid("somewhere", 1))
    with pytest.raises((ExportError, onnx.defs.SchemaError), match=unknown.op_type):
        count(graph, SIZES)


def test_polynomials_have_no_more_products_than_they_need() -> None:
    attention = model(
        [node("Reshape", "x rows", "r"), node("Attention", "r r r")],
        {"x": ("n", 2, "8*h", "w")},
        values={"rows": np.array([0, 2, -1, 4], np.int64)},
    )
    work = measure(attention, SIDES)
    assert work.multiply_adds == {"h*w*h*w": 2 * 2 * 2 * 8.0}  # 2 heads of 2hw rows of 4, twice
    assert work.activations == {"h*w": 4 * 16.0}
    assert (work.weights, work.integer_bytes) == (0, {})


def test_sides_that_are_padded_inside_are_found() -> None:
    """Rows of the convolution go up to the next multiple of 32, and x itself is read."""
    padded = model(
        [
            node("Shape", "x", "sides", start=2, end=4),
            node("Add", "sides more", "longer"),
            node("Div", "longer unit", "units"),
            node("Mul", "units unit", "padded"),
            node("Resize", "x none none padded", "r", axes=[2, 3], mode="nearest"),
            node("Conv", "r w"),
        ],
        {"x": PICTURE},
        {"w": (1, 4, 1, 1)},
        {
            "more": np.array([31], np.int64),
            "unit": np.array([32], np.int64),
            "none": np.zeros(0, np.float32),
        },
    )
    padded.graph.node[4].input[1] = padded.graph.node[4].input[2] = ""
    del padded.graph.initializer[[i.name for i in padded.graph.initializer].index("none")]
    work = measure(padded, SIDES)
    assert work.multiply_adds == {"ceil(h,32)*ceil(w,32)": 4.0}
    assert work.activations == {"h*w": 4.0, "ceil(h,32)*ceil(w,32)": 4.0 + 4.0 + 1.0}


def test_what_is_no_polynomial_is_refused() -> None:
    odd = model(
        [node("Conv", "x w", strides=[3, 3], kernel_shape=[1, 1])], {"x": PICTURE}, {"w": (1, 4, 1, 1)}
    )
    with pytest.raises(ExportError, match="no polynomial of h, w"):
        measure(odd, SIDES)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_golden_networks_polynomials_are_counts_at_any_size(
    golden_bundle: Path, golden_bundle_fp16: Path, precision: str
) -> None:
    bundle = {"fp32": golden_bundle, "fp16": golden_bundle_fp16}[precision]
    for name, record in read_manifest(bundle).networks.items():
        graph = onnx.load(bundle / record.graphs["native"], load_external_data=False)
        work = measure(graph, record.bounds)
        assert record.work in (work, None)  # None: a bundle that is older than this test
        sizes = {"h": 104, "w": 184, "lr_h": 203, "lr_w": 367}
        counted = count(graph, sizes)
        for field in ("multiply_adds", "activations", "integer_bytes"):
            assert evaluate(getattr(work, field), sizes) == getattr(counted, field), (name, field)
        assert counted.weights == work.weights <= record.parameters


def test_halves_take_the_same_work(golden_bundle: Path, golden_bundle_fp16: Path) -> None:
    for name in ("unet", "vae_encoder", "vae_decoder"):
        works = []
        for bundle in (golden_bundle, golden_bundle_fp16):
            record = read_manifest(bundle).networks[name]
            graph = onnx.load(bundle / record.graphs["native"], load_external_data=False)
            works.append(measure(graph, record.bounds))
        assert works[0] == works[1], name


def test_an_exported_network_carries_its_work(tmp_path: Path) -> None:
    exported = network.export(preprocess.spec(), tmp_path, "fp32")
    assert exported.uncounted is None
    work = exported.record.work
    assert work is not None
    assert work.multiply_adds["lr_h*lr_w"] > 0
    # the u8 reference; the frame is read by a convolution, after it was made floats
    assert work.integer_bytes == {"lr_h*lr_w": 3 * 16.0}


def test_a_network_that_cannot_be_counted_is_exported_without(tmp_path: Path) -> None:
    path = tmp_path / "novelty.onnx"
    onnx.save(model([node("Einsum", "x x", equation="nchw,nchw->n")], {"x": PICTURE}), path)
    work, reason = network._work(path, preprocess.spec())
    assert work is None
    assert "no rule to count Einsum" in str(reason)
