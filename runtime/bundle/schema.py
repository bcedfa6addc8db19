"""The published JSON schema of a manifest, made from its dataclasses."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal

from vsr_trt.runtime.bundle.manifest import SCHEMA_VERSION, Manifest


def json_schema() -> dict[str, Any]:
    """The published JSON schema (draft 2020-12) of `bundle.json`, made from the dataclasses."""
    definitions: dict[str, Any] = {}
    root = _schema_of(Manifest, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"vsr-trt bundle manifest, schema version {SCHEMA_VERSION}",
        **root,
        "$defs": definitions,
    }


def _schema_of(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        name = typing.cast(type, kind).__name__
        if name not in definitions:
            definitions[name] = {}
            definitions[name] = _schema_of_dataclass(typing.cast(type, kind), definitions)
        return {"$ref": f"#/$defs/{name}"}
    if origin is tuple:
        items: dict[str, Any] = {"type": "array", "items": _schema_of(arguments[0], definitions)}
        if arguments[-1] is not Ellipsis:
            items |= {"minItems": len(arguments), "maxItems": len(arguments)}
        return items
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema_of(arguments[1], definitions)}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [_schema_of(argument, definitions) for argument in arguments]}
    names = {bool: "boolean", int: "integer", float: "number", str: "string", types.NoneType: "null"}
    return {"type": names[kind]}


def _schema_of_dataclass(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    properties = {name: _schema_of(hints[name], definitions) for name in hints}
    if kind is Manifest:
        properties["schema_version"] = {"const": SCHEMA_VERSION}
    return {
        "type": "object",
        "description": (kind.__doc__ or "").strip(),
        "properties": properties,
        "required": [
            f.name
            for f in dataclasses.fields(kind)
            if (f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING)
            or f.name == "schema_version"
        ],
        "additionalProperties": False,
    }
