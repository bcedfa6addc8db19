"""The host device: networks run by ONNX Runtime on the CPU."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import STRIPS, Engine, FileEntry
from vsr_trt.runtime.bundle.options import check_threads
from vsr_trt.runtime.errors import DeviceError
from vsr_trt.runtime.machine.processor import available_cores, cpu_target
from vsr_trt.runtime.onnxruntime import scratch
from vsr_trt.runtime.schedule.forms import IN_STRIPS, WHOLE

_log = logging.getLogger(__name__)

_BACKEND = "onnxruntime"
# Sessions may be called from several threads: whoever restores with the same bundle shares them, and the weights.
_shared: weakref.WeakValueDictionary[tuple[str, FileEntry, int], Any] = weakref.WeakValueDictionary()
_loading = threading.Lock()


@dataclass(frozen=True)
class OptimisedGraph:
    """What `optimised_graph` found: the engine to take, or None, and why each other one of the network is not it."""

    engine: Engine | None
    passed_over: tuple[str, ...]


def optimised_graph(
    engines: Iterable[Engine],
    network: str,
    target: str,
    version: str,
    precision: str,
    in_strips: bool = False,
) -> OptimisedGraph:
    """The optimised graph of a network that may be run here.

    Args:
        engines: of the bundle, for any backend.
        network: its name.
        target: of this CPU, see `runtime.machine.processor`.
        version: of ONNX Runtime. Another version may lack a kernel that the graph names.
        precision: of the bundle, so that results are the same with an engine and without.
        in_strips: whether it is to compute pictures in strips.
    """
    taken, reasons = None, []
    for engine in engines:
        if engine.backend != _BACKEND or engine.network != network:
            continue
        if (STRIPS in engine.flags) != in_strips:
            continue
        if engine.target != target:
            reasons.append(f"{engine.file} is for {engine.target}, this CPU is {target}")
        elif engine.version != version:
            reasons.append(f"{engine.file} is for ONNX Runtime {engine.version}, installed is {version}")
        elif engine.precision != precision:
            reasons.append(f"{engine.file} is {engine.precision}, the bundle is {precision}")
        elif taken is None:
            taken = engine
    return OptimisedGraph(taken, tuple(reasons))


class CpuNetworks:
    """Loads a bundle's networks into ONNX Runtime and runs them on the CPU.

    Where the bundle has a graph that was optimised for this CPU and this ONNX Runtime, that one is loaded as
    it is; otherwise ONNX Runtime optimises the network's graph now, which gives the same results later.

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
        self._threads = thread_count(threads)
        self._sessions: dict[str, Any] = {}
        self._forms: dict[str, str] = {}  # that those are of
        self._shapes: dict[str, dict[str, tuple[int, ...]]] = {}  # that each network ran on last
        self._calls = Calls(onnxruntime)

    def load(self, network: str, in_strips: bool = False) -> None:
        """Loads a network, once, or again to have it in strips or whole.

        Args:
            network: its name.
            in_strips: to compute pictures in strips, where the bundle has that form of it.

        Raises:
            DeviceError: ONNX Runtime refuses the graph, or there is not enough memory.
        """
        manifest = self._bundle.manifest
        record = manifest.networks[network]
        form = IN_STRIPS if in_strips and IN_STRIPS in record.graphs else WHOLE
        if self._forms.get(network) == form:
            return
        self._sessions.pop(network, None)  # its weights go first
        engine = self._engine(network, form == IN_STRIPS)
        path = self._bundle.file(engine.file if engine else record.graphs.get(form, record.graphs["native"]))
        key = (
            str(path.resolve()),
            manifest.files[path.relative_to(self._bundle.path).as_posix()],
            self._threads,
        )
        with _loading:
            session = _shared.get(key)
            if session is None:
                session = _shared[key] = self._open(path, engine)
        self._sessions[network], self._forms[network] = session, form

    def _open(self, path: Path, engine: Engine | None) -> Any:
        options = session_options(self._library, self._threads, optimise=engine is None)
        scratch.share(self._library, options)
        fix = self._bundle.way_out
        if engine:
            fix += f" Make it again with: vsr-build engines {self._bundle.path} --backend onnxruntime --force"
        return open_session(self._library, path, options, ["CPUExecutionProvider"], fix)

    def run(self, network: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs a network; returns its outputs by name.

        Raises:
            DeviceError: it failed, most often for lack of memory.
        """
        names = [tensor.name for tensor in self._bundle.manifest.networks[network].outputs]
        shapes = {name: value.shape for name, value in inputs.items()}
        former = self._shapes.get(network, shapes)
        self._shapes[network] = shapes
        # what the arena holds for one size is of little use for another
        return self._calls.run(self._sessions[network], network, names, inputs, shrink=shapes != former)

    def cancel(self) -> None:
        """Makes calls that are under way fail soon."""
        self._calls.cancel()

    def _engine(self, network: str, in_strips: bool) -> Engine | None:
        manifest, version = self._bundle.manifest, self._library.__version__
        choice = optimised_graph(
            manifest.engines, network, cpu_target(), version, manifest.precision, in_strips
        )
        for reason in choice.passed_over:
            _log.info("%s: %s", network, reason)
        _log.info("%s: takes %s", network, choice.engine.file if choice.engine else "the network's graph")
        return choice.engine

    def close(self) -> None:
        """Releases the networks, and the memory that they worked in."""
        if self._sessions:
            self._sessions.clear()
            self._forms.clear()
            scratch.give_back(self._library)


def session_options(library: Any, threads: int, *, optimise: bool = True) -> Any:
    """How ONNX Runtime runs a network here; see `scratch` for where.

    Args:
        library: the onnxruntime module.
        threads: for the network.
        optimise: the graph on loading; not where it was optimised before it was saved.
    """
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = library.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False  # not one of its own
    # A plan would take what a run needs as one block, larger than the most that it needs at once (by 0.1 to 0.3 GB)
    options.enable_mem_pattern = False
    # Networks run one after another; an idle one's threads must not spin against the next one's.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_session(library: Any, path: Path, options: Any, providers: list[Any] | None, fix: str = "") -> Any:
    """Loads a graph.

    Args:
        library: the onnxruntime module.
        path: of the graph.
        options: its SessionOptions.
        providers: names, or names with options; None where `options` hold devices.
        fix: ends the message of an error.

    Raises:
        DeviceError: ONNX Runtime refuses the graph, or there is not enough memory.
    """
    try:
        # Without fallback: Python's wrapper would take the CPU instead of a provider that fails, and say it once.
        return library.InferenceSession(path, options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors share no base class of their own
        if _is_memory(error):
            raise DeviceError(f"there is not enough memory to load {path.name}.") from error
        raise DeviceError(
            f"ONNX Runtime {library.__version__} cannot load {path}: {_first_line(error).rstrip('.')}.{fix}"
        ) from error


class Calls:
    """Calls of sessions, from any number of threads, which can be cancelled.

    Args:
        library: the onnxruntime module.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._lock = threading.Lock()
        self._under_way: list[Any] = []

    def run(
        self,
        session: Any,
        network: str,
        outputs: list[str],
        inputs: dict[str, np.ndarray],
        *,
        shrink: bool = False,
    ) -> dict[str, np.ndarray]:
        """Runs a network's session; returns the outputs by name.

        Args:
            session: runs it.
            network: its name, for messages.
            outputs: names.
            inputs: by name.
            shrink: give back at the end what the shared arena holds and nobody uses.

        Raises:
            DeviceError: it failed, most often for lack of memory, or was cancelled.
        """
        options = self._library.RunOptions()
        if shrink:
            scratch.shrinking(options)
        with self._lock:
            self._under_way.append(options)
        try:
            return dict(zip(outputs, session.run(outputs, inputs, options), strict=True))
        except Exception as error:
            shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items())
            if _is_memory(error):
                raise DeviceError(
                    f"{network} ran out of memory on {shapes}. Restore a smaller frame, or see what it takes with: "
                    "vsr plan"
                ) from error
            raise DeviceError(f"{network} failed on {shapes}: {_first_line(error)}") from error
        finally:
            with self._lock:
                self._under_way.remove(options)

    def cancel(self) -> None:
        """Makes the calls under way fail at their next node."""
        with self._lock:
            for options in self._under_way:
                options.terminate = True


def thread_count(threads: int | None) -> int:
    """The threads to use: as asked, or one for each core.

    Raises:
        InputError: fewer than one, or more than can be meant.
    """
    check_threads(threads)
    return threads or available_cores()


def _is_memory(error: BaseException) -> bool:
    """ONNX Runtime reports the allocator's own exception, or its arena's words."""
    return isinstance(error, MemoryError) or "bad_alloc" in str(error) or "allocate memory" in str(error)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
