"""From a torch module to ONNX, in half the time that the exporter takes by itself.

torch's exporter captures a module, then captures the result twice again to take operators apart that it cannot
translate. It can translate nearly all that networks here are made of, so only what it cannot is replaced, and the two
further captures are left out: most of their time goes into reasoning about symbolic sizes. So does the cache of
shapes, whose keys cost more than what it saves. Where types of numbers are made to agree, each operator is run once
more, on tensors without numbers, for a result that the capture has written down already: it is taken from there. The
same graphs come out, node for node.

The optimiser behind it looks through the whole graph at every node, for patterns with several results: of a graph with
thousands of nodes that is most of the time. Here it does so only where the pattern's first node fits.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import onnx_ir as ir
import torch
from onnxscript.rewriter._basics import MatchResult
from onnxscript.rewriter._matcher import SimplePatternMatcher
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.onnx._internal.exporter import _registration
from torch.onnx._internal.fx.passes.type_promotion import (
    _TypePromotionInterpreter,
    get_type_promotion_rule,
)

from vsr_trt.export.quiet import only_errors

log = logging.getLogger(__name__)

_ATEN = torch.ops.aten
_COPIES_OF_NOTHING = (_ATEN.detach_.default, _ATEN.detach.default, _ATEN.to.device)
_DTYPE = _ATEN.to.dtype
# What torch's operators become: a second of work, which the exporter would do again for every module.
_registry = functools.cache(_registration.ONNXRegistry.from_torchlib)


def to_onnx(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    shapes: Mapping[str, Mapping[int, Any]],
    outputs: Sequence[str],
    opset: int,
) -> ir.Model:
    """Captures a module as an ONNX graph.

    Args:
        module: in evaluation mode.
        inputs: its keyword arguments, in order.
        shapes: input -> axis -> `torch.export.Dim`, for sizes that vary.
        outputs: names of what it returns.
        opset: of ONNX.

    Raises:
        Exception: torch raises many kinds.
    """
    with torch.no_grad(), _quiet(), _no_shape_cache():
        program = torch.export.export(
            module,
            (),
            dict(inputs),
            dynamic_shapes=dict(shapes) if any(shapes.values()) else None,
            strict=False,
        )
        if _is_simple(program):
            _replace(program)
            # what is left has a translation: there is nothing to take apart
            decompose, program.run_decompositions = program.run_decompositions, lambda *_, **__: program
            try:
                return _translated(program, inputs, outputs, opset)
            except torch.onnx.errors.OnnxExporterError as error:
                log.debug("an operator has to be taken apart: %s", error)
                program.run_decompositions = decompose
        return _translated(program, inputs, outputs, opset)


def _translated(
    program: ExportedProgram, inputs: Mapping[str, Tensor], outputs: Sequence[str], opset: int
) -> ir.Model:
    with (
        mock.patch.object(_registration.ONNXRegistry, "from_torchlib", staticmethod(_registry)),
        mock.patch.object(SimplePatternMatcher, "match", _match),
        mock.patch.object(_TypePromotionInterpreter, "run_node", _run_node),
    ):
        translated = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=list(inputs),
            output_names=list(outputs),
            verbose=False,
        )
    assert translated is not None
    return translated.model


_match_anywhere = SimplePatternMatcher.match


def _match(self: Any, model: Any, graph: Any, node: ir.Node, **options: Any) -> Any:
    """`SimplePatternMatcher.match`, which tries the pattern's first node at this one, and others anywhere."""
    if not self.pattern.has_single_output_node:
        wanted = self.pattern.output_nodes[0].op_identifier()
        if wanted is not None and wanted != node.op_identifier():
            return MatchResult().fail("another operator")
    return _match_anywhere(self, model, graph, node, **options)


_run_anything = torch.fx.Interpreter.run_node


def _run_node(self: Any, node: torch.fx.Node) -> Any:
    """`_TypePromotionInterpreter.run_node`, which runs no operator whose result is known.

    Where it has changed an operator's arguments, it has run it, and written down the new result.
    """
    with self._set_current_node(node):
        if rule := get_type_promotion_rule(node, self.type_promotion_table):
            self._maybe_promote_node(node, rule)
    if node.op == "call_function" and node.meta.get("val") is not None:
        return node.meta["val"]
    return _run_anything(self, node)


def _is_simple(program: ExportedProgram) -> bool:
    """Whether nothing is written in place: an operator that writes its argument is no node of a graph."""
    targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
    schemas = [getattr(target, "_schema", None) for target in targets - {_ATEN.detach_.default}]
    return not any(schema is not None and schema.is_mutable for schema in schemas)


def _replace(program: ExportedProgram) -> None:
    """Makes operators without a translation what they are here: nothing, or a conversion."""
    for node in list(program.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _COPIES_OF_NOTHING or (
            node.target is _DTYPE and _dtype(node.args[0]) == _dtype(node)
        ):
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
        elif node.target is _DTYPE:
            node.target = torch.ops.prims.convert_element_type.default
            node.args, node.kwargs = (node.args[0], _dtype(node)), {}


def _dtype(node: Any) -> torch.dtype:
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype


@contextlib.contextmanager
def _no_shape_cache() -> Iterator[None]:
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's own progress and warnings out of ours."""
    with only_errors("torch.onnx", "onnxscript", "torch.export", "onnx_ir"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
