"""TensorRT's and TensorRT-RTX's engines: loaded once in a process, run in contexts whose memory is ours."""

from __future__ import annotations

import importlib
import logging
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vsr_trt.runtime.errors import DeviceError, EngineError
from vsr_trt.runtime.machine.files import write_whole
from vsr_trt.runtime.machine.libraries import EXTRAS, TITLES

_log = logging.getLogger(__name__)
_KEPT_MESSAGES = 20
_shared: weakref.WeakValueDictionary[tuple[str, str, int], LoadedEngine] = weakref.WeakValueDictionary()
_loading = threading.Lock()


def library(backend: str) -> Any:
    """The module `tensorrt` or `tensorrt_rtx`.

    Raises:
        DeviceError: it is not installed.
    """
    try:
        return importlib.import_module(backend)
    except ImportError as error:
        raise DeviceError(
            f"{TITLES[backend]} is not installed. Install it with: pip install 'vsr-trt[{EXTRAS[backend]}]'"
        ) from error


class _Library:
    """A library's only logger and runtime in this process: it keeps pointers to the first that it is given.

    Attributes:
        runtime: deserialises engines.
    """

    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self._messages: dict[int, list[str]] = {}
        self._logger = _logger(trt, self._messages)
        self.runtime = trt.Runtime(self._logger)

    @property
    def messages(self) -> list[str]:
        """What the library has said in this thread: other threads may load other engines meanwhile."""
        return self._messages.setdefault(threading.get_ident(), [])


_libraries: dict[int, _Library] = {}  # never emptied


def _opened(trt: Any) -> _Library:
    if id(trt) not in _libraries:
        _libraries[id(trt)] = _Library(trt)
    return _libraries[id(trt)]


class LoadedEngine:
    """A deserialised engine, its weights on the GPU.

    Args:
        trt: the library.
        plan: the serialised engine.
        name: of its file, for messages.

    Raises:
        EngineError: the library refuses the plan; it says why.
    """

    def __init__(self, trt: Any, plan: bytes, name: str) -> None:
        self._trt, self._name = trt, name
        self._library = _opened(trt)
        self._library.messages.clear()
        self.engine = self._library.runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise EngineError(
                f"{name} cannot be loaded: {self.why()}. Build it again: vsr-build engines BUNDLE --force"
            )

    @property
    def scratch(self) -> int:
        """Bytes that a context of it works in."""
        return int(self.engine.device_memory_size_v2)

    def context(self, memory: tuple[int, int], cache: RuntimeCache | None = None) -> Any:
        """An execution context that works in memory of ours.

        Args:
            memory: address and size, of `scratch` bytes at least.
            cache: of kernels that were compiled for this GPU before; TensorRT-RTX only.

        Raises:
            DeviceError: there is not enough memory, or the library refuses it.
        """
        if self.scratch > memory[1]:
            raise DeviceError(f"{self._name} works in {self.scratch} bytes, and {memory[1]} were planned.")
        trt, messages = self._trt, self._library.messages
        messages.clear()
        ours = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            # TensorRT-RTX compiles kernels as it loads: now rather than behind our back, so that what is captured in
            # a graph stays what it is. Graphs are ours, over several engines.
            config = self.engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(ours)
            config.dynamic_shapes_kernel_specialization_strategy = (
                trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
            if cache is not None:
                cache.use(config)
                messages.clear()  # a cache that is refused costs time, and no start
            context = self.engine.create_execution_context(config)
        else:
            context = self.engine.create_execution_context(ours)
        if context is None:
            raise DeviceError(f"{self._name}: no execution context could be made: {self.why()}.")
        context.nvtx_verbosity = (
            trt.ProfilingVerbosity.NONE
        )  # ranges around every layer cost time of the host
        messages.clear()
        context.set_device_memory(*memory)
        if messages:  # it has no other way to say that it refuses the memory
            raise DeviceError(f"{self._name} cannot work in the memory that it is given: {self.why()}.")
        return context

    def why(self) -> str:
        """The library's last words."""
        return "; ".join(self._library.messages[-3:]).rstrip(".") or "it gives no reason"


def share(trt: Any, file: Path, key: str, context: int) -> LoadedEngine:
    """An engine, loaded once in this process for all that use it at the same time: its weights are shared.

    Args:
        trt: the library.
        file: the plan.
        key: of its content.
        context: address of the CUDA context that it lives in.

    Raises:
        EngineError: the plan cannot be read, or the library refuses it.
    """
    with _loading:
        found = _shared.get((trt.__name__, key, context))
        if found is None:
            try:
                plan = file.read_bytes()
            except OSError as error:
                raise EngineError(f"{file} cannot be read: {error.strerror or error}.") from error
            found = LoadedEngine(trt, plan, file.name)
            _shared[trt.__name__, key, context] = found
        return found


class RuntimeCache:
    """Kernels that TensorRT-RTX compiled for this GPU, kept in a file so that the next start need not.

    Args:
        file: where they are kept. A file that cannot be used is written again.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._cache: Any = None
        self._read = b""

    def use(self, config: Any) -> None:
        """Gives the cache to a context's configuration; the first one makes it."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            with suppress(OSError):
                self._read = self._file.read_bytes()
            if self._read and not self._cache.deserialize(self._read):
                _log.warning(
                    "%s is of another version, driver or GPU, or damaged; it is thrown away and written again.",
                    self._file,
                )
                self._read, self._cache = b"", config.create_runtime_cache()
        if not config.set_runtime_cache(self._cache):
            _log.warning("TensorRT-RTX takes no cache of kernels; they are compiled at every start.")

    def save(self) -> None:
        """Writes what is new in it, whole or not at all. A folder that cannot be written costs time, not more."""
        if self._cache is None:
            return
        serialized = self._cache.serialize()
        blob = b"" if serialized is None else bytes(serialized)
        if not blob or blob == self._read:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._file, blob)
        except OSError as error:
            _log.warning("the compiled kernels cannot be kept in %s: %s", self._file, error.strerror or error)
            return
        self._read = blob


def set_shapes(context: Any, name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Sets a context's input shapes.

    Raises:
        EngineError: the engine was not built for them.
    """
    for tensor, shape in shapes.items():
        if not context.set_input_shape(tensor, shape):
            raise EngineError(
                f"the engine of {name} does not take {tensor} {shape}. Build one that does: vsr-build engines "
                "BUNDLE --size WIDTHxHEIGHT"
            )


def _logger(trt: Any, messages: dict[int, list[str]]) -> Any:
    severities = trt.ILogger.Severity

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            if severity in (severities.INTERNAL_ERROR, severities.ERROR):
                kept = messages.setdefault(threading.get_ident(), [])
                kept.append(message)
                del kept[:-_KEPT_MESSAGES]
            _log.log(_LEVELS.get(severity.name, logging.DEBUG), "%s", message)

    return Logger()


_LEVELS = {"INTERNAL_ERROR": logging.ERROR, "ERROR": logging.ERROR, "WARNING": logging.WARNING}
