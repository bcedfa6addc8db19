"""The operator on a GPU, as it is deployed: the kernel that was compiled ahead of time, and an engine of its function.

What is timed is the GPU's work alone: events before and after many launches, divided. No copy and no wait is in it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from vsr_trt.kernels.gated_topk.fold import FoldedAttention
from vsr_trt.kernels.gpu.build import compile_kernel
from vsr_trt.runtime.cuda.driver import Context, Driver, Owned
from vsr_trt.runtime.cuda.engines import LoadedEngine, set_shapes

LAUNCHES = 100


class Form(Protocol):
    """A form that is ready for one size."""

    def __call__(self) -> np.ndarray:
        """Runs once; the result as an array."""

    def seconds(self) -> float:
        """Runs many times, and returns the seconds of one."""


class _OnGpu:
    """What both forms do with a launch, once they are ready."""

    _gpu: _Gpu
    _launch: Callable[[Any], None]

    def __call__(self) -> np.ndarray:
        """See `Form`."""
        return self._gpu.run(self._launch)

    def seconds(self) -> float:
        """See `Form`."""
        return self._gpu.time(self._launch)


class Kernel(_OnGpu):
    """The kernel, launched as a bundle's launch metadata say.

    Args:
        driver: CUDA's.
        target: of the GPU, e.g. `sm_89`.
        folded: the operator's constants.
        current, previous: latents (1,C,h,w) float32.
    """

    def __init__(
        self,
        driver: Driver,
        target: str,
        folded: FoldedAttention,
        current: np.ndarray,
        previous: np.ndarray,
    ) -> None:
        self._gpu = _Gpu(driver, current.shape)
        made = compile_kernel(target)
        with self._gpu.context.current():
            owned = self._gpu.owned
            function = owned.function(made.cubin, made.launch.kernel)
            constants = (folded.M, folded.P, folded.bias)
            addresses = [self._gpu.put(array) for array in (current, previous, *constants)]
        pictures, _, height, width = current.shape
        positions = height * width
        values = (*addresses, folded.M.shape[0], positions, positions, self._gpu.result)
        kinds = (*[ctypes.c_void_p] * 5, *[ctypes.c_int32] * 3, ctypes.c_void_p)
        blocks = made.launch.blocks(pictures=pictures, positions=positions)

        def launch(stream: Any) -> None:
            driver.call(
                "cuLaunchKernel",
                function,
                *blocks,
                *(made.launch.threads, 1, 1),
                made.launch.shared_memory,
                stream,
                (values, kinds),
                0,
            )

        self._launch = launch


class Engine(_OnGpu):
    """An engine of the operator's function.

    Args:
        driver: CUDA's.
        trt: the library.
        plan: the engine.
        current, previous: latents (1,C,h,w) float32.
    """

    def __init__(
        self, driver: Driver, trt: Any, plan: bytes, current: np.ndarray, previous: np.ndarray
    ) -> None:
        self._gpu = _Gpu(driver, current.shape)
        with self._gpu.context.current():
            engine = LoadedEngine(trt, plan, "the operator's engine")
            scratch = self._gpu.owned.memory(max(engine.scratch, 1)), engine.scratch
            context = engine.context(scratch)
            feeds = {"current": current, "previous": previous}
            set_shapes(context, "the operator", {name: array.shape for name, array in feeds.items()})
            for name, array in feeds.items():
                context.set_tensor_address(name, self._gpu.put(array))
            context.set_tensor_address("fused", self._gpu.result)
        self._engine = engine  # its weights are needed as long as the context

        def launch(stream: Any) -> None:
            context.execute_async_v3(int(stream))

        self._launch = launch


class _Gpu:
    """Memory, a stream and two events."""

    def __init__(self, driver: Driver, shape: tuple[int, ...]) -> None:
        self._driver = driver
        self.context = Context(driver)
        self.owned = Owned(driver)
        self._shape = shape
        with self.context.current():
            self._stream = self.owned.stream()
            self._begin, self._end = self.owned.event(timing=True), self.owned.event(timing=True)
            self.result = self.owned.memory(int(np.prod(shape)) * 4)

    def put(self, array: np.ndarray) -> int:
        """Copies an array to the device; its address."""
        array = np.ascontiguousarray(array, np.float32)
        address = self.owned.memory(array.nbytes)
        self._driver.copy_in(address, array, self._stream)
        return address

    def run(self, launch: Callable[[Any], None]) -> np.ndarray:
        """One launch and its result."""
        with self.context.current():
            launch(self._stream)
            result = np.empty(self._shape, np.float32)
            self._driver.call(
                "cuMemcpyDtoHAsync", result.ctypes.data, self.result, result.nbytes, self._stream
            )
            self._driver.call("cuStreamSynchronize", self._stream)
        return result

    def time(self, launch: Callable[[Any], None]) -> float:
        """Seconds of one of `LAUNCHES` launches."""
        with self.context.current():
            self._driver.call("cuEventRecord", self._begin, self._stream)
            for _ in range(LAUNCHES):
                launch(self._stream)
            self._driver.call("cuEventRecord", self._end, self._stream)
            self._driver.call("cuEventSynchronize", self._end)
            milliseconds = self._driver.call("cuEventElapsedTime", self._begin, self._end)
        return float(milliseconds) / 1e3 / LAUNCHES
