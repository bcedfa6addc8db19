"""A GPU that is none: every call goes through the real bindings up to the missing driver, then happens in memory.

`FakeDriver` stands in for `cuda.bindings.driver`. Each call is first made to the real function, which checks and
converts its arguments and then finds no driver; anything else that it raises is a mistake of ours. Then the call
is recorded, and its resources are counted. What it puts on a stream waits there, and is done on the host's memory when
somebody asks whether an event has passed: streams go on in an order drawn by lot, as far as events let them. Copies
copy, launches run numpy, graphs replay what was captured. So results can be compared, byte by byte, with the CPU's.

`FakeTensorRT` stands in for `tensorrt_rtx`: its enums are the real ones, its methods take what the real ones'
signatures say.
"""

# ruff: noqa: N802, N815 (names of CUDA and TensorRT)

from __future__ import annotations

import collections
import collections.abc
import ctypes
import inspect
import itertools
import random
import re
import types
import typing
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from vsr_trt.runtime.bundle.manifest import Manifest
from vsr_trt.runtime.bundle.symbols import dimension
from vsr_trt.runtime.devices.actions import Buffers, Networks
from vsr_trt.runtime.schedule import tiling
from vsr_trt.runtime.schedule.canvas import FrameShape

# call that makes a resource -> call that gives it back
PAIRS = {
    "cuStreamCreate": "cuStreamDestroy",
    "cuEventCreate": "cuEventDestroy",
    "cuMemAlloc": "cuMemFree",
    "cuMemHostAlloc": "cuMemFreeHost",
    "cuModuleLoadData": "cuModuleUnload",
    "cuGraphInstantiate": "cuGraphExecDestroy",
    "cuStreamEndCapture": "cuGraphDestroy",
    "cuDevicePrimaryCtxRetain": "cuDevicePrimaryCtxRelease",
}
RELEASES = {release: make for make, release in PAIRS.items()}
UNCAPTURABLE = {
    *("cuCtxSynchronize", "cuMemcpyHtoD", "cuMemcpyDtoH", "cuMemcpyDtoD", "cuMemAlloc", "cuMemFree"),
    *(
        "cuMemHostAlloc",
        "cuMemFreeHost",
        "cuModuleLoadData",
        "cuModuleUnload",
        "cuStreamDestroy",
        "cuEventQuery",
    ),
}
SYNCHRONISING = {
    "cuStreamSynchronize",
    "cuEventSynchronize",
    "cuCtxSynchronize",
    "cuMemcpyHtoD",
    "cuMemcpyDtoH",
}
ALLOCATING = {"cuMemAlloc", "cuMemHostAlloc", "cuMemAllocAsync", "cuMemFree", "cuMemFreeHost"}


class FakeDriver:
    """See the module.

    Args:
        fail: number of the call that fails, from 0; None for none.
        kernels: entry's name -> function of its arguments by position, run at a launch.
        free: bytes of memory that are free.

    Attributes:
        calls: (name, arguments), in order.
        live: (call that made it, handle) of what was not given back, in order.
    """

    def __init__(
        self,
        fail: int | None = None,
        kernels: dict[str, Callable[..., None]] | None = None,
        free: int = 1 << 40,
        status: str = "CUDA_ERROR_UNKNOWN",
        seed: int = 0,
    ) -> None:
        from cuda.bindings import driver

        self.real = driver
        self.fail, self.free, self.status = fail, free, status
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.live: list[tuple[str, int]] = []
        self.kernels = kernels or {}
        self._memory: dict[int, Any] = {}
        self._handles = itertools.count(0x1000, 16)
        self._functions: dict[int, str] = {}
        self._capturing: dict[int, list[Callable[[], None]]] = {}
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self.pushed = 0
        self.stuck = False  # nothing on any stream goes on
        self._chance = random.Random(seed)
        self._streams: dict[int, collections.deque[tuple[str, Any]]] = collections.defaultdict(
            collections.deque
        )
        self._recorded: dict[int, int] = collections.Counter()  # event -> records that were asked for
        self._passed: dict[int, int] = collections.Counter()  # event -> records that have passed

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.real, name)
        if not name.startswith("cu") or inspect.isclass(found):
            return found  # enums, structs, handle types
        return lambda *arguments: self._call(name, found, arguments)

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def _call(self, name: str, real: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        try:
            real(*arguments)
        except RuntimeError as error:
            if "driver library" not in str(error):
                raise
        else:
            raise AssertionError("these tests are for machines without a driver")
        self._refuse_while_capturing(name, arguments)
        number = len(self.calls)
        self.calls.append((name, arguments))
        if number == self.fail:
            if name == "cuStreamEndCapture":
                self._capturing.pop(int(arguments[0]), None)  # it has ended all the same
            return (getattr(self.real.CUresult, self.status), *[None] * 2)
        if name in RELEASES:
            self._release(name, arguments[0])
        handler = getattr(self, f"_do_{name}", None)
        result = handler(*arguments) if handler else ()
        if name in PAIRS and name != "cuDevicePrimaryCtxRetain":
            self.live.append((name, int(result[0])))
        return (self.real.CUresult.CUDA_SUCCESS, *result)

    def _refuse_while_capturing(self, name: str, arguments: tuple[Any, ...]) -> None:
        """What CUDA forbids while a stream is captured, in the mode that forbids least ("Prohibited and Unhandled
        Operations" in the programming guide): it would spoil the capture, whoever's it is."""
        if not self._capturing:
            return
        assert name not in UNCAPTURABLE, f"{name} while a graph is captured"
        if name in ("cuStreamQuery", "cuStreamSynchronize"):
            assert int(arguments[0]) not in self._capturing, f"{name} of a stream that is captured"
        if name.endswith("Async") or name in ("cuLaunchKernel", "cuEventRecord", "cuStreamWaitEvent"):
            assert all(int(value) for value in arguments if isinstance(value, self.real.CUstream)), (
                "legacy stream"
            )

    def _release(self, name: str, handle: Any) -> None:
        made = RELEASES[name], int(handle)
        assert made in self.live, f"{name}({int(handle):#x}) gives back what is not there"
        self.live.remove(made)
        self._memory.pop(int(handle), None)

    def _work(self, stream: Any, work: Callable[[], None]) -> tuple[()]:
        if int(stream) in self._capturing:
            self._capturing[int(stream)].append(work)
        else:
            self._streams[int(stream)].append(("work", work))
        return ()

    def _step(self) -> bool:
        """Lets one stream, by lot, go on by one thing; False where none can."""
        able = [stream for stream, things in self._streams.items() if things and self._may(things[0])]
        if not able or self.stuck:
            return False
        kind, what = self._streams[self._chance.choice(able)].popleft()
        if kind == "record":
            self._passed[what] += 1
        elif kind == "work":
            what()
        return True

    def _may(self, thing: tuple[str, Any]) -> bool:
        kind, what = thing
        return kind != "wait" or self._passed[what[0]] >= what[1]

    def _status(self, done: bool) -> tuple[Any]:
        results = self.real.CUresult
        return (results.CUDA_SUCCESS if done else results.CUDA_ERROR_NOT_READY,)

    def _do_cuEventRecord(self, event: Any, stream: Any) -> tuple[()]:
        self._recorded[int(event)] += 1
        self._streams[int(stream)].append(("record", int(event)))
        return ()

    def _do_cuStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> tuple[()]:
        self._streams[int(stream)].append(("wait", (int(event), self._recorded[int(event)])))
        return ()

    def _finish(self) -> tuple[()]:
        while self._step():
            pass
        assert self.stuck or not any(self._streams.values()), "streams wait for each other"
        return ()

    def _do_cuStreamSynchronize(self, stream: Any) -> tuple[()]:
        return self._finish()

    def _do_cuCtxSynchronize(self) -> tuple[()]:
        return self._finish()

    def _do_cuEventSynchronize(self, event: Any) -> tuple[()]:
        return self._finish()

    def _handle(self, kind: Any) -> tuple[Any]:
        return (kind(next(self._handles)),)

    # what the calls do; cu* not listed here do nothing and return nothing

    def _do_cuDeviceGet(self, ordinal: int) -> tuple[Any]:
        return (self.real.CUdevice(ordinal),)

    def _do_cuCtxGetDevice(self) -> tuple[Any]:
        return (self.real.CUdevice(0),)

    def _do_cuCtxGetCurrent(self) -> tuple[Any]:
        return (self.real.CUcontext(0),)

    def _do_cuDevicePrimaryCtxRetain(self, device: Any) -> tuple[Any]:
        self.live.append(("cuDevicePrimaryCtxRetain", int(device)))
        return self._handle(self.real.CUcontext)

    def _do_cuCtxPushCurrent(self, context: Any) -> tuple[()]:
        self.pushed += 1
        return ()

    def _do_cuCtxPopCurrent(self) -> tuple[Any]:
        self.pushed -= 1
        return self._handle(self.real.CUcontext)

    def _do_cuStreamCreate(self, flags: int) -> tuple[Any]:
        return self._handle(self.real.CUstream)

    def _do_cuEventCreate(self, flags: int) -> tuple[Any]:
        return self._handle(self.real.CUevent)

    def _do_cuEventElapsedTime(self, start: Any, end: Any) -> tuple[float]:
        return (float(len(self.calls)),)

    def _do_cuMemGetInfo(self) -> tuple[int, int]:
        return self.free, 1 << 40

    def _do_cuMemAlloc(self, size: int) -> tuple[Any]:
        return (self.real.CUdeviceptr(self._new(size)),)

    def _do_cuMemHostAlloc(self, size: int, flags: int) -> tuple[int]:
        return (self._new(size),)

    def _new(self, size: int) -> int:
        memory = (ctypes.c_uint8 * (size + 512))()
        address = -(-ctypes.addressof(memory) // 512) * 512  # as CUDA aligns it
        ctypes.memset(address, 0xA5, size)
        self._memory[address] = memory
        return address

    def _do_cuMemcpyHtoD(self, target: Any, source: Any, size: int) -> tuple[()]:
        self._move(target, source, size)
        return ()

    def _do_cuMemcpyHtoDAsync(self, target: Any, source: Any, size: int, stream: Any) -> tuple[()]:
        return self._work(stream, lambda: self._move(target, source, size))

    _do_cuMemcpyDtoHAsync = _do_cuMemcpyHtoDAsync
    _do_cuMemcpyDtoDAsync = _do_cuMemcpyHtoDAsync

    def _move(self, target: Any, source: Any, size: int) -> None:
        ctypes.memmove(int(target), int(source), size)

    def _do_cuMemcpy3DAsync(self, box: Any, stream: Any) -> tuple[()]:
        source, target = int(box.srcDevice), int(box.dstDevice)
        rows = [
            (
                target + ((z + box.dstZ) * box.dstHeight + y + box.dstY) * box.dstPitch + box.dstXInBytes,
                source + ((z + box.srcZ) * box.srcHeight + y + box.srcY) * box.srcPitch + box.srcXInBytes,
            )
            for z in range(box.Depth)
            for y in range(box.Height)
        ]
        width = int(box.WidthInBytes)

        def work() -> None:
            for to, out in rows:
                ctypes.memmove(to, out, width)

        return self._work(stream, work)

    def cuEventQuery(self, event: Any) -> tuple[Any]:
        answer = self._call("cuEventQuery", self.real.cuEventQuery, (event,))
        if answer[0] != self.real.CUresult.CUDA_SUCCESS:
            return (answer[0],)
        for _ in range(self._chance.randint(0, 40)):
            self._step()
        return self._status(self._passed[int(event)] >= self._recorded[int(event)])

    def cuStreamQuery(self, stream: Any) -> tuple[Any]:
        answer = self._call("cuStreamQuery", self.real.cuStreamQuery, (stream,))
        if answer[0] != self.real.CUresult.CUDA_SUCCESS:
            return (answer[0],)
        while self._step():
            pass
        return self._status(not self._streams[int(stream)])

    def _do_cuModuleLoadData(self, image: bytes) -> tuple[Any]:
        return self._handle(self.real.CUmodule)

    def _do_cuModuleGetFunction(self, module: Any, name: bytes) -> tuple[Any]:
        (function,) = self._handle(self.real.CUfunction)
        self._functions[int(function)] = name.decode()
        return (function,)

    def _do_cuLaunchKernel(self, function: Any, *arguments: Any) -> tuple[()]:
        values, kinds = arguments[8]
        assert len(values) == len(kinds)
        kernel = self.kernels[self._functions[int(function)]]
        return self._work(arguments[7], lambda: kernel(*values))

    def _do_cuStreamBeginCapture(self, stream: Any, mode: Any) -> tuple[()]:
        self._capturing[int(stream)] = []
        return ()

    def _do_cuStreamEndCapture(self, stream: Any) -> tuple[Any]:
        (graph,) = self._handle(self.real.CUgraph)
        self._graphs[int(graph)] = self._capturing.pop(int(stream))
        return (graph,)

    def _do_cuGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any]:
        (executable,) = self._handle(self.real.CUgraphExec)
        self._graphs[int(executable)] = self._graphs[int(graph)]
        return (executable,)

    def _do_cuGraphLaunch(self, executable: Any, stream: Any) -> tuple[()]:
        works = self._graphs[int(executable)]

        def replay() -> None:
            for work in works:
                work()

        return self._work(stream, replay)


def array_at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array that is the memory at an address."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)


def fits(documentation: str, arguments: tuple[Any, ...]) -> bool:
    """Whether arguments are what one of the signatures in a pybind11 docstring says."""
    for text in re.findall(r"\w+\(self: [\w.]+(?:, )?(.*)\) -> ", documentation):
        parameters = [part for part in re.split(r", (?=\w+: )", text) if part]
        needed = [part for part in parameters if "=" not in part]
        if len(needed) <= len(arguments) <= len(parameters) and all(
            _is(argument, part.split(": ", 1)[1].split(" = ")[0])
            for part, argument in zip(parameters, arguments, strict=False)
        ):
            return True
    return False


def _is(argument: Any, kind: str) -> bool:
    kinds: dict[str, Any] = {
        "str": str,
        "bool": bool,
        "tuple": tuple,
        "list": list,
        "typing.SupportsInt": typing.SupportsInt,
        "typing_extensions.Buffer": (bytes, bytearray, memoryview),
        "collections.abc.Sequence[typing.SupportsInt]": collections.abc.Sequence,
    }
    if kind in kinds:
        return isinstance(argument, kinds[kind])
    return type(argument).__name__ == kind.rsplit(".", 1)[-1].split("::")[-1]


class _Checked:
    """An object whose methods take what those of the real class of the same name take."""

    _real: Any

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not isinstance(found, types.MethodType):
            return found
        documentation = getattr(self._real, name).__doc__

        def checked(*arguments: Any) -> Any:
            assert fits(documentation, arguments), f"{name}{arguments} does not fit: {documentation}"
            return found(*arguments)

        return checked

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            assert hasattr(self._real, name), f"{self._real.__name__} has no {name}"
        super().__setattr__(name, value)


def blend(*values: Any) -> None:
    """What the blend kernel computes, by `runtime.schedule.tiling.Blend`."""
    tiles, tops, lefts, by_row, by_column, out, rows, columns, channels, tile_h, tile_w, h, w = values
    values = array_at(tiles, (rows * columns, channels, tile_h, tile_w), np.float32)
    window = np.outer(array_at(by_row, (tile_h,), np.float32), array_at(by_column, (tile_w,), np.float32))
    places = [
        (t, x) for t in array_at(tops, (rows,), np.int32) for x in array_at(lefts, (columns,), np.int32)
    ]
    result = tiling.Blend(h, w)
    for index, (top, left) in enumerate(places):
        result.add(tiling.Tile(top, left, tile_h, tile_w), values[index][None], window, 1)
    array_at(out, (1, channels, h, w), np.float32)[...] = result.result()


class FakeTensorRT:
    """See the module. A plan is the name of its network.

    Args:
        manifest: whose networks the engines run.
        networks: run them.
        driver: on whose streams they run.
        scratch: bytes that each engine works in.
        name_of: plan -> name of its network, with the flag; for plans that are more than that.

    Attributes:
        refuse: network whose context fails to start.
        caches: contents of runtime caches that were deserialised.
    """

    __name__ = "tensorrt_rtx"

    def __init__(
        self,
        manifest: Manifest,
        networks: Networks,
        driver: FakeDriver,
        scratch: int = 1000,
        name_of: Callable[[bytes], str] = bytes.decode,
    ) -> None:
        import tensorrt_rtx

        self.real = tensorrt_rtx
        self.manifest, self.networks, self.driver, self.scratch = manifest, networks, driver, scratch
        self.name_of = name_of
        self.refuse: str | None = None
        self.loaded: list[str] = []
        self.logger: Any = None
        self.objects: weakref.WeakSet[Any] = weakref.WeakSet()  # engines and contexts that live
        self.caches: list[bytes] = []
        self.damaged = False
        self.capturable = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def Runtime(self, logger: Any) -> Any:
        assert isinstance(logger, self.real.ILogger)
        assert self.logger is None, "one logger a process: the library keeps a pointer to the first"
        self.logger = logger
        return _Runtime(self, logger)


class _Runtime(_Checked):
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self._real, self._trt, self._logger = trt.real.Runtime, trt, logger

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        if plan.startswith(b"damaged"):
            self._logger.log(self._trt.real.ILogger.Severity.ERROR, "magic tag does not match")
            return None
        name = self._trt.name_of(plan)
        self._trt.loaded.append(name)
        return _Engine(self._trt, name)


class _Engine(_Checked):
    def __init__(self, trt: FakeTensorRT, name: str) -> None:
        self._real, self._trt, self._name = trt.real.ICudaEngine, trt, name
        trt.objects.add(self)

    @property
    def device_memory_size_v2(self) -> int:
        return self._trt.scratch

    def create_runtime_config(self) -> Any:
        return _Config(self._trt)

    def create_execution_context(self, how: Any) -> Any:
        assert how._strategy == self._trt.real.ExecutionContextAllocationStrategy.USER_MANAGED
        return _Context(self._trt, self._name)


class IRuntimeConfig(_Checked):
    def __init__(self, trt: FakeTensorRT) -> None:
        self._real, self._trt, self._strategy, self._cache = trt.real.IRuntimeConfig, trt, None, None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy

    def create_runtime_cache(self) -> Any:
        return IRuntimeCache(self._trt)

    def set_runtime_cache(self, cache: Any) -> bool:
        self._cache = cache
        return True


_Config = IRuntimeConfig


class IRuntimeCache(_Checked):
    def __init__(self, trt: FakeTensorRT) -> None:
        self._real, self._trt = trt.real.IRuntimeCache, trt

    def deserialize(self, blob: bytes) -> bool:
        self._trt.caches.append(blob)
        if self._trt.damaged:
            self._trt.logger.log(self._trt.real.ILogger.Severity.ERROR, "the runtime cache is rejected")
        return not self._trt.damaged

    def serialize(self) -> bytes:
        return b"compiled kernels"


class _Context(_Checked):
    def __init__(self, trt: FakeTensorRT, name: str) -> None:
        self._real, self._trt = trt.real.IExecutionContext, trt
        trt.objects.add(self)
        self._network = name
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory = (0, 0)
        self._runs = 0

    def report_to_profiler(self) -> bool:
        profiler = self.__dict__.get("profiler")
        if profiler is None or not self._runs:
            return False
        for name, share in (("first", 0.75), ("second", 0.25)):
            profiler.report_layer_time(name, share * self._runs)
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        if memory % 512:
            self._trt.logger.log(self._trt.real.ILogger.Severity.ERROR, "memory must be aligned on 512 bytes")
            return
        self._memory = memory, size

    def is_stream_capturable(self, stream: int) -> bool:
        return self._trt.capturable

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        record = self._trt.manifest.networks[self._network]
        names = {tensor.name for tensor in (*record.inputs, *record.outputs)}
        if name not in names:
            return False
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        trt = self._trt
        if self._network == trt.refuse:
            return False
        self._runs += 1
        assert self._memory[0], "a context without memory"
        assert self._memory[1] >= trt.scratch
        record = trt.manifest.networks[self._network]
        symbols: dict[str, int] = {}
        taken = [tensor for tensor in record.inputs if tensor.name in self._shapes]
        for tensor in taken:
            for size, actual in zip(tensor.shape, self._shapes[tensor.name], strict=True):
                factor, symbol = dimension(size)
                if symbol:
                    symbols[symbol] = actual // factor
        addresses, memory, network = dict(self._addresses), self._memory, self._network

        def shape(tensor: Any) -> tuple[int, ...]:
            parts = (dimension(size) for size in tensor.shape)
            return tuple(factor * (symbols[symbol] if symbol else 1) for factor, symbol in parts)

        def work() -> None:
            ctypes.memset(memory[0], 0x5A, memory[1])  # whatever lay in the scratch is gone
            inputs: Buffers = {
                tensor.name: array_at(addresses[tensor.name], shape(tensor), tensor.dtype).copy()
                for tensor in taken
            }
            outputs = trt.networks.run(network, inputs)
            for tensor in record.outputs:
                if tensor.name in addresses:
                    value = outputs[tensor.name]
                    array_at(addresses[tensor.name], value.shape, tensor.dtype)[...] = value

        trt.driver._work(stream, work)
        return True


class Cheap:
    """Networks of a manifest in a few numpy operations; every output depends on place and content of every input."""

    name = "cheap"

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def load(self, network: str) -> None:
        pass

    def run(self, network: str, inputs: Buffers) -> Buffers:
        record = self._manifest.networks[network]
        symbols: dict[str, int] = {}
        for tensor in record.inputs:
            for size, actual in zip(tensor.shape, inputs[tensor.name].shape, strict=True):
                factor, symbol = dimension(size)
                if symbol:
                    symbols[symbol] = actual // factor
        outputs = {}
        if "h" not in symbols:  # the frame's own size: padded as the pipeline pads it
            shape = FrameShape.of(self._manifest, symbols["lr_h"], symbols["lr_w"])
            symbols["h"], symbols["w"] = shape.latents
        for tensor in record.outputs:
            shape = tuple(f * (symbols[s] if s else 1) for f, s in map(dimension, tensor.shape))
            total = np.zeros(shape, np.float32)
            last = shape[-1] == 3  # pictures of u8, colours last
            for weight, name in enumerate(sorted(inputs), len(tensor.name)):
                total += np.float32(0.1 * weight) * _resized(inputs[name], shape, last)
            outputs[tensor.name] = (
                (np.abs(total) * 7 % 251).astype(tensor.dtype) if tensor.dtype == "uint8" else np.sin(total)
            )
        return outputs

    def close(self) -> None:
        pass


def _resized(array: np.ndarray, shape: tuple[int, ...], last: bool) -> np.ndarray:
    """An input made to fit an output's shape, by repeating and leaving out."""
    array = array.astype(np.float32)
    if array.ndim < 4:
        return np.float32(array.mean() + 1)
    if array.shape[-1] == 3:
        array = np.moveaxis(array, -1, 1)
    target = (shape[0], shape[3], *shape[1:3]) if last else shape
    picks = [np.arange(size) * have // size for size, have in zip(target[1:], array.shape[1:], strict=True)]
    found = array[:, picks[0]][:, :, picks[1]][:, :, :, picks[2]]
    return np.moveaxis(found, 1, -1) if last else found
