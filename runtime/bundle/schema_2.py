"""Manifests of schema version 2, whose attention was part of a network that an engine might leave to a kernel."""

from __future__ import annotations

from typing import Any

_LEFT_OUT = "warp"


def migrated(data: dict[str, Any]) -> dict[str, Any]:
    """The same manifest in schema version 3: the network stays whole, and engines that leave a part of it out go."""
    data = dict(data)
    data.pop("operator", None)
    engines = data.get("engines")
    if isinstance(engines, list):
        data["engines"] = [engine for engine in engines if not _leaves_out(engine)]
    data["schema_version"] = 3
    return data


def _leaves_out(engine: Any) -> bool:
    flags = engine.get("flags") if isinstance(engine, dict) else None
    return isinstance(flags, list) and _LEFT_OUT in flags
