"""Frozen records from JSON, strictly: dataclasses, containers, unions and plain types."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal


class MisfitError(ValueError):
    """A value that does not fit its field; the message is a clause about it."""


def parse(kind: Any, data: Any, where: str, whole: bool = False) -> Any:
    """Builds `kind` from JSON data.

    Args:
        kind: a dataclass, container, union, literal or plain type.
        data: as `json` reads it.
        where: what the data are called in messages.
        whole: whether fields that have a default have to be there, too.

    Raises:
        MisfitError: a field missing or unknown, a value of another type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(typing.cast(type, kind), data, where, whole)
    if origin is tuple:
        if not isinstance(data, list):
            raise MisfitError(f"{where} is not a list")
        if arguments[-1] is not Ellipsis and len(data) != len(arguments):
            raise MisfitError(f"{where} has {len(data)} values, expected {len(arguments)}")
        return tuple(parse(arguments[0], item, f"{where}[{i}]", whole) for i, item in enumerate(data))
    if origin in (dict, Mapping):
        if not isinstance(data, dict):
            raise MisfitError(f"{where} is not an object")
        return {name: parse(arguments[1], item, f"{where}.{name}", whole) for name, item in data.items()}
    if origin is Literal:
        if data not in arguments:
            raise MisfitError(f"{where} is {data!r}, expected one of {', '.join(map(repr, arguments))}")
        return data
    if origin in (types.UnionType, typing.Union):
        return _parse_union(arguments, data, where, whole)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if kind is types.NoneType:
        kind = type(None)
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise MisfitError(f"{where} is {data!r}, expected a value of type {kind.__name__}")
    return data


def _parse_union(kinds: tuple[Any, ...], data: Any, where: str, whole: bool) -> Any:
    problems = []
    for kind in kinds:
        try:
            return parse(kind, data, where, whole)
        except MisfitError as misfit:
            problems.append(str(misfit))
    raise MisfitError(problems[0])


def _parse_dataclass(kind: type, data: Any, where: str, whole: bool) -> Any:
    if not isinstance(data, dict):
        raise MisfitError(f"{where} is not an object")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if unknown := sorted(set(data) - set(fields)):
        raise MisfitError(f"{where} has an unknown field {unknown[0]!r}")
    values = {}
    for name, spec in fields.items():
        if name in data:
            values[name] = parse(hints[name], data[name], f"{where}.{name}", whole)
        elif whole or (spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING):
            raise MisfitError(f"{where} lacks the field {name!r}")
    return kind(**values)
