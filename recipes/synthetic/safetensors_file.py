"""Safetensors files, written block by block."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from vsr_trt.recipes.synthetic.tensors import (
    LazyTensor,
    copy_values,
    no_advance,
)
from vsr_trt.runtime.machine.files import whole_file

_SAFETENSORS_NAMES = {torch.float16: "F16", torch.float32: "F32", torch.int64: "I64"}


def write_safetensors(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str] | None = None,
    advance: Callable[[int], None] = no_advance,
) -> None:
    """Writes a safetensors file, one block of values at a time. `advance` is passed the bytes written."""
    # Most aligned type first, as the library does: then every tensor starts at a multiple of its item size.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    start = 0
    for name in order:
        tensor = tensors[name]
        end = start + tensor.nbytes
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            copy_values(name, tensors[name], handle.write, advance)
