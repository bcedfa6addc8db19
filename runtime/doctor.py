"""What is installed, what a bundle holds, and which backend `auto` takes."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vsr_trt.runtime import backends
from vsr_trt.runtime.bundle import engine_check
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import STRIPS, Engine, Manifest
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.errors import BundleError, VsrError
from vsr_trt.runtime.machine import gpu
from vsr_trt.runtime.machine.processor import available_cores, cpu_target
from vsr_trt.runtime.onnxruntime.cpu import optimised_graph
from vsr_trt.runtime.plan import cost
from vsr_trt.runtime.schedule import forms
from vsr_trt.runtime.schedule.canvas import FrameShape
from vsr_trt.runtime.schedule.forms import Available
from vsr_trt.runtime.schedule.parts import usual_clip

_NEEDED = ("vsr-trt", "numpy", "av", "rich", "onnxruntime")
_USUAL = ((512, 512), (1280, 720), (1920, 1080), (2560, 1440), (3840, 2160))
_OTHER = (
    "onnxruntime-gpu",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    "onnxruntime-ep-nv-tensorrt-rtx-cu12",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "tensorrt-rtx-cu12",
    "cuda-python",
    "tokenizers",
    "pycuda",
    "torch",
)


@dataclass(frozen=True)
class EngineVerdict:
    """An engine of a bundle, and why it does not run here (None if it does)."""

    file: str
    why_not: str | None


@dataclass
class Diagnosis:
    """The findings. `problems` is empty where everything is in order.

    `cost` says what a frame takes on this processor, estimated: how that was found, and by size; empty where the
    networks run elsewhere. `vae` says of usual sizes of restored pictures how they would go through the VAE on this
    CPU, and why.
    """

    system: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str | None] = field(default_factory=dict)
    backend: str = ""
    backend_reason: str = ""
    gpu: str = ""
    bundle: dict[str, object] | None = None
    engines: list[EngineVerdict] = field(default_factory=list)
    vae: dict[str, Mapping[str, object]] = field(default_factory=dict)
    costs: list[dict[str, object]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def diagnose(bundle: Path | None, progress: Callable[[str], None] = lambda name: None) -> Diagnosis:
    """Looks at the installation and, if asked, at every byte of a bundle."""
    found = Diagnosis(system=_system())
    found.packages = {name: _version(name) for name in (*_NEEDED, *_OTHER)}
    found.backend, found.backend_reason = backends.choose_backend("auto")
    if found.packages["onnxruntime"] and found.packages["onnxruntime-gpu"]:
        found.problems.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; "
            "pip uninstall both, then install one"
        )
    here = gpu.detect()
    found.gpu = str(here) if here is not None else f"none ({gpu.why_none()})"
    if bundle is not None:
        try:
            opened = Bundle.open(bundle)
            found.backend, found.backend_reason = backends.choose_backend("auto", opened)
            found.bundle = _describe(opened)
            found.engines = judge_engines(opened)
            found.vae = _vae(opened)
            opened.check_hashes(progress)
            if found.backend == "onnxruntime-cpu":
                progress("this processor's rate")
                found.costs = _costs([("this bundle", opened.manifest)])
        except VsrError as error:
            found.problems.append(str(error))
    elif found.backend == "onnxruntime-cpu":
        progress("this processor's rate")
        found.costs = _costs(
            (f"a bundle of {manifest.family}'s published weights", manifest) for manifest in cost.published()
        )
    if found.backend.startswith("onnxruntime") and importlib.util.find_spec("onnxruntime") is None:
        found.problems.append("onnxruntime is not installed; install it with: pip install 'vsr-trt[cpu]'")
    return found


def _costs(bundles: Iterable[tuple[str, Manifest]]) -> list[dict[str, object]]:
    """What frames of the usual sizes take with each bundle; empty where the processor's rate is not known in time."""
    rate = cost.processor_rate()
    found: list[dict[str, object]] = []
    for of, manifest in bundles if rate is not None else ():
        assert rate is not None
        try:
            costs = cost.of(manifest, rate)
        except BundleError:  # an old bundle, which does not say what its networks take
            continue
        sizes = {f"{width}x{height}": dataclasses.asdict(each) for (width, height), each in costs.items()}
        memory = _memory(manifest)
        found.append(
            {
                "of": of,
                "how": cost.HOW,
                "operations_per_second": rate,
                "frames": usual_clip(manifest, Options()) if manifest.phases else None,
                "sizes": {size: each | {"memory": memory.get(size)} for size, each in sizes.items()},
            }
        )
    return found


def _memory(manifest: Manifest) -> dict[str, object]:
    """Size -> bytes, as estimated."""
    return {size: form["estimated_memory"] for size, form in _vae(Bundle(Path(), manifest)).items()}


def _vae(bundle: Bundle) -> dict[str, Mapping[str, object]]:
    """How frames of the usual sizes go through, and what memory they take; of a family in phases, a usual clip."""
    manifest, options, available, found = bundle.manifest, Options(), Available.of(None), {}
    for width, height in _USUAL:
        given = FrameShape.of_result(manifest, width, height).given
        form = forms.choose_form(bundle, *given, options, available)
        if manifest.phases:
            frames = usual_clip(manifest, options)
            clip = forms.estimate(bundle, *given, options, 1, in_strips=False, frames=frames)
            form = dataclasses.replace(form, memory=clip)
        found[f"{width}x{height}"] = forms.as_json(form)
    return found


def judge_engines(bundle: Bundle) -> list[EngineVerdict]:
    """Says of each engine of a bundle why it does not run on this machine, from its first bytes."""
    here = gpu.detect()
    return [EngineVerdict(engine.file, _why_not(bundle, engine, here)) for engine in bundle.manifest.engines]


def _why_not(bundle: Bundle, engine: Engine, here: gpu.Gpu | None) -> str | None:
    installed = engine_check.installed_version(engine.backend)
    if engine.backend != "onnxruntime":
        return engine_check.why_not(bundle, engine, here, installed)
    if installed is None:
        return "ONNX Runtime is not installed; install it with: pip install 'vsr-trt[cpu]'"
    precision, in_strips = bundle.manifest.precision, STRIPS in engine.flags
    found = optimised_graph([engine], engine.network, cpu_target(), installed, precision, in_strips)
    return None if found.engine is not None else found.passed_over[0]


def _describe(bundle: Bundle) -> dict[str, object]:
    manifest = bundle.manifest
    return {
        "path": str(bundle.path),
        "family": manifest.family,
        "schema_version": manifest.schema_version,
        "precision": manifest.precision,
        "scale": manifest.scale,
        "top_k": manifest.top_k,
        "kernels": list(manifest.kernels),
        "prompt": manifest.prompt.text if manifest.prompt else None,
        "negative_prompt": manifest.prompt.negative if manifest.prompt else None,
        "tilings": {name: dataclasses.asdict(tiling) for name, tiling in manifest.tilings.items()},
        "options": {name: dataclasses.asdict(option) for name, option in manifest.options.items()},
        "window": dataclasses.asdict(manifest.window),
        "phases": {name: dataclasses.asdict(window) for name, window in manifest.phases.items()},
        "chunks": {name: dataclasses.asdict(chunks) for name, chunks in manifest.chunks.items()},
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "networks": {
            name: {
                "forms": sorted(network.graphs),
                "nodes": network.nodes,
                "parameters": network.parameters,
            }
            for name, network in manifest.networks.items()
        },
        "provenance": dataclasses.asdict(manifest.provenance) if manifest.provenance else None,
    }


def _system() -> dict[str, str]:
    facts = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": str(available_cores()),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        facts["memory"] = f"{memory / 1e9:.1f} GB"
    return facts


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def own_version() -> str:
    """This package's version; `unknown` where it was never installed, in a bare checkout."""
    return _version("vsr-trt") or "unknown"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
