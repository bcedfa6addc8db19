"""How pictures are cut into bands of rows for a convolution, whatever their size: found out in each run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vsr_trt.engines.graphs.nodes import constant, integers
from vsr_trt.engines.graphs.winograd import Filter
from vsr_trt.engines.graphs.writer import Writer

_BAND_ROWS = np.arange(1, 65)


@dataclass(frozen=True)
class Bands:
    """How pictures of one size are cut for one filter; all values are INT64."""

    first: ir.Value  # (bands,1): row of the first pixel, over all pictures
    end: ir.Value  # (bands,1)
    pads: ir.Value  # (bands,6): zeros around a band of (rows,w,c), as Pad takes them
    picture: ir.Value  # (bands,1): of the batch
    lines: ir.Value  # (window*rows,): of the band with its zeros, for each row of windows
    pixels: ir.Value  # (window*rows*columns,): of a window's line, for each window; if direct, of all lines
    rows: ir.Value  # (1,): windows of a band, down
    columns: ir.Value  # (1,): windows of a band, across
    count: ir.Value  # (1,): pictures


def cut(
    writer: Writer, data: ir.Value, scheme: Filter, target: int, inset: tuple[int, int] = (0, 0)
) -> Bands:
    """Cuts pictures into bands of rows.

    Args:
        writer: of the nodes that find the cut out in a run.
        data: (n,h,w,c); whole windows.
        inset: rows of the data above and below that windows only reach into, where zeros would be otherwise.
        scheme: that bands are cut for.
        target: windows that a band has at most, if its rows allow.
    """
    graph, op = writer.graph, writer.op
    count, height, width = (writer.shape(data, axis) for axis in range(3))
    step, side = integers(graph, scheme.step), scheme.window
    inner = op("Sub", height, integers(graph, sum(inset))) if any(inset) else height
    down, columns = op("Div", inner, step), op("Div", width, step)
    rows = _windows_down(writer, down, columns, target)

    # rows of the picture that belong to each band
    total = op("Div", op("Mul", count, down), rows)
    numbers = op("Reshape", writer.range(total), integers(graph, -1, 1))
    high = op("Mul", rows, step)
    start = op("Mul", numbers, high)  # as if the insets were not there
    picture = op("Div", start, op("Mul", down, step))
    top = op("Mul", picture, height)
    start = op("Add", start, op("Mul", picture, op("Sub", height, op("Mul", down, step))))
    start = op("Sub", start, integers(graph, scheme.before - inset[0]))
    stop = op("Add", start, op("Add", high, integers(graph, side - scheme.step)))
    first, end = op("Max", start, top), op("Min", stop, op("Add", top, height))
    none = op("Mul", numbers, integers(graph, 0))
    left = op("Add", none, integers(graph, scheme.before))
    right = op("Add", none, integers(graph, side - scheme.step - scheme.before))
    pads = (op("Sub", first, start), left, none, op("Sub", stop, end), right, none)

    # lines of its windows, and pixels of each window's lines; or pixels of its windows
    wide = op("Add", width, integers(graph, side - scheme.step))
    within = constant(graph, f"cpu_range_{side}", np.arange(side))
    down, across = (op("Mul", writer.range(value), step) for value in (rows, columns))
    lines = op("Add", op("Reshape", within, integers(graph, side, 1)), down)
    if scheme.is_direct:
        lines = op("Mul", op("Add", op("Reshape", down, integers(graph, -1, 1)), within), wide)
        pixels = op("Add", op("Reshape", across, integers(graph, -1, 1)), within)
        lines = op("Unsqueeze", lines, integers(graph, 1, 3))
        pixels = op("Add", lines, op("Unsqueeze", pixels, integers(graph, 1)))
    else:
        starts = op("Mul", writer.range(rows), wide)
        pixels = op("Add", op("Reshape", within, integers(graph, side, 1, 1)), across)
        pixels = op("Add", pixels, op("Reshape", starts, integers(graph, -1, 1)))
    lines, pixels = (op("Reshape", value, integers(graph, -1)) for value in (lines, pixels))
    return Bands(first, end, writer.joined(*pads, axis=1), picture, lines, pixels, rows, columns, count)


def _windows_down(writer: Writer, down: ir.Value, columns: ir.Value, target: int) -> ir.Value:
    """The most rows of windows that divide the picture's, and are of no more than `target` windows; or one."""
    graph, op = writer.graph, writer.op
    choices = constant(graph, "cpu_band_rows", _BAND_ROWS)
    remainder = op("Mod", down, choices)
    fits = op("LessOrEqual", op("Mul", choices, columns), integers(graph, target))
    fits = op("And", fits, op("Equal", remainder, integers(graph, 0)))
    return op("ReduceMax", op("Where", fits, choices, integers(graph, 1)), integers(graph, 0))
