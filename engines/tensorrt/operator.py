"""A network's graph without its operator, for an engine after which a host launches the operator's own kernel.

That is how the kernel goes with TensorRT-RTX, which takes no plugins. What is left of the network is the warp.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from vsr_trt.kernels import DOMAIN, OPERATORS
from vsr_trt.runtime.bundle.errors import EngineError
from vsr_trt.runtime.bundle.manifest import Operator


def leave_out(path: Path, operator: Operator) -> onnx.ModelProto:
    """The graph without the operator's call and output, and without what only the call needed, inputs included.

    Weights that lie in other files stay there; the model names them as the file does.

    Raises:
        EngineError: the graph does not have the operator where the manifest says.
    """
    model = ir.load(path)
    graph = model.graph
    output = next((value for value in graph.outputs if value.name == operator.output), None)
    call = None if output is None else output.producer()
    if output is None or call is None or not _is(call, operator) or output.uses():
        raise EngineError(
            f"{path} does not compute {operator.output!r} by an operator on {operator.current!r} and "
            f"{operator.previous!r}, as the bundle's manifest says. Build the bundle again with vsr-build bundle."
        )
    graph.outputs.remove(output)
    sequence = ir.passes.Sequential(
        passes.RemoveUnusedNodesPass(), passes.RemoveUnusedFunctionsPass(), passes.RemoveUnusedOpsetsPass()
    )
    sequence(model)
    for value in list(graph.inputs):
        if not value.uses() and not value.is_graph_output():
            graph.inputs.remove(value)
    return ir.to_proto(model)


def _is(call: ir.Node, operator: Operator) -> bool:
    latents = [value.name if value else None for value in call.inputs[:2]]
    return (
        call.domain == DOMAIN
        and call.op_type in OPERATORS.values()
        and latents == [operator.current, operator.previous]
    )
