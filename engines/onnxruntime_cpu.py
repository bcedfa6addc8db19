"""The form of a network that ONNX Runtime's CPU provider runs fastest.

Bundles hold what compilers like: attention and group normalisation as single nodes. On the CPU
provider those are slow, so they are rewritten; the weights are shared with the native graph.

| native node | here | why |
|---|---|---|
| Attention | com.microsoft.MultiHeadAttention | the blocked kernel: 2.5 times faster at 4096 positions, no score matrix |
| MatMul, Softmax, MatMul (the VAE's attention) | the same | the same time, but no score matrix (67 MB at 512x512) |
| GroupNormalization | Reshape, InstanceNormalization, Reshape, Mul, Add | a vectorised kernel in place of a composed function |
| GatedTopKAttention, chunks written out | the same function as a Scan | any number of positions in chunks of one size |
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnx_ir import tape

import kernels

_CONTRIB = "com.microsoft"


def lower(native: Path) -> Path | None:
    """Writes `<name>.cpu.onnx` beside `<name>.onnx`; its weights stay in the native file's data.

    Returns:
        The path, or None where there is nothing to rewrite (the native form serves the CPU too).
    """
    model = ir.load(native)
    changed = sum(
        (
            _replace_attentions(model.graph),
            _replace_products(model.graph),
            _replace_group_normalisations(model.graph),
            _replace_function(model),
        )
    )
    if not changed:
        return None
    passes.RemoveUnusedNodesPass()(model)
    lowered = native.with_suffix(".cpu.onnx")
    # no external data is written: tensors that already are external keep pointing at the native's file
    ir.save(model, lowered)
    return lowered


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
        attributes: dict[str, int | float] = {"num_heads": shape[1]}
        if "scale" in node.attributes:
            attributes["scale"] = node.attributes["scale"].as_float()
        _attend(graph, node, (query, key, value), attributes, joined)
        changed += 1
    return changed


def _replace_products(graph: ir.Graph) -> int:
    """softmax(q k^T) v over (n,l,d) -> MultiHeadAttention of one head."""
    changed = 0
    for node in [node for node in graph if node.op_type == "Softmax"]:
        scores = node.inputs[0].producer() if node.inputs[0] is not None else None
        users = [use.node for use in node.outputs[0].uses()]
        if scores is None or scores.op_type != "MatMul" or [u.op_type for u in users] != ["MatMul"]:
            continue
        query, keys = scores.inputs
        key = _skip(keys, "Transpose", [0, 2, 1])
        value = users[0].inputs[1]
        if query is None or key is None or value is None or users[0].inputs[0] is not node.outputs[0]:
            continue
        attributes: dict[str, int | float] = {"num_heads": 1, "scale": 1.0}
        _attend(graph, node, (query, key, value), attributes, users[0].outputs[0])
        changed += 1
    return changed


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
    _take_over(result, output)
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


def _take_over(old: ir.Value, new: ir.Value) -> None:
    new.shape, new.dtype = old.shape, old.dtype
    ir.convenience.replace_all_uses_with(old, new)


def _replace_group_normalisations(graph: ir.Graph) -> int:
    """A group becomes a channel of InstanceNormalization; scale and shift follow by channel."""
    changed = 0
    for node in [node for node in graph if node.op_type == "GroupNormalization"]:
        data, scale, bias = node.inputs
        assert data is not None and scale is not None and bias is not None
        groups = node.attributes["num_groups"].as_int()
        dtype = data.dtype or ir.DataType.FLOAT
        steps = tape.Tape()
        ones = _constant(graph, f"ones_{groups}_{dtype}", np.ones(groups, dtype.numpy()))
        zeros = _constant(graph, f"zeros_{groups}_{dtype}", np.zeros(groups, dtype.numpy()))
        by_group = _constant(graph, f"by_group_{groups}", np.array([0, groups, -1], np.int64))
        by_channel = _constant(graph, "by_channel", np.array([-1, 1, 1], np.int64))
        rows = steps.op("Reshape", (data, by_group))
        attributes = {"epsilon": node.attributes["epsilon"].as_float()}
        normal = steps.op("InstanceNormalization", (rows, ones, zeros), attributes=attributes)
        whole = steps.op("Reshape", (normal, steps.op("Shape", (data,))))
        scaled = steps.op("Mul", (whole, steps.op("Reshape", (scale, by_channel))))
        shifted = steps.op("Add", (scaled, steps.op("Reshape", (bias, by_channel))))
        graph.insert_before(node, steps.nodes)
        _take_over(node.outputs[0], shifted)
        changed += 1
    return changed


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        graph.register_initializer(ir.Value(name=name, type=ir.TensorType(tensor.dtype), const_value=tensor))
        graph.initializers[name].shape = ir.Shape(array.shape)
    return graph.initializers[name]


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
