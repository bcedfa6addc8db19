"""Weights of a CPU form that FP16 holds exactly: kept in FP16, and widened in each run.

Weights are often published in FP16, and computed with in FP32: half of the memory that they take is zeros. A Cast takes
as many operations as the weight has numbers, where a product takes so many for each row of its input.

Only weights of products, and of convolutions along at most one axis. Those over pictures ONNX Runtime packs in blocks
of channels when it loads, if they are constants, and is faster then: a large denoiser took 4 % longer without. Of other
weights it packs nothing, either, and adds in another order then: results differ by rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

# Bytes of a weight in FP32 from which the memory is worth a node.
LEAST = 4 << 20
# Numbers that are looked at first: weights that FP16 does not hold are told by a few of them.
_FIRST = 4096
_ALIGNMENT = 4096  # of a weight in its file, for whoever maps it


def narrow(model: ir.Model, data: Path, least: int) -> int:
    """Rewrites a graph in place, its narrow weights in a file of their own.

    The narrow weights are inputs with a default value, which nobody has to give: were they constants, ONNX Runtime
    would widen them when it loads. And the Casts are the first nodes of the graph: ONNX Runtime orders nodes from the
    outputs back, later nodes' makers first, and so widens each weight right before it is needed; put before their
    users, all would be widened before anything else runs.

    Args:
        model: whose weights are in FP32.
        data: of the narrow weights, next to the graph; written if there are any.
        least: bytes of a weight, in FP32, that is looked at.

    Returns:
        How many weights were narrowed.
    """
    graph = model.graph
    found = [value for value in graph.initializers.values() if _is_taken(value, least)]
    if not found:
        return 0
    casts = []
    with data.open("wb") as file:
        for value in found:
            assert value.const_value is not None
            array = value.const_value.numpy()
            if not (_holds(array.reshape(-1)[:_FIRST]) and _holds(array)):
                continue
            file.write(bytes(-file.tell() % _ALIGNMENT))
            casts.append(_widened(graph, value, _written(f"{value.name}:fp16", array, file, data)))
    if casts:
        graph.insert_before(graph[0], casts)
    else:
        data.unlink()
    return len(casts)


def _is_taken(value: ir.Value, least: int) -> bool:
    """Whether a constant is a large FP32 weight that nothing but products reads."""
    if value.const_value is None or value.dtype != ir.DataType.FLOAT or value.const_value.nbytes < least:
        return False
    if value.is_graph_output():
        return False
    kernel = value.const_value.shape.numpy()[2:]  # of a convolution
    along_one_axis = sum(side > 1 for side in kernel) <= 1
    products = ("MatMul", "Gemm", "Conv") if along_one_axis else ("MatMul", "Gemm")
    return all(
        use.idx == 1 and use.node.domain == "" and use.node.op_type in products for use in value.uses()
    )


def _holds(array: np.ndarray) -> bool:
    """Whether FP16 holds every number exactly, signs of zeros included."""
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(np.float16).astype(np.float32).tobytes() == array.tobytes()


def _written(name: str, array: np.ndarray, file: BinaryIO, data: Path) -> ir.ExternalTensor:
    """Writes numbers in FP16 to the file's end; returns where they are."""
    half = np.ascontiguousarray(array, np.float16)
    offset = file.tell()
    file.write(half.data)
    return ir.ExternalTensor(
        data.name,
        offset,
        half.nbytes,
        ir.DataType.FLOAT16,
        shape=ir.Shape(half.shape),
        name=name,
        base_dir=data.parent,
    )


def _widened(graph: ir.Graph, value: ir.Value, tensor: ir.ExternalTensor) -> ir.Node:
    """A node that makes of the narrow weight what everything read until now."""
    assert value.name is not None
    narrow_value = ir.Value(
        name=tensor.name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
    )
    cast = ir.Node("", "Cast", (narrow_value,), {"to": ir.AttrInt64("to", ir.DataType.FLOAT)})
    wide = cast.outputs[0]
    wide.name, wide.type, wide.shape = f"{value.name}:wide", value.type, value.shape
    ir.convenience.replace_all_uses_with(value, wide)
    del graph.initializers[value.name]
    graph.register_initializer(narrow_value)
    graph.inputs.append(narrow_value)
    return cast
