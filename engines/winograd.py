"""Wide 3x3 convolutions by Winograd's minimal filtering, as standard ONNX nodes.

F(4x4,3x3) makes 4x4 results from 6x6 values with 36 products instead of 144. Over many channels these
become 36 matrix products, which is where the time goes; the transforms before and after are
convolutions with constant kernels. ONNX Runtime's CPU provider has no such form of its own.

Source: A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016; the points 0, 1,
-1, 1/2, -2 after B. Barabasz et al., "Error Analysis and Improving the Accuracy of Winograd Convolution for
Deep Neural Networks", ACM TOMS 2020: in FP32 the error stays near 1e-6 of the results' deviation.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from engines.graphs import constant, integers, take_over

POINTS = (Fraction(0), Fraction(1), Fraction(-1), Fraction(1, 2), Fraction(-2))  # and infinity
TILE = 4  # results a side
_TAPS = 3
_WINDOW = TILE + _TAPS - 1

# Transforming costs by the channel, multiplying by the product of both channels: with fewer, the direct
# convolution is as fast (measured on AVX2: 256 channels 1.3 times faster, 512 1.9 times, 128 slower).
MIN_CHANNELS = 256
# Transformed weights take 4 times the memory; wider layers have too few tiles to use them on.
MAX_CHANNELS = 512
# Transformed values may be so much larger than the network's largest layer; more would show in the memory.
MAX_GROWTH = 1.25
_GROWTH = (_WINDOW / TILE) ** 2  # of a layer by its transform


def transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The matrices of F(4,3) in double precision, for `POINTS` and infinity (Toom and Cook's construction).

    Returns:
        A (4,6), G (6,3) and B (6,6): the correlation of d (6,) with g (3,) is A ((G g) * (B d)).
    """
    A, G, B = np.zeros((TILE, _WINDOW)), np.zeros((_WINDOW, _TAPS)), np.zeros((_WINDOW, _WINDOW))
    for i, point in enumerate(POINTS):
        others = [other for other in POINTS if other != point]
        scale = float(math.prod(point - other for other in others))
        A[:, i] = [float(point**power) for power in range(TILE)]
        G[i] = [float(point**power) / scale for power in range(_TAPS)]
        B[i, :-1] = _polynomial(others)
    A[-1, -1] = 1.0
    G[-1, -1] = 1.0
    B[-1] = _polynomial(list(POINTS))
    return A, G, B


def _polynomial(roots: list[Fraction]) -> list[float]:
    """Coefficients of the monic polynomial with these roots, lowest power first."""
    coefficients = [Fraction(1)]
    for root in roots:
        pairs = zip([Fraction(0), *coefficients], [*coefficients, Fraction(0)], strict=True)
        coefficients = [below - root * same for below, same in pairs]
    return [float(value) for value in coefficients]


def replace_convolutions(
    graph: ir.Graph,
    min_channels: int = MIN_CHANNELS,
    max_channels: int = MAX_CHANNELS,
    max_growth: float = MAX_GROWTH,
) -> int:
    """Rewrites the FP32 convolutions that gain by it; returns how many.

    Only those whose sides are known, from the graph's symbolic shapes, to be whole tiles.

    Args:
        graph: changed in place.
        min_channels, max_channels: of the layers, input and output.
        max_growth: see `MAX_GROWTH`.
    """
    candidates = [node for node in graph if node.op_type == "Conv" and node.domain == ""]
    largest = max((_area(node.inputs[0]) for node in candidates), default=0)
    changed = 0
    for node in candidates:
        weight, area = node.inputs[1], _area(node.inputs[0])
        if not area or weight is None or weight.const_value is None or weight.dtype != ir.DataType.FLOAT:
            continue
        outputs, inputs, *kernel = weight.const_value.shape.numpy()
        if kernel != [_TAPS, _TAPS] or not _is_plain(node):
            continue
        if min(inputs, outputs) < min_channels or max(inputs, outputs) > max_channels:
            continue
        if area // inputs * max(inputs, outputs) * _GROWTH > largest * max_growth:
            continue
        take_over(node.outputs[0], _filtered(graph, node, inputs, outputs))
        changed += 1
    return changed


def _area(value: ir.Value | None) -> int:
    """c*a*b of a (n,c,a*h,b*w): its size a picture and unit of h and w; 0 if a or b are not whole tiles."""
    if value is None or value.shape is None or len(value.shape) != 4:
        return 0
    area = 1
    for index, size in enumerate(value.shape[1:]):
        factor = re.fullmatch(r"(\d+)(?:\*[A-Za-z_]\w*)?", str(size))
        if factor is None or (index and int(factor[1]) % TILE):
            return 0
        area *= int(factor[1])
    return area


def _is_plain(node: ir.Node) -> bool:
    """Stride 1, no dilation, one group, one pixel of zeros around."""

    def ints(name: str, default: list[int]) -> list[int]:
        return list(node.attributes[name].as_ints()) if name in node.attributes else default

    automatic = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    group = node.attributes["group"].as_int() if "group" in node.attributes else 1
    return (
        automatic == "NOTSET"
        and group == 1
        and ints("pads", []) == [1, 1, 1, 1]
        and ints("strides", [1, 1]) == [1, 1]
        and ints("dilations", [1, 1]) == [1, 1]
    )


def _filtered(graph: ir.Graph, node: ir.Node, inputs: int, outputs: int) -> ir.Value:
    data, weight = node.inputs[:2]
    assert data is not None
    assert weight is not None
    A, G, B = transforms()
    points = _WINDOW * _WINDOW
    steps = tape.Tape()

    def single(name: str, array: np.ndarray) -> ir.Value:
        return constant(graph, f"winograd_{name}", array.astype(np.float32))

    def both_ways(matrix: np.ndarray, channels: int) -> np.ndarray:
        """The transform of a square as a depthwise kernel: (channels * 36, 1, side, side)."""
        kernel = np.einsum("ia,jb->ijab", matrix, matrix).reshape(points, 1, *2 * [matrix.shape[1]])
        return np.tile(kernel, (channels, 1, 1, 1))

    # (outputs,inputs,3,3) -> (36,outputs,inputs). ONNX Runtime computes it once, as it loads the graph; so
    # the file goes on sharing the native graph's weights.
    taps = steps.op("Reshape", (weight, integers(graph, -1, _TAPS * _TAPS)))
    taps = steps.op("MatMul", (taps, single("weights", np.kron(G, G).T)))
    taps = steps.op("Reshape", (taps, integers(graph, outputs, inputs, points)))
    taps = steps.op("Transpose", (taps,), attributes={"perm": [2, 0, 1]})

    # (n,inputs,h,w) -> (n,36,inputs,tiles)
    tiles = steps.op(
        "Conv",
        (data, single(f"tiles_{inputs}", both_ways(B, inputs))),
        attributes={
            "kernel_shape": [_WINDOW, _WINDOW],
            "strides": [TILE, TILE],
            "pads": [1, 1, 1, 1],
            "group": inputs,
        },
    )
    grid = steps.op("Shape", (tiles,), attributes={"start": 2})
    columns = steps.op("Reshape", (tiles, integers(graph, 0, inputs, points, -1)))
    columns = steps.op("Transpose", (columns,), attributes={"perm": [0, 2, 1, 3]})

    products = steps.op("MatMul", (taps, columns))

    # (n,36,outputs,tiles) -> (n,outputs,h,w)
    products = steps.op("Transpose", (products,), attributes={"perm": [0, 2, 1, 3]})
    by_tile = steps.op("Concat", (integers(graph, 0, outputs * points), grid), attributes={"axis": 0})
    products = steps.op("Reshape", (products, by_tile))
    result = steps.op(
        "ConvTranspose",
        [products, single(f"results_{outputs}", both_ways(A.T, outputs)), *node.inputs[2:]],
        attributes={"kernel_shape": [TILE, TILE], "strides": [TILE, TILE], "group": outputs},
    )
    graph.insert_before(node, steps.nodes)
    return result
