"""What a fake GPU takes for engines and kernels: the networks' names, and the blend kernel's metadata."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from vsr_trt.runtime.bundle.manifest import Engine, FileEntry, Manifest


def add(folder: Path, manifest: Manifest, kernels: Sequence[str] = ("sm_80",)) -> Manifest:
    """Writes them into the bundle's folder; the manifest that names them.

    Args:
        folder: of the bundle.
        manifest: of the bundle; each of its networks gets an engine for sm_89.
        kernels: targets of the blend kernel.
    """
    files, records = dict(manifest.files), []

    def put(name: str, content: bytes) -> str:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        files[name] = FileEntry.of(path)
        return name

    for network in manifest.networks:
        file = put(f"engines/{network}.engine", network.encode())
        records.append(
            Engine(
                network, "tensorrt_rtx", "1", "sm_89", ("sm_89",), None, "fp32", {}, (), file, file, network
            )
        )
    arguments = "tiles tops lefts row_window column_window out".split()
    sizes = "rows columns channels tile_height tile_width height width".split()
    metadata = {
        "schema_version": 1,
        "kernel": "blend_tiles",
        "dtype": "fp32",
        "top_k": False,
        "grid": ["ceil(width / 128)", "height", "channels"],
        "threads": 128,
        "shared_memory": 0,
        "files": {"cubin": {"name": "blend.cubin"}, "ptx": {"name": "blend.ptx"}},
        "arguments": [{"name": name, "type": "pointer"} for name in arguments]
        + [{"name": name, "type": "int32"} for name in sizes],
    }
    launches = tuple(
        put(f"kernels/blend_tiles.{target}.json", json.dumps(metadata | {"target": target}).encode())
        for target in kernels
    )
    put("kernels/blend.cubin", b"machine code")
    put("kernels/blend.ptx", b"text")
    return dataclasses.replace(manifest, files=files, engines=tuple(records), kernels=launches)
