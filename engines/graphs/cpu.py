"""The form of a network that ONNX Runtime's CPU provider runs fastest.

Bundles hold what compilers like: attention and group normalisation as single nodes. On the CPU
provider those are slow, so they are rewritten; the weights are shared with the native graph.

| native node | here | why |
|---|---|---|
| Attention | com.microsoft.MultiHeadAttention | blocked: 2.5 times faster at 4096 positions, no score matrix |
| SoftmaxAttention (the VAE's) | `query_chunks`: a few queries at a time | 1.3 to 1.5 times faster than that |
| Conv, 3x3 and wide, and the norm before it | in bands, see `channels_last` | the VAE 1.5 times faster |
| GroupNormalization | means and squares by row, then over rows | faster, and exact where one long sum is off by 1e-3 |
| FP32 weights that FP16 holds exactly, if asked | FP16, widened in each run, see `narrow` | half of their memory |
| GatedTopKAttention, chunks written out | the same function as a Scan | any number of positions in chunks of one size |
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnx_ir import tape

from vsr_trt import kernels
from vsr_trt.engines.graphs import channels_last
from vsr_trt.engines.graphs.narrow import narrow
from vsr_trt.engines.graphs.nodes import constant, integers, take_over
from vsr_trt.engines.graphs.query_chunks import attend_in_chunks
from vsr_trt.engines.graphs.strips import STRIPS, cut_into_strips, largest, largest_kept

_CONTRIB = "com.microsoft"


# Peak of a run in units of its largest picture in FP32, as measured at 512x512 to 1920x1080 (see docs/runtime.md):
# whole, of all pictures; in strips, of those that are kept.
_PEAK_WHOLE, _PEAK_STRIPS = 3.0, 3.5


@dataclass(frozen=True)
class Lowered:
    """A graph's CPU form.

    Attributes:
        form: what the manifest calls it: `cpu`, or `cpu_strips`.
        path: of the file.
        data: of its own weights (see `engines.graphs.narrow`); None where it has none besides the native form's.
        scratch: bytes that a run works in for each pixel of the input, estimated; 0 where nothing is known.
    """

    form: str
    path: Path
    data: Path | None
    scratch: float


def lower(native: Path, in_strips: bool = False, narrow_from: int | None = None) -> list[Lowered]:
    """Writes `<name>.cpu.onnx` next to `<name>.onnx`; its weights stay in the native file's data, but for narrow ones.

    Args:
        native: the graph's file.
        in_strips: also write `<name>.cpu_strips.onnx`, which computes pictures in strips (see `engines.graphs.strips`).
        narrow_from: bytes of a weight, in FP32, from which it is kept in FP16 where that holds it exactly, see
            `engines.graphs.narrow`; None to keep all in FP32.

    Returns:
        What was written: nothing where there is nothing to rewrite (the native form serves the CPU too).
    """
    written = []
    for strips in (1, STRIPS) if in_strips else (1,):
        form = "cpu" if strips == 1 else "cpu_strips"
        model = ir.load(native)
        numbers = largest(model.graph) if strips == 1 else largest_kept(model.graph)
        path = native.with_suffix(f".{form}.onnx")
        data = path.with_name(f"{path.name}.data")
        changed = _lower(model, strips)
        narrowed = narrow(model, data, narrow_from) if narrow_from is not None and strips == 1 else 0
        if changed or narrowed:
            # no external data is written here: what is external stays where it is, in the native's file or in `data`
            ir.save(model, path)
            peak = 4 * numbers * Fraction(_PEAK_WHOLE if strips == 1 else _PEAK_STRIPS)
            written.append(Lowered(form, path, data if narrowed else None, float(peak) if in_strips else 0.0))
    return written


def _lower(model: ir.Model, strips: int) -> int:
    """Rewrites a graph in place; returns how much of it."""
    if strips > 1 and not cut_into_strips(model, strips):
        return 0
    changed = sum(
        (
            _replace_attentions(model.graph),
            _replace_softmax_attentions(model),
            channels_last.replace_convolutions(model.graph, strips=strips),
            _replace_group_normalisations(model.graph),
            _replace_function(model),
        )
    )
    passes.RemoveUnusedNodesPass()(model)
    return changed


def _replace_attentions(graph: ir.Graph) -> int:
    """Attention over (n,heads,l,d) -> MultiHeadAttention over the (n,l,heads*d) it was made from."""
    changed = 0
    for node in [node for node in graph if node.op_type == "Attention" and node.domain == ""]:
        rows = [_before_split(value) for value in node.inputs[:3]]
        joined = _after_join(node.outputs[0])
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        if joined is None or shape is None or not isinstance(shape[1], int) or len(node.inputs) != 3:
            continue
        query, key, value = rows
        if query is None or key is None or value is None:
            continue
        if any(node.attributes[name].value for name in ("is_causal", "softcap") if name in node.attributes):
            continue
        attributes: dict[str, int | float] = {"num_heads": shape[1]}
        if "scale" in node.attributes:
            attributes["scale"] = node.attributes["scale"].as_float()
        _attend(graph, node, (query, key, value), attributes, joined)
        changed += 1
    return changed


def _replace_softmax_attentions(model: ir.Model) -> int:
    """SoftmaxAttention over (n,l,d) -> its products, in chunks of the queries."""
    identifier = (kernels.DOMAIN, kernels.SOFTMAX_ATTENTION, "")
    calls = [node for node in model.graph if node.op_identifier() == identifier]
    for call in calls:
        attend_in_chunks(model.graph, call)
    model.functions.pop(identifier, None)
    return len(calls)


def _attend(
    graph: ir.Graph,
    place: ir.Node,
    inputs: tuple[ir.Value, ir.Value, ir.Value],
    attributes: dict[str, int | float],
    result: ir.Value,
) -> None:
    """Puts a MultiHeadAttention where `result` was computed."""
    attention = tape.Tape()
    output = attention.op("MultiHeadAttention", inputs, attributes=attributes, domain=_CONTRIB)
    graph.insert_before(place, attention.nodes)
    take_over(result, output)
    graph.opset_imports.setdefault(_CONTRIB, 1)


def _before_split(value: ir.Value | None) -> ir.Value | None:
    """(n,l,heads*d), if `value` is its Reshape to heads and Transpose to (n,heads,l,d)."""
    reshaped = _skip(value, "Transpose", [0, 2, 1, 3])
    return _skip(reshaped, "Reshape", None)


def _after_join(value: ir.Value) -> ir.Value | None:
    """(n,l,heads*d), if all that becomes of `value` is Transpose from heads and Reshape."""
    for op_type in ("Transpose", "Reshape"):
        users = [use.node for use in value.uses()]
        if [user.op_type for user in users] != [op_type]:
            return None
        value = users[0].outputs[0]
    return value


def _skip(value: ir.Value | None, op_type: str, permutation: list[int] | None) -> ir.Value | None:
    """The input of the node that made `value`, if it is of that type (and permutation)."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != op_type:
        return None
    if permutation is not None and list(node.attributes["perm"].as_ints()) != permutation:
        return None
    return node.inputs[0]


def _replace_group_normalisations(graph: ir.Graph) -> int:
    """Mean and variance in two stages each, by row and over the rows, the mean subtracted first.

    A sum of a million FP32 numbers in one go is off by 1e-5 and more, as are squares around a mean that
    is not zero; on flat pictures, whose channels hardly vary, that shows in the fourth digit of the
    latent. Two short sums are exact to the last digits, and ONNX Runtime runs them faster.
    """
    changed = 0
    for node in [node for node in graph if node.op_type == "GroupNormalization"]:
        data, scale, bias = node.inputs
        assert data is not None
        assert scale is not None
        assert bias is not None
        take_over(node.outputs[0], _group_normalisation(graph, node, data, scale, bias))
        changed += 1
    return changed


def _group_normalisation(
    graph: ir.Graph, node: ir.Node, data: ir.Value, scale: ir.Value, bias: ir.Value
) -> ir.Value:
    groups = node.attributes["num_groups"].as_int()
    epsilon = node.attributes["epsilon"].as_float()
    assert scale.shape is not None
    channels = int(scale.shape.numpy()[0])
    half = data.dtype == ir.DataType.FLOAT16
    steps = tape.Tape()

    def single(value: ir.Value) -> ir.Value:
        return steps.op("Cast", (value,), attributes={"to": ir.DataType.FLOAT}) if half else value

    last_axis, row_axis = integers(graph, 3), integers(graph, 2)
    width = steps.op("Shape", (data,), attributes={"start": -1})
    by_row = steps.op("Concat", (integers(graph, 0, groups, -1), width), attributes={"axis": 0})
    rows = steps.op("Reshape", (single(data), by_row))
    row_means = steps.op("ReduceMean", (rows, last_axis))
    centred = steps.op("Sub", (rows, steps.op("ReduceMean", (row_means, row_axis))))
    squares = steps.op("ReduceSumSquare", (centred, last_axis))
    count = steps.op("Cast", (width,), attributes={"to": ir.DataType.FLOAT})
    variance = steps.op("ReduceMean", (steps.op("Div", (squares, count)), row_axis))
    shift = constant(graph, f"cpu_epsilon_{epsilon:g}", np.array(epsilon, np.float32))
    deviation = steps.op("Sqrt", (steps.op("Add", (variance, shift)),))
    by_group = integers(graph, 1, groups, channels // groups, 1)
    factors = steps.op("Div", (steps.op("Reshape", (single(scale), by_group)), deviation))
    factors = steps.op("Reshape", (factors, integers(graph, 0, channels, 1, 1)))
    whole = steps.op("Reshape", (centred, steps.op("Shape", (data,))))
    scaled = steps.op("Mul", (whole, factors))
    result = steps.op("Add", (scaled, steps.op("Reshape", (single(bias), integers(graph, channels, 1, 1)))))
    if half:
        result = steps.op("Cast", (result,), attributes={"to": ir.DataType.FLOAT16})
    graph.insert_before(node, steps.nodes)
    return result


def _replace_function(model: ir.Model) -> int:
    """The unrolled chunks of GatedTopKAttention become a Scan."""
    identifier = (kernels.DOMAIN, kernels.OPERATOR, "")
    if identifier not in model.functions:
        return 0
    (call,) = [node for node in model.graph if node.op_identifier() == identifier]
    k = call.attributes["k"].as_int() or None
    function: onnx.FunctionProto = kernels.attention_function(kernels.Chunking.scan(), k)
    model.functions[identifier] = ir.serde.deserialize_function(function)
    return 1
