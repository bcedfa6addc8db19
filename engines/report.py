"""What a build came to, kept as JSON next to the engine, and compared between two builds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsr_trt.engines.plan import Item
from vsr_trt.engines.worker import Done
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Engine
from vsr_trt.runtime.errors import InputError

SCHEMA_VERSION = 1
FIGURES = (
    "version",
    "layers",
    "bytes",
    "activations",
    "weights",
    "seconds",
    "peak_memory",
    "fused_attentions",
    "split_attentions",
)
"""What is compared: numbers of layers and attentions, bytes, seconds."""


def of_build(item: Item, done: Done) -> dict[str, Any]:
    """The report of one build, as JSON values; bytes and seconds."""
    facts = done.facts
    return {
        "schema_version": SCHEMA_VERSION,
        "network": item.order.network,
        "target": item.target.name,
        "precision": item.precision,
        "shapes": item.shape,
        "backend": item.parts["backend"],
        "version": item.parts["version"],
        "graph": item.parts["graph"],
        "graph_weights": item.parts["weights"],
        "layers": sum(facts.layers.values()) or None,
        "layers_by_kind": facts.layers,
        "bytes": facts.bytes,
        "activations": facts.activations,
        "weights": facts.weights,
        "seconds": round(facts.seconds, 3),
        "peak_memory": done.peak,
        "estimated_memory": item.memory,
        "attentions": len(item.order.attentions),
        "fused_attentions": facts.fused,
        "split_attentions": len(facts.split),
        "split": facts.split,
        "outputs": {name: list(shape) for name, shape in facts.outputs.items()},
        "warnings": facts.warnings,
    }


@dataclass(frozen=True)
class Change:
    """One figure of one engine in two builds; None where it has none."""

    engine: str
    figure: str
    before: float | str | None
    after: float | str | None


def identity(engine: Engine) -> str:
    """What makes two builds' engines the same one: not the version, not the weights."""
    return f"{engine.backend}-{engine.target}/{Path(engine.file).stem}"


def read_all(path: Path) -> dict[str, dict[str, Any]]:
    """The reports of a bundle's engines, by identity.

    Raises:
        BundleError: no bundle.
        InputError: one without engines.
    """
    bundle = Bundle.open(path)
    if not bundle.manifest.engines:
        raise InputError(f"{path} has no engines. Build them with: vsr-build engines {path}")
    return {identity(engine): read(bundle.file(engine.report)) for engine in bundle.manifest.engines}


def read(path: Path) -> dict[str, Any]:
    """A report.

    Raises:
        InputError: it cannot be read.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a build's report: {error}.") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} is no build's report.")
    return data


def compare(before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]) -> list[Change]:
    """Every figure that differs between engines that both have."""
    return [
        Change(name, figure, before[name].get(figure), after[name].get(figure))
        for name in before
        if name in after
        for figure in FIGURES
        if before[name].get(figure) != after[name].get(figure)
    ]


def gpu_memory(reports: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """Bytes of all weights, and of the largest activations: what a runtime needs that runs one at a time."""
    found = list(reports)
    weights = sum(report.get("weights") or 0 for report in found)
    return weights, max((report.get("activations") or 0 for report in found), default=0)
