"""Convolutions, and the normalisations before them, with the channels last and in bands of rows.

Written out as ONNX nodes over whole pictures, a convolution by few multiplications (`engines.winograd`) and a group
normalisation wait for memory more than they compute: each node reads and writes tensors of hundreds of
megabytes. So they run in bands of a few rows, which stay in the processor's caches, as the body of a Scan:

    rows of x -> normalise, SiLU -> windows -> products -> results -> + bias, + residual -> rows of y, their statistics

Every large tensor is read once and written once. With the channels last, (n,h,w,c), a band is one block of memory,
windows are gathered by whole pixels, and both transforms are products with a small matrix. The next
normalisation takes its statistics from what the bands left, and reads nothing.

The kernels' transforms are computed in every run: they take 1 to 3 % of a layer's time, kept they
would take four times the memory of the weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from engines.graphs import constant, integers, take_over
from engines.winograd import TAPS, Filter, direct, upsampling, winograd

_CONTRIB = "com.microsoft"
_TO_LAST, _TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
_ROW, _CHANNEL = 1, 3  # axes

# Of the larger of a layer's input and output. With fewer, transforms take longer than the products they save.
MIN_CHANNELS = 128
# Products for each channel in one band: its tensors are then of 2 to 10 MB. More where the kernel's values, of
# channels times channels, are too large for a cache, and each band reads them from memory.
_BAND, _WIDE_BAND = 128 * 36, 256 * 36
_WIDE = 256 * 256
# Of channels times channels: beyond, ONNX Runtime's own convolution is as fast as `direct`, and loads faster.
_DIRECT = 512 * 512
_BAND_ROWS = np.array([1 << power for power in range(7)])


def replace_convolutions(graph: ir.Graph, min_channels: int = MIN_CHANNELS) -> int:
    """Rewrites the FP32 convolutions that gain by it, and what lies between them; returns how many nodes.

    Only those whose sides are known, from the graph's symbolic shapes, to be whole windows, and many: of a few
    windows, the transform of the kernel takes longer than the products.

    Args:
        graph: changed in place.
        min_channels: of a layer, the larger of its input and output.
    """
    return _Rewriting(graph, min_channels).run()


@dataclass(frozen=True, eq=False)
class _Layer:
    """A convolution that can be rewritten."""

    filter: Filter
    data: ir.Value  # before the normalisation and the upsampling that are part of it
    weight: ir.Value
    bias: ir.Value | None
    norm: ir.Node | None  # GroupNormalization, followed by SiLU

    @property
    def channels(self) -> tuple[int, int]:
        """Of input and output."""
        outputs, inputs, *_ = _sizes(self.weight)
        return inputs, outputs


@dataclass(frozen=True)
class _Bands:
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


@dataclass(frozen=True)
class _Statistics:
    """Of each row and channel, (n,h,1,c)."""

    means: ir.Value
    squares: ir.Value  # their sum, around the mean


class _Rewriting:
    """The pass over one graph. Values that exist with the channels last are remembered by those that do not."""

    def __init__(self, graph: ir.Graph, min_channels: int) -> None:
        self._graph = graph
        self._min_channels = min_channels
        self._last: dict[ir.Value, ir.Value] = {}
        self._statistics: dict[ir.Value, _Statistics] = {}
        self._bands: dict[tuple[str, ...], _Bands] = {}
        self._steps = tape.Tape()

    def run(self) -> int:
        changed = 0
        for node in list(self._graph):
            self._steps = tape.Tape()
            made = self._made(node)
            if made is None:
                continue
            result, statistics = made
            output = node.outputs[0]
            first = self._op("Transpose", result, perm=_TO_FIRST)
            self._graph.insert_before(node, self._steps.nodes)
            take_over(output, first)
            self._last[first] = result
            if statistics is not None:
                self._statistics[first] = statistics
            changed += 1
        if changed:
            self._graph.opset_imports.setdefault(_CONTRIB, 1)
        return changed

    def _made(self, node: ir.Node) -> tuple[ir.Value, _Statistics | None] | None:
        """What the node's result is with the channels last, or None where it stays as it is."""
        if node.domain != "" or node.outputs[0].dtype != ir.DataType.FLOAT:
            return None
        if node.op_type == "Conv":
            return self._convolution(node)
        if node.op_type == "Add":
            return self._sum(node)
        if node.op_type == "Concat":
            return self._concatenation(node)
        if node.op_type == "GroupNormalization":
            return self._normalisation(node)
        if node.op_type == "Transpose" and "perm" in node.attributes:
            self._turned(node)
        return None

    def _concatenation(self, node: ir.Node) -> tuple[ir.Value, None] | None:
        parts = [value for value in node.inputs if value is not None]
        if node.attributes["axis"].as_int() != 1 or not any(part in self._last for part in parts):
            return None
        return self._joined(*(self._to_last(part) for part in parts), axis=_CHANNEL), None

    def _is_fused(self, norm: ir.Node) -> bool:
        """Whether a normalisation will become part of the convolution that follows."""
        followers = [use.node for user in norm.outputs[0].uses() for use in user.node.outputs[0].uses()]
        layers = [self._layer(node) for node in followers if node.op_type == "Conv"]
        return any(layer is not None and layer.norm is norm for layer in layers)

    def _turned(self, node: ir.Node) -> None:
        """Remembers a transpose from the channels last, and removes one to them."""
        data, output = node.inputs[0], node.outputs[0]
        permutation = list(node.attributes["perm"].as_ints())
        if data is not None and permutation == _TO_FIRST:
            self._last[output] = data
        elif data in self._last and permutation == _TO_LAST and not output.is_graph_output():
            ir.convenience.replace_all_uses_with(output, self._last[data])

    def _convolution(self, node: ir.Node) -> tuple[ir.Value, _Statistics | None] | None:
        layer = self._layer(node)
        if layer is not None:
            if self._awaits_residual(node):
                return None
            return self._filtered(layer, node.outputs[0], None)
        data, weight = node.inputs[:2]
        if data in self._last and weight is not None and _is_pointwise(node, weight):
            return self._pointwise(self._last[data], weight, node.inputs[2:]), None
        return None

    def _awaits_residual(self, node: ir.Node) -> bool:
        """Whether all that becomes of a convolution is a sum: both are rewritten there, as one."""
        output = node.outputs[0]
        users = [use.node for use in output.uses()]
        if output.is_graph_output() or [user.op_type for user in users] != ["Add"]:
            return False
        return _are_same_size(*users[0].inputs)

    def _sum(self, node: ir.Node) -> tuple[ir.Value, _Statistics | None] | None:
        left, right = node.inputs
        if left is None or right is None or not _are_same_size(left, right):
            return None
        for value, residual in ((right, left), (left, right)):
            producer = value.producer()
            if producer is None or len(value.uses()) != 1 or producer.op_type != "Conv":
                continue
            if (layer := self._layer(producer)) is not None:
                return self._filtered(layer, node.outputs[0], self._to_last(residual))
        if left in self._last and right in self._last:
            return self._op("Add", self._last[left], self._last[right]), None
        return None

    def _layer(self, node: ir.Node) -> _Layer | None:
        data, weight = node.inputs[:2]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if data is None or weight is None or weight.const_value is None or data.dtype != ir.DataType.FLOAT:
            return None
        outputs, inputs, *kernel = _sizes(weight)
        if kernel != [TAPS, TAPS] or max(outputs, inputs) < self._min_channels:
            return None
        if (filter := self._filter(node, data, inputs * outputs)) is None:
            return None
        if filter.name == "upsampling":
            small = _before_doubling(data)
            assert small is not None
            return _Layer(filter, small, weight, bias, None)
        norm = _norm_before(data)
        if norm is not None:
            assert norm.inputs[0] is not None
            data = norm.inputs[0]
        return _Layer(filter, data, weight, bias, norm)

    def _filter(self, node: ir.Node, data: ir.Value, channels: int) -> Filter | None:
        """How a 3x3 convolution is best computed."""
        factors = _factors(data)
        if min(factors) >= 4 and _is_convolution(node, strides=[1, 1], pads=[1, 1, 1, 1]):
            if _before_doubling(data) is not None:
                return upsampling()
            for results, least in ((4, 8), (2, 4)):
                if all(factor >= least and factor % results == 0 for factor in factors):
                    return winograd(results)
        if channels > _DIRECT:
            return None
        if _is_convolution(node, strides=[1, 1], pads=[1, 1, 1, 1]):
            return direct(step=1, before=1)
        if all(factor and factor % 2 == 0 for factor in factors):
            for before in (0, 1):
                if _is_convolution(node, strides=[2, 2], pads=[before, before, 1, 1]):
                    return direct(step=2, before=before)
        return None

    def _filtered(
        self, layer: _Layer, result: ir.Value, residual: ir.Value | None
    ) -> tuple[ir.Value, _Statistics | None]:
        """The convolution in bands, with the channels last.

        Args:
            layer: the convolution.
            result: what is rewritten.
            residual: with the channels last, to be added.
        """
        graph, filter = self._graph, layer.filter
        outputs = integers(graph, layer.channels[1])
        bands = self._bands_of(layer)
        high, wide = (
            self._op("Mul", windows, integers(graph, filter.results))
            for windows in (bands.rows, bands.columns)
        )
        shape = self._joined(high, wide, outputs)
        scanned = [bands.first, bands.end, bands.pads, bands.picture]
        if residual is not None:
            scanned.append(self._op("Reshape", residual, self._joined(integers(graph, -1), shape)))
        measured = any(use.node.op_type == "GroupNormalization" for use in result.uses())
        body = self._body(layer, bands, shape, f"{result.name}_band", residual is not None, measured)
        scan = self._steps.op_multi_out(
            "Scan",
            scanned,
            num_outputs=len(body.outputs),
            attributes={"num_scan_inputs": len(scanned), "body": ir.AttrGraph("body", body)},
        )
        whole = self._joined(bands.count, integers(graph, -1), wide, outputs)
        picture = self._op("Reshape", scan[0], whole)
        if not measured:
            return picture, None
        by_row = self._joined(bands.count, integers(graph, -1, 1, layer.channels[1]))
        return picture, _Statistics(*(self._op("Reshape", value, by_row) for value in scan[1:]))

    def _body(
        self, layer: _Layer, bands: _Bands, shape: ir.Value, name: str, has_residual: bool, is_measured: bool
    ) -> ir.Graph:
        """What is done for each band.

        Args:
            layer: the convolution.
            bands: the cut.
            shape: of a band's results.
            name: unique in the graph.
            has_residual: whether a band of the residual is the last input.
            is_measured: whether the means and squares of rows are outputs too.
        """
        graph, filter, op = self._graph, layer.filter, self._op
        inputs, outputs = layer.channels
        data = self._to_last(layer.data)
        rows = op(
            "Reshape", data, self._joined(integers(graph, -1), self._shape(data, 2), integers(graph, inputs))
        )
        kernels = self._kernels(layer, bands)
        squares = self._joined(
            integers(graph, filter.results, filter.results),
            bands.rows,
            bands.columns,
            integers(graph, outputs),
        )
        norm = self._factor_and_shift(layer.norm) if layer.norm is not None else None

        integer, single = ir.TensorType(ir.DataType.INT64), ir.TensorType(ir.DataType.FLOAT)
        given = [
            ir.Value(name=f"{name}_{part}", type=integer, shape=ir.Shape([size]))
            for part, size in (("first", 1), ("end", 1), ("pads", 6), ("picture", 1))
        ]
        first, end, pads, picture = given
        outside, self._steps = self._steps, tape.Tape()
        pixels = op("Slice", rows, first, end, integers(graph, 0))
        if norm is not None:
            factor, shift = (op("Gather", value, picture) for value in norm)
            pixels = op("Add", op("Mul", pixels, factor), shift)
            pixels = op("QuickGelu", pixels, domain=_CONTRIB, alpha=1.0)  # with alpha 1, it is SiLU
        pixels = op("Pad", pixels, pads)
        if filter.is_direct:
            pixels = op("Gather", op("Reshape", pixels, integers(graph, -1, inputs)), bands.pixels)
            values = op("MatMul", op("Reshape", pixels, integers(graph, -1, TAPS * TAPS * inputs)), kernels)
        else:
            values = op("MatMul", self._values(filter, pixels, bands, inputs), kernels)
            values = op("Reshape", self._results(filter, values), squares)
            values = op("Transpose", values, perm=[2, 0, 3, 1, 4])
        values = op("Reshape", values, shape)
        if layer.bias is not None:
            values = op("Add", values, layer.bias)
        if has_residual:
            given.append(
                ir.Value(name=f"{name}_residual", type=single, shape=ir.Shape([None, None, outputs]))
            )
            values = op("Add", values, given[-1])
        made = [values]
        if is_measured:
            axis = integers(graph, 1)
            means = op("ReduceMean", values, axis)
            centred = op("Sub", values, means)
            made += [means, op("ReduceSum", op("Mul", centred, centred), axis)]
        for value, across in zip(made, (None, 1, 1), strict=False):
            value.type, value.shape = single, ir.Shape([None, across, outputs])
        for number, node in enumerate(self._steps.nodes):  # names are shared with the graph around
            node.outputs[0].name = f"{name}_{number}"
        body = ir.Graph(given, made, nodes=self._steps.nodes, name="band")
        self._steps = outside
        return body

    def _values(self, filter: Filter, pixels: ir.Value, bands: _Bands, channels: int) -> ir.Value:
        """(rows,w,c) -> (products,windows,c), first down the windows, then across."""
        graph, op = self._graph, self._op
        side, products = filter.window, filter.products
        transform = self._transform(filter, "B")
        lines = op("Reshape", op("Gather", pixels, bands.lines), integers(graph, side, -1))
        lines = op("Reshape", op("MatMul", transform, lines), integers(graph, products, -1, channels))
        squares = op("Gather", lines, bands.pixels, axis=1)
        values = op("MatMul", transform, op("Reshape", squares, integers(graph, products, side, -1)))
        return op("Reshape", values, integers(graph, products**2, -1, channels))

    def _results(self, filter: Filter, values: ir.Value) -> ir.Value:
        """(products,windows,c) -> (results,results,windows*c), likewise."""
        graph, op = self._graph, self._op
        transform = self._transform(filter, "A")
        lines = op("MatMul", transform, op("Reshape", values, integers(graph, filter.products, -1)))
        return op(
            "MatMul", transform, op("Reshape", lines, integers(graph, filter.results, filter.products, -1))
        )

    def _transform(self, filter: Filter, name: str) -> ir.Value:
        matrix: np.ndarray = getattr(filter, name)
        return constant(self._graph, f"{filter.name}_{name}", matrix.astype(np.float32))

    def _kernels(self, layer: _Layer, bands: _Bands) -> ir.Value:
        """(products, inputs, outputs): the kernel's values; (taps * inputs, outputs) if they are its taps."""
        graph, filter = self._graph, layer.filter
        inputs, outputs = layer.channels
        # in two steps that ONNX Runtime, which computes them as it loads the graph, has fast code for
        taps = self._op("Transpose", layer.weight, perm=[1, 2, 3, 0])
        taps = self._op("Transpose", taps, perm=[1, 2, 0, 3])
        if filter.is_direct:
            return self._op("Reshape", taps, integers(graph, -1, outputs))
        # a shape that is known in a run only: what is computed from here on would be kept otherwise
        one = self._op("Div", bands.count, bands.count)
        shape = self._joined(self._op("Mul", one, integers(graph, TAPS * TAPS)), integers(graph, -1))
        taps = self._op("Reshape", taps, shape)
        both_ways = np.kron(filter.G, filter.G).astype(np.float32)
        taps = self._op("MatMul", constant(graph, f"{filter.name}_G", both_ways), taps)
        return self._op("Reshape", taps, integers(graph, filter.products**2, inputs, outputs))

    def _bands_of(self, layer: _Layer) -> _Bands:
        """Cuts pictures; once for all of one size."""
        data, filter = layer.data, layer.filter
        inputs, outputs = layer.channels
        windows = (_WIDE_BAND if inputs * outputs > _WIDE else _BAND) // filter.products**2
        assert data.shape is not None
        key = (*(str(data.shape[axis]) for axis in (0, 2, 3)), filter.name, str(windows))
        if key not in self._bands:
            self._bands[key] = self._cut(self._to_last(data), filter, windows)
        return self._bands[key]

    def _cut(self, data: ir.Value, filter: Filter, target: int) -> _Bands:
        graph, op = self._graph, self._op
        count, height, width = (self._shape(data, axis) for axis in range(3))
        step, side = integers(graph, filter.step), filter.window
        down, columns = op("Div", height, step), op("Div", width, step)
        rows = self._windows_down(down, columns, target)

        # rows of the picture that belong to each band
        total = op("Div", op("Mul", count, down), rows)
        numbers = op("Reshape", self._range(total), integers(graph, -1, 1))
        high = op("Mul", rows, step)
        start = op("Mul", numbers, high)
        picture = op("Div", start, height)
        top = op("Mul", picture, height)
        start = op("Sub", start, integers(graph, filter.before))
        stop = op("Add", start, op("Add", high, integers(graph, side - filter.step)))
        first, end = op("Max", start, top), op("Min", stop, op("Add", top, height))
        none = op("Mul", numbers, integers(graph, 0))
        left = op("Add", none, integers(graph, filter.before))
        right = op("Add", none, integers(graph, side - filter.step - filter.before))
        pads = (op("Sub", first, start), left, none, op("Sub", stop, end), right, none)

        # lines of its windows, and pixels of each window's lines; or pixels of its windows
        wide = op("Add", width, integers(graph, side - filter.step))
        within = constant(graph, f"cpu_range_{side}", np.arange(side))
        down, across = (op("Mul", self._range(value), step) for value in (rows, columns))
        lines = op("Add", op("Reshape", within, integers(graph, side, 1)), down)
        if filter.is_direct:
            lines = op("Mul", op("Add", op("Reshape", down, integers(graph, -1, 1)), within), wide)
            pixels = op("Add", op("Reshape", across, integers(graph, -1, 1)), within)
            lines = op("Unsqueeze", lines, integers(graph, 1, 3))
            pixels = op("Add", lines, op("Unsqueeze", pixels, integers(graph, 1)))
        else:
            starts = op("Mul", self._range(rows), wide)
            pixels = op("Add", op("Reshape", within, integers(graph, side, 1, 1)), across)
            pixels = op("Add", pixels, op("Reshape", starts, integers(graph, -1, 1)))
        lines, pixels = (op("Reshape", value, integers(graph, -1)) for value in (lines, pixels))
        return _Bands(first, end, self._joined(*pads, axis=1), picture, lines, pixels, rows, columns, count)

    def _windows_down(self, down: ir.Value, columns: ir.Value, target: int) -> ir.Value:
        """The most rows of windows that divide the picture's, and are of no more than `target` windows; or one."""
        graph, op = self._graph, self._op
        choices = constant(graph, "cpu_band_rows", _BAND_ROWS)
        remainder = op("Mod", down, choices)
        fits = op("LessOrEqual", op("Mul", choices, columns), integers(graph, target))
        fits = op("And", fits, op("Equal", remainder, integers(graph, 0)))
        return op("ReduceMax", op("Where", fits, choices, integers(graph, 1)), integers(graph, 0))

    def _normalisation(self, node: ir.Node) -> tuple[ir.Value, None] | None:
        data = node.inputs[0]
        if data is None or data not in self._last or self._is_fused(node):
            return None
        factor, shift = (
            self._op("Unsqueeze", value, integers(self._graph, 1)) for value in self._factor_and_shift(node)
        )
        return self._op("Add", self._op("Mul", self._last[data], factor), shift), None

    def _factor_and_shift(self, node: ir.Node) -> tuple[ir.Value, ir.Value]:
        """What each pixel is multiplied with, and what is added: (n,1,c).

        The statistics are of rows first, then over rows and channels: short sums, exact to the last digits.
        """
        graph, op = self._graph, self._op
        data, scale, bias = node.inputs
        assert data is not None
        assert scale is not None
        assert bias is not None
        groups = node.attributes["num_groups"].as_int()
        channels = _sizes(scale)[0]
        statistics = self._statistics_of(data)
        by_group = integers(graph, 0, -1, groups, channels // groups)

        def over_group(value: ir.Value) -> ir.Value:
            value = op("ReduceMean", value, integers(graph, _CHANNEL))
            return op("ReduceMean", value, integers(graph, _ROW))

        means = op("Reshape", statistics.means, by_group)
        mean = over_group(means)
        apart = op("Sub", means, mean)
        width = op("Cast", self._shape(self._to_last(data), 2), to=ir.DataType.FLOAT)
        squares = op("Div", op("Reshape", statistics.squares, by_group), width)
        variance = over_group(op("Add", squares, op("Mul", apart, apart)))
        epsilon = node.attributes["epsilon"].as_float()
        least = constant(graph, f"cpu_epsilon_{epsilon:g}", np.array(epsilon, np.float32))
        deviation = op("Sqrt", op("Add", variance, least))
        of_channels = integers(graph, 1, 1, groups, channels // groups)
        factor = op("Div", op("Reshape", scale, of_channels), deviation)
        shift = op("Sub", op("Reshape", bias, of_channels), op("Mul", mean, factor))
        by_picture = integers(graph, -1, 1, channels)
        return op("Reshape", factor, by_picture), op("Reshape", shift, by_picture)

    def _statistics_of(self, data: ir.Value) -> _Statistics:
        if data not in self._statistics:
            across = integers(self._graph, 2)
            last = self._to_last(data)
            means = self._op("ReduceMean", last, across)
            centred = self._op("Sub", last, means)
            squares = self._op("ReduceSum", self._op("Mul", centred, centred), across)
            self._statistics[data] = _Statistics(means, squares)
        return self._statistics[data]

    def _pointwise(self, data: ir.Value, weight: ir.Value, bias: Sequence[ir.Value | None]) -> ir.Value:
        outputs, inputs, *_ = _sizes(weight)
        matrix = self._op("Reshape", weight, integers(self._graph, outputs, inputs))
        result = self._op("MatMul", data, self._op("Transpose", matrix, perm=[1, 0]))
        return self._op("Add", result, *bias) if bias else result

    def _to_last(self, value: ir.Value) -> ir.Value:
        if value not in self._last:
            self._last[value] = self._op("Transpose", value, perm=_TO_LAST)
        return self._last[value]

    def _shape(self, value: ir.Value, axis: int) -> ir.Value:
        return self._op("Shape", value, start=axis, end=axis + 1)

    def _range(self, end: ir.Value) -> ir.Value:
        """0, 1, ... below `end`, a (1,)."""
        scalar = integers(self._graph)
        zero, one = (constant(self._graph, f"cpu_scalar_{value}", np.array(value)) for value in (0, 1))
        return self._op("Range", zero, self._op("Reshape", end, scalar), one)

    def _joined(self, *values: ir.Value, axis: int = 0) -> ir.Value:
        return self._op("Concat", *values, axis=axis)

    def _op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        domain: str = "",
        **attributes: int | float | Sequence[int],
    ) -> ir.Value:
        return self._steps.op(op_type, inputs, attributes=attributes, domain=domain)


def _sizes(value: ir.Value) -> list[int]:
    """Of a constant."""
    assert value.const_value is not None
    return list(value.const_value.shape.numpy())


def _are_same_size(left: ir.Value | None, right: ir.Value | None) -> bool:
    """Whether both are pictures of the same shape, as far as the graph says."""
    shapes = [value.shape if value is not None else None for value in (left, right)]
    return shapes[0] is not None and len(shapes[0]) == 4 and shapes[0] == shapes[1]


def _factors(value: ir.Value) -> list[int]:
    """a and b of an (n,c,a*h,b*w); 0 where they are not known."""
    if value.shape is None or len(value.shape) != 4:
        return [0, 0]
    factors = [re.fullmatch(r"(\d+)(?:\*[A-Za-z_]\w*)?", str(size)) for size in value.shape[2:]]
    return [int(factor[1]) if factor is not None else 0 for factor in factors]


def _is_convolution(node: ir.Node, strides: list[int], pads: list[int]) -> bool:
    """Whether a Conv is one of these, without dilation, in one group."""

    def ints(name: str, default: list[int]) -> list[int]:
        return list(node.attributes[name].as_ints()) if name in node.attributes else default

    automatic = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    group = node.attributes["group"].as_int() if "group" in node.attributes else 1
    return (
        automatic == "NOTSET"
        and group == 1
        and ints("pads", [0, 0, 0, 0]) == pads
        and ints("strides", [1, 1]) == strides
        and ints("dilations", [1, 1]) == [1, 1]
    )


def _is_pointwise(node: ir.Node, weight: ir.Value) -> bool:
    if weight.const_value is None or _sizes(weight)[2:] != [1, 1]:
        return False
    return _is_convolution(node, strides=[1, 1], pads=[0, 0, 0, 0])


def _before_doubling(value: ir.Value) -> ir.Value | None:
    """x, if `value` is x with every pixel repeated, and nothing else uses it."""
    node = value.producer()
    if node is None or node.op_type != "Resize" or len(value.uses()) != 1:
        return None
    names = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    if any(
        name not in node.attributes or node.attributes[name].value != text for name, text in names.items()
    ):
        return None
    scales = node.inputs[2] if len(node.inputs) == 3 else None
    if scales is None or scales.const_value is None or "axes" in node.attributes:
        return None
    return node.inputs[0] if scales.const_value.numpy().tolist() == [1, 1, 2, 2] else None


def _norm_before(value: ir.Value) -> ir.Node | None:
    """The GroupNormalization, if `value` is its SiLU (x * sigmoid(x)) and nothing else uses either."""
    product = value.producer()
    if product is None or product.op_type != "Mul" or len(value.uses()) != 1 or value.is_graph_output():
        return None
    for data, gate in (product.inputs, product.inputs[::-1]):
        sigmoid, norm = (item.producer() if item is not None else None for item in (gate, data))
        if sigmoid is None or norm is None or data is None or gate is None:
            continue
        if sigmoid.op_type != "Sigmoid" or sigmoid.inputs[0] is not data or len(gate.uses()) != 1:
            continue
        if norm.op_type == "GroupNormalization" and len(data.uses()) == 2 and not data.is_graph_output():
            return norm
    return None
