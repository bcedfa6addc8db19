"""Graphs changed for measuring: the largest value of every tensor, and FP16 rounding made real on the CPU.

Nothing of this is written anywhere: a changed graph is a few hundred kilobytes in memory that refer to the
weights where they lie.

**Ranges are scalars.** Each tensor gets three reductions next to it, so no tensor leaves the graph, and in
priority order (see `engines.accuracy.ranges`) each is dropped when its last reader is done.

**FP16 is emulated.** ONNX Runtime's CPU provider has no FP16 arithmetic. It computes FP16 nodes in FP32 between
casts that it inserts, and removes those casts again between one such node and the next: nothing is rounded
there, and nothing overflows. Casts that the graph itself contains stay. So FP16 tensors become FP32 ones that
are cast to FP16 and back: every node computes in FP32 on FP16 numbers, and its result is rounded. That is
what a GPU does that accumulates in FP32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
# Max and min may pass over NaN; a sum of magnitudes does not, and nothing cancels in it.
_REDUCTIONS = ("ReduceMax", "ReduceMin", "ReduceL1")


@dataclass(frozen=True)
class Probe:
    """A tensor that is measured.

    Attributes:
        tensor: its name; inside a local function, the name it got when the function was written out.
        node: name of the native graph's node that makes it; inside a local function, of the node that
            calls it; empty for an input of the network.
        op_type: of what makes it, inside functions too; `input` for an input.
        half: whether it is FP16.
        outputs: names of the scalars: largest, smallest, sum of magnitudes.
    """

    tensor: str
    node: str
    op_type: str
    half: bool
    outputs: tuple[str, str, str]


@dataclass(frozen=True)
class InstrumentedGraph:
    """A network's graph, its local functions written out and every value typed.

    Attributes:
        model: refers to the weights, which stay in their file.
        folder: what the paths of the weights are relative to.
        node_of: value -> node of the native graph, as for `Probe.node`.
    """

    model: ir.Model
    folder: Path
    node_of: dict[str, str]


def node_name(node: ir.Node) -> str:
    """What a node is called everywhere here: its name, or its first result's where it has none."""
    return node.name or str(node.outputs[0].name)


def prepare(path: Path) -> InstrumentedGraph:
    """Reads a graph whose inputs and outputs are not FP16, as those of every network here are."""
    model = ir.load(path)
    calls = {node.outputs[0].name: node_name(node) for node in model.graph if _is_call(model, node)}
    node_of = {str(value.name): node_name(node) for node in model.graph for value in node.outputs}
    outside = {str(value.name) for value in model.graph.inputs} | set(model.graph.initializers) | set(node_of)
    passes.InlinePass()(model)
    # the values of functions have no types of their own
    model = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(ir.serde.serialize_model(model)))
    for node in model.graph:
        if node.outputs[0].name in calls:  # a function's results keep the names that the call gave them
            for value in _inside(node, outside):
                node_of[str(value.name)] = calls[node.outputs[0].name]
    return InstrumentedGraph(model, path.parent, node_of)


def _is_call(model: ir.Model, node: ir.Node) -> bool:
    return node.op_identifier() in model.functions


def _inside(last: ir.Node, outside: set[str]) -> Iterator[ir.Value]:
    """The values that a function which was written out computes on the way to its result."""
    pending, seen = [last], {last}
    while pending:
        for value in pending.pop().inputs:
            producer = value.producer() if value is not None else None
            if value is None or producer is None or value.name in outside or producer in seen:
                continue
            yield from producer.outputs
            seen.add(producer)
            pending.append(producer)


def add_ranges(graph: InstrumentedGraph) -> list[Probe]:
    """Adds the scalars of every float tensor to the graph's outputs; weights are not measured.

    Returns:
        The tensors, in graph order, inputs first.
    """
    probes = []
    for value, node in list(_tensors(graph.model.graph)):
        name = str(value.name)
        op_type = node.op_type if node is not None else "input"
        outputs = _reduce(graph.model.graph, value, node)
        probes.append(Probe(name, graph.node_of.get(name, ""), op_type, value.dtype == HALF, outputs))
    return probes


def _tensors(graph: ir.Graph) -> Iterator[tuple[ir.Value, ir.Node | None]]:
    for value in graph.inputs:
        if value.dtype == FLOAT:
            yield value, None
    for node in graph:
        for value in node.outputs if node.inputs else ():  # a constant is a weight
            # a result that nothing reads is computed by nobody either
            if value.dtype in (FLOAT, HALF) and (value.uses() or value.is_graph_output()):
                yield value, node


def _reduce(graph: ir.Graph, value: ir.Value, place: ir.Node | None) -> tuple[str, str, str]:
    single = value
    if value.dtype == HALF:  # a sum would not fit FP16
        cast = ir.node("Cast", [value], attributes={"to": FLOAT})
        single, place = cast.outputs[0], _insert(graph, place, cast)
        single.name, single.dtype = f"range:{value.name}:single", FLOAT
    names = []
    for reduction in _REDUCTIONS:
        node = ir.node(reduction, [single], attributes={"keepdims": 0})
        # right behind its tensor: of the nodes that are ready, the first in the graph runs first
        place = _insert(graph, place, node)
        result = node.outputs[0]
        result.name, result.dtype, result.shape = f"range:{value.name}:{reduction}", FLOAT, ir.Shape([])
        graph.outputs.append(result)
        names.append(result.name)
    return names[0], names[1], names[2]


def _insert(graph: ir.Graph, place: ir.Node | None, node: ir.Node) -> ir.Node:
    if place is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(place, node)
    return node


def emulate_halves(graph: InstrumentedGraph) -> None:
    """Gives every FP16 tensor the type FP32 and values rounded to FP16; see the module. After `add_ranges`."""
    nodes = graph.model.graph
    for value in [value for value in nodes.initializers.values() if value.dtype == HALF]:
        readers = {use.node for use in value.uses()}
        first = next(node for node in nodes if node in readers)
        cast = ir.node("Cast", [value], attributes={"to": FLOAT})
        _rename(value, cast.outputs[0], "single", FLOAT)
        _move_readers(value, cast.outputs[0])
        nodes.insert_before(first, cast)
    for node in list(nodes):
        for value in [value for value in node.outputs if value.dtype == HALF]:
            _round(nodes, node, value)


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Readers of the FP16 `value` get it in FP32, rounded to FP16."""
    single = ir.node("Cast", [value], attributes={"to": FLOAT})
    _rename(value, single.outputs[0], "rounded", FLOAT)
    _move_readers(value, single.outputs[0])
    graph.insert_after(node, single)
    if node.op_type == "Cast" or not node.inputs:
        return  # a cast to FP16, or a constant: it makes FP16 by itself
    half = ir.node("Cast", [value], attributes={"to": HALF})
    _rename(value, half.outputs[0], "half", HALF)
    value.dtype = FLOAT
    graph.insert_after(node, half)
    single.replace_input_with(0, half.outputs[0])


def _rename(old: ir.Value, new: ir.Value, suffix: str, dtype: ir.DataType) -> None:
    new.name, new.dtype, new.shape = f"{old.name}:{suffix}", dtype, old.shape


def _move_readers(old: ir.Value, new: ir.Value) -> None:
    for use in [use for use in old.uses() if use.node is not new.producer()]:
        use.node.replace_input_with(use.idx, new)
