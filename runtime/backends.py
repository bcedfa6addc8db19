"""What may run a bundle's networks: picking one for `auto`, and opening it."""

from __future__ import annotations

import time
from pathlib import Path

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Manifest
from vsr_trt.runtime.bundle.options import Options, Settings
from vsr_trt.runtime.cuda import start
from vsr_trt.runtime.devices.actions import Networks
from vsr_trt.runtime.devices.protocol import Device
from vsr_trt.runtime.devices.threads import ThreadedDevice
from vsr_trt.runtime.errors import EngineError, InputError
from vsr_trt.runtime.machine import gpu
from vsr_trt.runtime.onnxruntime.cpu import CpuNetworks
from vsr_trt.runtime.onnxruntime.gpu import ProviderNetworks
from vsr_trt.runtime.onnxruntime.providers import PROVIDERS, check_installed
from vsr_trt.runtime.schedule import forms
from vsr_trt.runtime.schedule.forms import Available, Form
from vsr_trt.runtime.schedule.parts import Part

ENGINES = start.BACKENDS
"""Those that run a bundle's engines on a GPU."""
BACKENDS = ("auto", CpuNetworks.name, *ENGINES, *PROVIDERS)


def choose_backend(backend: str, bundle: Bundle | None = None) -> tuple[str, str]:
    """The backend that a request stands for, and why.

    Args:
        backend: one of `BACKENDS`.
        bundle: whose engines `auto` looks at; None for no bundle yet.

    Raises:
        InputError: there is no such backend.
    """
    if backend not in BACKENDS:
        raise InputError(f"there is no backend {backend!r}; expected one of {', '.join(BACKENDS)}.")
    if backend != "auto":
        return backend, "as asked"
    here = gpu.detect()
    if here is None:
        return CpuNetworks.name, f"there is no GPU ({gpu.why_none()})"
    if bundle is None:
        return CpuNetworks.name, f"unless a bundle has engines for {here}"
    for name in ENGINES:
        try:
            start.usable(bundle, name, here)
        except EngineError:
            continue
        return name, f"the bundle has engines for {here}"
    return CpuNetworks.name, f"the bundle has no engines that run on {here}"


def check_backend(backend: str, bundle: Bundle, settings: Settings) -> None:
    """Refuses what can be told to fail at once, before anything is read or loaded. Opening may still fail.

    Args:
        backend: one of `BACKENDS`, but `auto`.
        bundle: whose networks it is to run.
        settings: the user's.

    Raises:
        InputError: a cache for a backend that compiles nothing.
        DeviceError: a backend for GPUs is not installed, or there is no GPU for the bundle's engines.
        EngineError: the bundle has no engine that runs here.
    """
    if backend in ENGINES:
        start.engines_here(bundle, backend)
    elif backend in PROVIDERS:
        check_installed(backend)
    elif settings.engine_cache is not None:
        raise InputError(f"the backend {backend} compiles nothing; leave --engine-cache out.")


def open_device(
    backend: str,
    bundle: Bundle,
    options: Options,
    settings: Settings,
    *,
    stream: int | None = None,
    device_results: bool = False,
) -> Device:
    """The device of a backend that `check_backend` lets pass.

    Args:
        backend: one of `BACKENDS`, but `auto`.
        bundle: whose networks it runs.
        options: that say which networks.
        settings: the user's.
        stream, device_results: see `runtime.cuda.device.CudaDevice`.

    Raises:
        DeviceError: the backend is not installed, or cannot load the networks.
        EngineError: the bundle has no engine that runs here.
    """
    cache = None if settings.engine_cache is None else Path(settings.engine_cache)
    if backend in ENGINES:
        return start.open_device(
            bundle,
            backend,
            cache=cache,
            stream=stream,
            device_results=device_results,
            memory=settings.memory,
        )
    networks: CpuNetworks | ProviderNetworks
    if backend in PROVIDERS:
        networks = ProviderNetworks(bundle, backend, settings.threads, cache)
    else:
        networks = CpuNetworks(bundle, settings.threads)
    seconds: dict[str, float] = {}

    def load(in_strips: bool) -> None:
        for network in options.networks(bundle.manifest):
            started = time.perf_counter()
            if isinstance(networks, CpuNetworks):
                networks.load(network, in_strips)
            else:
                networks.load(network)
            seconds[network] = seconds.get(network, 0.0) + time.perf_counter() - started

    def arrange(height: int, width: int, options: Options, part: Part | None) -> Form:
        if backend in PROVIDERS:
            tiled = options.statistics == "tile"
            return Form("tiles" if tiled else "whole", "a provider has no strips")
        form = forms.choose_form(
            bundle, height, width, options, Available.of(settings.memory), settings.slots, part
        )
        load(form.name == "strips")
        return form

    try:
        load(in_strips=False)
    except BaseException:
        networks.close()
        raise
    return ThreadedDevice(networks, networks.cancel, seconds, arrange)


def device_of(networks: Networks, manifest: Manifest, options: Options) -> Device:
    """The device that runs given networks, in place of a backend's. They are closed with it.

    Raises:
        VsrError: they cannot be loaded; they are closed then.
    """
    try:
        for network in options.networks(manifest):
            networks.load(network)
    except BaseException:
        networks.close()
        raise
    return ThreadedDevice(networks)
