"""FP16 graphs: what computes in which type, what stays exact at the border, and cleaning and counting."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsr_trt.engines.graphs.clean import (
    attach_functions,
    clean,
    count_nodes,
    count_parameters,
    drop_unused_initializers,
)
from vsr_trt.engines.graphs.precision import convert
from vsr_trt.export.network import Input, NetworkSpec, Output, export, trace
from vsr_trt.runtime.bundle.manifest import Bound
from vsr_trt.runtime.errors import ExportError

pytestmark = pytest.mark.usefixtures("one_thread")

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
HEADER = '<ir_version: 10, opset_import: ["" : 23]>\n'


def parse(text: str, **weights: np.ndarray) -> ir.Model:
    """A graph in ONNX's text form, its types inferred; `weights` become initialisers.

    Weights that the text needs for inference are declared there as `float[...] name`.
    """
    proto = onnx.parser.parse_model(HEADER + text)
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


def proto_of(model: ir.Model) -> onnx.ModelProto:
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)  # types of all values agree
    return proto


def run(model: ir.Model, **inputs: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        proto_of(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, inputs)


def nodes(model: ir.Model, kind: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == kind]


def types(model: ir.Model, kind: str) -> list[tuple[list[Any], list[Any]]]:
    """Types of inputs and outputs of each node of a kind."""
    return [
        ([value.dtype for value in node.inputs if value is not None], [value.dtype for value in node.outputs])
        for node in nodes(model, kind)
    ]


def converted(text: str, **weights: np.ndarray) -> ir.Model:
    model = parse(text, **weights)
    convert(model)
    proto_of(model)
    return model


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


# ---------------------------------------------------------------- which nodes are islands


def test_products_compute_in_fp16_and_the_softmax_between_them_in_fp32() -> None:
    text = """g (float[n,4] x) => (float[n,4] y)
    { a = MatMul(x, k)  s = Softmax <axis = -1> (a)  y = MatMul(s, k) }"""
    model = converted(text, k=values(4, 4))
    assert types(model, "MatMul") == [([HALF, HALF], [HALF])] * 2
    assert types(model, "Softmax") == [([FLOAT], [FLOAT])]
    assert len(nodes(model, "Cast")) == 4  # x, into the softmax, out of it, y
    x = values(3, 4, seed=1)
    (expected,), (got,) = run(parse(text, k=values(4, 4)), x=x), run(model, x=x)
    np.testing.assert_allclose(got, expected, atol=5e-3)
    assert not np.array_equal(got, expected)  # it is FP16


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        ("Softmax", "Softmax(a)"),
        ("ReduceSum", "ReduceSum(a)"),
        ("ReduceMean", "ReduceMean(a)"),
        ("Exp", "Exp(a)"),
        ("Sqrt", "Sqrt(a)"),
        ("Pow", "Pow(a, two)"),
        ("GridSample", "GridSample(a, grid)"),
    ],
)
def test_what_loses_too_much_stays_in_fp32(kind: str, call: str) -> None:
    model = converted(
        f"g (float[1,1,4,4] x, float[1,4,4,2] grid) => (float[1,1,4,4] y)\n"
        f"{{ a = Relu(x)  b = {call}  c = Relu(b)  y = Expand(c, shape) }}",
        two=np.array(2, np.float32),
        shape=np.array([1, 1, 4, 4]),
    )
    ((inputs, outputs),) = types(model, kind)
    assert set(inputs) == {FLOAT}
    assert outputs == [FLOAT]
    assert types(model, "Relu") == [([HALF], [HALF])] * 2


def test_a_comparison_is_made_in_fp32() -> None:
    model = converted(
        """g (float[2,2] x) => (float[2,2] y, bool[2,2] z)
        { a = Relu(x)  z = Greater(a, limit)  y = Where(z, a, limit) }""",
        limit=np.array(0.1, np.float32),
    )
    assert types(model, "Greater") == [([FLOAT, FLOAT], [ir.DataType.BOOL])]
    assert types(model, "Where") == [([ir.DataType.BOOL, HALF, HALF], [HALF])]
    assert set(model.graph.initializers) == {"limit", "limit_fp16"}  # one for each


def test_a_cast_gives_the_type_that_it_names() -> None:
    model = converted(
        """g (float[2,2] x) => (float[2,2] y, int32[2,2] z, double[2,2] w)
        { a = Relu(x)  b = Cast <to = 1> (a)  y = Relu(b)  z = Cast <to = 6> (a)  w = Cast <to = 11> (a) }"""
    )
    given = [outputs[0] for inputs, outputs in types(model, "Cast") if inputs == [FLOAT]]
    assert given == [HALF, FLOAT, HALF, ir.DataType.INT32, ir.DataType.DOUBLE]
    assert types(model, "Relu") == [([HALF], [HALF])] * 2


def test_a_graph_without_floats_is_left_alone() -> None:
    text = "g (int64[n] x) => (int64[n] y) { a = Add(x, one)  y = Mul(a, a) }"
    model = converted(text, one=np.array(1))
    assert [node.op_type for node in model.graph] == ["Add", "Mul"]
    assert model.graph.initializers["one"].dtype == ir.DataType.INT64


def test_a_shape_is_asked_of_the_value_as_it_is() -> None:
    model = converted(
        """g (float[n,4] x) => (float[m,2] y)
        { a = Relu(x)  s = Shape(a)  e = Relu(a)  f = Shape(x)  t = Max(s, f)  u = Mul(t, t)
          v = Slice(u, zero, one)  w = Concat <axis = 0> (v, minus)  y = Reshape(e, minus_two) }""",
        zero=np.array([0]),
        one=np.array([1]),
        minus=np.array([-1]),
        minus_two=np.array([-1, 2]),
    )
    shapes = types(model, "Shape")
    assert [inputs for inputs, _ in shapes] == [[HALF], [FLOAT]]
    assert len(nodes(model, "Cast")) == 2  # in front of the first Relu, behind the last node


def test_each_value_is_cast_once() -> None:
    model = converted(
        """g (float[4,4] x) => (float[4,4] y)
        { a = MatMul(x, x)  b = Relu(x)  s = Softmax(a)  e = Exp(a)  c = MatMul(s, b)  d = MatMul(e, s)
          y = MatMul(c, d) }"""
    )
    sources = [node.inputs[0].name for node in nodes(model, "Cast")]
    assert sorted(sources) == ["a", "e", "s", "x", "y_fp16"]


# ---------------------------------------------------------------- the border


def test_inputs_and_outputs_keep_names_types_and_shapes() -> None:
    text = """g (float[n,4] x, uint8[n,4] u, int64[n,4] i) => (float[n,4] y, uint8[n,4] v, int64[n,4] j)
    { a = Cast <to = 1> (u)  b = Mul(a, x)  c = Relu(b)  y = MatMul(c, k)
      d = Round(c)  v = Cast <to = 2> (d)  j = Mul(i, i) }"""
    before, model = parse(text, k=values(4, 4)), converted(text, k=values(4, 4))
    for ours, theirs in (
        (model.graph.inputs, before.graph.inputs),
        (model.graph.outputs, before.graph.outputs),
    ):
        assert [(v.name, v.dtype, v.shape) for v in ours] == [(v.name, v.dtype, v.shape) for v in theirs]
    assert types(model, "MatMul") == [([HALF, HALF], [HALF])]
    u = np.arange(8, dtype=np.uint8).reshape(2, 4)
    inputs = {"x": values(2, 4), "u": u, "i": u.astype(np.int64)}
    for got, expected in zip(run(model, **inputs), run(before, **inputs), strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, atol=3e-2)


def test_an_fp16_result_that_is_also_read_inside_is_cast_for_the_output_only() -> None:
    model = converted("g (float[4,4] x) => (float[4,4] y, float[4,4] z) { y = MatMul(x, x)  z = Relu(y) }")
    assert types(model, "Relu") == [([HALF], [HALF])]
    assert [value.name for value in model.graph.outputs] == ["y", "z"]
    x = values(4, 4)
    y, z = run(model, x=x)
    np.testing.assert_allclose(y, x @ x, atol=2e-2)
    np.testing.assert_array_equal(z, y.clip(0))


def test_what_is_left_to_do_before_an_output_meets_its_input_in_fp32() -> None:
    text = """g (float[n,4] fused, float[n,4] warped) => (float[n,4] denoised)
    { a = MatMul(warped, k)  e = MatMul(a, k)  d = Sub(fused, e)  denoised = Div(d, factor) }"""
    weights = {"k": values(4, 4), "factor": np.array(0.18215, np.float32)}
    model = converted(text, **weights)
    assert types(model, "Sub") == [([FLOAT, FLOAT], [FLOAT])]
    assert types(model, "Div") == [([FLOAT, FLOAT], [FLOAT])]
    (sub,) = nodes(model, "Sub")
    assert sub.inputs[0] is model.graph.inputs[0]  # no rounding of the input on its way
    assert model.graph.initializers["factor"].dtype == FLOAT
    assert "factor_fp16" not in model.graph.initializers
    fused = values(2, 4, seed=2)
    (got,) = run(model, fused=fused, warped=np.zeros((2, 4), np.float32))
    np.testing.assert_allclose(got, fused / np.float32(0.18215), rtol=1e-6)  # exact but for FP32


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div"])
def test_the_tail_ends_at_heavy_nodes_and_at_values_used_elsewhere(kind: str) -> None:
    model = converted(
        f"""g (float[4,4] x) => (float[4,4] y, float[4,4] z)
        {{ a = {kind}(x, x)  b = MatMul(a, a)  y = {kind}(b, x)
           c = {kind}(x, b)  d = Relu(c)  z = {kind}(c, d) }}"""
    )
    # a feeds a product, c a Relu next to the output: FP16; y and z are before outputs alone: FP32
    assert [outputs for _, outputs in types(model, kind)] == [[HALF], [FLOAT], [HALF], [FLOAT]]
    assert types(model, "MatMul") == [([HALF, HALF], [HALF])]


def test_the_tail_may_branch_and_reach_two_outputs() -> None:
    model = converted(
        """g (float[4,4] x) => (float[4,4] y, float[4,4] z, float[2,4] first)
        { a = MatMul(x, x)  b = Mul(a, x)  y = Add(b, x)  z = Sub(b, y)
          first = Slice(z, zero, two) }""",
        zero=np.array([0]),
        two=np.array([2]),
    )
    for kind in ("Mul", "Add", "Sub"):
        assert types(model, kind) == [([FLOAT, FLOAT], [FLOAT])]
    assert types(model, "Slice")[0][1] == [FLOAT]
    assert [node.inputs[0].name for node in nodes(model, "Cast")] == ["x", "a"]


def test_what_stands_between_statistics_alone_stays_in_fp32() -> None:
    """A variance, and what is added before its root; not what is read elsewhere, or reads something else."""
    model = converted(
        """g (float[4,4] x) => (float[4,4] y)
        { a = Relu(x)  variance = ReduceMean(a)  e = Exp(a)  one = Add(e, k)  square = Pow(one, two)
          sum = Add(variance, square)  root = Sqrt(sum)  b = Relu(root)  other = Add(e, a)  seen = Mul(e, k)
          c = Sqrt(other)  d = Sqrt(seen)  f = MatMul(seen, c)  h = MatMul(b, d)  y = MatMul(h, f) }""",
        k=np.array(0.5, np.float32),
        two=np.array(2, np.float32),
    )
    assert [outputs for _, outputs in types(model, "Add")] == [[FLOAT], [FLOAT], [HALF]]
    assert [outputs for _, outputs in types(model, "Mul")] == [[HALF]]
    (one, _, _) = nodes(model, "Add")
    assert all(value.dtype == FLOAT for value in one.inputs)


# ---------------------------------------------------------------- weights


def test_weights_are_stored_in_fp16_and_only_once(tmp_path: Path) -> None:
    k = values(64, 64)
    text = "g (float[n,64] x) => (float[n,64] y) { a = MatMul(x, k)  b = Relu(a)  y = MatMul(b, k) }"
    model = converted(text, k=k)
    assert {name: value.dtype for name, value in model.graph.initializers.items()} == {"k_fp16": HALF}
    stored = model.graph.initializers["k_fp16"].const_value
    assert stored is not None
    np.testing.assert_array_equal(stored.numpy(), k.astype(np.float16))
    sizes = []
    for name, graph in (("fp32", parse(text, k=k)), ("fp16", model)):
        ir.save(graph, tmp_path / f"{name}.onnx", external_data=f"{name}.data", size_threshold_bytes=0)
        sizes.append((tmp_path / f"{name}.data").stat().st_size)
    assert sizes == [64 * 64 * 4, 64 * 64 * 2]


def test_a_weight_read_in_both_types_is_stored_in_both() -> None:
    model = converted(
        "g (float[4,4] x) => (float[4,4] y) { a = MatMul(x, k)  y = Add(a, k) }", k=values(4, 4)
    )
    stored = {name: value.dtype for name, value in model.graph.initializers.items()}
    assert stored == {"k": FLOAT, "k_fp16": HALF}


def test_constants_become_weights_and_are_stored_in_fp16() -> None:
    model = converted(
        """g (float[4] x) => (float[4] y)
        { c = Constant <value = float[4] {1.5, 2.5, 3.5, 4.5}> ()  a = Mul(x, c)  y = Relu(a) }"""
    )
    assert not nodes(model, "Constant")
    assert types(model, "Mul") == [([HALF, HALF], [HALF])]
    np.testing.assert_array_equal(run(model, x=np.ones(4, np.float32))[0], [1.5, 2.5, 3.5, 4.5])


OVERFLOWING = "g (float[n,side] x) => (float[n,side] y) { y = MatMul(x, k) }"


def one_value(value: float, side: int = 4) -> np.ndarray:
    k = values(side, side)
    k[2, 3] = value
    return k


TOO_LARGE = [(1e5, "1e+05"), (-7e4, "7e+04"), (np.inf, "inf"), (-np.inf, "inf"), (np.nan, "nan")]
REFUSED = "the weight k reaches {}, FP16 ends at 65504; use --precision fp32."


@pytest.mark.parametrize(("value", "said"), TOO_LARGE)
def test_a_small_weight_that_overflows_is_refused(value: float, said: str) -> None:
    with pytest.raises(ExportError) as caught:
        convert(parse(OVERFLOWING, k=one_value(value)))
    assert str(caught.value) == REFUSED.format(said)


@pytest.mark.parametrize(("value", "said"), TOO_LARGE)
def test_a_large_weight_that_overflows_is_refused_when_it_is_written(
    tmp_path: Path, value: float, said: str
) -> None:
    model = parse(OVERFLOWING, k=one_value(value, 256))
    convert(model)  # nothing is read yet: a whole UNet's weights would be in memory twice
    with pytest.raises(ExportError) as caught:
        ir.save(model, tmp_path / "model.onnx", external_data="model.data", size_threshold_bytes=1024)
    assert str(caught.value) == REFUSED.format(said)


def test_an_overflow_in_a_network_is_an_export_error(tmp_path: Path) -> None:
    spec = block_spec()
    with torch.no_grad():
        spec.module.norm.bias[3] = 7e4  # ends up inside the graph's own file
    with pytest.raises(ExportError, match=r"the weight norm\.bias reaches 7e\+04"):
        export(spec, tmp_path, "fp16")


@pytest.mark.parametrize("value", [65504.0, -65504.0])
def test_the_largest_fp16_number_is_no_overflow(value: float) -> None:
    model = converted(OVERFLOWING, k=one_value(value))
    (y,) = run(model, x=np.eye(4, dtype=np.float32))
    assert y[2, 3] == value


def test_an_overflowing_weight_of_an_island_is_kept() -> None:
    model = converted(
        "g (float[4] x) => (float[4] y) { a = Pow(x, k)  y = Relu(a) }", k=np.full(4, 1e6, np.float32)
    )
    assert model.graph.initializers["k"].dtype == FLOAT


def test_a_weight_that_is_an_output_stays() -> None:
    model = converted("g (float[2,2] x) => (float[2,2] y, float[2,2] k) { y = MatMul(x, k) }", k=values(2, 2))
    assert {name: value.dtype for name, value in model.graph.initializers.items()} == {
        "k": FLOAT,
        "k_fp16": HALF,
    }
    np.testing.assert_array_equal(run(model, x=values(2, 2))[1], values(2, 2))


# ---------------------------------------------------------------- nodes of their own kind


def test_a_resizes_scales_stay_float() -> None:
    text = """g (float[1,2,4,4] x) => (float[1,2,8,8] y)
    { a = Relu(x)  b = Resize <mode = "linear"> (a, , scales)  y = Relu(b) }"""
    scales = np.array([1, 1, 2, 2], np.float32)
    model = converted(text, scales=scales)
    ((inputs, outputs),) = types(model, "Resize")
    assert (inputs, outputs) == ([HALF, FLOAT], [HALF])
    assert set(model.graph.initializers) == {"scales"}
    x = values(1, 2, 4, 4)
    np.testing.assert_allclose(run(model, x=x)[0], run(parse(text, scales=scales), x=x)[0], atol=2e-3)


def test_scales_that_are_also_a_factor_are_stored_in_both_types() -> None:
    model = converted(
        """g (float[1,1,1,4] x) => (float[1,1,1,8] y)
        { a = Mul(x, scales)  b = Resize <mode = "nearest"> (a, , scales)  y = Relu(b) }""",
        scales=np.array([1, 1, 1, 2], np.float32),
    )
    assert types(model, "Mul") == [([HALF, HALF], [HALF])]
    assert types(model, "Resize") == [([HALF, FLOAT], [HALF])]


class Block(nn.Module):
    """What the UNet and the VAE are made of, at a few channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv_in = nn.Conv2d(4, 16, 3, padding=1)
        self.norm, self.norm_tokens = nn.GroupNorm(4, 16), nn.LayerNorm(16)
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.conv_out = nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        """(n,4,h,w) -> (n,4,h,w)."""
        x = F.silu(self.norm(self.conv_in(latent)))
        n, c, h, w = x.shape
        tokens = self.norm_tokens(x.flatten(2).transpose(1, 2))
        q, k, v = (
            linear(tokens).reshape(n, h * w, 2, c // 2).transpose(1, 2) for linear in (self.q, self.k, self.v)
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, h * w, c)
        scores = (tokens @ tokens.transpose(1, 2) / c).softmax(-1) @ tokens
        x = x + (attended + scores).transpose(1, 2).reshape(n, c, h, w)
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return (latent - F.avg_pool2d(self.conv_out(x), 2)) / 0.18215


def block_spec() -> NetworkSpec:
    shape = ("n", 4, "h", "w")

    def dummy_inputs(sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        return {"latent": torch.randn(sizes["n"], 4, sizes["h"], sizes["w"], generator=generator)}

    return NetworkSpec(
        name="block",
        module=Block(),
        inputs=(Input("latent", torch.float32, shape),),
        outputs=(Output("result", torch.float32, shape),),
        bounds={"n": Bound(1, 8), "h": Bound(4, 64), "w": Bound(4, 64)},
        dummy_inputs=dummy_inputs,
        traced={"n": 2, "h": 8, "w": 12},
        checked=(),
    )


def test_a_traced_network_is_converted() -> None:
    spec = block_spec()
    model = trace(spec)
    fp32 = ir.serde.deserialize_model(ir.serde.serialize_model(model))
    parameters = count_parameters(model)
    convert(model)
    proto_of(model)

    for kind in ("Conv", "MatMul", "Gemm", "Attention"):
        assert all(set(inputs + outputs) == {HALF} for inputs, outputs in types(model, kind)), kind
    assert nodes(model, "Conv")
    (softmax,) = types(model, "Softmax")
    assert softmax == ([FLOAT], [FLOAT])
    (attention,) = nodes(model, "Attention")
    assert "softmax_precision" not in attention.attributes  # TensorRT's parser refuses it
    for kind in ("GroupNormalization", "LayerNormalization"):
        (node,) = nodes(model, kind)
        assert {value.dtype for value in node.inputs} == {HALF}
        stash = node.attributes.get("stash_type")
        assert stash is None or stash.as_int() == 1  # statistics in FP32, which is the default
    for inputs, _ in types(model, "Resize"):
        assert FLOAT in inputs  # the scales
    (result,) = model.graph.outputs
    assert (result.name, result.dtype, list(result.shape)) == (
        "result",
        FLOAT,
        list(fp32.graph.outputs[0].shape),
    )
    tail = result.producer()
    assert tail is not None
    assert tail.op_type == "Div"
    large = [value for value in model.graph.initializers.values() if value.const_value.size > 8]
    assert large
    assert all(value.dtype in (HALF, ir.DataType.INT64) for value in large)
    assert count_parameters(model) <= parameters

    for sizes in ({"n": 1, "h": 6, "w": 9}, {"n": 3, "h": 16, "w": 8}):
        latent = torch.randn(sizes["n"], 4, sizes["h"], sizes["w"])
        with torch.no_grad():
            expected = spec.module(latent).numpy()
        for graph, tolerance in ((fp32, 1e-5), (model, 4e-3)):
            (got,) = run(graph, latent=latent.numpy())
            assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()
    assert np.abs(got - expected).max() > 1e-6  # it is FP16


# ---------------------------------------------------------------- graphs


def test_initialisers_that_nothing_reads_are_dropped() -> None:
    model = parse(
        "g (float[2,2] x) => (float[2,2] y, float[2,2] kept) { y = MatMul(x, k) }",
        k=values(2, 2),
        kept=values(2, 2, seed=1),
        unused=values(50, 50),
    )
    assert "unused" in model.graph.initializers
    drop_unused_initializers(model)
    assert set(model.graph.initializers) == {"k", "kept"}
    np.testing.assert_array_equal(run(model, x=np.eye(2, dtype=np.float32))[1], values(2, 2, seed=1))


def test_cleaning_drops_what_nothing_uses_and_merges_what_is_twice() -> None:
    text = """g (float[2,2] x) => (float[2,2] y)
    { a = MatMul(x, k)  b = MatMul(x, k)  c = MatMul(x, same)  d = Exp(x)  e = Sqrt(d)
      f = Add(a, b)  y = Add(f, c) }"""
    weights = {"k": values(2, 2), "same": values(2, 2), "unused": values(9, 9)}
    before, model = parse(text, **weights), parse(text, **weights)
    model.opset_imports["com.example"] = 1
    for node in model.graph:
        node.metadata_props["pkg.torch.onnx.stack_trace"] = "somebody's directory"
        node.doc_string = "a note"
    function = onnx.helper.make_function(
        "local", "Unused", ["p"], ["q"], [onnx.helper.make_node("Relu", ["p"], ["q"])], []
    )
    attach_functions(model, [function])
    clean(model)
    assert not nodes(model, "Exp")
    assert not nodes(model, "Sqrt")
    assert set(model.graph.initializers) == {"k"}
    # equal nodes are looked for before equal weights, so only the pair that shares its weight is merged
    assert count_nodes(model) == 4
    assert not model.functions
    assert set(model.opset_imports) == {""}
    assert all(not node.metadata_props and not node.doc_string for node in model.graph)
    x = values(2, 2, seed=3)
    np.testing.assert_allclose(run(model, x=x)[0], run(before, x=x)[0], rtol=1e-6)


def test_an_attached_function_is_called() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 23, "local" : 1]>\n'
        "g (float[2,2] x) => (float[2,2] y) { y = local.Double(x) }"
    )
    model = ir.serde.deserialize_model(proto)
    del model.opset_imports["local"]
    function = onnx.helper.make_function(
        "local",
        "Double",
        ["p"],
        ["q"],
        [onnx.helper.make_node("Add", ["p", "p"], ["q"])],
        [onnx.helper.make_opsetid("", 23)],
    )
    attach_functions(model, [function])
    assert model.opset_imports["local"] == 1
    assert count_nodes(model) == 1  # the call
    x = values(2, 2)
    np.testing.assert_array_equal(run(model, x=x)[0], x + x)
    model.opset_imports["local"] = 2
    attach_functions(model, [function])
    assert model.opset_imports["local"] == 2  # a version that is there stays


def test_parameters_are_the_floating_point_numbers() -> None:
    model = parse(
        """g (float[n,3] x) => (float[n,3] y, float16[2] h, int64[7] i)
        { a = MatMul(x, k)  y = Add(a, number) }""",
        k=values(3, 3),
        number=np.array(1, np.float32),
        empty=np.zeros((0, 4), np.float32),
        h=np.ones(2, np.float16),
        i=np.arange(7),
    )
    assert count_parameters(model) == 9 + 1 + 2
    assert count_nodes(model) == 2
