"""Convolutions with few multiplications: for each, the three matrices of its transforms.

A kernel slides over windows of the picture. A `Filter` makes of each window a few values, multiplies them
with as many values of the kernel, and makes results of the products. Over many channels each of these products
becomes a matrix product, which is where the time goes.

| filter | of | products a result, direct |
|---|---|---|
| `winograd(4)` | 3x3, stride 1: F(4x4,3x3) | 2.25, 9 |
| `winograd(2)` | the same: F(2x2,3x3), with fewer values of the kernel | 4, 9 |
| `upsampling()` | 3x3 on a picture doubled by repeating its pixels, from the small one | 2.25, 9 |
| `direct(step, before)` | 3x3, any stride | 9, 9: as it is, to stay in the layout |

Sources: A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016; the points 0, 1,
-1, 1/2, -2 after B. Barabasz et al., "Error Analysis and Improving the Accuracy of Winograd Convolution for
Deep Neural Networks", ACM TOMS 2020: in FP32 the error stays near 1e-6 of the results' deviation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

_Matrix = np.ndarray[Any, np.dtype[np.float64]]

POINTS = (Fraction(0), Fraction(1), Fraction(-1), Fraction(1, 2), Fraction(-2))  # and infinity
TAPS = 3


@dataclass(frozen=True, eq=False)
class Filter:
    """In one dimension: the results of a window d and a kernel g are A ((G g) * (B d)).

    Args:
        name: unique, for the names of the graph's constants.
        A: (results, products).
        G: (products, taps).
        B: (products, window).
        step: of the picture's pixels from one window to the next.
        before: pixels of zeros before the first window's first pixel.
    """

    name: str
    A: _Matrix
    G: _Matrix
    B: _Matrix
    step: int
    before: int

    @property
    def results(self) -> int:
        """A side of the results of one window."""
        return self.A.shape[0]

    @property
    def products(self) -> int:
        """Products of one window, by side."""
        return self.A.shape[1]

    @property
    def is_direct(self) -> bool:
        """Whether the values are the pixels themselves."""
        return np.array_equal(self.B, np.eye(self.window))

    @property
    def window(self) -> int:
        """A side of the window."""
        return self.B.shape[1]


def winograd(results: int) -> Filter:
    """F(results,3) for the first of `POINTS`, and infinity (Toom and Cook's construction).

    Args:
        results: 2 to 4.
    """
    points = POINTS[: results + 1]
    window = results + TAPS - 1
    A, G, B = np.zeros((results, window)), np.zeros((window, TAPS)), np.zeros((window, window))
    for i, point in enumerate(points):
        others = [other for other in points if other != point]
        scale = float(math.prod(point - other for other in others))
        A[:, i] = [float(point**power) for power in range(results)]
        G[i] = [float(point**power) / scale for power in range(TAPS)]
        B[i, :-1] = _polynomial(others)
    A[-1, -1] = 1.0
    G[-1, -1] = 1.0
    B[-1] = _polynomial(list(points))
    return Filter(f"winograd_{results}", A, G, B, step=results, before=1)


def upsampling() -> Filter:
    """Of the small picture's pixels l, m, r: m doubled is convolved with (a,b,c) to

    a l + (b + c) m = (a + b + c) m + a (l - m)  and  (a + b) m + c r = (a + b + c) m + c (r - m).
    """
    A = np.array([[1, 1, 0], [1, 0, 1]], np.float64)
    G = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 1]], np.float64)
    B = np.array([[0, 1, 0], [1, -1, 0], [0, -1, 1]], np.float64)
    return Filter("upsampling", A, G, B, step=1, before=1)


def direct(step: int, before: int) -> Filter:
    """As it is written: the values are the pixels themselves.

    Args:
        step: the stride.
        before: pixels of zeros above and on the left.
    """
    ones, taps = np.ones((1, TAPS)), np.eye(TAPS)
    return Filter(f"direct_{step}_{before}", ones, taps, taps, step, before)


def _polynomial(roots: list[Fraction]) -> list[float]:
    """Coefficients of the monic polynomial with these roots, lowest power first."""
    coefficients = [Fraction(1)]
    for root in roots:
        pairs = zip([Fraction(0), *coefficients], [*coefficients, Fraction(0)], strict=True)
        coefficients = [below - root * same for below, same in pairs]
    return [float(value) for value in coefficients]
