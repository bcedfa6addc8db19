"""Sizes that are named: symbolic shapes, and numbers that depend on them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

_DIMENSION = re.compile(r"(?:(\d+)\*)?([a-z][a-z0-9_]*)")
_FACTOR = re.compile(r"([a-z][a-z0-9_]*)|ceil\(([a-z][a-z0-9_]*),([1-9]\d*)\)")

Shape = tuple[int | str, ...]
"""A symbolic shape: sizes, names, or a name times a number, e.g. ("n", 3, "8*h", "8*w")."""

Polynomial = dict[str, float]
"""A number that depends on symbolic sizes: products of sizes -> coefficients, e.g. {"1": 9, "h*w": 64}.

A factor is a name, or `ceil(h,32)`: the size rounded up to a multiple of 32. The product "1" is the constant."""


def dimension(size: int | str) -> tuple[int, str | None]:
    """Takes a symbolic size apart: 3 -> (3, None), "h" -> (1, "h"), "8*h" -> (8, "h").

    Raises:
        ValueError: not such a size.
    """
    if isinstance(size, int):
        return size, None
    match = _DIMENSION.fullmatch(size)
    if not match:
        raise ValueError(f"{size!r} is not a size")
    return int(match[1] or 1), match[2]


def factors(product: str) -> list[tuple[str, int]]:
    """Takes a product of a polynomial apart into names and the multiples that these are rounded up to.

    Raises:
        ValueError: not such a product.
    """
    if product == "1":
        return []
    found = []
    for factor in product.split("*"):
        match = _FACTOR.fullmatch(factor)
        if not match:
            raise ValueError(f"{product!r} is not a product of sizes")
        found.append((match[1] or match[2], int(match[3] or 1)))
    return found


def evaluate(polynomial: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    """The polynomial's value at the given sizes."""
    return sum(
        coefficient * math.prod(-(-sizes[name] // multiple) * multiple for name, multiple in factors(product))
        for product, coefficient in polynomial.items()
    )
