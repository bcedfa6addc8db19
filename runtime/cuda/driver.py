"""CUDA's driver API: every call checked, every resource given back once.

cuda-python's bindings are used as they are; this only turns their status into errors and keeps what must be
undone. The bindings are an argument, so that tests can put a recording of them in their place.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vsr_trt.runtime.errors import DeviceError

_log = logging.getLogger(__name__)


class CudaError(DeviceError):
    """A call of the driver failed.

    Attributes:
        call: its name.
        status: what it answered, e.g. `CUDA_ERROR_OUT_OF_MEMORY`.
    """

    def __init__(self, call: str, status: str) -> None:
        hint = {
            "CUDA_ERROR_OUT_OF_MEMORY": " The GPU has not enough memory: use fewer slots, smaller tiles or a smaller "
            "frame; `vsr plan` tells what is needed.",
            "CUDA_ERROR_NO_DEVICE": " There is no GPU.",
        }.get(status, "")
        super().__init__(f"CUDA answers {status} to {call}.{hint}")
        self.call, self.status = call, status


def bindings() -> Any:
    """cuda-python's driver module.

    Raises:
        DeviceError: it is not installed.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise DeviceError(
            "cuda-python is not installed, which GPUs are driven through. Install it with: "
            "pip install 'vsr-trt[gpu]' or 'vsr-trt[rtx]'"
        ) from error
    return driver


class Driver:
    """The calls that the device makes.

    Args:
        module: cuda-python's driver bindings, or what stands in for them.
    """

    def __init__(self, module: Any) -> None:
        self.module = module

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls a function of the driver; returns its result, None where it has none, a tuple of several.

        Raises:
            CudaError: the driver answers anything but success.
            DeviceError: there is no driver.
        """
        try:
            status, *results = getattr(self.module, name)(*arguments)
        except RuntimeError as error:  # cuda-python found no driver library, or not this function in it
            if "not found" in str(error) and "library" not in str(error):
                raise DeviceError(
                    f"this CUDA driver is too old: it has no {name}. Install a driver for CUDA 12 or later."
                ) from error
            raise DeviceError(
                "there is no CUDA driver on this machine. onnxruntime-cpu runs without one."
            ) from error
        if status != self.module.CUresult.CUDA_SUCCESS:
            raise CudaError(name, status.name)
        if len(results) > 1:
            return tuple(results)
        return results[0] if results else None

    def copy_in(self, address: int, array: np.ndarray, stream: Any) -> None:
        """Copies an array of the host to the device, and waits for it. On a stream of ours: to wait for the whole
        context is forbidden while anyone captures a graph."""
        self.call("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, stream)
        self.call("cuStreamSynchronize", stream)

    def is_ready(self, event: Any) -> bool:
        """Whether what came before an event's last record is done.

        Raises:
            CudaError: something before it failed.
        """
        return self._query("cuEventQuery", event)

    def is_idle(self, stream: Any) -> bool:
        """Whether everything on a stream is done.

        Raises:
            CudaError: something on it failed.
        """
        return self._query("cuStreamQuery", stream)

    def _query(self, name: str, handle: Any) -> bool:
        (status, *_) = getattr(self.module, name)(handle)
        if status == self.module.CUresult.CUDA_ERROR_NOT_READY:
            return False
        if status != self.module.CUresult.CUDA_SUCCESS:
            raise CudaError(name, status.name)
        return True


class Owned:
    """Resources of the driver, given back in the reverse order. What cannot be given back is logged, not raised:
    it is most often the consequence of a lost device, and what comes after it must still be tried.

    Args:
        driver: makes the calls.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._releases: list[tuple[str, tuple[Any, ...]]] = []

    def defer(self, name: str, *arguments: Any) -> None:
        """Makes a call when the resources are given back."""
        self._releases.append((name, arguments))

    def close(self) -> None:
        """Gives everything back; what is made afterwards is given back by the next call."""
        while self._releases:
            name, arguments = self._releases.pop()
            try:
                self._driver.call(name, *arguments)
            except DeviceError as error:
                _log.warning("%s", error)

    def abandon(self) -> None:
        """Gives nothing back: the device still uses it, and will not end."""
        self._releases.clear()

    def stream(self) -> Any:
        """A stream that does not wait for the default one."""
        flags = self._driver.module.CUstream_flags.CU_STREAM_NON_BLOCKING
        stream = self._driver.call("cuStreamCreate", int(flags))
        self.defer("cuStreamDestroy", stream)
        return stream

    def event(self, timing: bool = False) -> Any:
        """An event; without timing it costs less."""
        flags = self._driver.module.CUevent_flags
        event = self._driver.call(
            "cuEventCreate", int(flags.CU_EVENT_DEFAULT if timing else flags.CU_EVENT_DISABLE_TIMING)
        )
        self.defer("cuEventDestroy", event)
        return event

    def memory(self, size: int) -> int:
        """Device memory; its address."""
        pointer = self._driver.call("cuMemAlloc", size)
        self.defer("cuMemFree", pointer)
        return int(pointer)

    def pinned(self, size: int) -> np.ndarray:
        """Memory of the host that copies from and to the device reach directly, (size,) uint8."""
        pointer = self._driver.call("cuMemHostAlloc", size, 0)
        self.defer("cuMemFreeHost", pointer)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(pointer)))

    def function(self, image: bytes, name: str) -> Any:
        """A kernel out of a cubin or PTX."""
        module = self._driver.call("cuModuleLoadData", image)
        self.defer("cuModuleUnload", module)
        return self._driver.call("cuModuleGetFunction", module, name.encode())

    def graph(self, stream: Any, enqueue: Callable[[], None]) -> Any:
        """What `enqueue` puts on a stream, as a graph that can be launched again and again.

        Raises:
            CudaError: something in it cannot be captured; the stream is as before.
        """
        mode = self._driver.module.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._driver.call("cuStreamBeginCapture", stream, mode)
        try:
            enqueue()
        except BaseException:
            with contextlib.suppress(DeviceError):  # a capture that failed has no graph
                self._destroy_graph(self._driver.call("cuStreamEndCapture", stream))
            raise
        graph = self._driver.call("cuStreamEndCapture", stream)
        try:
            executable = self._driver.call("cuGraphInstantiate", graph, 0)
            self.defer("cuGraphExecDestroy", executable)
        finally:
            self._destroy_graph(graph)
        return executable

    def _destroy_graph(self, graph: Any) -> None:
        self._driver.call("cuGraphDestroy", graph)


class Context:
    """The CUDA context that everything lives in: the caller's current one, or the device's primary one.

    A context that is current, of torch or pycuda for example, is used; so memory and streams can be exchanged.
    Otherwise the primary context of device 0 is retained, which is also what CUDA's runtime API uses.

    Args:
        driver: makes the calls.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._retained: Any = None
        driver.call("cuInit", 0)
        self._context = driver.call("cuCtxGetCurrent")
        if not int(self._context):
            device = driver.call("cuDeviceGet", 0)
            self._context = driver.call("cuDevicePrimaryCtxRetain", device)
            self._retained = device
        elif device := self._ordinal():
            raise DeviceError(
                f"the current CUDA context is on device {device}; engines and kernels are chosen for device 0. Make a "
                "context on that one current, or hide the others: CUDA_VISIBLE_DEVICES."
            )

    @property
    def address(self) -> int:
        """Address of the context."""
        return int(self._context)

    def _ordinal(self) -> int:
        return int(self._driver.call("cuCtxGetDevice"))

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Makes it the thread's current context for a while."""
        self._driver.call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._driver.call("cuCtxPopCurrent")

    def close(self) -> None:
        """Releases the primary context, if it was retained here. Once is enough, twice is harmless."""
        retained, self._retained = self._retained, None
        if retained is not None:
            self._driver.call("cuDevicePrimaryCtxRelease", retained)
