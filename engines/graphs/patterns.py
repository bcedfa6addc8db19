"""Recognises what of a graph the CPU form rewrites."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import onnx_ir as ir

_LAST_ROW = (1 << 63) - 1  # as the end of a Slice


def sizes(value: ir.Value) -> list[int]:
    """Sizes of a constant."""
    assert value.const_value is not None
    return list(value.const_value.shape.numpy())


def are_same_size(left: ir.Value | None, right: ir.Value | None) -> bool:
    """Whether both are pictures of the same shape, as far as the graph says."""
    shapes = [value.shape if value is not None else None for value in (left, right)]
    return shapes[0] is not None and len(shapes[0]) == 4 and shapes[0] == shapes[1]


def factors(value: ir.Value) -> list[int]:
    """What sides are multiples of: a and b of an (n,c,a*h,b*w), 4 of 8*h+4; 0 where it is not known."""
    if value.shape is None or len(value.shape) != 4:
        return [0, 0]
    found = [re.fullmatch(r"(\d+)(?:\*[A-Za-z_]\w*(?:\+(\d+))?)?", str(size)) for size in value.shape[2:]]
    return [math.gcd(int(factor[1]), int(factor[2] or 0)) if factor is not None else 0 for factor in found]


def is_convolution(node: ir.Node, strides: list[int], pads: list[int]) -> bool:
    """Whether a Conv is one of these, without dilation, in one group."""
    return insets(node, strides, pads) == (0, 0)


def ints_of(node: ir.Node, name: str, default: list[int]) -> list[int]:
    """An attribute of integers, or what it is where the node does not say."""
    return list(node.attributes[name].as_ints()) if name in node.attributes else default


def insets(node: ir.Node, strides: list[int], pads: list[int]) -> tuple[int, int] | None:
    """How many rows above and below a Conv of these has in its data instead of zeros; None if it is none of these."""
    automatic = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    group = node.attributes["group"].as_int() if "group" in node.attributes else 1
    top, left, bottom, right = ints_of(node, "pads", [0, 0, 0, 0])
    found = pads[0] - top, pads[2] - bottom
    is_one = (
        automatic == "NOTSET"
        and group == 1
        and [left, right] == [pads[1], pads[3]]
        and min(found) >= 0
        and ints_of(node, "strides", [1, 1]) == strides
        and ints_of(node, "dilations", [1, 1]) == [1, 1]
    )
    return found if is_one else None


def is_pointwise(node: ir.Node, weight: ir.Value) -> bool:
    """Whether a Conv is a product of matrices: 1x1, a constant weight."""
    if weight.const_value is None or sizes(weight)[2:] != [1, 1]:
        return False
    return is_convolution(node, strides=[1, 1], pads=[0, 0, 0, 0])


def before_doubling(value: ir.Value, inset: tuple[int, int] = (0, 0)) -> ir.Value | None:
    """x, if `value` is x with every pixel repeated, and nothing else uses it.

    Args:
        value: what a convolution reads.
        inset: rows above and below that it reads instead of zeros. They are whole pixels of x, the outer half of
            which was cut off.
    """
    if inset != (0, 0):
        cut = value.producer()
        bounds = rows_of_slice(cut) if cut is not None else None
        if cut is None or bounds != (inset[0], -inset[1] or None) or len(value.uses()) != 1:
            return None
        assert cut.inputs[0] is not None
        value = cut.inputs[0]
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


def rows_of_slice(node: ir.Node) -> tuple[int, int | None] | None:
    """First row and end of what a Slice takes of a picture's rows, None for the last one; None if it is no such."""
    found = slice_of(node)
    return None if found is None or found[0] != 2 else found[1:]


def slice_of(node: ir.Node) -> tuple[int, int, int | None] | None:
    """Axis, start and end (None for the last) of a Slice along one axis in steps of one; None if it is no such."""
    if node.op_type != "Slice" or len(node.inputs) != 4:
        return None
    bounds = []
    for value in node.inputs[1:]:
        if value is None or value.const_value is None or value.const_value.size != 1:
            return None
        bounds.append(int(value.const_value.numpy().reshape(-1)[0]))
    start, end, axis = bounds
    return axis, start, None if end == _LAST_ROW else end


@dataclass(frozen=True, eq=False)
class Norm:
    """A normalisation, followed by SiLU.

    Attributes:
        data: what it normalises.
        node: a GroupNormalization; or None, and
        factor, shift: (n,c,1,1), what its data are multiplied by, and what is added.
    """

    data: ir.Value
    node: ir.Node | None
    factor: ir.Value | None = None
    shift: ir.Value | None = None


def norm_before(value: ir.Value) -> Norm | None:
    """The normalisation, if `value` is its SiLU (x * sigmoid(x)) and nothing else uses either."""
    product = value.producer()
    if product is None or product.op_type != "Mul" or len(value.uses()) != 1 or value.is_graph_output():
        return None
    for data, gate in (product.inputs, product.inputs[::-1]):
        sigmoid, norm = (item.producer() if item is not None else None for item in (gate, data))
        if sigmoid is None or norm is None or data is None or gate is None:
            continue
        if sigmoid.op_type != "Sigmoid" or sigmoid.inputs[0] is not data or len(gate.uses()) != 1:
            continue
        if len(data.uses()) != 2 or data.is_graph_output():
            continue
        if norm.op_type == "GroupNormalization":
            assert norm.inputs[0] is not None
            return Norm(norm.inputs[0], norm)
        if norm.op_type == "Add":
            return _affine(norm)
    return None


def _affine(add: ir.Node) -> Norm | None:
    """data * factor + shift."""
    scaled, shift = add.inputs
    product = scaled.producer() if scaled is not None else None
    if product is None or product.op_type != "Mul" or len(product.outputs[0].uses()) != 1:
        return None
    data, factor = product.inputs
    if data is None or not all(_is_of_channels(value) for value in (factor, shift)):
        return None
    return Norm(data, None, factor, shift)


def _is_of_channels(value: ir.Value | None) -> bool:
    """Whether it has a number for each channel, (n,c,1,1)."""
    return value is not None and value.shape is not None and list(value.shape[2:]) == [1, 1]
