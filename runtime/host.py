"""The host device: networks run by ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from runtime.bundle import Bundle
from runtime.errors import DeviceError, InputError

FORM = "cpu"  # of a network's graphs, where the bundle has one; else `native`
# A network with fewer is no network but arithmetic: it asks for much scratch, often, in few sizes.
_PARAMETERS = 10_000


class HostDevice:
    """Loads a bundle's networks into ONNX Runtime and runs them on the CPU.

    Args:
        bundle: where the graphs are.
        threads: for each network; None for the cores this process may use.

    Raises:
        DeviceError: ONNX Runtime is not installed.
        InputError: fewer than one thread.
    """

    name = "onnxruntime-cpu"

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise DeviceError(
                "ONNX Runtime is not installed, which the CPU backend needs. Install it with: "
                "pip install 'vsr-trt[cpu]'"
            ) from error
        self._library = onnxruntime
        self._bundle = bundle
        if threads is not None and threads < 1:
            raise InputError(f"--threads is {threads}; expected 1 or more.")
        self._threads = threads or available_cores()
        self._sessions: dict[str, Any] = {}

    def load(self, network: str) -> None:
        """Loads a network, once.

        Raises:
            DeviceError: ONNX Runtime refuses the graph, or there is not enough memory.
        """
        if network in self._sessions:
            return
        record = self._bundle.manifest.networks[network]
        path = self._bundle.file(record.graphs.get(FORM, record.graphs["native"]))
        arena = record.parameters < _PARAMETERS
        try:
            self._sessions[network] = self._library.InferenceSession(
                path,
                session_options(self._library, self._threads, arena=arena),
                providers=[("CPUExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})],
            )
        except Exception as error:  # ONNX Runtime's errors share no base class of their own
            if _is_memory(error):
                raise DeviceError(f"there is not enough memory to load {path.name}.") from error
            raise DeviceError(
                f"ONNX Runtime {self._library.__version__} cannot load {path}: {_first_line(error)}"
            ) from error

    def run(self, network: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs a network; returns its outputs by name.

        Raises:
            DeviceError: it failed, most often for lack of memory.
        """
        session = self._sessions[network]
        names = [tensor.name for tensor in self._bundle.manifest.networks[network].outputs]
        try:
            return dict(zip(names, session.run(names, inputs), strict=True))
        except Exception as error:
            shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items())
            message = _first_line(error)
            if _is_memory(error):
                raise DeviceError(
                    f"{network} ran out of memory on {shapes}. Try a smaller --tile or --vae-tile, or a "
                    "smaller frame."
                ) from error
            raise DeviceError(f"{network} failed on {shapes}: {message}") from error

    def close(self) -> None:
        """Releases the networks."""
        self._sessions.clear()


def session_options(library: Any, threads: int, *, arena: bool) -> Any:
    """How ONNX Runtime runs a network here.

    Args:
        library: the onnxruntime module.
        threads: for the network.
        arena: whether scratch comes from ONNX Runtime's own arena. It never gives memory back, so that each
            heavy network would keep its own peak to itself. Without it, glibc cuts up and keeps the blocks
            of a network that asks for the same few over and over: the attention then takes 60 to 120 MB at
            a 96x96 tile, where the arena takes 20.
    """
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = arena
    # Networks run one after another; an idle one's threads must not spin against the next one's.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def available_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _is_memory(error: BaseException) -> bool:
    """Without its arena, ONNX Runtime reports the allocator's own exception."""
    return isinstance(error, MemoryError) or "bad_alloc" in str(error) or "allocate memory" in str(error)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
