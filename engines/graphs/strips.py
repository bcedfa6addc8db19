"""A picture network in strips: the same result in less memory, because nothing large is ever whole.

A VAE's largest tensors have the sides of the picture and 128 to 256 channels. Cut into tiles that know nothing of each
other, each normalises with its own statistics and gets a tone of its own. Here the picture is cut into strips of rows
inside the graph, and every normalisation uses the statistics of all of them:

    strips of x -> their rows' means and squares -> mean and deviation of the picture
                -> each strip, with a few rows of its neighbours -> normalise, SiLU, convolve -> strips of the next x

Nothing is approximate: a strip reads as many rows of its neighbours as its convolutions reach, and what is summed
in parts is what would be summed at once. What is saved: intermediate results are of one strip only, a sum takes the
place of its summands strip by strip, and what a doubling makes, the largest tensor of a decoder, is computed again
where it is read instead of being kept.

Only the two highest of the resolutions are cut: below, tensors are small, and there is an attention that needs
all of the picture.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnx_ir import tape

from vsr_trt.engines.graphs.nodes import constant, integers
from vsr_trt.engines.graphs.patterns import are_same_size, ints_of, sizes

STRIPS = 8  # latents come in multiples of 8 rows, so that strips are equal
_ELEMENTWISE = frozenset({"Add", "Mul", "Sub", "Div", "Sigmoid", "Cast"})
_CHANNELS, _ROWS, _COLUMNS = 1, 2, 3
_LAST = np.iinfo(np.int64).max


def cut_into_strips(model: ir.Model, strips: int = STRIPS, ordered: bool = False) -> int:
    """Rewrites a graph in place; returns how many of its nodes were cut, 0 where there was nothing to cut.

    Args:
        model: a network on pictures (n,c,h,w).
        strips: how many.
        ordered: make each strip wait for the one above. A compiler is free to compute all strips at once, and
            TensorRT-RTX does, in as much memory as for the whole.
    """
    cutting = _Cutting(model.graph, strips, ordered)
    count = cutting.run()
    if count:
        passes.RemoveUnusedNodesPass()(model)
        passes.CommonSubexpressionEliminationPass()(model)
    return count


def largest(graph: ir.Graph) -> Fraction:
    """Numbers of the largest picture in a graph, for each pixel of its input."""
    return max((_numbers(value, scale) for value, scale in _scales(graph).items()), default=Fraction(0))


def largest_kept(graph: ir.Graph, strips: int = STRIPS) -> Fraction:
    """The same of the pictures that strips keep; 0 where a graph has nothing to cut."""
    cutting = _Cutting(graph, strips, ordered=False)
    return max((_numbers(value, cutting.scale[value]) for value in cutting.kept), default=Fraction(0))


def _numbers(value: ir.Value, scale: Fraction) -> Fraction:
    assert value.shape is not None
    channels = value.shape[_CHANNELS]
    return scale**2 * channels if isinstance(channels, int) else Fraction(0)


@dataclass(frozen=True)
class _Rows:
    """Statistics of each row and channel: means, and sums of squares around them, (n,c,h,1); a row's pixels, (1,)."""

    means: ir.Value
    squares: ir.Value
    width: ir.Value


@dataclass(frozen=True)
class _Affine:
    """What a normalisation multiplies by, and what it adds: (n,c,1,1), FP32."""

    factor: ir.Value
    shift: ir.Value


class _Cutting:
    """The pass over one graph.

    Attributes:
        nodes: that are cut, in order.
        kept: results that are stored, and not computed again wherever they are read.
        stored: values as their strips.
    """

    def __init__(self, graph: ir.Graph, strips: int, ordered: bool) -> None:
        self.graph, self.strips, self.ordered = graph, strips, ordered
        self._zero: ir.Value | None = None
        self.steps = tape.Tape()
        self.scale = _scales(graph)
        self.stored: dict[ir.Value, list[ir.Value]] = {}
        self.statistics: dict[ir.Value, _Rows] = {}
        self.affine: dict[ir.Value, _Affine] = {}
        self._made: dict[tuple[ir.Value, int, int, int], ir.Value] = {}
        largest = max(self.scale.values(), default=Fraction(0))
        self.whole_up_to = largest / 4
        self.nodes = [node for node in self.graph if self._is_cut(node)]
        inside = [node.outputs[0] for node in self.nodes]
        self._inside = set(inside)
        self._exits = [value for value in inside if self._leaves(value)]
        self.kept = {value for value in inside if self._is_kept(value)}

    def run(self) -> int:
        """Cuts; returns how many nodes."""
        if not self.nodes:
            return 0
        place = self._place()
        measured = {node.inputs[0] for node in self.nodes if node.op_type == "GroupNormalization"}
        for value in self._entries():
            self.stored[value] = self._split(value)
            if value in measured:
                strips = [self._row_statistics(part) for part in self.stored[value]]
                self._picture_statistics(value, strips)
        pending = [node.outputs[0] for node in self.nodes if node.outputs[0] in self.kept | measured]
        while pending:
            ready = [value for value in pending if self._is_ready(value)]
            self._compute(ready, measured)
            pending = [value for value in pending if value not in ready]
        for value in self._exits:
            self._join(value)
        self.graph.insert_before(place, self.steps.nodes)
        return len(self.nodes)

    # -- what is cut

    def _is_cut(self, node: ir.Node) -> bool:
        """Whether a node works on pictures of a high resolution, each row on rows near it."""
        data = node.inputs[0] if node.inputs else None
        output = node.outputs[0]
        if data is None or self.scale.get(output) is None:
            return False
        scales = [self.scale[value] for value in node.inputs if value in self.scale]
        return max([self.scale[output], *scales]) > self.whole_up_to

    def _leaves(self, value: ir.Value) -> bool:
        """Whether somebody outside reads a result."""
        return value.is_graph_output() or any(use.node.outputs[0] not in self._inside for use in value.uses())

    def _entries(self) -> list[ir.Value]:
        """Pictures that come from outside."""
        return list(
            dict.fromkeys(
                value
                for node in self.nodes
                for value in node.inputs
                if value is not None and value in self.scale and value not in self._inside
            )
        )

    def _place(self) -> ir.Node:
        """Before which the new nodes go: the first that reads a result from outside the cut, else the last cut one."""
        cut = set(self.nodes)
        for node in self.graph:
            if node not in cut and any(value in self._inside for value in node.inputs):
                return node
        return self.nodes[-1]

    def _is_kept(self, value: ir.Value) -> bool:
        """Whether a result is kept, and not computed again wherever it is read."""
        node = value.producer()
        assert node is not None
        if value in self._exits:
            return True
        if _is_doubled(node):
            return False
        if node.op_type not in ("Conv", "Add"):
            return False
        users = [use.node for use in value.uses()]
        if any(user.op_type in ("GroupNormalization", "Resize", "Conv") for user in users):
            return True
        # a shortcut: kept where what it is made from is not
        source = node.inputs[0].producer() if node.op_type == "Conv" and node.inputs[0] is not None else None
        return source is not None and _is_doubled(source)

    def _is_ready(self, value: ir.Value) -> bool:
        """Whether all that a value is computed from is there."""
        waiting, seen = [value], set()
        while waiting:
            current = waiting.pop()
            node = current.producer()
            if current in seen or current in self.stored or node is None or current not in self.scale:
                continue
            seen.add(current)
            if current is not value and current in self.kept:
                return False
            data = node.inputs[0]
            if node.op_type == "GroupNormalization" and data not in self.statistics:
                return False
            waiting += [item for item in node.inputs if item is not None and item in self.scale]
        return True

    # -- what is computed

    def _compute(self, values: list[ir.Value], measured: set[ir.Value | None]) -> None:
        """Values that are ready, strip by strip, and the statistics of those that are measured."""
        rows: dict[ir.Value, list[_Rows]] = {value: [] for value in values if value in measured}
        strips: dict[ir.Value, list[ir.Value]] = {value: [] for value in values}
        self._zero = None
        for number in range(self.strips):
            self._made = {}
            made = {value: self._rows(value, number, 0, 0) for value in values}
            for value in values:
                if value in self.kept:
                    strips[value].append(made[value])
                if value in measured:
                    rows[value].append(self._row_statistics(made[value]))
            others = [made[value] for value in values if value not in measured]
            if rows and others:
                first = next(iter(rows.values()))
                first[-1] = self._after(first[-1], others)
            if self.ordered:
                self._zero = self._zero_after([*others, *(found[-1].means for found in rows.values())])
        self._zero = None
        self._made = {}
        for value in values:
            if value in self.kept:
                self.stored[value] = strips[value]
            if value in measured:
                self._picture_statistics(value, rows[value])

    def _rows(self, value: ir.Value, strip: int, above: int, below: int) -> ir.Value:
        """The rows of a strip, and some more above and below where the picture has them."""
        above, below = (above if strip else 0), (below if strip < self.strips - 1 else 0)
        key = value, strip, above, below
        if key not in self._made:
            if value in self.stored:
                self._made[key] = self._with_neighbours(self.stored[value], strip, above, below)
            else:
                node = value.producer()
                assert node is not None
                self._made[key] = self._computed(node, strip, above, below)
            self._made[key].shape = self._shape(value, above + below)
        return self._made[key]

    def _shape(self, value: ir.Value, more: int = 0) -> ir.Shape | None:
        """A strip's, and of some more rows: e.g. 4*h+2 where the picture has 32*h and 8 strips."""
        if value.shape is None:
            return None
        rows = re.fullmatch(r"(\d+)(\*\w+)?", str(value.shape[_ROWS]))
        if rows is None or int(rows[1]) % self.strips:
            return ir.Shape([*value.shape[:_ROWS], None, value.shape[_COLUMNS]])
        share = int(rows[1]) // self.strips
        own = f"{share}{rows[2]}+{more}" if more else f"{share}{rows[2]}"
        size = own if rows[2] else share + more
        return ir.Shape([*value.shape[:_ROWS], size, value.shape[_COLUMNS]])

    def _with_neighbours(self, parts: list[ir.Value], strip: int, above: int, below: int) -> ir.Value:
        pieces = [parts[strip]]
        if above:
            pieces.insert(0, self._slice(parts[strip - 1], -above, _LAST))
        if below:
            pieces.append(self._slice(parts[strip + 1], 0, below))
        rows = self._op("Concat", pieces, parts[strip], axis=_ROWS) if len(pieces) > 1 else pieces[0]
        if self._zero is not None:
            rows = self._op("Add", [rows, self._op("CastLike", [self._zero, rows], None)], rows)
        return rows

    def _zero_after(self, done: list[ir.Value]) -> ir.Value:
        """0, (n,1,1,1), once values are computed: whether a number is positive, times 0. No NaN gets through."""
        total: ir.Value | None = None
        for value in done:
            number = self._corner(value)
            total = number if total is None else self._op("Add", [total, number], None)
        assert total is not None
        nothing = constant(self.graph, "strips_nothing", np.zeros(1, np.float32))
        flag = self._op("Cast", [self._op("Greater", [total, nothing], None)], None, to=ir.DataType.FLOAT)
        zero = self._op("Mul", [flag, nothing], None)
        zero.dtype = ir.DataType.FLOAT
        return zero

    def _computed(self, node: ir.Node, strip: int, above: int, below: int) -> ir.Value:
        data = node.inputs[0]
        assert data is not None
        if node.op_type == "GroupNormalization":
            return self._normalised(node, self._rows(data, strip, above, below))
        if node.op_type == "Conv":
            return self._convolved(node, strip, above, below)
        if node.op_type == "Resize":
            rows = self._rows(data, strip, -(-above // 2), -(-below // 2))
            doubled = self._again(node, [rows, *node.inputs[1:]])
            return self._trimmed(doubled, above % 2, below % 2)
        parts = [
            self._rows(item, strip, above, below) if item is not None and item in self.scale else item
            for item in node.inputs
        ]
        return self._again(node, parts)

    def _convolved(self, node: ir.Node, strip: int, above: int, below: int) -> ir.Value:
        data = node.inputs[0]
        assert data is not None
        top, left, bottom, right = ints_of(node, "pads", [0, 0, 0, 0])
        if _is_doubled(node) and (above % 2 or below % 2):  # whole pixels of the small picture
            rows = self._rows(node.outputs[0], strip, above + above % 2, below + below % 2)
            return self._trimmed(rows, above % 2, below % 2)
        step, taps = ints_of(node, "strides", [1, 1])[0], sizes(node.inputs[1])[2]  # type: ignore[arg-type]
        reach_up = step * above + top
        reach_down = step * below + taps - step - top
        rows = self._rows(data, strip, reach_up, reach_down)
        pads = [top if strip == 0 else 0, left, bottom if strip == self.strips - 1 else 0, right]
        return self._again(node, [rows, *node.inputs[1:]], pads=pads)

    def _trimmed(self, rows: ir.Value, above: int, below: int) -> ir.Value:
        return self._slice(rows, above, -below if below else _LAST) if above or below else rows

    def _normalised(self, node: ir.Node, rows: ir.Value) -> ir.Value:
        data, output = node.inputs[0], node.outputs[0]
        assert data is not None
        found = self._for(node)
        value = self._op("Mul", [self._single(rows), found.factor], rows)
        value = self._op("Add", [value, found.shift], rows)
        for part in (value.producer().inputs[0], value):  # type: ignore[union-attr]
            assert part is not None
            part.dtype = ir.DataType.FLOAT
        if output.dtype == ir.DataType.FLOAT16:
            value = self._op("Cast", [value], output, to=ir.DataType.FLOAT16)
        return value

    # -- statistics

    def _row_statistics(self, strip: ir.Value) -> _Rows:
        across = integers(self.graph, _COLUMNS)
        single = self._single(strip)
        means = self._op("ReduceMean", [single, across], single)
        centred = self._op("Sub", [single, means], single)
        squares = self._op("ReduceSumSquare", [centred, across], single)
        return _Rows(means, squares, self._op("Shape", [strip], None, start=_COLUMNS, end=_COLUMNS + 1))

    def _picture_statistics(self, value: ir.Value, strips: list[_Rows]) -> None:
        """Statistics of all strips together."""
        means, squares = (
            self._op("Concat", parts, parts[0], axis=_ROWS)
            for parts in ([strip.means for strip in strips], [strip.squares for strip in strips])
        )
        self.statistics[value] = _Rows(means, squares, strips[0].width)

    def _after(self, found: _Rows, others: list[ir.Value]) -> _Rows:
        """Statistics of a strip, which are there only once other values are.

        Without that, a runtime would put those off until they are read, and keep all that they are made from.
        """
        assert found.means.shape is not None
        row = integers(self.graph, 1, int(found.means.shape[_CHANNELS]), 1, 1)  # type: ignore[arg-type]
        ends = [self._op("Expand", [self._corner(value), row], found.means) for value in others]
        means, squares = (
            self._slice(self._op("Concat", [values, *ends], values, axis=_ROWS), 0, -len(ends))
            for values in (found.means, found.squares)
        )
        return replace(found, means=means, squares=squares)

    def _corner(self, value: ir.Value) -> ir.Value:
        """A number of a picture, (n,1,1,1), FP32."""
        for axis in (_CHANNELS, _ROWS, _COLUMNS):
            value = self._slice(value, 0, 1, axis)
            value.shape = None
        return self._single(value)

    def _for(self, node: ir.Node) -> _Affine:
        """Factor and shift of a normalisation, from its rows' statistics: short sums, exact to the last digits."""
        key = node.outputs[0]
        if key in self.affine:
            return self.affine[key]
        data, scale, bias = node.inputs
        assert data is not None
        assert scale is not None
        assert bias is not None
        found, graph, op = self.statistics[data], self.graph, self._op
        groups = node.attributes["num_groups"].as_int()
        (channels,) = sizes(scale)
        by_group = integers(graph, 0, groups, -1)
        one = integers(graph, 2)

        def over_rows(value: ir.Value) -> ir.Value:
            value = op("ReduceMean", [value, integers(graph, 2)], None, keepdims=1)  # over the rows first
            value = op("Reshape", [value, by_group], None)
            return op("ReduceMean", [value, one], None, keepdims=1)

        mean = over_rows(found.means)  # (n,groups,1)
        spread = op("Reshape", [mean, integers(graph, 0, groups, 1, 1)], None)
        grouped = op("Reshape", [found.means, integers(graph, 0, groups, channels // groups, -1)], None)
        apart = op("Sub", [grouped, spread], None)
        apart = op("Reshape", [op("Mul", [apart, apart], None), integers(graph, 0, channels, -1, 1)], None)
        width = op("Cast", [found.width], None, to=ir.DataType.FLOAT)
        variance = over_rows(op("Add", [op("Div", [found.squares, width], None), apart], None))
        epsilon = node.attributes["epsilon"].as_float()
        least = constant(graph, f"strips_epsilon_{epsilon:g}", np.array(epsilon, np.float32))
        deviation = op("Sqrt", [op("Add", [variance, least], None)], None)
        of_channels = integers(graph, 1, groups, channels // groups)
        factor = op("Div", [op("Reshape", [self._single(scale), of_channels], None), deviation], None)
        shift = op(
            "Sub",
            [op("Reshape", [self._single(bias), of_channels], None), op("Mul", [mean, factor], None)],
            None,
        )
        by_channel = integers(graph, 0, channels, 1, 1)
        made = _Affine(*(op("Reshape", [value, by_channel], None) for value in (factor, shift)))
        for value in (made.factor, made.shift):
            value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape([None, channels, 1, 1])
        self.affine[key] = made
        return made

    # -- small things

    def _split(self, value: ir.Value) -> list[ir.Value]:
        outputs = self.steps.op_multi_out(
            "Split", [value], num_outputs=self.strips, attributes={"axis": _ROWS, "num_outputs": self.strips}
        )
        for output in outputs:
            output.type, output.shape = _type(value), self._shape(value)
        return list(outputs)

    def _join(self, value: ir.Value) -> None:
        whole = self._op("Concat", self.stored[value], value, axis=_ROWS)
        whole.shape = value.shape
        inside = {use.node for use in value.uses() if self._is_cut(use.node)}
        if value.is_graph_output():
            value.name, whole.name = f"{value.name}_before", value.name
            self.graph.outputs[list(self.graph.outputs).index(value)] = whole
        for use in list(value.uses()):
            if use.node not in inside:
                use.node.replace_input_with(use.idx, whole)

    def _slice(self, value: ir.Value, start: int, end: int, axis: int = _ROWS) -> ir.Value:
        bounds = (integers(self.graph, number) for number in (start, end, axis))
        return self._op("Slice", [value, *bounds], value)

    def _single(self, value: ir.Value) -> ir.Value:
        if value.dtype != ir.DataType.FLOAT16:
            return value
        cast = self._op("Cast", [value], value, to=ir.DataType.FLOAT)
        cast.dtype = ir.DataType.FLOAT
        return cast

    def _again(self, node: ir.Node, inputs: list[ir.Value | None], **changed: list[int]) -> ir.Value:
        """The same node on other inputs."""
        attributes = {name: value for name, value in node.attributes.items() if name not in changed}
        made = self.steps.op(node.op_type, inputs, attributes={**attributes, **changed}, domain=node.domain)
        made.type, made.shape = _type(node.outputs[0]), _free(node.outputs[0])
        return made

    def _op(
        self, op_type: str, inputs: list[ir.Value], like: ir.Value | None, **attributes: int | ir.DataType
    ) -> ir.Value:
        made = self.steps.op(op_type, inputs, attributes=attributes)
        if like is not None:
            made.type, made.shape = _type(like), _free(like)
        return made


def _scales(graph: ir.Graph) -> dict[ir.Value, Fraction]:
    """Scales of every picture that pictures alone make from the graph's input: its sides in units of that one's."""
    found: dict[ir.Value, Fraction] = {}
    for value in graph.inputs:
        if value.shape is not None and len(value.shape) == 4:
            found[value] = Fraction(1)
    for node in graph:
        scale = _scale_of(node, found)
        if scale is not None:
            found[node.outputs[0]] = scale
    return found


def _scale_of(node: ir.Node, known: dict[ir.Value, Fraction]) -> Fraction | None:
    data = node.inputs[0] if node.inputs else None
    if data is None or node.domain != "":
        return None
    if node.op_type == "Conv" and data in known:
        return known[data] / ints_of(node, "strides", [1, 1])[0] if _is_near(node) else None
    if node.op_type == "Resize" and data in known:
        return known[data] * 2 if _doubles(node) else None
    if node.op_type == "GroupNormalization" and data in known:
        return known[data]
    if node.op_type in _ELEMENTWISE:
        pictures = [value for value in node.inputs if value is not None and value in known]
        others = [value for value in node.inputs if value is not None and value not in known]
        if len({known[value] for value in pictures}) == 1 and all(
            value.const_value is not None or are_same_size(value, pictures[0]) for value in others
        ):
            return known[pictures[0]]
    return None


def _is_near(node: ir.Node) -> bool:
    """Whether a convolution reads one row above and below at most, and keeps or halves the sides."""
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        return False
    strides, pads = ints_of(node, "strides", [1, 1]), ints_of(node, "pads", [0, 0, 0, 0])
    kinds = {(1, 1): [[0, 0, 0, 0]], (3, 1): [[1, 1, 1, 1]], (3, 2): [[1, 1, 1, 1], [0, 0, 1, 1]]}
    return (
        len(set(strides)) == 1
        and sizes(weight)[2] == sizes(weight)[3]
        and pads in kinds.get((sizes(weight)[2], strides[0]), [])
        and ints_of(node, "dilations", [1, 1]) == [1, 1]
        and ("auto_pad" not in node.attributes or node.attributes["auto_pad"].as_string() == "NOTSET")
    )


def _doubles(node: ir.Node) -> bool:
    scales = node.inputs[2] if len(node.inputs) == 3 else None
    return (
        scales is not None
        and scales.const_value is not None
        and scales.const_value.numpy().tolist() == [1, 1, 2, 2]
        and node.attributes["mode"].value == "nearest"
    )


def _is_doubled(node: ir.Node) -> bool:
    """Whether a node convolves a doubled picture."""
    data = node.inputs[0]
    source = data.producer() if data is not None else None
    return node.op_type == "Conv" and source is not None and source.op_type == "Resize"


def _type(value: ir.Value) -> ir.TensorType | None:
    """A type of its own: changing it changes no other value's."""
    return ir.TensorType(value.dtype) if value.dtype is not None else None


def _free(value: ir.Value) -> ir.Shape | None:
    """The shape of a strip: its rows are not said."""
    if value.shape is None or len(value.shape) != 4:
        return value.shape
    return ir.Shape([*list(value.shape)[:_ROWS], None, value.shape[_COLUMNS]])
