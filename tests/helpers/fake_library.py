"""TensorRT-RTX on the stub driver: the real builder, and a runtime that computes on the CPU what a plan was built from.

The library builds plans without a GPU and runs them on one only. So its builder stays, and remembers next to each plan
which graph it was built from, for which shapes and GPUs; the runtime here takes the plan by its content, refuses what
the real one would refuse, and runs the graph in ONNX Runtime, on the driver's streams, in the memory that it is given.
Plans and graphs are remembered in the folder $VSR_FAKE_STORE, for all processes of a run. $VSR_FAKE_FAULT injects a
fault: `values` (all engines' results are wrong), `cache` (no start after a cache that was rejected).
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from helpers.fake_gpu import _Checked, array_at

HERE = "SM89"  # the stub driver's GPU
SCRATCH = 1 << 16  # bytes that each engine works in
_MAGIC = b"kernels of the fake GPU\n"
_networks: dict[int, bytes] = {}  # address of a network that is built -> its graph, weights inside
_profiles: list[Any] = []


def _store() -> Path:
    folder = Path(os.environ["VSR_FAKE_STORE"])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _fault() -> str:
    return os.environ.get("VSR_FAKE_FAULT", "")


def put_runtime(module: ModuleType) -> None:
    """Changes `tensorrt_rtx`: what builds remembers, what runs is `Runtime`."""
    real = {name: getattr(module, name) for name in ("Builder", "OnnxParser", "Runtime")}

    class Parser(real["OnnxParser"]):  # type: ignore[misc]
        def __init__(self, network: Any, logger: Any) -> None:
            super().__init__(network, logger)
            self._network = network

        def parse(self, content: bytes, path: str | None = None) -> bool:
            _networks[id(self._network)] = _whole(content, path)
            return bool(super().parse(content, path) if path else super().parse(content))

        def parse_from_file(self, path: str) -> bool:
            _networks[id(self._network)] = _whole(Path(path).read_bytes(), path)
            return bool(super().parse_from_file(path))

    class Builder(real["Builder"]):  # type: ignore[misc]
        def create_optimization_profile(self) -> Any:
            _profiles.append(super().create_optimization_profile())
            return _profiles[-1]

        def build_serialized_network(self, network: Any, config: Any) -> Any:
            plan = super().build_serialized_network(network, config)
            if plan is not None:
                _remember(hashlib.sha256(plan), network, config)
            return plan

        def build_serialized_network_to_stream(self, network: Any, config: Any, writer: Any) -> bool:
            whole = hashlib.sha256()

            class Both(module.IStreamWriter):  # type: ignore[name-defined,misc]
                def __init__(self) -> None:
                    module.IStreamWriter.__init__(self)

                def write(self, data: bytes) -> int:
                    whole.update(data)
                    return int(writer.write(data))

            done = bool(super().build_serialized_network_to_stream(network, config, Both()))
            if done:
                _remember(whole, network, config)
            return done

    module.__dict__.update(OnnxParser=Parser, Builder=Builder)
    module.__dict__["Runtime"] = lambda logger: Runtime(module, real["Runtime"], logger)


def _whole(content: bytes, path: str | None) -> bytes:
    """A graph with its weights inside."""
    import onnx

    model = onnx.load_from_string(content)
    if path is not None:
        onnx.external_data_helper.load_external_data_for_model(model, str(Path(path).parent))
    return model.SerializeToString()


def _remember(plan: Any, network: Any, config: Any) -> None:
    graph = _networks[id(network)]
    name = hashlib.sha256(graph).hexdigest()
    profile = _profiles[-1]
    inputs = [network.get_input(index).name for index in range(network.num_inputs)]
    record = {
        "graph": name,
        "shapes": {one: [list(map(int, dims)) for dims in profile.get_shape(one)] for one in inputs},
        "targets": [
            config.get_compute_capability(index).name for index in range(config.num_compute_capabilities)
        ],
    }
    for file, content in ((f"{name}.onnx", graph), (f"{plan.hexdigest()}.json", json.dumps(record).encode())):
        part = _store() / f"{file}.{os.getpid()}"
        part.write_bytes(content)
        part.replace(_store() / file)


class Runtime(_Checked):
    """See the module."""

    def __init__(self, trt: ModuleType, real: Any, logger: Any) -> None:
        self._real, self._trt, self._logger = real, trt, logger

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        """An engine; None, and the reason in the log, for what is no plan, or one for other GPUs."""
        file = _store() / f"{hashlib.sha256(plan).hexdigest()}.json"
        if not file.exists():
            return _refuse(self, "the plan is damaged")
        record = json.loads(file.read_text())
        if HERE not in record["targets"]:
            return _refuse(self, f"the plan is for {', '.join(record['targets'])}, this GPU is {HERE}")
        return Engine(self._trt, self._logger, record)


def _refuse(of: Any, reason: str) -> None:
    of._logger.log(of._trt.ILogger.Severity.ERROR, reason)


class Engine(_Checked):
    """An engine: a session of ONNX Runtime."""

    def __init__(self, trt: ModuleType, logger: Any, record: dict[str, Any]) -> None:
        import onnxruntime

        self._real, self._trt, self._logger, self._record = trt.ICudaEngine, trt, logger, record
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        path = _store() / f"{record['graph']}.onnx"
        self._session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])

    def _run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs. What was computed before, by whichever process, is read: benchmarks repeat their frames."""
        state = hashlib.sha256(self._record["graph"].encode())
        for name, array in sorted(feeds.items()):
            state.update(f"{name} {array.shape} {array.dtype}".encode() + array.tobytes())
        file = _store() / f"{state.hexdigest()}.npz"
        if not file.exists():
            names = [one.name for one in self._session.get_outputs()]
            part = file.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
            with part.open("wb") as stream:
                np.savez(stream, **dict(zip(names, self._session.run(names, feeds), strict=True)))
            part.replace(file)
        with np.load(file) as arrays:
            return dict(arrays)

    @property
    def device_memory_size_v2(self) -> int:
        """Bytes that a context works in."""
        return SCRATCH

    def create_runtime_config(self) -> Any:
        """See TensorRT-RTX."""
        return IRuntimeConfig(self._trt, self._logger)

    def create_execution_context(self, config: Any) -> Any:
        """A context; its kernels are "compiled": what the cache holds is not compiled again."""
        if config._cache is not None and not config._cache._add(self._record["graph"]):
            return _refuse(self, "the cache of kernels is damaged")
        return Context(self._trt, self._logger, self)


class IRuntimeConfig(_Checked):
    """See TensorRT-RTX."""

    def __init__(self, trt: ModuleType, logger: Any) -> None:
        self._real, self._trt, self._logger = trt.IRuntimeConfig, trt, logger
        self._strategy: Any = None
        self._cache: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        """Engines are built to work in memory of the caller's alone."""
        assert strategy == self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._strategy = strategy

    def create_runtime_cache(self) -> Any:
        """An empty one."""
        return IRuntimeCache(self._trt, self._logger)

    def set_runtime_cache(self, cache: Any) -> bool:
        """See TensorRT-RTX."""
        self._cache = cache
        return True


class IRuntimeCache(_Checked):
    """Names of the graphs whose kernels were compiled, with a checksum."""

    def __init__(self, trt: ModuleType, logger: Any) -> None:
        self._real, self._trt, self._logger = trt.IRuntimeCache, trt, logger
        self._names: set[str] = set()

    def deserialize(self, blob: bytes) -> bool:
        """False for what is no cache of this GPU, or damaged."""
        head, rest = blob[: len(_MAGIC)], blob[len(_MAGIC) :]
        if head != _MAGIC or hashlib.sha256(rest[64:]).hexdigest().encode() != rest[:64]:
            _refuse(self, "the runtime cache is rejected")
            IRuntimeCache.rejected = True
            return False
        self._names = set(rest[64:].decode().split())
        return True

    def serialize(self) -> bytes:
        """See TensorRT-RTX."""
        text = "\n".join(sorted(self._names)).encode()
        return _MAGIC + hashlib.sha256(text).hexdigest().encode() + text

    def _add(self, name: str) -> bool:
        self._names.add(name)
        return not (IRuntimeCache.rejected and _fault() == "cache")

    rejected = False  # one was, in this process


_CALL = ctypes.CFUNCTYPE(None, ctypes.c_uint64)


class Context(_Checked):
    """An execution context, whose runs are work on a stream of the stub driver's."""

    def __init__(self, trt: ModuleType, logger: Any, engine: Engine) -> None:
        self._real, self._trt, self._logger, self._engine = trt.IExecutionContext, trt, logger, engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory = (0, 0)
        self._seconds = 0.0  # of the last run
        self._works: list[Any] = []  # callbacks that graphs may call as long as the context lives
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._driver.stub_call.argtypes = (ctypes.c_void_p, _CALL, ctypes.c_uint64)

    def report_to_profiler(self) -> bool:
        """The last run, as one layer."""
        profiler = self.__dict__.get("profiler")
        if profiler is None or not self._seconds:
            return False
        profiler.report_layer_time("all of it in ONNX Runtime", self._seconds * 1e3)
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        """See TensorRT."""
        if memory % 512 or size < SCRATCH:
            _refuse(self, f"{size} bytes at {memory:#x} cannot be worked in")
            return
        self._memory = memory, size

    def is_stream_capturable(self, stream: int) -> bool:
        """It is: a graph calls it again."""
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """False for what the engine was not built for."""
        bounds = self._engine._record["shapes"].get(name)
        if bounds is None or len(bounds[0]) != len(shape):
            return False
        if any(not low <= size <= high for low, size, high in zip(bounds[0], shape, bounds[2], strict=True)):
            return False
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        """False for a name that the engine does not have."""
        session = self._engine._session
        if name not in {one.name for one in (*session.get_inputs(), *session.get_outputs())}:
            return False
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        """Puts a run on the stream, with the addresses and shapes that are set now."""
        session = self._engine._session
        addresses, shapes, memory = dict(self._addresses), dict(self._shapes), self._memory
        names = [one.name for one in session.get_outputs()]
        if {one.name for one in session.get_inputs()} - set(shapes) or set(names) - set(addresses):
            _refuse(self, "an input without a shape, or an output without an address")
            return False
        if not memory[0]:
            _refuse(self, "a context without memory")
            return False
        kinds = {one.name: _dtype(one.type) for one in (*session.get_inputs(), *session.get_outputs())}

        def work(number: int) -> None:
            started = time.perf_counter()
            ctypes.memset(memory[0], 0x5A, memory[1])  # whatever was in the scratch is gone
            feeds = {n: array_at(addresses[n], shape, kinds[n]).copy() for n, shape in shapes.items()}
            for name, value in self._engine._run(feeds).items():
                if _fault() == "values":
                    value = 255 - value if value.dtype == np.uint8 else -value
                array_at(addresses[name], value.shape, kinds[name])[...] = value
            self._seconds = time.perf_counter() - started

        call = _CALL(work)
        self._works.append(call)
        return int(self._driver.stub_call(stream, call, 0)) == 0


def _dtype(kind: str) -> np.dtype[Any]:
    names = {"float": "float32", "float16": "float16", "uint8": "uint8", "int64": "int64", "int32": "int32"}
    return np.dtype(names[kind.removeprefix("tensor(").removesuffix(")")])


def keep_kernels(module: ModuleType) -> None:
    """Changes `vsr_trt.kernels.gpu.build`: what each compiled kernel is, for the stub driver, which cannot read it."""
    compile_one = module._compile

    def compile_and_keep(*arguments: Any) -> Any:
        made = compile_one(*arguments)
        launch = made.launch
        folder = Path(os.environ["VSR_STUB_MODULES"])
        folder.mkdir(parents=True, exist_ok=True)
        said = f"{launch.target} {launch.dtype} {'top_k' if launch.top_k else 'all'}\n"
        for image in (made.cubin, made.ptx.encode()):
            (folder / f"{fnv(image):016x}").write_text(said)
        return made

    module.__dict__["_compile"] = compile_and_keep


def fnv(image: bytes) -> int:
    """Hash of an image as the stub driver has it: FNV-1a; of ELF up to the end of its table of sections."""
    if image.startswith(b"\x7fELF"):
        table = int.from_bytes(image[40:48], "little")
        image = image[
            : table + int.from_bytes(image[58:60], "little") * int.from_bytes(image[60:62], "little")
        ]
    value = 14695981039346656037
    for byte in image:
        value = (value ^ byte) * 1099511628211 & (1 << 64) - 1
    return value
