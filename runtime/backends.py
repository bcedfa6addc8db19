"""What may run a bundle's networks: picking one for `auto`, and opening it."""

from __future__ import annotations

import time
from pathlib import Path

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.errors import EngineError, InputError
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.cuda import start
from vsr_trt.runtime.devices.protocol import Device
from vsr_trt.runtime.devices.threads import HostLanes
from vsr_trt.runtime.machine import gpu
from vsr_trt.runtime.onnxruntime.cpu import HostDevice
from vsr_trt.runtime.onnxruntime.gpu import ProviderDevice
from vsr_trt.runtime.onnxruntime.providers import PROVIDERS
from vsr_trt.runtime.schedule import forms
from vsr_trt.runtime.schedule.forms import Available, Form

ENGINES = start.BACKENDS
"""Those that run a bundle's engines on a GPU."""
BACKENDS = ("auto", HostDevice.name, *ENGINES, *PROVIDERS)


def choose(backend: str, bundle: Bundle | None = None) -> tuple[str, str]:
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
        return HostDevice.name, f"there is no GPU ({gpu.why_none()})"
    if bundle is None:
        return HostDevice.name, f"unless a bundle has engines for {here}"
    for name in ENGINES:
        try:
            start.usable(bundle, name, here)
        except EngineError:
            continue
        return name, f"the bundle has engines for {here}"
    return HostDevice.name, f"the bundle has no engines that run on {here}"


def open_device(
    backend: str,
    bundle: Bundle,
    options: Options,
    *,
    tile: int | None,
    vae_tile: int | None,
    threads: int | None,
    cache: Path | None,
    stream: int | None,
    device_results: bool,
    memory: int | None = None,
    slots: int = 1,
) -> Device:
    """The device of a backend.

    Args:
        backend: one of `BACKENDS`, but `auto`.
        bundle: whose networks it runs.
        options: that say which networks.
        tile, vae_tile: the user's; None for what the engines take.
        threads: of the CPU; None for all cores.
        cache: where GPU backends keep what they compile; None for the user's cache folder.
        stream, device_results: see `runtime.cuda.device.CudaDevice`.
        memory: bytes that may be used, of the host or of the GPU; None for what is free.
        slots: frames in flight, for what they take of that.

    Raises:
        InputError: a cache for a backend that compiles nothing.
        DeviceError: the backend is not installed, or cannot load the networks.
        EngineError: the bundle has no engine that runs here.
    """
    if backend in ENGINES:
        return start.open_device(
            bundle,
            backend,
            tile=tile,
            vae_tile=vae_tile,
            cache=cache,
            stream=stream,
            device_results=device_results,
            memory=memory,
        )
    networks: HostDevice | ProviderDevice
    if backend in PROVIDERS:
        networks = ProviderDevice(bundle, backend, threads, cache)
    elif cache is not None:
        raise InputError(f"the backend {backend} compiles nothing; leave --engine-cache out.")
    else:
        networks = HostDevice(bundle, threads)
    seconds: dict[str, float] = {}

    def load(in_strips: bool) -> None:
        for network in options.networks(bundle.manifest):
            started = time.perf_counter()
            if isinstance(networks, HostDevice):
                networks.load(network, in_strips)
            else:
                networks.load(network)
            seconds[network] = seconds.get(network, 0.0) + time.perf_counter() - started

    def arrange(height: int, width: int, options: Options) -> Form:
        if backend in PROVIDERS:
            tiled = options.vae_statistics == "tile"
            return Form("tiles" if tiled else "whole", "a provider has no strips")
        form = forms.choose(bundle, height, width, options, Available.of(memory), slots)
        load(form.name == "strips")
        return form

    try:
        load(in_strips=False)
    except BaseException:
        networks.close()
        raise
    return HostLanes(networks, networks.cancel, seconds, arrange)
