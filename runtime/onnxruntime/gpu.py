"""A device that runs networks on a GPU through one of ONNX Runtime's providers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Manifest, Network
from vsr_trt.runtime.bundle.symbols import dimension
from vsr_trt.runtime.errors import DeviceError, OutputError
from vsr_trt.runtime.onnxruntime.cpu import Calls, open_session, session_options, thread_count
from vsr_trt.runtime.onnxruntime.providers import (
    CUDA,
    PROVIDERS,
    TENSORRT,
    cache_folder,
    check_installed,
    prepare,
    provider_options,
    versions,
)

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Loaded:
    shapes: Shapes
    session: Any


class ProviderNetworks:
    """Runs a bundle's native graphs, in FP16 where the bundle has them so, through a provider.

    Compilers do best with one shape, and all frames and tiles of a clip have the same: a network is loaded
    when it is first run, for the shape that it is run on, and again when another shape comes. What a provider
    compiles it keeps in its cache; the next time that costs no compilation.

    Args:
        bundle: where the graphs are.
        backend: a key of `runtime.onnxruntime.providers.PROVIDERS`.
        threads: for what is left to the CPU; None for the cores this process may use.
        cache: folder for compiled engines; None for the user's, see `runtime.onnxruntime.providers.cache_folder`.

    Raises:
        DeviceError: the provider is not installed, or finds no GPU.
        InputError: fewer than one thread.
    """

    def __init__(
        self, bundle: Bundle, backend: str, threads: int | None = None, cache: Path | None = None
    ) -> None:
        self.name = backend
        self._provider = PROVIDERS[backend]
        self._library = check_installed(backend)
        self._bundle = bundle
        self._threads = thread_count(threads)
        self._cache = (cache or cache_folder()).absolute()
        self._devices = prepare(self._library, backend)
        self._graphs: dict[str, str] = {}
        self._sessions: dict[str, _Loaded] = {}
        self._calls = Calls(self._library)

    def load(self, network: str) -> None:
        """Picks a network's graph; it is compiled for the first shape that it is run on."""
        manifest = self._bundle.manifest
        record = manifest.networks[network]
        self._graphs[network] = record.graph("fp16", manifest.precision) or record.graphs["native"]

    def run(self, network: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs a network; returns its outputs by name.

        Raises:
            DeviceError: the provider refuses the graph or cannot start, or the network failed.
            OutputError: the cache's folder cannot be made.
        """
        shapes = {name: value.shape for name, value in inputs.items()}
        loaded = self._sessions.get(network)
        if loaded is None or loaded.shapes != shapes:
            self._sessions.pop(network, None)  # its memory is needed for the new one
            loaded = self._sessions[network] = _Loaded(shapes, self._open(network, shapes))
        names = [tensor.name for tensor in self._bundle.manifest.networks[network].outputs]
        return self._calls.run(loaded.session, network, names, inputs)

    def cancel(self) -> None:
        """Makes calls that are under way fail soon."""
        self._calls.cancel()

    def close(self) -> None:
        """Releases the networks."""
        self._sessions.clear()

    def _open(self, network: str, shapes: Shapes) -> Any:
        graph = self._graphs[network]
        options = session_options(self._library, self._threads)
        for name, size in free_dimensions(self._bundle.manifest.networks[network], shapes).items():
            options.add_free_dimension_override_by_name(name, size)
        told = provider_options(self.name, self._folder(network, graph, shapes))
        providers: list[Any] | None = None
        if self._devices:
            options.add_provider_for_devices(self._devices, told)
        else:
            providers = [(self._provider.name, told), "CPUExecutionProvider"]
            if self.name == TENSORRT:  # what it does not take stays on the GPU
                providers.insert(1, (PROVIDERS[CUDA].name, provider_options(CUDA, self._cache)))
        session = open_session(
            self._library, self._bundle.file(graph), options, providers, self._bundle.way_out
        )
        if self._provider.name not in session.get_providers():
            # ONNX Runtime prints why, and goes on without
            raise DeviceError(
                f"{self._provider.name} could not be started; ONNX Runtime's message above says why. Most often a "
                f"library is missing: {self._provider.install}. onnxruntime-cpu runs without it."
            )
        return session

    def _folder(self, network: str, graph: str, shapes: Shapes) -> Path:
        key = cache_key(self._bundle.manifest, graph, shapes)
        folder = self._cache / versions(self._library, self.name) / f"{network}-{key}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"the folder for compiled engines, {folder}, cannot be made: {error.strerror}. "
                "Name another with --engine-cache."
            ) from error
        return folder


def free_dimensions(network: Network, shapes: Shapes) -> dict[str, int]:
    """The sizes of a network's symbolic dimensions, by the names that its graph gives them ("h", "8*h").

    Args:
        network: its record.
        shapes: of its inputs.
    """
    symbols = {}
    for tensor in network.inputs:
        for size, actual in zip(tensor.shape, shapes[tensor.name], strict=True):
            factor, symbol = dimension(size)
            if symbol is not None:
                symbols[symbol] = actual // factor
    sizes = {}
    for tensor in (*network.inputs, *network.outputs):
        for size in tensor.shape:
            factor, symbol = dimension(size)
            if symbol in symbols:
                sizes[str(size)] = factor * symbols[symbol]
    return sizes


def cache_key(manifest: Manifest, graph: str, shapes: Shapes) -> str:
    """Names what is compiled from a graph: a hash over its files, weights included, and the shapes."""
    path = PurePosixPath(graph)
    stem = f"{path.parent / path.name.split('.')[0]}."
    files = {name: entry.sha256 for name, entry in manifest.files.items() if name.startswith(stem)}
    return hashlib.sha256(json.dumps([graph, files, shapes], sort_keys=True).encode()).hexdigest()[:16]
