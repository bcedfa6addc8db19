"""Measuring graphs: every tensor's largest value, NaN and Inf by name, and FP16 rounding as numpy does it."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from helpers import processes
from helpers.tiny_bundle import parse

from vsr_trt.engines.accuracy.metrics import Difference, difference, psnr
from vsr_trt.engines.accuracy.ranges import Range, above, measure
from vsr_trt.engines.graphs.half import write
from vsr_trt.runtime.errors import DeviceError

CHAIN = """chain (float[n] x) => (float[n] y)
<float[1] k = {1000.0}, float[1] s = {0.001}>
{ loud = Mul (x, k) root = Sqrt (loud) bent = Relu (root) y = Mul (bent, s) }"""


@pytest.fixture
def graph(tmp_path: Path) -> Callable[..., Path]:
    def save(text: str, **weights: np.ndarray) -> Path:
        onnx.save(parse(text, **weights), tmp_path / "net.onnx")
        return tmp_path / "net.onnx"

    return save


def half(path: Path, **keep: str) -> Path:
    target = path.with_name("half.onnx")
    write(path, target, keep)
    return target


def by_name(ranges: tuple[Range, ...]) -> dict[str, Range]:
    return {entry.tensor: entry for entry in ranges}


def values(*numbers: float) -> dict[str, np.ndarray]:
    return {"x": np.array(numbers, np.float32)}


def test_every_tensor_is_measured_over_all_runs_in_graph_order(graph: Callable[..., Path]) -> None:
    found = measure(graph(CHAIN), [values(1, 4), values(9, 2)], threads=1)
    assert [entry.tensor for entry in found.ranges] == ["x", "loud", "root", "bent", "y"]
    largest = [entry.largest for entry in found.ranges]
    np.testing.assert_allclose(
        largest, [9, 9000, math.sqrt(9000), math.sqrt(9000), math.sqrt(9000) / 1000], rtol=1e-6
    )
    assert [entry.op_type for entry in found.ranges] == ["input", "Mul", "Sqrt", "Relu", "Mul"]
    assert found.first_not_finite is None
    np.testing.assert_allclose(found.outputs[1]["y"], np.sqrt(np.array([9000, 2000])) / 1000, rtol=1e-6)


def test_negative_numbers_count_by_magnitude(graph: Callable[..., Path]) -> None:
    found = measure(graph("g (float[n] x) => (float[n] y) { y = Neg (x) }"), [values(-7, 3)], threads=1)
    assert [entry.largest for entry in found.ranges] == [7, 7]


def test_the_first_tensor_with_nan_is_named(graph: Callable[..., Path]) -> None:
    found = measure(graph(CHAIN), [values(4, 1), values(-1, 2)], threads=1)  # the root of -1000
    bad = found.first_not_finite
    assert bad is not None
    assert (bad.tensor, bad.op_type) == ("root", "Sqrt")
    finite = {entry.tensor: entry.finite for entry in found.ranges}
    assert finite["x"]
    assert finite["loud"]
    assert not finite["y"]


def test_an_overflow_in_fp16_is_found_where_fp32_has_none(graph: Callable[..., Path]) -> None:
    path = graph(CHAIN)
    feeds = [values(100, 1)]
    assert measure(path, feeds, threads=1).first_not_finite is None
    bad = measure(half(path), feeds, threads=1).first_not_finite
    assert bad is not None
    assert bad.tensor == "loud"
    assert bad.half
    assert bad.largest == math.inf


def test_every_fp16_node_rounds_as_numpy_does(graph: Callable[..., Path]) -> None:
    x = np.random.default_rng(0).uniform(1e-4, 1e-3, 1000).astype(np.float32)
    # FP32 next to the output is not rounded, so the last node here is not one of those
    text = CHAIN.replace("y = Mul (bent, s)", "y = Tanh (bent)")
    (got,) = measure(half(graph(text)), [{"x": x}], threads=1).outputs
    loud = x.astype(np.float16) * np.float16(1000)
    root = np.sqrt(loud.astype(np.float32)).astype(np.float16)  # an island, rounded where it is read
    expected = np.tanh(root.astype(np.float32)).astype(np.float16)
    np.testing.assert_array_equal(got["y"], expected.astype(np.float32))
    exact = np.tanh(np.sqrt(x * 1000))
    assert np.abs(got["y"] - exact).max() > 1e-4  # so it would fail without the rounding


def test_a_tensor_inside_a_function_belongs_to_the_node_that_calls_it(tmp_path: Path) -> None:
    function = onnx.parser.parse_function("""
        <domain: "test", opset_import: ["" : 23]>
        Attend (q, k, v) => (r)
        { columns = Transpose <perm = [0, 2, 1]> (k) scores = MatMul (q, columns) single = Cast <to = 1> (scores)
          shares = Softmax (single) weights = CastLike (shares, q) r = MatMul (weights, v) }""")
    call = onnx.helper.make_node("Attend", ["q", "k", "v"], ["y"], name="attend", domain="test")
    sizes = [1, 16, 8]
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes) for name in "qkv"]
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, sizes)
    model = onnx.helper.make_model(
        onnx.helper.make_graph([call], "g", inputs, [output]),
        functions=[function],
        opset_imports=[onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("test", 1)],
        ir_version=10,
    )
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    rng = np.random.default_rng(0)
    feed = {name: rng.standard_normal(sizes).astype(np.float32) for name in "qkv"}
    feed["q"] *= 15_000  # the scores are beyond FP16, queries and results are not
    found = measure(path, [feed], threads=1)
    scores = [entry for entry in found.ranges if entry.op_type == "MatMul" and entry.share > 1]
    assert scores
    assert {entry.node for entry in scores} == {"attend"}
    assert "attend" in above(found.ranges, 1.0)
    bad = measure(half(path), [feed], threads=1).first_not_finite
    assert bad is not None
    assert bad.node == "attend"
    assert measure(half(path, attend="scores"), [feed], threads=1).first_not_finite is None


def test_above_names_the_tensor_and_its_node() -> None:
    ranges = (
        Range("a", "conv", "Conv", False, 100.0, True),
        Range("b", "mul", "Mul", False, 0.3 * 65504, True),
        Range("c", "div", "Div", False, 1.0, False),
    )
    reasons = above(ranges, 0.25)
    assert set(reasons) == {"b", "mul", "c", "div"}
    assert "30%" in reasons["mul"]
    assert "not finite" in reasons["c"]
    assert set(above(ranges, 0.4)) == {"c", "div"}


def test_a_graph_that_cannot_be_run_is_refused_with_a_sentence(
    graph: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(DeviceError, match=r"net\.onnx cannot be measured"):
        measure(graph(CHAIN), [{"x": np.zeros((2, 2), np.float32)}], threads=1)
    (tmp_path / "no.onnx").write_bytes(b"no graph")
    with pytest.raises(DeviceError, match=r"no\.onnx cannot be measured"):
        measure(tmp_path / "no.onnx", [], threads=1)


_MEMORY = """
import sys
from pathlib import Path
import numpy as np
from vsr_trt.engines.accuracy.ranges import measure
from vsr_trt.runtime.machine.memory import peak_bytes
path = Path(sys.argv[1])
measure(path, [{"x": np.ones(8, np.float32)}], 1)
before = peak_bytes()
measure(path, [{"x": np.ones(4 << 20, np.float32)}], 1)
print(peak_bytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is asked for in /proc")
def test_measuring_keeps_no_tensor_longer_than_its_readers(graph: Callable[..., Path]) -> None:
    names = ["x", *(f"t{i}" for i in range(39)), "y"]  # 40 tensors of 16 MB
    pairs = itertools.pairwise(names)
    body = " ".join(
        f"{after} = {('Sin', 'Cos')[i % 2]} ({before})" for i, (before, after) in enumerate(pairs)
    )
    path = graph(f"g (float[n] x) => (float[n] y) {{ {body} }}")
    done = processes.run([sys.executable, "-c", _MEMORY, str(path)], check=True)
    assert int(done.stdout) < 200e6


# ---------------------------------------------------------------- metrics


def test_differences_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    want = rng.standard_normal((2, 3, 40, 50)).astype(np.float32)
    got = (want + 0.01 * rng.standard_normal(want.shape)).astype(np.float32)
    found = difference([{"y": got}], [{"y": want}])
    error = np.abs(got.astype(np.float64) - want) / np.abs(want).max()
    cosine = np.vdot(got, want) / np.linalg.norm(got) / np.linalg.norm(want)
    np.testing.assert_allclose(found.max, error.max(), rtol=1e-6)
    np.testing.assert_allclose(found.mean, error.mean(), rtol=1e-6)
    np.testing.assert_allclose(found.quantile, np.quantile(error, 0.999), rtol=1e-6)
    np.testing.assert_allclose(found.cosine, cosine, rtol=1e-6)


def test_the_worst_output_of_the_worst_run_counts() -> None:
    one, two = np.ones(10, np.float32), np.full(10, 2, np.float32)
    found = difference(
        [{"a": one, "b": one}, {"a": two, "b": two}], [{"a": one, "b": one}, {"a": one, "b": two}]
    )
    assert found.max == 1.0
    same = difference([{"a": one}], [{"a": one}])
    assert (same.max, same.mean, same.quantile, same.cosine) == (0, 0, 0, pytest.approx(1))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_infinitely_far(bad: float) -> None:
    found = difference([{"a": np.array([1, bad], np.float32)}], [{"a": np.ones(2, np.float32)}])
    assert found == Difference(math.inf, math.inf, math.inf, 0.0)


def test_psnr_is_in_decibels_of_u8() -> None:
    one = np.zeros((4, 4, 3), np.uint8)
    assert psnr(one, one) == math.inf
    assert psnr(one, one + 255) == pytest.approx(0)
    assert psnr(one, one + 1) == pytest.approx(20 * math.log10(255))


def test_weights_that_fp16_cannot_hold_stay_in_fp32(tmp_path: Path) -> None:
    text = "g (float[n] x) => (float[n] y) { z = Mul (x, heavy) y = Tanh (z) }"
    model = parse(text, heavy=np.array([1e6], np.float32))
    onnx.save(model, tmp_path / "net.onnx")
    conversion = write(tmp_path / "net.onnx", tmp_path / "half.onnx", {})
    assert [(kept.op_type, conversion.halves) for kept in conversion.kept] == [("Mul", 1)]
    assert "1e+06" in conversion.kept[0].reason
    types = {node.op_type: node.outputs[0].dtype for node in ir.load(tmp_path / "half.onnx").graph}
    assert types["Mul"] == ir.DataType.FLOAT
    found = measure(tmp_path / "half.onnx", [values(1e-6, 0)], threads=1)
    np.testing.assert_allclose(found.outputs[0]["y"], [math.tanh(1), 0], rtol=1e-3)
