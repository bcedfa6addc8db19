"""ONNX Runtime's providers for NVIDIA GPUs: what they are called, which options they get, whether they are here.

Sources of the options' names:

- CUDA and TensorRT: the strings that libonnxruntime_providers_{cuda,tensorrt}.so of onnxruntime-gpu 1.27.0 and
  1.31.1 parse (core/providers/{cuda,tensorrt}/*_execution_provider_info.cc); what they mean is described at
  https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html and CUDA-ExecutionProvider.html.
- TensorRT-RTX: tensorrt_rtx_provider_options.h inside the package onnxruntime-ep-nv-tensorrt-rtx-cu13 0.5.0.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsr_trt.runtime.errors import DeviceError
from vsr_trt.runtime.machine import shell

_log = logging.getLogger(__name__)
CUDA, TENSORRT, TENSORRT_RTX = "onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx"
_PLUGIN_PACKAGE = "onnxruntime-ep-nv-tensorrt-rtx-cu13"
_GPU_PACKAGE = "pip uninstall --yes onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'"


@dataclass(frozen=True)
class Provider:
    """A provider.

    Attributes:
        name: ONNX Runtime's.
        install: the command that installs it. `onnxruntime` and `onnxruntime-gpu` share their import name,
            so that one has to go before the other comes.
        plugin: import name of the package that brings it; None where it is built into onnxruntime-gpu.
        compiler: package whose version tells the compiler's; None where there is none.
    """

    name: str
    install: str
    plugin: str | None = None
    compiler: str | None = None


PROVIDERS = {
    CUDA: Provider("CUDAExecutionProvider", _GPU_PACKAGE),
    TENSORRT: Provider(
        "TensorrtExecutionProvider",
        f"{_GPU_PACKAGE} 'tensorrt-cu13<11'",  # onnxruntime-gpu 1.27 to 1.31 are linked with libnvinfer.so.10
        compiler="tensorrt-cu13",
    ),
    TENSORRT_RTX: Provider(
        "NvTensorRTRTXExecutionProvider",
        f"pip install {_PLUGIN_PACKAGE}",
        plugin="onnxruntime_ep_nv_tensorrt_rtx",
        compiler=_PLUGIN_PACKAGE,
    ),
}
"""The providers by the backend's name."""


def provider_options(backend: str, cache: Path) -> dict[str, str]:
    """Options of a backend's provider.

    No range of shapes is among it: sessions are made for one shape (see `runtime.onnxruntime.gpu`), for which
    the providers need no profile. Nor is a precision: it is in the graph.

    Args:
        backend: a key of `PROVIDERS`.
        cache: folder of this network, in this shape, of these weights alone: the providers name what they
            keep after the graph's nodes, and would take another checkpoint's engine of that name.
    """
    if backend == CUDA:
        return {
            "device_id": "0",
            "arena_extend_strategy": "kSameAsRequested",
            # tries every algorithm once; the shape never changes in a session
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            # FP32 graphs are for those who want FP32; faster ones are FP16
            "use_tf32": "0",
        }
    if backend == TENSORRT:
        return {
            "device_id": "0",
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(cache),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(cache.parent),  # what one network's build measured serves the next
            "trt_context_memory_sharing_enable": "1",  # subgraphs of a network run one after another
            "trt_cuda_graph_enable": "0",  # results are fetched after each network
        }
    return {"nv_runtime_cache_path": str(cache), "enable_cuda_graph": "0"}


def cache_folder(
    environment: Mapping[str, str] = os.environ, system: str = sys.platform, home: Path | None = None
) -> Path:
    """Where providers keep their engines unless another is given: in the platform's folder for caches.

    Args:
        environment: variables.
        system: as `sys.platform` calls it.
        home: of the user, None to ask the system.
    """
    home = home or Path(shell.home())
    if system == "win32":
        base = Path(environment.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif system == "darwin":
        base = home / "Library" / "Caches"
    else:
        given = Path(environment.get("XDG_CACHE_HOME", ""))
        base = given if given.is_absolute() else home / ".cache"  # a relative one is to be ignored
    return base / "vsr-trt" / "providers"


def versions(library: Any, backend: str) -> str:
    """The backend with the versions of ONNX Runtime and of the compiler: what is cached for one is not for another."""
    parts = [backend, library.__version__]
    compiler = PROVIDERS[backend].compiler
    if compiler is not None:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # TensorRT may come from elsewhere
            parts.append(importlib.metadata.version(compiler))
    return "-".join(parts)


def is_available(library: Any, backend: str) -> bool:
    """Whether the provider is installed; not whether it finds a GPU.

    Args:
        library: the onnxruntime module.
        backend: a key of `PROVIDERS`.
    """
    provider = PROVIDERS[backend]
    if provider.plugin is not None:
        return importlib.util.find_spec(provider.plugin) is not None
    return provider.name in library.get_available_providers()


def check_installed(backend: str) -> Any:
    """ONNX Runtime, which has a backend's provider.

    Args:
        backend: a key of `PROVIDERS`.

    Raises:
        DeviceError: one of both is not installed.
    """
    provider = PROVIDERS[backend]
    try:
        import onnxruntime as library
    except ImportError as error:
        raise DeviceError(
            f"ONNX Runtime is not installed, which the backend {backend} needs. Install it with: "
            f"pip install 'vsr-trt[cpu]' && {provider.install}"
        ) from error
    if not is_available(library, backend):
        here = ["onnxruntime-cpu", *(name for name in PROVIDERS if is_available(library, name))]
        raise DeviceError(
            f"the backend {backend} needs ONNX Runtime's {provider.name}, which is not installed. "
            f"Install it with: {provider.install}. Available here: {', '.join(here)}."
        )
    return library


def prepare(library: Any, backend: str) -> list[Any]:
    """Makes a provider that is installed ready for use.

    Returns:
        ONNX Runtime's devices that sessions are made for; empty where sessions take the provider's name.

    Raises:
        DeviceError: it finds no driver or no GPU.
    """
    provider = PROVIDERS[backend]
    if provider.plugin is not None:
        return _plugin_devices(library, provider)
    _load_libraries(library)
    return []


def _plugin_devices(library: Any, provider: Provider) -> list[Any]:
    assert provider.plugin is not None
    try:
        _register(library, provider.plugin)
    except Exception as error:  # the package's own, and ONNX Runtime's, share no base class
        raise DeviceError(
            f"{provider.name} cannot be loaded: {error}. It needs an NVIDIA driver that serves CUDA 13; "
            "onnxruntime-cpu runs without one."
        ) from error
    devices = [device for device in library.get_ep_devices() if device.ep_name == provider.name]
    if not devices:
        raise DeviceError(
            f"{provider.name} finds no GPU that it serves; it needs a GeForce RTX 30 or newer. "
            "onnxruntime-cpu runs without one."
        )
    return devices[:1]


@functools.cache  # a library registered twice is an error
def _register(library: Any, plugin: str) -> None:
    module = importlib.import_module(plugin)
    library.register_execution_provider_library(module.get_ep_name(), module.get_library_path())


def _load_libraries(library: Any) -> None:
    """Loads CUDA, cuDNN and TensorRT from their Python packages, where no linker looks for them."""
    said = io.StringIO()  # it prints what it does not find, and standard output is for reports
    with contextlib.redirect_stdout(said):
        library.preload_dlls()
    for line in said.getvalue().splitlines():
        _log.info("%s", line)
    if importlib.util.find_spec("tensorrt_libs") is not None:
        importlib.import_module("tensorrt_libs")  # loads them when it is imported
