"""DLoRAL's stages and networks as a manifest, without files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from helpers.pipelines import SIZE

from vsr_trt.runtime.bundle.manifest import Manifest
from vsr_trt.runtime.bundle.reading import migrated
from vsr_trt.runtime.bundle.records import parse
from vsr_trt.runtime.schedule.graph import Schedule

STORED = Path(__file__).parent / "dloral_manifest.json"


def dloral_manifest() -> Manifest:
    """The manifest of the golden model's bundle, as `build.py bundle` wrote it in schema version 1."""
    return parse(
        Manifest,
        migrated(json.loads(STORED.read_text())),
        "manifest",
    )


def shrunk(schedule: Schedule) -> Schedule:
    """The same with buffers of a few bytes: for tests of the order, which need no pictures."""
    small = {
        name: dataclasses.replace(buffer, shape=(1, SIZE), dtype="uint8")
        for name, buffer in schedule.buffers.items()
    }
    return dataclasses.replace(schedule, buffers=small)
