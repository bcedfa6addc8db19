"""Small edits of graphs that the rewrites share."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """The initializer of that name, made if the graph has none yet."""
    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        graph.register_initializer(ir.Value(name=name, type=ir.TensorType(tensor.dtype), const_value=tensor))
        graph.initializers[name].shape = ir.Shape(array.shape)
    return graph.initializers[name]


def integers(graph: ir.Graph, *values: int) -> ir.Value:
    """An INT64 initializer of these values."""
    return constant(graph, "_".join(["cpu_int", *map(str, values)]), np.array(values, np.int64))


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Gives everything that used `old` the value `new`, the graph's output of that name included."""
    new.shape, new.type = old.shape, old.type
    if old.is_graph_output():
        old.name, new.name = f"{old.name}_before", old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
