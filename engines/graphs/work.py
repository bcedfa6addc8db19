"""What a run of a network takes: multiply-adds and numbers through memory, counted in its ONNX graph.

What is counted:

* **Multiply-adds** of Conv, ConvTranspose, MatMul, Gemm, Attention and the attentions that are local functions
  (`kernels/`), by their direct algorithm: a Winograd convolution takes fewer. GatedTopKAttention takes 2 (C + 1) for
  a head and a pair of positions, all pairs, as its folded form does (`gated_topk/fold.py`). Elementwise arithmetic,
  normalisations, softmax, resampling and top-k count nothing.
* **Weights**: every number in a floating point initialiser, once. Of a table that rows are gathered from, the rows.
* **Activations**: the inputs and outputs of what must be a kernel of its own, once for each that reads or writes
  them: the above, normalisations, pooling, Resize and GridSample. An attention reads queries, keys and values and
  writes its result; its scores stay inside. All else (elementwise arithmetic, casts, sums over axes, reshaping,
  cutting, joining) is taken to be done inside of the kernel before or behind it, which is also why a residual costs
  nothing. Inputs and outputs of the network itself count once where no such kernel reads or writes them.

The counts at a few sizes are turned into polynomials of the symbolic sizes, exactly, and checked at other sizes.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx
import onnx.defs
import onnx.shape_inference
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from vsr_trt.kernels.gated_topk.onnx_function import DOMAIN, OPERATORS
from vsr_trt.kernels.softmax_attention import SOFTMAX_ATTENTION
from vsr_trt.runtime.bundle.manifest import Bound, Work
from vsr_trt.runtime.bundle.symbols import Polynomial, dimension, evaluate
from vsr_trt.runtime.errors import ExportError

Sizes = Mapping[str, int]
Shape = tuple[int, ...]

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
_SMALL = 64  # numbers in a tensor up to which its values are followed: those that make shapes are shorter
# Kernels of their own that multiply nothing worth counting.
_MOVES = {
    "AveragePool", "BatchNormalization", "GlobalAveragePool", "GridSample", "GroupNormalization",
    "InstanceNormalization", "LayerNormalization", "MaxPool", "RMSNormalization", "Resize",
}  # fmt: skip
# They multiply, or hold other nodes, and there is no rule for them here: better no count than a wrong one.
_UNKNOWN = {
    "ConvInteger", "DeformConv", "Einsum", "GRU", "If", "LSTM", "Loop", "MatMulInteger", "QLinearConv",
    "QLinearMatMul", "RNN", "Scan",
}  # fmt: skip
# The same numbers under another name.
_VIEWS = {"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_ROUNDINGS = (16, 32, 64)  # multiples that networks pad their sizes to inside
_CHECKS = 4  # sizes beyond those that a polynomial is made of


@dataclass(frozen=True)
class Count:
    """The work at one size; the fields are those of the manifest's `Work`."""

    multiply_adds: int
    weights: int
    activations: int
    integer_bytes: int


def measure(model: onnx.ModelProto, bounds: Mapping[str, Bound]) -> Work:
    """Counts a native graph's work for any size.

    Args:
        model: the graph; its inputs have the manifest's symbolic shapes. External data need not be loaded.
        bounds: of the symbolic sizes.

    Raises:
        ExportError: a shape in the graph cannot be inferred, a node has no rule, or the counts are no polynomials.
    """
    given = _symbols(model.graph.input)
    derived = _symbols(model.graph.output) - given
    symbols = sorted(given | derived)
    samples = _Samples(model, {name: bounds[name] for name in sorted(given)}, derived)
    return Work(
        multiply_adds=_fit(samples, symbols, lambda counted: counted.multiply_adds),
        weights=samples.get(1)[0][1].weights,
        activations=_fit(samples, symbols, lambda counted: counted.activations),
        integer_bytes=_fit(samples, symbols, lambda counted: counted.integer_bytes),
    )


def _symbols(tensors: Iterable[onnx.ValueInfoProto]) -> set[str]:
    """The symbolic sizes of inputs or outputs, but for the number of tiles."""
    dims = (dim for tensor in tensors for dim in tensor.type.tensor_type.shape.dim)
    symbols = {dimension(dim.dim_param or dim.dim_value)[1] for dim in dims}
    return {symbol for symbol in symbols if symbol and symbol != "n"}


def count(model: onnx.ModelProto, sizes: Sizes) -> Count:
    """Counts a graph's work at one size.

    Raises:
        ExportError: a shape in the graph cannot be inferred, or a node has no rule.
    """
    return _count(model, _Graph(model, sizes))


def _count(model: onnx.ModelProto, graph: _Graph) -> Count:
    multiply_adds = activations = 0
    read: set[str] = set()
    written: set[str] = set()
    weights: dict[str, int] = {}
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name in graph.weights:
                if node.op_type == "Gather" and position == 0:
                    activations += graph.elements(node.output[0])
                else:
                    weights[name] = graph.elements(name)
        rule = _PRODUCTS.get((node.domain, node.op_type))
        if rule is None and (node.domain or node.op_type in _UNKNOWN):
            raise ExportError(f"there is no rule to count {node.op_type}.")
        if rule is None and node.op_type not in _MOVES:
            continue
        multiply_adds += rule(graph, node) if rule else 0
        operands = [*node.input, *node.output]
        if node.op_type == "Resize":
            operands = [node.input[0], *node.output]  # the rest are sizes and scales
        activations += sum(graph.elements(name) for name in operands if name and name not in graph.constants)
        read.update(graph.origin(name) for name in node.input)
        written.update(node.output)
    ends = [tensor.name for tensor in model.graph.input if tensor.name not in read]
    ends += [tensor.name for tensor in model.graph.output if graph.origin(tensor.name) not in written]
    integer_bytes = 0
    for name in ends:
        if graph.dtype(name) in _FLOATS:
            activations += graph.elements(name)
        else:
            width = helper.tensor_dtype_to_np_dtype(graph.dtype(name)).itemsize
            integer_bytes += width * graph.elements(name)
    return Count(multiply_adds, sum(weights.values()), activations, integer_bytes)


class _Graph:
    """The shapes of a graph's tensors at one size, inferred node by node.

    The shapes that the tracer left in the file are in symbols of its own, and onnx's inference over a whole graph
    does not divide, which the padding of sizes needs: here the values of small tensors are computed.

    Attributes:
        weights: floating point initialisers.
        constants: what depends on no input of the graph.
    """

    def __init__(self, model: onnx.ModelProto, sizes: Sizes) -> None:
        self._opsets = {opset.domain: opset.version for opset in model.opset_import}
        self._imports = list(model.opset_import)
        self._ir_version = model.ir_version
        self._types: dict[str, onnx.TypeProto] = {}
        self._values: dict[str, onnx.TensorProto] = {}
        for tensor in model.graph.input:
            kind = tensor.type.tensor_type
            shape = [_size(dim.dim_param or dim.dim_value, sizes) for dim in kind.shape.dim]
            self._types[tensor.name] = helper.make_tensor_type_proto(kind.elem_type, shape)
        for initialiser in model.graph.initializer:
            self._types[initialiser.name] = helper.make_tensor_type_proto(
                initialiser.data_type, list(initialiser.dims)
            )
            outside = initialiser.data_location == TensorProto.EXTERNAL
            if not outside and math.prod(initialiser.dims) <= _SMALL:
                self._values[initialiser.name] = initialiser
        self._views = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type in _VIEWS}
        self.constants = {initialiser.name for initialiser in model.graph.initializer}
        self.weights = {name for name in self.constants if self.dtype(name) in _FLOATS}
        for node in model.graph.node:
            self._infer(node)
            if all(name in self.constants for name in node.input if name):
                self.constants.update(node.output)

    def dtype(self, name: str) -> int:
        """The tensor's type of numbers, as onnx counts them."""
        return self._types[name].tensor_type.elem_type

    def shape(self, name: str) -> Shape:
        """The tensor's shape.

        Raises:
            ExportError: it could not be inferred.
        """
        kind = self._types[name].tensor_type
        if not kind.HasField("shape") or not all(dim.HasField("dim_value") for dim in kind.shape.dim):
            raise ExportError(f"the shape of {name!r} in the graph cannot be inferred.")
        return tuple(dim.dim_value for dim in kind.shape.dim)

    def elements(self, name: str) -> int:
        """How many numbers the tensor holds."""
        return math.prod(self.shape(name))

    def origin(self, name: str) -> str:
        """What a tensor is another view of: itself, where it is computed."""
        while name in self._views:
            name = self._views[name]
        return name

    def _infer(self, node: onnx.NodeProto) -> None:
        # Results of the local functions and of normalisations are as their first input; onnx infers neither.
        if node.domain == DOMAIN or node.op_type.endswith("Normalization"):
            self._types[node.output[0]] = self._types[node.input[0]]
            return
        schema = onnx.defs.get_schema(node.op_type, self._opsets[node.domain], node.domain)
        names = [name for name in node.input if name]
        known = {name: self._values[name] for name in names if name in self._values}
        try:
            outputs = onnx.shape_inference.infer_node_outputs(
                schema,
                node,
                {name: self._types[name] for name in names},
                known,
                opset_imports=self._imports,
                ir_version=self._ir_version,
            )
        except onnx.shape_inference.InferenceError as error:
            raise ExportError(
                f"the shapes behind {node.name or node.op_type} cannot be inferred: {error}"
            ) from error
        self._types.update(outputs)
        if node.op_type == "Shape":
            whole = self.shape(node.input[0])
            attributes = {a.name: a.i for a in node.attribute}
            part = whole[attributes.get("start", 0) : attributes.get("end", len(whole))]
            self._know(node.output[0], np.array(part, np.int64))
        elif len(known) == len(set(names)) and all(self._is_small(name) for name in node.output if name):
            inputs = {name: numpy_helper.to_array(value) for name, value in known.items()}
            for name, value in zip(node.output, ReferenceEvaluator(node).run(None, inputs), strict=True):
                self._know(name, np.asarray(value))

    def _is_small(self, name: str) -> bool:
        kind = self._types[name].tensor_type
        dims = kind.shape.dim
        return (
            kind.HasField("shape")
            and all(d.HasField("dim_value") for d in dims)
            and self.elements(name) <= _SMALL
        )

    def _know(self, name: str, value: np.ndarray) -> None:
        self._values[name] = numpy_helper.from_array(value, name)


def _size(size: int | str, sizes: Sizes) -> int:
    factor, symbol = dimension(size)
    return factor * ({"n": 1, **sizes}[symbol] if symbol else 1)


def _convolution(graph: _Graph, node: onnx.NodeProto) -> int:
    return graph.elements(node.output[0]) * math.prod(graph.shape(node.input[1])[1:])


def _transposed_convolution(graph: _Graph, node: onnx.NodeProto) -> int:
    return graph.elements(node.input[0]) * math.prod(graph.shape(node.input[1])[1:])


def _product(graph: _Graph, node: onnx.NodeProto) -> int:
    return graph.elements(node.output[0]) * graph.shape(node.input[0])[-1]


def _general_product(graph: _Graph, node: onnx.NodeProto) -> int:
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return graph.elements(node.output[0]) * graph.shape(node.input[0])[0 if transposed else 1]


def _attention(graph: _Graph, node: onnx.NodeProto) -> int:
    """Queries by keys, and shares by values; the heads are an axis, or side by side in the last one."""
    attributes = {a.name: a.i for a in node.attribute}
    queries, keys, values = (graph.shape(name) for name in node.input[:3])
    if len(queries) == 4:
        batch, heads, length, width = queries
        other, value_width = keys[2], values[3]
    else:
        batch, length, width = queries
        heads = attributes["q_num_heads"]
        width //= heads
        other, value_width = keys[1], values[2] // attributes["kv_num_heads"]
    return batch * heads * length * other * (width + value_width)


def _softmax_attention(graph: _Graph, node: onnx.NodeProto) -> int:
    """One head, (N,L,C)."""
    queries, keys, values = (graph.shape(name) for name in node.input[:3])
    return queries[0] * queries[1] * keys[1] * (queries[2] + values[2])


def _gated_attention(graph: _Graph, node: onnx.NodeProto) -> int:
    """current, previous (N,C,h,w), M (heads,C+1,C+1)."""
    (batch, _, *area), (_, _, *other), (heads, rows, _) = (graph.shape(name) for name in node.input[:3])
    return batch * heads * 2 * rows * math.prod(area) * math.prod(other)


_PRODUCTS: dict[tuple[str, str], Callable[[_Graph, onnx.NodeProto], int]] = {
    ("", "Conv"): _convolution,
    ("", "ConvTranspose"): _transposed_convolution,
    ("", "MatMul"): _product,
    ("", "Gemm"): _general_product,
    ("", "Attention"): _attention,
    (DOMAIN, SOFTMAX_ATTENTION): _softmax_attention,
    **{(DOMAIN, operator): _gated_attention for operator in OPERATORS.values()},
}


class _Samples:
    """Counts at pairs of sizes that are drawn once and kept: the same for every polynomial.

    Args:
        model: the graph.
        bounds: of the sizes that its inputs have.
        derived: sizes that outputs alone have, such as those of a canvas that depend on a picture's. They are read
            off the inferred shapes, and the inputs' are drawn from all of their bounds: a canvas stays the same for a
            while.
    """

    def __init__(self, model: onnx.ModelProto, bounds: Mapping[str, Bound], derived: Iterable[str]) -> None:
        self._model, self._bounds, self._derived = model, bounds, frozenset(derived)
        self._random = random.Random(0)
        self._drawn: list[tuple[dict[str, int], Count]] = []

    def get(self, number: int) -> Sequence[tuple[dict[str, int], Count]]:
        """The first `number` of them."""
        while len(self._drawn) < number:
            sizes = {name: self._draw(bound) for name, bound in self._bounds.items()}
            graph = _Graph(self._model, sizes)
            sizes |= self._read_off(graph)
            self._drawn.append((sizes, _count(self._model, graph)))
        return self._drawn[:number]

    def _read_off(self, graph: _Graph) -> dict[str, int]:
        found = {}
        for tensor in self._model.graph.output if self._derived else ():
            dims = tensor.type.tensor_type.shape.dim
            for dim, size in zip(dims, graph.shape(tensor.name), strict=True):
                factor, symbol = dimension(dim.dim_param or dim.dim_value)
                if symbol in self._derived:
                    found[symbol] = size // factor
        return found

    def _draw(self, bound: Bound) -> int:
        step = bound.multiple_of
        least, most = -(-(bound.min - bound.offset) // step), (bound.max - bound.offset) // step
        if not self._derived:
            most = min(most, least + 50)
        return step * self._random.randint(least, max(least, most)) + bound.offset


def _fit(samples: _Samples, symbols: Sequence[str], number: Callable[[Count], int]) -> Polynomial:
    """The polynomial with the fewest products that gives a count at all sizes, exactly.

    Raises:
        ExportError: none does.
    """
    for products in _bases(symbols):
        drawn = samples.get(len(products) + _CHECKS)
        rows = [[Fraction(evaluate({product: 1}, sizes)) for product in products] for sizes, _ in drawn]
        solution = _solve(rows, [Fraction(number(counted)) for _, counted in drawn])
        if solution is not None:
            pairs = zip(products, solution, strict=True)
            return {product: float(coefficient) for product, coefficient in pairs if coefficient}
    raise ExportError(f"the work is no polynomial of {', '.join(symbols)}.")


def _bases(symbols: Sequence[str]) -> Iterable[list[str]]:
    """Products to try, few before many. Sides are known by their names, which end with h and w."""
    heights = [name for name in symbols if name.endswith("h")]
    widths = [f"{name[:-1]}w" for name in heights]
    others = [name for name in symbols if name not in (*heights, *widths)]  # frames, steps
    if any(name.endswith("w") for name in others) or not set(widths) <= set(symbols):
        return
    areas = [f"{height}*{width}" for height, width in zip(heights, widths, strict=True)]
    squares = [f"{area}*{area}" for area in areas]
    if others:
        yield from _bases_of_frames(others, areas, squares, widths)
        return
    yield ["1", *areas]
    yield ["1", *areas, *squares]
    yield [*_mixed(heights, widths), *squares]
    for multiple in _ROUNDINGS:  # as they are, and padded inside
        padded_heights, padded_widths = (
            [f"ceil({name},{multiple})" for name in names] for names in (heights, widths)
        )
        yield ["1", *areas, *(f"{h}*{w}" for h, w in zip(padded_heights, padded_widths, strict=True))]
        yield [*_mixed([*heights, *padded_heights], [*widths, *padded_widths]), *squares]


def _bases_of_frames(
    others: Sequence[str], areas: Sequence[str], squares: Sequence[str], widths: Sequence[str]
) -> Iterable[list[str]]:
    """Products to try where there are frames: they share what has no area, and look at each other at each position.

    The last ones are for a network whose levels are half of the height each, and a constant more.
    """
    by_area = [f"{other}*{area}" for other in others for area in areas]
    yield ["1", *others, *by_area]
    yield ["1", *others, *by_area, *(f"{other}*{square}" for other in others for square in squares)]
    for width in widths:
        alone = [*areas, width, f"{width}*{width}", *(f"{area}*{width}" for area in areas), *squares]
        pairs = [f"{other}*{other}*{size}" for other in others for size in (*areas, width)]
        yield ["1", *(f"{other}*{size}" for other in others for size in alone), *pairs]


def _mixed(heights: Sequence[str], widths: Sequence[str]) -> list[str]:
    return ["1", *heights, *widths, *(f"{h}*{w}" for h, w in itertools.product(heights, widths))]


def _solve(rows: list[list[Fraction]], right: list[Fraction]) -> list[Fraction] | None:
    """Solves more equations than unknowns exactly, by elimination; None if they contradict each other.

    Unknowns that the equations leave open (two products that are always equal) are 0.
    """
    table = [[*row, value] for row, value in zip(rows, right, strict=True)]
    unknowns = len(rows[0])
    pivots: list[int] = []
    for column in range(unknowns):
        done = len(pivots)
        pivot = next((i for i in range(done, len(table)) if table[i][column]), None)
        if pivot is None:
            continue
        table[done], table[pivot] = table[pivot], table[done]
        table[done] = [value / table[done][column] for value in table[done]]
        for i, row in enumerate(table):
            if i != done and row[column]:
                table[i] = [a - row[column] * b for a, b in zip(row, table[done], strict=True)]
        pivots.append(column)
    if any(row[-1] for row in table[len(pivots) :]):
        return None
    solution = [Fraction(0)] * unknowns
    for row, column in zip(table, pivots, strict=False):
        solution[column] = row[-1]
    return solution
