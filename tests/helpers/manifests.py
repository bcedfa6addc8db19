"""A manifest for tests that are about one part of it."""

from __future__ import annotations

from typing import Any

from vsr_trt.runtime.bundle.manifest import (
    Canvas,
    FileEntry,
    Input,
    Manifest,
    Prompt,
    Provenance,
    Source,
    Tiling,
)


def minimal_manifest(**changes: Any) -> Manifest:
    """DLoRAL's sizes, no networks, no stages; what a test is about goes into `changes`."""
    source = Source("x", 1, "0")
    values: dict[str, Any] = {
        "family": "dloral",
        "scale": 4,
        "precision": "fp16",
        "canvas": Canvas((128, 128), 16, "enlarge"),
        "tilings": {
            "latent": Tiling(96, 32),
            "vae": Tiling(96, 16, "ramp", square=False, together=False, share=4, exact=True, engine_side=136),
        },
        "latent_scale": 8,
        "top_k": None,
        "networks": {},
        "stages": (),
        "inputs": {"frame": Input("frame")},
        "output": "result",
        "prompt": Prompt("", "p"),
        "files": {"p": FileEntry(1, "0")},
        "provenance": Provenance(source, "x", {}, "now"),
    }
    return Manifest(**(values | changes))
