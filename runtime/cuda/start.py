"""Finding out whether a bundle's engines run on the GPU in this machine, and making the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.engine_check import installed_version, why_not
from vsr_trt.runtime.bundle.manifest import Engine
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.cuda.device import CudaDevice
from vsr_trt.runtime.cuda.driver import Driver, bindings
from vsr_trt.runtime.cuda.engines import library
from vsr_trt.runtime.errors import DeviceError, EngineError
from vsr_trt.runtime.machine.gpu import Gpu, detect, why_none
from vsr_trt.runtime.machine.libraries import TITLES
from vsr_trt.runtime.onnxruntime.providers import cache_folder
from vsr_trt.runtime.schedule.engine_choice import EngineChoice, build_command, choose_engines
from vsr_trt.runtime.schedule.parts import Part

BACKENDS = ("tensorrt_rtx", "tensorrt")


def open_device(
    bundle: Bundle,
    backend: str,
    *,
    cache: Path | None = None,
    stream: int | None = None,
    device_results: bool = False,
    graphs: bool = True,
    memory: int | None = None,
) -> CudaDevice:
    """The device for a bundle's engines.

    Args:
        bundle: that holds them.
        backend: one of `BACKENDS`.
        cache: folder for what TensorRT-RTX compiles; None for the user's cache folder.
        stream, device_results, graphs: see `CudaDevice`.
        memory: bytes of the GPU that may be used; None for all that it has.

    Raises:
        DeviceError: no GPU, no driver, a library is not installed.
        EngineError: the bundle has no engine that runs here; it says why each one does not.
    """
    gpu, engines = engines_here(bundle, backend)
    trt = library(backend)
    driver = Driver(bindings())

    def pick(height: int, width: int, options: Options, part: Part | None) -> EngineChoice:
        scale = bundle.manifest.scale
        size = width * scale, height * scale
        return choose_engines(bundle, engines, gpu.capability, size, options, memory or gpu.memory, part)

    kept = cache or cache_folder().parent / "tensorrt-rtx"
    name = f"{gpu.name.replace(' ', '-')}-{installed_version(backend)}-{gpu.driver}.kernels"
    return CudaDevice(
        bundle,
        backend,
        trt,
        driver,
        gpu.capability,
        pick,
        cache=kept / name if backend == "tensorrt_rtx" else None,
        graphs=graphs,
        stream=stream,
        device_results=device_results,
    )


def engines_here(bundle: Bundle, backend: str) -> tuple[Gpu, list[Engine]]:
    """This machine's GPU, and a bundle's engines that run on it.

    Args:
        bundle: that holds them.
        backend: one of `BACKENDS`.

    Raises:
        DeviceError: the library or cuda-python is not installed, or there is no GPU.
        EngineError: there are none; it says why each one does not.
    """
    library(backend)
    bindings()
    gpu = detect()
    if gpu is None:
        raise DeviceError(
            f"the backend {backend} needs an NVIDIA GPU: {why_none()}. onnxruntime-cpu runs without one."
        )
    return gpu, usable(bundle, backend, gpu)


def usable(
    bundle: Bundle, backend: str, gpu: Gpu, look: Callable[[Bundle, Engine, Gpu, str | None], Any] = why_not
) -> list[Engine]:
    """The engines of a backend that run on a GPU.

    Raises:
        EngineError: there are none; it says why each one does not.
    """
    installed = installed_version(backend)
    found, reasons = [], []
    for engine in bundle.manifest.engines:
        if engine.backend != backend:
            continue
        reason = look(bundle, engine, gpu, installed)
        if reason is None:
            found.append(engine)
        else:
            reasons.append(f"{engine.file}: {reason}")
    if not found:
        title = TITLES[backend]
        size = "WIDTHxHEIGHT"
        command = build_command(bundle, gpu.capability, (0, 0), backend=backend).replace("0x0", size)
        why = f": {'; '.join(reasons)}" if reasons else ""
        raise EngineError(
            f"{bundle.path} has no {title} engine that runs on {gpu}{why}. Build them with: {command}"
        )
    return found
