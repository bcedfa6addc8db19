"""Convolutions, and the normalisations before them, with the channels last and in bands of rows.

Written out as ONNX nodes over whole pictures, a convolution by few multiplications (`winograd`) and a group
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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from vsr_trt.engines.graphs.bands import Bands, cut
from vsr_trt.engines.graphs.nodes import constant, integers, take_over
from vsr_trt.engines.graphs.patterns import (
    Norm,
    are_same_size,
    before_doubling,
    factors,
    insets,
    is_pointwise,
    norm_before,
    sizes,
    slice_of,
)
from vsr_trt.engines.graphs.winograd import TAPS, Filter, direct, upsampling, winograd
from vsr_trt.engines.graphs.writer import Writer

_CONTRIB = "com.microsoft"
_TO_LAST, _TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
_ROW, _CHANNEL = 1, 3  # axes
_AXES = {1: _CHANNEL, 2: _ROW, 3: 2}  # with the channels first -> last

# Of the larger of a layer's input and output. With fewer, transforms take longer than the products they save.
MIN_CHANNELS = 128
# Products for each channel in one band: its tensors are then of 2 to 10 MB. More where the kernel's values, of
# channels times channels, are too large for a cache, and each band reads them from memory.
_BAND, _WIDE_BAND = 128 * 36, 256 * 36
_WIDE = 256 * 256
# Of channels times channels: beyond, ONNX Runtime's own convolution is as fast as `direct`, and loads faster.
_DIRECT = 512 * 512


def replace_convolutions(graph: ir.Graph, min_channels: int = MIN_CHANNELS, strips: int = 1) -> int:
    """Rewrites the FP32 convolutions that gain by it, and what lies between them; returns how many nodes.

    Only those whose sides are known, from the graph's symbolic shapes, to be whole windows, and many: of a few
    windows, the transform of the kernel takes longer than the products.

    Args:
        graph: changed in place.
        min_channels: of a layer, the larger of its input and output.
        strips: that pictures are cut into, see `engines.graphs.strips`.
    """
    return _Rewriting(graph, min_channels, strips).run()


@dataclass(frozen=True, eq=False)
class _Layer:
    """A convolution that can be rewritten."""

    filter: Filter
    data: ir.Value  # before the normalisation and the upsampling that are part of it
    weight: ir.Value
    bias: ir.Value | None
    norm: Norm | None
    inset: tuple[int, int]  # rows of the data above and below that are there for the windows to reach into

    @property
    def channels(self) -> tuple[int, int]:
        """Channels of input and output."""
        outputs, inputs, *_ = sizes(self.weight)
        return inputs, outputs


@dataclass(frozen=True)
class _Statistics:
    """Statistics of each row and channel, (n,h,1,c)."""

    means: ir.Value
    squares: ir.Value  # their sum, around the mean


class _Rewriting(Writer):
    """The pass over one graph. Values that exist with the channels last are remembered by those that do not."""

    def __init__(self, graph: ir.Graph, min_channels: int, strips: int) -> None:
        super().__init__(graph)
        self._min_channels, self._strips = min_channels, strips
        self._last: dict[ir.Value, ir.Value] = {}
        self._statistics: dict[ir.Value, _Statistics] = {}
        self._bands: dict[tuple[str, ...], Bands] = {}
        self._transformed: dict[tuple[ir.Value, str], ir.Value] = {}
        self._row_means: dict[ir.Value, ir.Value] = {}  # rewritten -> of what

    def run(self) -> int:
        changed = 0
        for node in list(self.graph):
            self.steps = tape.Tape()
            made = self._parts(node) if node.op_type == "Split" else self._made(node)
            if made is None:
                continue
            results, statistics = made if isinstance(made[0], list) else ([made[0]], made[1])
            firsts = [self.op("Transpose", result, perm=_TO_FIRST) for result in results]
            self.graph.insert_before(node, self.steps.nodes)
            source = node.inputs[0]
            for output, first, result in zip(node.outputs, firsts, results, strict=True):
                take_over(output, first)
                self._last[first] = result
            if statistics is not None:
                self._statistics[firsts[0]] = statistics
            if node.op_type == "ReduceMean" and source is not None:
                self._row_means[firsts[0]] = source
            changed += 1
        if changed:
            self.graph.opset_imports.setdefault(_CONTRIB, 1)
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
        if node.op_type == "Slice":
            return self._slice(node)
        if node.op_type in ("ReduceMean", "ReduceSumSquare"):
            return self._of_rows(node)
        if node.op_type == "Transpose" and "perm" in node.attributes:
            self._turned(node)
        return None

    def _concatenation(self, node: ir.Node) -> tuple[ir.Value, None] | None:
        parts = [value for value in node.inputs if value is not None]
        axis = node.attributes["axis"].as_int()
        if axis not in _AXES or not any(part in self._last for part in parts):
            return None
        return self.joined(*(self._to_last(part) for part in parts), axis=_AXES[axis]), None

    def _parts(self, node: ir.Node) -> tuple[list[ir.Value], None] | None:
        """A Split of a picture's rows into equal parts."""
        (data, *rest), axis = node.inputs, node.attributes["axis"].as_int()
        if data is None or data not in self._last or axis not in _AXES or rest:
            return None
        parts = self.steps.op_multi_out(
            "Split",
            [self._last[data]],
            num_outputs=len(node.outputs),
            attributes={"axis": _AXES[axis], "num_outputs": len(node.outputs)},
        )
        return list(parts), None

    def _slice(self, node: ir.Node) -> tuple[ir.Value, None] | None:
        data, found = node.inputs[0], slice_of(node)
        if data is None or data not in self._last or found is None or found[0] not in _AXES:
            return None
        axis = integers(self.graph, _AXES[found[0]])
        return self.op("Slice", self._last[data], *node.inputs[1:3], axis), None

    def _of_rows(self, node: ir.Node) -> tuple[ir.Value, None] | None:
        """Means of rows, or squares around them, that the bands of a convolution left."""
        data = node.inputs[0]
        if not _is_over_rows(node) or data is None:
            return None
        if node.op_type == "ReduceMean":
            return (self._statistics[data].means, None) if data in self._statistics else None
        centred = data.producer()
        if centred is None or centred.op_type != "Sub":
            return None
        measured, means = centred.inputs
        if means is None or measured not in self._statistics or self._row_means.get(means) is not measured:
            return None
        return self._statistics[measured].squares, None

    def _is_fused(self, norm: ir.Node) -> bool:
        """Whether a normalisation will become part of the convolution that follows."""
        followers = [use.node for user in norm.outputs[0].uses() for use in user.node.outputs[0].uses()]
        layers = [self._layer(node) for node in followers if node.op_type == "Conv"]
        return any(
            layer is not None and layer.norm is not None and layer.norm.node is norm for layer in layers
        )

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
        if data in self._last and weight is not None and is_pointwise(node, weight):
            return self._pointwise(self._last[data], weight, node.inputs[2:]), None
        return None

    def _awaits_residual(self, node: ir.Node) -> bool:
        """Whether all that becomes of a convolution is a sum: both are rewritten there, as one."""
        output = node.outputs[0]
        users = [use.node for use in output.uses()]
        if output.is_graph_output() or [user.op_type for user in users] != ["Add"]:
            return False
        return are_same_size(*users[0].inputs)

    def _sum(self, node: ir.Node) -> tuple[ir.Value, _Statistics | None] | None:
        left, right = node.inputs
        if left is None or right is None or not are_same_size(left, right):
            return None
        for value, residual in ((right, left), (left, right)):
            producer = value.producer()
            if producer is None or len(value.uses()) != 1 or producer.op_type != "Conv":
                continue
            if (layer := self._layer(producer)) is not None:
                return self._filtered(layer, node.outputs[0], self._to_last(residual))
        if left in self._last and right in self._last:
            return self.op("Add", self._last[left], self._last[right]), None
        return None

    def _layer(self, node: ir.Node) -> _Layer | None:
        data, weight = node.inputs[:2]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if data is None or weight is None or weight.const_value is None or data.dtype != ir.DataType.FLOAT:
            return None
        outputs, inputs, *kernel = sizes(weight)
        if kernel != [TAPS, TAPS] or max(outputs, inputs) < self._min_channels:
            return None
        if (found := self._filter(node, data, inputs * outputs)) is None:
            return None
        scheme, inset = found
        if scheme.name == "upsampling":
            small = before_doubling(data, inset)
            assert small is not None
            return _Layer(scheme, small, weight, bias, None, inset)
        norm = norm_before(data)
        return _Layer(scheme, norm.data if norm is not None else data, weight, bias, norm, inset)

    def _filter(self, node: ir.Node, data: ir.Value, channels: int) -> tuple[Filter, tuple[int, int]] | None:
        """How a 3x3 convolution is best computed, and the rows that it has instead of zeros."""
        inset = insets(node, strides=[1, 1], pads=[1, 1, 1, 1])
        sides = factors(data if inset == (0, 0) else node.outputs[0])  # of the results
        if inset is not None:
            doubled = before_doubling(data, inset) is not None
            many = sides[0] * self._strips, sides[1]
            if doubled and min(many) >= 4 and not any(side % 2 for side in sides):
                return upsampling(), inset
            for results, least in ((4, 8), (2, 4)):
                if min(many) >= least and all(side % results == 0 for side in sides):
                    return winograd(results), inset
        if channels > _DIRECT:
            return None
        if inset is not None:
            return direct(step=1, before=1), inset
        for before in (0, 1):
            inset = insets(node, strides=[2, 2], pads=[before, before, 1, 1])
            if inset is None:
                continue
            sides = [0 if side % 2 else side // 2 for side in factors(data)] if inset == (0, 0) else sides
            if all(sides):
                return direct(step=2, before=before), inset
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
        graph, scheme = self.graph, layer.filter
        outputs = integers(graph, layer.channels[1])
        bands = self._bands_of(layer)
        high, wide = (
            self.op("Mul", windows, integers(graph, scheme.results))
            for windows in (bands.rows, bands.columns)
        )
        shape = self.joined(high, wide, outputs)
        scanned = [bands.first, bands.end, bands.pads, bands.picture]
        if residual is not None:
            scanned.append(self.op("Reshape", residual, self.joined(integers(graph, -1), shape)))
        measured = any(
            use.node.op_type == "GroupNormalization" or _is_over_rows(use.node) for use in result.uses()
        )
        body = self._body(layer, bands, shape, f"{result.name}_band", residual is not None, measured)
        scan = self.steps.op_multi_out(
            "Scan",
            scanned,
            num_outputs=len(body.outputs),
            attributes={"num_scan_inputs": len(scanned), "body": ir.AttrGraph("body", body)},
        )
        whole = self.joined(bands.count, integers(graph, -1), wide, outputs)
        picture = self.op("Reshape", scan[0], whole)
        if not measured:
            return picture, None
        by_row = self.joined(bands.count, integers(graph, -1, 1, layer.channels[1]))
        return picture, _Statistics(*(self.op("Reshape", value, by_row) for value in scan[1:]))

    def _body(
        self, layer: _Layer, bands: Bands, shape: ir.Value, name: str, has_residual: bool, is_measured: bool
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
        graph, scheme, op = self.graph, layer.filter, self.op
        inputs, outputs = layer.channels
        data = self._to_last(layer.data)
        rows = op(
            "Reshape", data, self.joined(integers(graph, -1), self.shape(data, 2), integers(graph, inputs))
        )
        kernels = self._kernels(layer, bands)
        squares = self.joined(
            integers(graph, scheme.results, scheme.results),
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
        outside, self.steps = self.steps, tape.Tape()
        pixels = op("Slice", rows, first, end, integers(graph, 0))
        if norm is not None:
            factor, shift = (op("Gather", value, picture) for value in norm)
            pixels = op("Add", op("Mul", pixels, factor), shift)
            pixels = op("QuickGelu", pixels, domain=_CONTRIB, alpha=1.0)  # with alpha 1, it is SiLU
        pixels = op("Pad", pixels, pads)
        if scheme.is_direct:
            pixels = op("Gather", op("Reshape", pixels, integers(graph, -1, inputs)), bands.pixels)
            values = op("MatMul", op("Reshape", pixels, integers(graph, -1, TAPS * TAPS * inputs)), kernels)
        else:
            values = op("MatMul", self._values(scheme, pixels, bands, inputs), kernels)
            values = op("Reshape", self._results(scheme, values), squares)
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
        for number, node in enumerate(self.steps.nodes):  # names are shared with the graph around
            node.outputs[0].name = f"{name}_{number}"
        body = ir.Graph(given, made, nodes=self.steps.nodes, name="band")
        self.steps = outside
        return body

    def _values(self, scheme: Filter, pixels: ir.Value, bands: Bands, channels: int) -> ir.Value:
        """(rows,w,c) -> (products,windows,c), first down the windows, then across."""
        graph, op = self.graph, self.op
        side, products = scheme.window, scheme.products
        transform = self._transform(scheme, "B")
        lines = op("Reshape", op("Gather", pixels, bands.lines), integers(graph, side, -1))
        lines = op("Reshape", op("MatMul", transform, lines), integers(graph, products, -1, channels))
        squares = op("Gather", lines, bands.pixels, axis=1)
        values = op("MatMul", transform, op("Reshape", squares, integers(graph, products, side, -1)))
        return op("Reshape", values, integers(graph, products**2, -1, channels))

    def _results(self, scheme: Filter, values: ir.Value) -> ir.Value:
        """(products,windows,c) -> (results,results,windows*c), likewise."""
        graph, op = self.graph, self.op
        transform = self._transform(scheme, "A")
        lines = op("MatMul", transform, op("Reshape", values, integers(graph, scheme.products, -1)))
        return op(
            "MatMul", transform, op("Reshape", lines, integers(graph, scheme.results, scheme.products, -1))
        )

    def _transform(self, scheme: Filter, name: str) -> ir.Value:
        matrix: np.ndarray = getattr(scheme, name)
        return constant(self.graph, f"{scheme.name}_{name}", matrix.astype(np.float32))

    def _kernels(self, layer: _Layer, bands: Bands) -> ir.Value:
        """(products, inputs, outputs): the kernel's values; (taps * inputs, outputs) if they are its taps."""
        graph, scheme = self.graph, layer.filter
        inputs, outputs = layer.channels
        # in two steps that ONNX Runtime, which computes them as it loads the graph, has fast code for
        taps = self.op("Transpose", layer.weight, perm=[1, 2, 3, 0])
        taps = self.op("Transpose", taps, perm=[1, 2, 0, 3])
        if scheme.is_direct:
            return self.op("Reshape", taps, integers(graph, -1, outputs))
        key = layer.weight, scheme.name
        if key in self._transformed:  # strips share them
            return self._transformed[key]
        # a shape that is known in a run only: what is computed from here on would be kept otherwise
        one = self.op("Div", bands.count, bands.count)
        shape = self.joined(self.op("Mul", one, integers(graph, TAPS * TAPS)), integers(graph, -1))
        taps = self.op("Reshape", taps, shape)
        both_ways = np.kron(scheme.G, scheme.G).astype(np.float32)
        taps = self.op("MatMul", constant(graph, f"{scheme.name}_G", both_ways), taps)
        taps = self.op("Reshape", taps, integers(graph, scheme.products**2, inputs, outputs))
        self._transformed[key] = taps
        return taps

    def _bands_of(self, layer: _Layer) -> Bands:
        """Cuts pictures; once for all of one size."""
        data, scheme = layer.data, layer.filter
        inputs, outputs = layer.channels
        windows = (_WIDE_BAND if inputs * outputs > _WIDE else _BAND) // scheme.products**2
        assert data.shape is not None
        key = (*(str(data.shape[axis]) for axis in (0, 2, 3)), scheme.name, str(windows), str(layer.inset))
        if key not in self._bands:
            self._bands[key] = cut(self, self._to_last(data), scheme, windows, layer.inset)
        return self._bands[key]

    def _normalisation(self, node: ir.Node) -> tuple[ir.Value, None] | None:
        data = node.inputs[0]
        if data is None or data not in self._last or self._is_fused(node):
            return None
        factor, shift = (
            self.op("Unsqueeze", value, integers(self.graph, 1))
            for value in self._factor_and_shift(Norm(data, node))
        )
        return self.op("Add", self.op("Mul", self._last[data], factor), shift), None

    def _factor_and_shift(self, norm: Norm) -> tuple[ir.Value, ir.Value]:
        """What each pixel is multiplied with, and what is added: (n,1,c).

        The statistics are of rows first, then over rows and channels: short sums, exact to the last digits.
        """
        graph, op, node = self.graph, self.op, norm.node
        if node is None:
            assert norm.factor is not None
            assert norm.shift is not None
            assert norm.factor.shape is not None
            each = integers(graph, -1, 1, int(norm.factor.shape[1]))  # type: ignore[arg-type]
            return op("Reshape", norm.factor, each), op("Reshape", norm.shift, each)
        data, scale, bias = node.inputs
        assert data is not None
        assert scale is not None
        assert bias is not None
        groups = node.attributes["num_groups"].as_int()
        channels = sizes(scale)[0]
        statistics = self._statistics_of(data)
        by_group = integers(graph, 0, -1, groups, channels // groups)

        def over_group(value: ir.Value) -> ir.Value:
            value = op("ReduceMean", value, integers(graph, _CHANNEL))
            return op("ReduceMean", value, integers(graph, _ROW))

        means = op("Reshape", statistics.means, by_group)
        mean = over_group(means)
        apart = op("Sub", means, mean)
        width = op("Cast", self.shape(self._to_last(data), 2), to=ir.DataType.FLOAT)
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
            across = integers(self.graph, 2)
            last = self._to_last(data)
            means = self.op("ReduceMean", last, across)
            centred = self.op("Sub", last, means)
            squares = self.op("ReduceSum", self.op("Mul", centred, centred), across)
            self._statistics[data] = _Statistics(means, squares)
        return self._statistics[data]

    def _pointwise(self, data: ir.Value, weight: ir.Value, bias: Sequence[ir.Value | None]) -> ir.Value:
        outputs, inputs, *_ = sizes(weight)
        matrix = self.op("Reshape", weight, integers(self.graph, outputs, inputs))
        result = self.op("MatMul", data, self.op("Transpose", matrix, perm=[1, 0]))
        return self.op("Add", result, *bias) if bias else result

    def _to_last(self, value: ir.Value) -> ir.Value:
        if value not in self._last:
            self._last[value] = self.op("Transpose", value, perm=_TO_LAST)
        return self._last[value]


def _is_over_rows(node: ir.Node) -> bool:
    """Whether a node reduces each row, and each channel of it."""
    axes = node.inputs[1] if len(node.inputs) == 2 else None
    return (
        node.op_type in ("ReduceMean", "ReduceSumSquare")
        and axes is not None
        and axes.const_value is not None
        and axes.const_value.numpy().tolist() == [3]
    )
