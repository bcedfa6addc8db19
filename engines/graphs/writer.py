"""Writes ONNX nodes one after another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from vsr_trt.engines.graphs.nodes import constant, integers


class Writer:
    """Writes nodes for a graph; they are in `steps` until somebody inserts them.

    Args:
        graph: that constants go into.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.steps = tape.Tape()

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        domain: str = "",
        **attributes: int | float | Sequence[int],
    ) -> ir.Value:
        """A node with one output."""
        return self.steps.op(op_type, inputs, attributes=attributes, domain=domain)

    def shape(self, value: ir.Value, axis: int) -> ir.Value:
        """(1,) INT64: the size along an axis."""
        return self.op("Shape", value, start=axis, end=axis + 1)

    def range(self, end: ir.Value) -> ir.Value:
        """0, 1, ... below `end`, a (1,)."""
        scalar = integers(self.graph)
        zero, one = (constant(self.graph, f"cpu_scalar_{value}", np.array(value)) for value in (0, 1))
        return self.op("Range", zero, self.op("Reshape", end, scalar), one)

    def joined(self, *values: ir.Value, axis: int = 0) -> ir.Value:
        """Values one after another."""
        return self.op("Concat", *values, axis=axis)
