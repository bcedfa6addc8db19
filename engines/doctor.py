"""What can be built on this machine, and which engines of a bundle run on it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsr_trt.engines.tensorrt.library import Backend, load
from vsr_trt.engines.tensorrt.targets import PORTABLE, THIS_GPU
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.doctor import EngineVerdict, judge_engines
from vsr_trt.runtime.errors import EngineError
from vsr_trt.runtime.machine import gpu


@dataclass(frozen=True)
class Compiler:
    """A backend: its version, None if it cannot be used, what it builds for here, and why not."""

    backend: str
    version: str | None
    targets: tuple[str, ...]
    remark: str


@dataclass(frozen=True)
class Findings:
    """The findings. `engines` is None where no bundle was asked about."""

    compilers: tuple[Compiler, ...]
    gpu: str
    engines: tuple[EngineVerdict, ...] | None

    def as_json(self) -> dict[str, Any]:
        """Returns the values that `--json` prints."""
        return dataclasses.asdict(self)


def examine(bundle: Path | None) -> Findings:
    """Looks at the libraries, the GPU, and a bundle's engines.

    Raises:
        BundleError: there is no such bundle.
    """
    here = gpu.detect()
    compilers = tuple(_compiler(backend, here is not None) for backend in ("tensorrt_rtx", "tensorrt"))
    text = (
        f"{here}, {here.memory / 1e9:.0f} GB, driver for CUDA {here.driver}"
        if here
        else f"none ({gpu.why_none()})"
    )
    engines = None if bundle is None else tuple(judge_engines(Bundle.open(bundle)))
    return Findings((*compilers, _onnxruntime()), text, engines)


def _compiler(backend: Backend, has_gpu: bool) -> Compiler:
    try:
        library = load(backend)
    except EngineError as error:
        return Compiler(backend, None, (), str(error))
    own = (*library.targets, PORTABLE) if library.targets else ()
    targets = (*own, THIS_GPU) if has_gpu else own
    remark = (
        "needs no GPU" if not library.needs_gpu else "" if has_gpu else "builds only where there is a GPU"
    )
    return Compiler(backend, library.version, targets, remark)


def _onnxruntime() -> Compiler:
    try:
        import onnxruntime
    except ImportError as error:
        return Compiler("onnxruntime", None, (), f"{error}; install it with: pip install 'vsr-trt[cpu]'")
    from vsr_trt.engines.onnxruntime.save import cpu_target

    return Compiler("onnxruntime", onnxruntime.__version__, (cpu_target(),), "optimised graphs for this CPU")
