"""What a manifest says of where a bundle comes from."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from vsr_trt.runtime.bundle.manifest import Source, sha256

_TOOLS = (
    "vsr-trt",
    "torch",
    "onnx",
    "onnxscript",
    "onnx-ir",
    "diffusers",
    "transformers",
    "onnxruntime",
    "numpy",
    "triton",
)


def versions() -> dict[str, str]:
    """Of the libraries that write a bundle."""
    return {tool: _version(tool) for tool in _TOOLS}


def source_of(path: Path, name: str) -> Source:
    """The record of a file; reads all of it."""
    return Source(name, path.stat().st_size, sha256(path))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # vsr-trt itself, run from a checkout
