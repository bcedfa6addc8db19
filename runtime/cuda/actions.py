"""What each kind of step puts on a stream."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.launches import Argument, blending, find
from vsr_trt.runtime.bundle.manifest import Engine
from vsr_trt.runtime.cuda.driver import Driver, Owned
from vsr_trt.runtime.cuda.engines import LoadedEngine, RuntimeCache, set_shapes
from vsr_trt.runtime.cuda.kernels import Kernel
from vsr_trt.runtime.errors import DeviceError, EngineError
from vsr_trt.runtime.schedule import tiling
from vsr_trt.runtime.schedule.graph import Grid, Schedule, Step

ContextKey = tuple[str, str, tuple[tuple[int, ...], ...]]
"""Lane, network, and the shapes of its inputs: what an execution context is for."""

Enqueue = Callable[[Any, Mapping[str, int]], None]
"""Puts a step on a stream, with the buffers at these addresses."""


class Actions:
    """Makes what steps put on streams, for one schedule.

    Args:
        driver, owned: make the calls, and keep kernels and constants.
        bundle: whose kernels they are.
        capability: of the GPU.
        schedule: whose steps they are.
        stream: that constants go up on.
    """

    def __init__(
        self, driver: Driver, owned: Owned, bundle: Bundle, capability: str, schedule: Schedule, stream: Any
    ) -> None:
        self._driver, self._owned, self._bundle = driver, owned, bundle
        self._capability, self._schedule, self._stream = capability, schedule, stream
        self._kernels: dict[tuple[str, ...], Kernel] = {}  # by their launch metadata
        self._constants: dict[str, int] = {}  # their addresses

    def constant(self, name: str, array: np.ndarray) -> int:
        """Puts an array on the device, once; its address."""
        if name not in self._constants:
            array = np.ascontiguousarray(array)
            address = self._owned.memory(array.nbytes)
            self._driver.copy_in(address, array, self._stream)
            self._constants[name] = address
        return self._constants[name]

    def copy(self, step: Step) -> Enqueue:
        """One buffer into another."""
        source, target = step.reads["source"], step.writes["target"]
        size = self._schedule.buffers[source].bytes

        def enqueue(stream: Any, at: Mapping[str, int]) -> None:
            self._driver.call("cuMemcpyDtoDAsync", at[target], at[source], size, stream)

        return enqueue

    def frames(self, step: Step) -> Enqueue:
        """Some frames of a buffer into another: a box of as many rows as there are numbers before the frames' axis."""
        span = step.span
        assert span is not None
        source, target = (
            self._schedule.buffers[name] for name in (step.reads["source"], step.writes["target"])
        )
        each = math.prod(source.shape[span.axis + 1 :]) * np.dtype(source.dtype).itemsize
        rows = math.prod(source.shape[: span.axis])
        box = self._driver.module.CUDA_MEMCPY3D()
        device = self._driver.module.CUmemorytype.CU_MEMORYTYPE_DEVICE
        box.srcMemoryType, box.dstMemoryType = device, device
        box.srcPitch, box.srcHeight = source.shape[span.axis] * each, rows
        alone = len(target.shape) < len(source.shape)  # a row without its axis
        box.dstPitch, box.dstHeight = (1 if alone else target.shape[span.axis]) * each, rows
        box.srcXInBytes, box.dstXInBytes = span.source * each, span.target * each
        box.WidthInBytes, box.Height, box.Depth = span.count * each, rows, 1

        def enqueue(stream: Any, at: Mapping[str, int]) -> None:
            pointer = self._driver.module.CUdeviceptr
            box.srcDevice, box.dstDevice = pointer(at[source.name]), pointer(at[target.name])
            self._driver.call("cuMemcpy3DAsync", box, stream)

        return enqueue

    def upload(self, step: Step, staged: np.ndarray) -> Enqueue:
        """The frame out of its staging memory."""
        target = step.writes["target"]
        source, size = staged.ctypes.data, staged.nbytes

        def enqueue(stream: Any, at: Mapping[str, int]) -> None:
            self._driver.call("cuMemcpyHtoDAsync", at[target], source, size, stream)

        return enqueue

    def download(self, step: Step, staged: np.ndarray | None) -> Enqueue:
        """The result into its staging memory; None where it stays on the device, and nothing is done."""
        source = step.reads["source"]
        if staged is None:
            return lambda stream, at: None
        target, size = staged.ctypes.data, staged.nbytes

        def enqueue(stream: Any, at: Mapping[str, int]) -> None:
            self._driver.call("cuMemcpyDtoHAsync", target, at[source], size, stream)

        return enqueue

    def cut(self, step: Step) -> Enqueue:
        """Tiles out of a picture: for each tile one copy of a box of rows, columns and channels."""
        grid, factor = step.grid, step.factor
        assert grid is not None
        picture, tiles = (
            self._schedule.buffers[name] for name in (step.reads["picture"], step.writes["tiles"])
        )
        channels, (height, width) = math.prod(picture.shape[1:-2]), picture.shape[-2:]
        size = np.dtype(picture.dtype).itemsize
        tile = (channels, grid.height * factor, grid.width * factor)
        boxes = [
            self._box(tile, size, (width * size, height), (left * factor * size, top * factor))
            for top in grid.tops
            for left in grid.lefts
        ]
        step_bytes = tiles.bytes // grid.tiles

        def enqueue(stream: Any, at: Mapping[str, int]) -> None:
            pointer = self._driver.module.CUdeviceptr
            for index, box in enumerate(boxes):
                box.srcDevice = pointer(at[picture.name])
                box.dstDevice = pointer(at[tiles.name] + index * step_bytes)
                self._driver.call("cuMemcpy3DAsync", box, stream)

        return enqueue

    def blend(self, step: Step) -> Enqueue:
        """A picture out of tiles, by the bundle's kernel."""
        grid, factor = step.grid, step.factor
        assert grid is not None
        kernel = self._kernel(blending(self._bundle))
        picture = self._schedule.buffers[step.writes["picture"]]
        channels, (height, width) = math.prod(picture.shape[1:-2]), picture.shape[-2:]
        rows, columns = _windows(grid, factor)
        name = step.name
        values = {
            "tops": self.constant(f"{name} tops", np.array(grid.tops, np.int32) * np.int32(factor)),
            "lefts": self.constant(f"{name} lefts", np.array(grid.lefts, np.int32) * np.int32(factor)),
            "row_window": self.constant(f"{name} rows", rows),
            "column_window": self.constant(f"{name} columns", columns),
            "rows": len(grid.tops),
            "columns": len(grid.lefts),
            "channels": channels,
            "tile_height": grid.height * factor,
            "tile_width": grid.width * factor,
            "height": height,
            "width": width,
        }
        tiles = step.reads["tiles"]

        def enqueue(stream: Any, at: Mapping[str, int]) -> None:
            kernel.launch(stream, values | {"tiles": at[tiles], "out": at[picture.name]})

        return enqueue

    def network(
        self,
        step: Step,
        engines: Mapping[str, tuple[Engine, LoadedEngine]],
        scratch: tuple[int, int],
        contexts: dict[ContextKey, Any],
        cache: RuntimeCache | None,
    ) -> Enqueue:
        """An engine in its context.

        What is returned looks up engine and context when it is called: whoever empties `engines` and `contexts` frees
        them, also where an error still holds on to what is returned.

        Args:
            step: runs the engine's network.
            engines: network -> its record, and the engine.
            scratch: address and size of what it works in.
            contexts: of the slot; made where there is none yet for this lane, network and shapes.
            cache: of compiled kernels.
        """
        network = step.network
        assert network is not None
        inputs = [tensor.name for tensor in self._bundle.manifest.networks[network].inputs]
        operands = {**step.reads, **step.writes}
        shapes = {name: self._part_shape(step, step.reads[name]) for name in inputs}
        key = step.lane, network, tuple(shapes.values())
        if key not in contexts:
            contexts[key] = engines[network][1].context(scratch, cache)
            set_shapes(contexts[key], network, shapes)
        offsets = {operand: self._offset(step, buffer) for operand, buffer in operands.items()}

        def enqueue(stream: Any, at: Mapping[str, int]) -> None:
            context = contexts[key]
            for operand, buffer in operands.items():
                if not context.set_tensor_address(operand, at[buffer] + offsets[operand]):
                    raise EngineError(f"the engine of {network} has no tensor {operand}. Build it again.")
            if not context.execute_async_v3(int(stream)):
                raise DeviceError(f"{network} could not be started: {engines[network][1].why()}.")

        return enqueue

    def kernel(self, step: Step) -> Enqueue:
        """A network by a kernel of the bundle, called with what the manifest and its launch metadata say."""
        assert step.network is not None
        record = self._bundle.manifest.networks[step.network].kernel
        assert record is not None
        kernel = self._kernel(record.launch)
        files = {
            name: np.load(self._bundle.file(file), allow_pickle=False)
            for name, file in record.constants.items()
        }
        buffers = {**step.reads, **step.writes}
        operands = {name: buffers[tensor] for name, tensor in record.operands.items()}
        sizes: dict[str, int] = {}
        for argument in kernel.launch_metadata.arguments:
            if argument.type != "pointer":
                continue
            if argument.name in files:
                shape: tuple[int, ...] = files[argument.name].shape
            elif argument.name in operands:
                shape = self._part_shape(step, operands[argument.name])
            else:
                raise EngineError(
                    f"the kernel of {step.network} asks for {argument.name}, which nothing gives."
                )
            _bind(step.network, argument, shape, sizes)
        for name, values in record.numbers.items():
            sizes[name] = min(sizes[value] if isinstance(value, str) else value for value in values)
        for argument in kernel.launch_metadata.arguments:
            if argument.type != "pointer" and argument.name not in sizes:
                raise EngineError(
                    f"the kernel of {step.network} asks for {argument.name}, which nothing gives."
                )
        constants = {name: self.constant(f"{step.network} {name}", array) for name, array in files.items()}
        offsets = {name: self._offset(step, buffer) for name, buffer in operands.items()}

        def enqueue(stream: Any, at: Mapping[str, int]) -> None:
            addresses = {name: at[buffer] + offsets[name] for name, buffer in operands.items()}
            kernel.launch(stream, sizes | constants | addresses)

        return enqueue

    def _kernel(self, files: Sequence[str]) -> Kernel:
        key = tuple(files)
        if key not in self._kernels:
            found = find(self._bundle, files, self._capability)
            self._kernels[key] = Kernel(self._driver, self._owned, self._bundle, found)
        return self._kernels[key]

    def _part_shape(self, step: Step, buffer: str) -> tuple[int, ...]:
        shape = self._schedule.buffers[buffer].shape
        if step.part is None or len(shape) < 4:
            return shape
        return (step.part[1] - step.part[0], *shape[1:])

    def _offset(self, step: Step, buffer: str) -> int:
        found = self._schedule.buffers[buffer]
        if step.part is None or len(found.shape) < 4:
            return 0
        return found.bytes // found.shape[0] * step.part[0]

    def _box(
        self, tile: tuple[int, int, int], size: int, pitch: tuple[int, int], corner: tuple[int, int]
    ) -> Any:
        """A copy of (channels, height, width) numbers of `size` bytes, out of pitch[1] rows of pitch[0] bytes each."""
        channels, height, width = tile
        box = self._driver.module.CUDA_MEMCPY3D()
        device = self._driver.module.CUmemorytype.CU_MEMORYTYPE_DEVICE
        box.srcMemoryType, box.dstMemoryType = device, device
        box.srcPitch, box.srcHeight = pitch
        box.srcXInBytes, box.srcY = corner
        box.dstPitch, box.dstHeight = width * size, height
        box.WidthInBytes, box.Height, box.Depth = width * size, height, channels
        return box


def _windows(grid: Grid, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """A tile's weights by row and by column: their product is `tiling.window`."""
    sides = tiling.window_sides(grid.window, grid.height * factor, grid.width * factor, grid.overlap * factor)
    rows, columns = (side.astype(np.float32) for side in sides)
    return rows, columns


def _bind(network: str, argument: Argument, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    """Takes the kernel's sizes from the shape of what a pointer points to.

    Raises:
        EngineError: it does not have the shape that the kernel expects.
    """
    last = len(argument.shape) - 1
    taken = (*shape[:last], math.prod(shape[last:])) if 0 <= last < len(shape) else shape
    for expected, size in zip(argument.shape, taken, strict=False):
        known = sizes.setdefault(expected, size) if isinstance(expected, str) else expected
        if known != size or len(taken) != len(argument.shape):
            raise EngineError(
                f"the kernel of {network} does not fit it: {argument.name} is {shape}, expected {argument.shape}"
                f" with {sizes}. Build the bundle again."
            )
