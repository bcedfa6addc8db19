"""FP16 storage and arithmetic, with islands that stay in FP32.

Attention, one node, is FP16 outside: TensorRT's fused kernels keep scores and softmax in FP32 registers, and its
parser refuses the attribute `softmax_precision`.

Works on the FP32 export, node by node: a node computes in FP16 unless it belongs to an island, and a
cast stands where the two meet. Weights are converted when they are written, so that a UNet of 3.5 GB
is never in memory twice. Inputs and outputs of the network keep their types.

| stays in FP32 | why |
|---|---|
| Softmax | exponentials and sums of thousands of terms |
| statistics of GroupNormalization, LayerNormalization | sums over whole feature maps (`stash_type`) |
| what is left to do before an output (scaling, the final subtraction) | the input it meets there is FP32 |
| sums and products between two of the first rows, of nothing else | a variance and what is added before its root |
| networks with `always_fp32` | each spec gives its reason |
| what the caller names | measured beyond a share of FP16's range, see `vsr-build calibrate` |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from vsr_trt.engines.graphs.clean import drop_unused_initializers
from vsr_trt.runtime.errors import ExportError

_SUMS = "exponentials, or sums of many terms"
_ISLANDS = {
    "Softmax": _SUMS,
    "ReduceSum": _SUMS,
    "ReduceMean": _SUMS,
    "Exp": _SUMS,
    "Pow": "squares leave FP16's range soon",
    "Sqrt": "follows a variance",
    "GridSample": "coordinates need more than 11 bits",
    "Cast": "the graph asks for a type",
}
_TAIL = frozenset({"Add", "Sub", "Mul", "Div", "Slice"})  # elementwise, cheap next to an output
_SIZES = {"Resize": (1, 2)}  # inputs that are sizes or factors and have a type of their own
_SMALL = 1 << 16  # bytes up to which a weight is converted at once
_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Kept:
    """A node that stays in FP32: its name (its first result's where it has none), its type, and why."""

    node: str
    op_type: str
    reason: str


@dataclass(frozen=True)
class Conversion:
    """What became of a graph's float nodes: how many compute in FP16, and the others, in graph order."""

    halves: int
    kept: tuple[Kept, ...]


def convert(model: ir.Model, keep: Mapping[str, str] | None = None) -> Conversion:
    """Converts a graph in place.

    Args:
        model: an FP32 graph.
        keep: names of nodes and of values, each with a reason. Besides the islands above, a node stays in
            FP32 if it has such a name, or reads or writes a value that has.

    Raises:
        ExportError: a weight does not fit FP16's range; a large one's is found when the graph is written.
    """
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    graph = model.graph
    tail = _output_tail(graph)
    between = _between(graph)
    casts = _Casts(graph)
    halves, kept = 0, []
    for node in list(graph):
        floats = [i for i, value in enumerate(node.inputs) if _is_float(value)]
        if node.op_type == "Shape" or not (floats or any(_is_float(output) for output in node.outputs)):
            continue
        reason = _why_single(node, tail, between, bool(floats), keep or {})
        target = ir.DataType.FLOAT16 if reason is None else ir.DataType.FLOAT
        for index in floats:
            if index not in _SIZES.get(node.op_type, ()):
                node.replace_input_with(index, casts.to(node.inputs[index], target, node))
        if target == ir.DataType.FLOAT16:
            for output in node.outputs:
                if output.dtype == ir.DataType.FLOAT:
                    output.dtype = ir.DataType.FLOAT16
            halves += 1
        elif reason is not None and node.op_type != "Cast":
            kept.append(Kept(_name(node), node.op_type, reason))
    _restore_outputs(graph, casts)
    drop_unused_initializers(model)
    return Conversion(halves, tuple(kept))


def _why_single(
    node: ir.Node, tail: set[ir.Node], between: set[ir.Node], floats: bool, keep: Mapping[str, str]
) -> str | None:
    """Why a node computes in FP32, None if it does not."""
    if node.op_type in _ISLANDS:
        return _ISLANDS[node.op_type]
    if node in tail:
        return "the last steps before an output, which is FP32"
    if node in between:
        return "it stands between two such nodes"
    if not any(map(_is_float, node.outputs)):
        return "its result is no float"
    if not floats:
        return "made of integers"
    values = (*node.inputs, *node.outputs)
    names = [_name(node), *(str(value.name) for value in values if value is not None)]
    return next((keep[name] for name in names if name in keep), None)


def _name(node: ir.Node) -> str:
    return node.name or str(node.outputs[0].name)


class _Casts:
    """Values in another type: weights are converted, results cast, each once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def to(self, value: ir.Value | None, dtype: ir.DataType, before: ir.Node) -> ir.Value:
        """`value` in `dtype`, available from `before` on."""
        assert value is not None
        if value.dtype == dtype:
            return value
        key = (value, dtype)
        if key not in self._made:
            self._made[key] = (
                self._weight(value) if value.is_initializer() else self._cast(value, dtype, before)
            )
        return self._made[key]

    def _cast(self, value: ir.Value, dtype: ir.DataType, before: ir.Node) -> ir.Value:
        node = ir.node("Cast", [value], attributes={"to": dtype})
        output = node.outputs[0]
        output.name = f"{value.name}_{dtype.name.lower()}"
        output.dtype, output.shape = dtype, value.shape
        self._graph.insert_before(before, node)
        return output

    def _weight(self, value: ir.Value) -> ir.Value:
        tensor, name = value.const_value, f"{value.name}_fp16"
        assert tensor is not None
        shape = ir.Shape(list(tensor.shape.numpy()))

        def converted() -> ir.TensorProtocol:
            return ir.tensor(_to_half(tensor.numpy(), value.name), name=name)

        # small ones now: onnx_ir hides the error of a weight that it writes into the graph itself
        stored = (
            converted()
            if tensor.nbytes <= _SMALL
            else ir.LazyTensor(converted, dtype=ir.DataType.FLOAT16, shape=shape, name=name)
        )
        half = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT16), shape=shape, const_value=stored)
        self._graph.register_initializer(half)
        return half


def _to_half(array: np.ndarray, name: str | None) -> np.ndarray:
    largest = float(np.abs(array).max(initial=0))
    if not largest <= _LARGEST:
        raise ExportError(
            f"the weight {name} reaches {largest:.3g}, FP16 ends at {_LARGEST:.0f}; use --precision fp32."
        )
    return array.astype(np.float16)


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def _output_tail(graph: ir.Graph) -> set[ir.Node]:
    """The elementwise nodes that stand between the last heavy node and an output."""
    tail: set[ir.Node] = set()
    pending = [output.producer() for output in graph.outputs]
    while pending:
        node = pending.pop()
        if node is None or node.op_type not in _TAIL or node in tail:
            continue
        # only where the result goes nowhere else but towards the output
        if all(use.node in tail for output in node.outputs for use in output.uses()):
            tail.add(node)
            pending += [value.producer() for value in node.inputs if value is not None]
    return tail


def _between(graph: ir.Graph) -> set[ir.Node]:
    """The elementwise nodes all of whose inputs come from islands, or are constants, and whose results go into them.

    Two casts less, and no loss between a variance and its root: in FP16, 1e-5 has two digits.
    """
    found: set[ir.Node] = set()

    def leads_on(value: ir.Value | None) -> bool:
        producer = value.producer() if value is not None else None
        return producer is not None and (producer.op_type in _ISLANDS or producer in found)

    for node in graph:  # in order: what stands before it is decided
        floats = [value for value in node.inputs if _is_float(value)]
        others = [value for value in floats if value is not None and not value.is_initializer()]
        if node.op_type in _TAIL and others and all(map(leads_on, others)):
            found.add(node)
    for node in reversed(list(graph)):
        if node in found and not all(
            use.node.op_type in _ISLANDS or use.node in found
            for output in node.outputs
            for use in output.uses()
        ):
            found.discard(node)
    return {node for node in found if any(True for output in node.outputs for _ in output.uses())}


def _restore_outputs(graph: ir.Graph, casts: _Casts) -> None:
    """Outputs keep name and type: one that became FP16 is cast back."""
    for index, output in enumerate(graph.outputs):
        if output.dtype == ir.DataType.FLOAT16:
            node = ir.node("Cast", [output], attributes={"to": ir.DataType.FLOAT})
            name = output.name
            output.name = f"{name}_fp16"
            result = node.outputs[0]
            result.name, result.dtype, result.shape = name, ir.DataType.FLOAT, output.shape
            graph.append(node)
            graph.outputs[index] = result
