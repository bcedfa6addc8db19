"""Softmax attention of one wide head on the CPU: a few queries at a time, as plain products.

ONNX Runtime's fused attention is made for narrow heads. With the 512 channels of a VAE's head it multiplies at 86 to
102 GFLOP/s on a machine that reaches 165; a Scan over chunks of the queries at 128 to 142 (2 cores, 4096 to 16384
positions), and scores of a few hundred queries are all that is in memory.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from vsr_trt.engines.graphs.nodes import constant, integers, take_over
from vsr_trt.engines.graphs.writer import Writer

_SIZES = np.array(
    [1, 8, 64, 128, 192, 256]
)  # of chunks, of which the largest that divides the queries is taken


def attend_in_chunks(graph: ir.Graph, call: ir.Node) -> None:
    """Puts softmax(query key^T) value, a Scan, where a call computed it.

    Args:
        graph: changed in place.
        call: of query, key and value (n,l,c), scaled already.
    """
    query, key, value = call.inputs
    assert query is not None
    assert key is not None
    assert value is not None
    assert query.shape is not None
    channels = int(query.shape[-1])  # type: ignore[arg-type]
    writer = Writer(graph)
    op = writer.op
    sizes = constant(graph, "cpu_query_chunks", _SIZES)
    fits = op("Equal", op("Mod", writer.shape(query, 1), sizes), integers(graph, 0))
    size = op("ReduceMax", op("Where", fits, sizes, integers(graph, 1)), integers(graph, 0))
    chunks = op("Reshape", query, writer.joined(integers(graph, 0, -1), size, integers(graph, channels)))
    columns = op("Transpose", key, perm=[0, 2, 1])
    dtype = query.dtype
    assert dtype is not None
    name = f"{call.outputs[0].name}_chunk"
    part = ir.Value(name=f"{name}_queries", type=ir.TensorType(dtype), shape=ir.Shape([None, None, channels]))
    outside, writer.steps = writer.steps, tape.Tape()
    scores = op("MatMul", part, columns)
    found = op("MatMul", op("Softmax", scores, axis=-1), value)
    found.type, found.shape = ir.TensorType(dtype), ir.Shape([None, None, channels])
    for number, node in enumerate(writer.steps.nodes):  # names are shared with the graph around
        node.outputs[0].name = f"{name}_{number}"
    body = ir.Graph([part], [found], nodes=writer.steps.nodes, name="chunk")
    writer.steps = outside
    scanned = op("Transpose", chunks, perm=[1, 0, 2, 3])
    (results,) = writer.steps.op_multi_out(
        "Scan",
        [scanned],
        num_outputs=1,
        attributes={"num_scan_inputs": 1, "body": ir.AttrGraph("body", body)},
    )
    whole = op("Transpose", results, perm=[1, 0, 2, 3])
    retrieved = op("Reshape", whole, integers(graph, 0, -1, channels))
    graph.insert_before(call, writer.steps.nodes)
    take_over(call.outputs[0], retrieved)
