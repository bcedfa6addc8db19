"""Matrices of cases, of which `make test` runs a few and `make thorough` the rest."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest


def matrix(*axes: Iterable[Any], fast: Callable[..., bool]) -> list[Any]:
    """Every combination for `pytest.mark.parametrize`; those that `fast` refuses are marked `thorough`.

    Args:
        axes: values of each parameter.
        fast: is passed a combination. What is fast has every value of every axis at least once.
    """
    cases = list(itertools.product(*axes))
    quick = [case for case in cases if fast(*case)]
    for axis in range(len(axes)):
        assert {case[axis] for case in quick} == {case[axis] for case in cases}, (
            "a value is not tried by default"
        )
    return [pytest.param(*case, marks=() if fast(*case) else pytest.mark.thorough) for case in cases]
