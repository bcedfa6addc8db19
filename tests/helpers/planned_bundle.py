"""DLoRAL's bundle as folders and records only: engines with the builder's shapes, no graph, no plan inside."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers.stages import dloral_manifest

from vsr_trt.engines.tensorrt import shapes
from vsr_trt.engines.tensorrt.shapes import Layout, Size
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Engine, FileEntry, Manifest

SCRATCH = {"vae_decoder": 900_000_000, "vae_encoder": 500_000_000, "unet": 300_000_000}
"""Bytes that the engines' reports tell; 1 000 for networks that are not here."""
WEIGHTS = 10_000_000


def engines(
    manifest: Manifest, sizes: Sequence[Size], layout: Layout | None = None, **changes: Any
) -> list[Engine]:
    """As `build.py engines` would record them, for every network that a stage runs."""
    values: dict[str, Any] = {
        "backend": "tensorrt_rtx",
        "version": "1.7.1.116",
        "target": "sm_89",
        "targets": ("sm_89",),
        "device": None,
        "precision": "fp16",
        "flags": (),
        "key": "0",
    } | changes
    found = []
    for name in shapes.networks(manifest):
        for ranges, profiles in shapes.profiles(manifest, name, sizes, layout or Layout()):
            stem = f"engines/{values['target']}/{name}.{values['precision']}.{shapes.describe(ranges)}"
            found.append(
                Engine(
                    network=name, profiles=profiles, file=f"{stem}.engine", report=f"{stem}.json", **values
                )
            )
    return found


def report(engine: Engine) -> dict[str, Any]:
    """What the build told."""
    return {"activations": SCRATCH.get(engine.network, 1000), "weights": WEIGHTS}


def make(
    folder: Path, records: Sequence[Engine] = (), reports: Mapping[str, Any] | None = None, **changes: Any
) -> Bundle:
    """Writes it.

    Args:
        folder: new.
        records: its engines.
        reports: network -> what its report says instead.
        changes: of the manifest.
    """
    manifest = dataclasses.replace(dloral_manifest(), engines=tuple(records), **changes)
    texts = {
        engine.report: json.dumps((reports or {}).get(engine.network, report(engine))) for engine in records
    }
    names = {
        *(graph for network in manifest.networks.values() for graph in network.graphs.values()),
        *(engine.file for engine in records),
        *texts,
        *(given.name for given in manifest.inputs.values() if given.name),
        *([manifest.prompt.file] if manifest.prompt else []),
    }
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts.get(name, "x"))
    files = {name: FileEntry((folder / name).stat().st_size, "0") for name in sorted(names)}
    dataclasses.replace(manifest, files=files).write(folder)
    return Bundle.open(folder)
