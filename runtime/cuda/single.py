"""One engine on arrays of the host: for checks and tests. A clip goes through `runtime.cuda.device`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vsr_trt.runtime.cuda.driver import Context, Driver, Owned
from vsr_trt.runtime.cuda.engines import LoadedEngine, set_shapes
from vsr_trt.runtime.errors import DeviceError, EngineError

Arrays = Mapping[str, np.ndarray]
_PASSES = 10  # that layers are timed in, after one that warms up


def run_engine(
    trt: Any,
    driver: Driver,
    plan: bytes,
    name: str,
    feeds: Sequence[Arrays],
    results: Sequence[Mapping[str, tuple[tuple[int, ...], str]]],
    layers: dict[str, float] | None = None,
) -> list[dict[str, np.ndarray]]:
    """Loads an engine as the device does, in memory of ours, and runs it once for each of `feeds`.

    Args:
        trt: the library.
        driver: CUDA's.
        plan: the serialised engine.
        name: of its network, for messages.
        feeds: its inputs.
        results: for each of them, shape and dtype of the outputs.
        layers: is filled with each layer's seconds in a run with the last of `feeds`, the mean of several; a library
            that does not time layers leaves it empty. None: they are not timed.

    Raises:
        EngineError: the library refuses the plan, or the engine does not have these tensors or shapes.
        DeviceError: no driver, not enough memory, or a run that fails.
    """
    context = Context(driver)
    try:
        with context.current():
            owned = Owned(driver)
            try:
                engine = LoadedEngine(trt, plan, name)
                scratch = owned.memory(max(engine.scratch, 1)), engine.scratch
                made = engine.context(scratch)
                found = []
                for number, (feed, wanted) in enumerate(zip(feeds, results, strict=True), 1):
                    timed = layers if number == len(feeds) else None
                    found.append(_run(trt, driver, engine, made, name, feed, wanted, timed))
                del made, engine  # before the memory that they work in
                return found
            finally:
                owned.close()
    finally:
        context.close()


def _run(
    trt: Any,
    driver: Driver,
    engine: LoadedEngine,
    context: Any,
    name: str,
    feed: Arrays,
    wanted: Mapping[str, tuple[tuple[int, ...], str]],
    layers: dict[str, float] | None,
) -> dict[str, np.ndarray]:
    owned = Owned(driver)
    try:
        stream = owned.stream()
        set_shapes(context, name, {operand: array.shape for operand, array in feed.items()})
        inputs = {operand: np.ascontiguousarray(array) for operand, array in feed.items()}
        outputs = {operand: np.empty(shape, dtype) for operand, (shape, dtype) in wanted.items()}
        addresses = {
            operand: owned.memory(max(array.nbytes, 1)) for operand, array in {**inputs, **outputs}.items()
        }
        for operand, address in addresses.items():
            if not context.set_tensor_address(operand, address):
                raise EngineError(f"the engine of {name} has no tensor {operand}. Build it again.")
        for operand, array in inputs.items():
            driver.call("cuMemcpyHtoDAsync", addresses[operand], array.ctypes.data, array.nbytes, stream)
        if not context.execute_async_v3(int(stream)):
            raise DeviceError(f"{name} could not be started: {engine.why()}.")
        for operand, array in outputs.items():
            driver.call("cuMemcpyDtoHAsync", array.ctypes.data, addresses[operand], array.nbytes, stream)
        driver.call("cuStreamSynchronize", stream)
        if layers is not None:
            layers |= _layer_times(trt, driver, context, stream)
        return outputs
    finally:
        owned.close()


def _layer_times(trt: Any, driver: Driver, context: Any, stream: Any) -> dict[str, float]:
    """Mean seconds of each layer, in runs one after another with the tensors that are set."""
    times: dict[str, float] = {}

    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            super().__init__()

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times[layer_name] = times.get(layer_name, 0.0) + ms / 1e3

    profiler = Profiler()
    context.profiler = profiler
    context.enqueue_emits_profile = (
        False  # reported when it is asked for, so that a run is not waited for inside
    )
    for number in range(_PASSES + 1):
        if not context.execute_async_v3(int(stream)):
            return {}
        driver.call("cuStreamSynchronize", stream)
        if not context.report_to_profiler():
            return {}
        if number == 0:
            times.clear()
    return {name: seconds / _PASSES for name, seconds in times.items()}
