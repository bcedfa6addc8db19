"""Manifests of schema version 4, whose canvas had one offset for both sides."""

from __future__ import annotations

from typing import Any


def migrated(data: dict[str, Any]) -> dict[str, Any]:
    """Returns the same manifest in schema version 5."""
    canvas = data.get("canvas")
    if isinstance(canvas, dict) and isinstance(canvas.get("offset"), int):
        data = {**data, "canvas": {**canvas, "offset": [canvas["offset"]] * 2}}
    return {**data, "schema_version": 5}
