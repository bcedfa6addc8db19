"""What a calibration is: the record of it, and the manifest with and without its graphs."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vsr_trt.engines.accuracy.metrics import Difference
from vsr_trt.engines.accuracy.ranges import Range
from vsr_trt.engines.accuracy.recording import Clip
from vsr_trt.runtime.bundle.manifest import Calibration, Manifest

FILE = "onnx/calibration.json"
_TOOLS = ("vsr-trt", "onnx", "onnx-ir", "onnxruntime", "numpy")


class Kept(Protocol):
    """A node that stays in FP32."""

    @property
    def node(self) -> str:
        """Its name."""

    @property
    def op_type(self) -> str:
        """What it computes."""

    @property
    def reason(self) -> str:
        """Why."""


class Conversion(Protocol):
    """What a writer made of a graph."""

    @property
    def halves(self) -> int:
        """Nodes that compute in FP16."""

    @property
    def kept(self) -> Sequence[Kept]:
        """Nodes that do not."""


@dataclass(frozen=True)
class Calibrated:
    """What became of one network; `ranges` are those of the FP32 graph."""

    network: str
    halves: int
    kept: tuple[Kept, ...]
    ranges: tuple[Range, ...]
    error: Difference

    @property
    def largest(self) -> Range:
        """The tensor with the largest numbers."""
        return max(self.ranges, key=lambda entry: entry.largest)


def half_graph(network: str) -> str:
    """Path of its FP16 form in a bundle."""
    return f"onnx/{network}.fp16.onnx"


def without_halves(manifest: Manifest) -> Manifest:
    """The manifest without an earlier calibration, and without the engines that were built from it."""
    if manifest.calibration is None:
        return manifest
    networks = {
        name: dataclasses.replace(
            network, graphs={form: path for form, path in network.graphs.items() if form != "fp16"}
        )
        for name, network in manifest.networks.items()
    }
    gone = {path for network in manifest.networks.values() for path in [network.graphs.get("fp16")] if path}
    stale = [engine for engine in manifest.engines if manifest.networks[engine.network].graphs.get("fp16")]
    stale = [engine for engine in stale if engine.precision == "fp16"]
    engines = tuple(engine for engine in manifest.engines if engine not in stale)
    kept = {path for engine in engines for path in (engine.file, engine.report)}
    gone |= {path for engine in stale for path in (engine.file, engine.report)} - kept
    gone |= {f"{path}.data" for path in gone} | {manifest.calibration.file}
    files = {name: entry for name, entry in manifest.files.items() if name not in gone}
    return dataclasses.replace(manifest, networks=networks, engines=engines, files=files, calibration=None)


def with_halves(manifest: Manifest, names: Sequence[str], calibration: Calibration) -> Manifest:
    """The manifest with the FP16 graphs of these networks; their files are among its files already."""
    networks = dict(manifest.networks)
    for name in names:
        graphs = {**networks[name].graphs, "fp16": half_graph(name)}
        networks[name] = dataclasses.replace(networks[name], graphs=graphs)
    return dataclasses.replace(manifest, networks=networks, calibration=calibration)


def as_json(clip: Clip, limit: float, done: Sequence[Calibrated]) -> dict[str, Any]:
    """`calibration.json`."""
    return {
        "clip": {
            "path": str(clip.path.absolute()),
            "start": clip.start,
            **dataclasses.asdict(clip.source),
        },
        "frames": len(clip.frames),
        "limit": limit,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "tools": {tool: _version(tool) for tool in _TOOLS},
        "networks": {entry.network: network_json(entry) for entry in done},
    }


def network_json(entry: Calibrated) -> dict[str, Any]:
    """A network's part of `calibration.json`."""
    return {
        "nodes_fp16": entry.halves,
        "nodes_fp32": len(entry.kept),
        "error": dataclasses.asdict(entry.error),
        "kept_fp32": [
            {"node": kept.node, "op_type": kept.op_type, "reason": kept.reason} for kept in entry.kept
        ],
        "tensors": [range_json(measured) for measured in entry.ranges],
    }


def range_json(entry: Range) -> dict[str, Any]:
    """A tensor's range; JSON knows no infinity, so there the numbers are null."""
    infinite = entry.largest == float("inf")
    return {
        "tensor": entry.tensor,
        "node": entry.node,
        "op_type": entry.op_type,
        "precision": "fp16" if entry.half else "fp32",
        "largest": None if infinite else entry.largest,
        "share": None if infinite else entry.share,
        "finite": entry.finite,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
