"""A manifest for tests that are about one part of it."""

from __future__ import annotations

from typing import Any

from vsr_trt.runtime.bundle.manifest import FileEntry, Manifest, Prompt, Provenance, Source


def minimal_manifest(**changes: Any) -> Manifest:
    """DLoRAL's sizes, no networks, no stages; what a test is about goes into `changes`."""
    source = Source("x", 1, "0")
    values: dict[str, Any] = {
        "family": "dloral",
        "scale": 4,
        "window": 2,
        "precision": "fp16",
        "frame_multiple": 64,
        "minimum_side": 128,
        "latent_scale": 8,
        "top_k": None,
        "networks": {},
        "stages": (),
        "inputs": {"frame": None},
        "output": "result",
        "option_defaults": {},
        "prompt": Prompt("", "p"),
        "files": {"p": FileEntry(1, "0")},
        "provenance": Provenance(source, "x", (source,), "both", {}, "0", {}, "now"),
    }
    return Manifest(**(values | changes))
