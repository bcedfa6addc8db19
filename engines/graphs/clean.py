"""Cleaning and counting ONNX graphs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

if TYPE_CHECKING:
    import onnx


def clean(model: ir.Model) -> None:
    """Drops what nothing uses, merges what is twice, forgets where nodes came from; in place."""
    sequence = ir.passes.Sequential(
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.DeduplicateInitializersPass(),
        passes.RemoveUnusedFunctionsPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.ClearMetadataAndDocStringPass(),
    )
    sequence(model)
    drop_unused_initializers(model)


def drop_unused_initializers(model: ir.Model) -> None:
    """Removes initialisers that no node reads and that are no outputs."""
    outputs = set(model.graph.outputs)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and value not in outputs:
            del model.graph.initializers[name]


def attach_functions(model: ir.Model, functions: Iterable[onnx.FunctionProto]) -> None:
    """Adds local functions, and the opsets that calling them needs."""
    for proto in functions:
        function = ir.serde.deserialize_function(proto)
        model.functions[function.identifier()] = function
        model.graph.opset_imports.setdefault(function.domain, 1)


def count_nodes(model: ir.Model) -> int:
    """Nodes of the graph; a call of a local function counts as one."""
    return len(model.graph)


def count_parameters(model: ir.Model) -> int:
    """Numbers held by the floating point initialisers."""
    return sum(
        int(np.prod(value.shape.numpy())) if value.shape else 1
        for value in model.graph.initializers.values()
        if value.dtype is not None and value.dtype.is_floating_point()
    )
