"""Recognises what of a graph the CPU form rewrites."""

from __future__ import annotations

import re

import onnx_ir as ir


def sizes(value: ir.Value) -> list[int]:
    """Of a constant."""
    assert value.const_value is not None
    return list(value.const_value.shape.numpy())


def are_same_size(left: ir.Value | None, right: ir.Value | None) -> bool:
    """Whether both are pictures of the same shape, as far as the graph says."""
    shapes = [value.shape if value is not None else None for value in (left, right)]
    return shapes[0] is not None and len(shapes[0]) == 4 and shapes[0] == shapes[1]


def factors(value: ir.Value) -> list[int]:
    """a and b of an (n,c,a*h,b*w); 0 where they are not known."""
    if value.shape is None or len(value.shape) != 4:
        return [0, 0]
    found = [re.fullmatch(r"(\d+)(?:\*[A-Za-z_]\w*)?", str(size)) for size in value.shape[2:]]
    return [int(factor[1]) if factor is not None else 0 for factor in found]


def is_convolution(node: ir.Node, strides: list[int], pads: list[int]) -> bool:
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


def is_pointwise(node: ir.Node, weight: ir.Value) -> bool:
    """Whether a Conv is a product of matrices: 1x1, a constant weight."""
    if weight.const_value is None or sizes(weight)[2:] != [1, 1]:
        return False
    return is_convolution(node, strides=[1, 1], pads=[0, 0, 0, 0])


def before_doubling(value: ir.Value) -> ir.Value | None:
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


def norm_before(value: ir.Value) -> ir.Node | None:
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
