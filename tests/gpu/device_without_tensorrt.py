"""The CUDA device on a real driver, without TensorRT: a program that needs numpy, cuda-python and the runtime alone.

    python tests/gpu/device_without_tensorrt.py [FOLDER]

Networks are kernels (tests/data/stub/mix.ptx) of a few lines, which wait for times by lot; everything else is the
device's own: streams, events, graphs, copies of boxes, the blending kernel, and its PTX, because the machine code that
the bundle brings is none. Clips are restored whole and in tiles, with 1 to 3 slots, with and without graphs, by two
devices in two threads, and from frames on the GPU; every byte is compared with the same calculation in numpy, and
memory that is free before and after. Prints JSON; exits with 1 where something differs. Also for compute-sanitizer.
"""

from __future__ import annotations

import ctypes
import dataclasses
import enum
import json
import logging
import random
import sys
import tempfile
import threading
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from cuda.bindings import driver as cuda

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Engine, FileEntry, Manifest
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.bundle.reading import migrated
from vsr_trt.runtime.bundle.records import parse
from vsr_trt.runtime.bundle.symbols import dimension
from vsr_trt.runtime.cuda.device import CudaDevice
from vsr_trt.runtime.cuda.driver import Context, Driver, Owned
from vsr_trt.runtime.cuda.interop import DeviceArray
from vsr_trt.runtime.devices.in_order import Pipeline
from vsr_trt.runtime.devices.runner import Runner
from vsr_trt.runtime.machine import gpu
from vsr_trt.runtime.schedule import tiling
from vsr_trt.runtime.schedule.build import build
from vsr_trt.runtime.schedule.canvas import FrameShape
from vsr_trt.runtime.schedule.engine_choice import EngineChoice
from vsr_trt.runtime.schedule.events import derive

TESTS = Path(__file__).parents[1]
SIZE = (136, 200)
WHOLE = Options()
TILED = Options(tiles={"latent": 64, "vae": 64}, overlaps={"latent": 16, "vae": 8}, statistics="tile")
PROMPT = {"prompt": np.random.default_rng(0).standard_normal((77, 32)).astype(np.float32)}
THREADS = 256
LONGEST = 200_000  # nanoseconds that a network waits
LOST = 64 << 20  # bytes that the driver may keep for itself


def sizes_of(manifest: Manifest, network: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The symbolic sizes of a network's call."""
    symbols: dict[str, int] = {}
    for tensor in manifest.networks[network].inputs:
        for size, actual in zip(tensor.shape, shapes[tensor.name], strict=True):
            factor, symbol = dimension(size)
            if symbol:
                symbols[symbol] = actual // factor
    if "h" not in symbols:
        symbols["h"], symbols["w"] = FrameShape.of(manifest, symbols["lr_h"], symbols["lr_w"]).latents
    return symbols


def shape_of(size: tuple[int | str, ...], symbols: Mapping[str, int]) -> tuple[int, ...]:
    """A tensor's shape for these sizes."""
    return tuple(factor * (symbols[symbol] if symbol else 1) for factor, symbol in map(dimension, size))


class Networks:
    """The kernels' calculation in numpy."""

    name = "mix"

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def load(self, network: str) -> None:
        """Nothing to load."""

    def run(self, network: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Each output of bytes of the inputs."""
        record = self._manifest.networks[network]
        symbols = sizes_of(self._manifest, network, {name: array.shape for name, array in inputs.items()})
        data = [
            np.frombuffer(np.ascontiguousarray(inputs[t.name]).tobytes(), np.uint8) for t in record.inputs
        ]
        outputs = {}
        for tensor in record.outputs:
            shape = shape_of(tensor.shape, symbols)
            index = np.arange(int(np.prod(shape)), dtype=np.uint32)
            total = index.copy()
            for (step, start), bytes_ in zip(((7, 3), (5, 1), (3, 2)), operands(data), strict=True):
                total += bytes_[(index * np.uint32(step) + np.uint32(start)) % np.uint32(len(bytes_))]
            outputs[tensor.name] = (total & 255).astype(tensor.dtype).reshape(shape)
        return outputs

    def close(self) -> None:
        """Nothing to release."""


def operands(data: list[Any]) -> list[Any]:
    """Three of them: the last is repeated."""
    return [data[min(index, len(data) - 1)] for index in range(3)]


class Library:
    """The classes of TensorRT-RTX that the runtime uses; an engine's plan is its network's name."""

    __name__ = "mix"
    ExecutionContextAllocationStrategy = enum.Enum("ExecutionContextAllocationStrategy", "USER_MANAGED")
    DynamicShapesKernelSpecializationStrategy = enum.Enum("Specialization", "EAGER")
    CudaGraphStrategy = enum.Enum("CudaGraphStrategy", "DISABLED")
    ProfilingVerbosity = enum.Enum("ProfilingVerbosity", "NONE")

    class ILogger:
        """Its base class of loggers."""

        Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    def __init__(self, manifest: Manifest, driver: Driver, seed: int) -> None:
        self.manifest, self.driver, self.chance = manifest, driver, random.Random(seed)
        self.owned = Owned(driver)
        self.functions: dict[str, Any] = {}

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        """See TensorRT."""
        return types.SimpleNamespace(deserialize_cuda_engine=self._engine)

    def _engine(self, plan: bytes) -> Any:
        if not self.functions:
            image = (TESTS / "data" / "stub" / "mix.ptx").read_bytes() + b"\0"
            for name in ("mix_u8", "mix_f32"):
                self.functions[name] = self.owned.function(image, name)
        return _Engine(self, plan.decode())


class _Engine:
    device_memory_size_v2 = 4096

    def __init__(self, library: Library, network: str) -> None:
        self._library, self._network = library, network

    def create_runtime_config(self) -> Any:
        return types.SimpleNamespace(set_execution_context_allocation_strategy=lambda strategy: None)

    def create_execution_context(self, config: Any) -> Any:
        return _Context(self._library, self._network)


class _Context:
    def __init__(self, library: Library, network: str) -> None:
        self._library, self._network = library, network
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self.nvtx_verbosity: Any = None

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return True

    def execute_async_v3(self, stream: int) -> bool:
        library, manifest = self._library, self._library.manifest
        record = manifest.networks[self._network]
        symbols = sizes_of(manifest, self._network, self._shapes)
        data = [
            (self._addresses[t.name], int(np.prod(self._shapes[t.name])) * np.dtype(t.dtype).itemsize)
            for t in record.inputs
        ]
        for tensor in record.outputs:
            count = int(np.prod(shape_of(tensor.shape, symbols)))
            values: list[int] = [self._addresses[tensor.name], count]
            for address, size in operands(data):
                values += [address, size]
            values.append(library.chance.randrange(LONGEST))
            kinds = [ctypes.c_void_p, ctypes.c_uint32] * 4 + [ctypes.c_uint32]
            function = library.functions["mix_u8" if tensor.dtype == "uint8" else "mix_f32"]
            blocks, threads = (-(-count // THREADS), 1, 1), (THREADS, 1, 1)
            library.driver.call(
                "cuLaunchKernel",
                function,
                *blocks,
                *threads,
                0,
                cuda.CUstream(stream),
                (tuple(values), tuple(kinds)),
                0,
            )
        return True


def write_bundle(folder: Path, capability: str) -> Bundle:
    """DLoRAL's manifest with engines for the stand-in, and the blending kernel as PTX: its machine code is none."""
    stored = json.loads((TESTS / "helpers" / "dloral_manifest.json").read_text())
    manifest: Manifest = parse(Manifest, migrated(stored), "manifest")
    files = {}
    launch = json.loads((TESTS / "data" / "stub" / "blend_tiles.json").read_text())
    names = launch["files"]
    contents = {
        "blend.json": json.dumps(launch | {"target": capability}).encode(),
        names["ptx"]["name"]: (TESTS / "data" / "stub" / "blend_tiles.ptx").read_bytes(),
        names["cubin"]["name"]: b"no machine code",
        **{f"{network}.engine": network.encode() for network in manifest.networks},
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        files[name] = FileEntry.of(folder / name)
    engines = tuple(
        Engine(n, "tensorrt_rtx", "1", "any", (), None, "fp32", {}, (), f"{n}.engine", f"{n}.engine", n)
        for n in manifest.networks
    )
    return Bundle(
        folder, dataclasses.replace(manifest, files=files, engines=engines, kernels=("blend.json",))
    )


class Check:
    """One GPU, one bundle, and clips to compare.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.driver = Driver(cuda)
        found = gpu.detect()
        if found is None:
            sys.exit(f"not run: {gpu.why_none()}")
        self.capability = found.capability
        self.bundle = write_bundle(folder, self.capability)
        rng = np.random.default_rng(5)
        self.frames = [rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8) for _ in range(6)]
        self._expected: dict[bool, list[np.ndarray]] = {}

    def expected(self, tiled: bool) -> list[np.ndarray]:
        """By numpy."""
        if tiled not in self._expected:
            options, manifest = TILED if tiled else WHOLE, self.bundle.manifest
            pipeline = Pipeline(manifest, Networks(manifest), options, PROMPT)
            self._expected[tiled] = [pipeline.run(frame)[0] for frame in self.frames]
        return self._expected[tiled]

    def open(
        self, tiled: bool, slots: int, graphs: bool, seed: int = 0, **more: Any
    ) -> tuple[CudaDevice, Runner]:
        """A device with an open schedule."""
        options, manifest = TILED if tiled else WHOLE, self.bundle.manifest
        records = {record.network: record for record in manifest.engines}
        choice = EngineChoice(options, {n: records[n] for n in options.networks(manifest)}, {})
        device = CudaDevice(
            self.bundle,
            "tensorrt_rtx",
            Library(manifest, self.driver, seed),
            self.driver,
            self.capability,
            lambda *_: choice,
            graphs=graphs,
            **more,
        )
        schedule = build(manifest, *SIZE, options, slots)
        device.arrange(*SIZE, options).open(schedule, derive(schedule), PROMPT, None)
        return device, Runner(device, slots, timeout=600)

    def clip(self, tiled: bool, slots: int, graphs: bool, seed: int = 0) -> bool:
        """Whether a clip by the device is the one by numpy, to the byte."""
        device, runner = self.open(tiled, slots, graphs, seed)
        results = [result for frame in self.frames for result in runner.push(frame)] + runner.flush()
        captured = bool(device._opened._slots[0].graphs) == graphs
        device.close()
        return captured and all(map(np.array_equal, results, self.expected(tiled)))

    def on_the_gpu(self) -> bool:
        """The same from frames that lie on the GPU, with results that stay there."""
        context, owned = Context(self.driver), Owned(self.driver)
        with context.current():
            stream = owned.stream()
            device, runner = self.open(False, 2, True, stream=int(stream), device_results=True)
            results = []

            def take(lent: list[Any]) -> None:
                for one in lent:
                    array = np.empty(one.shape, np.uint8)
                    self.driver.call(
                        "cuMemcpyDtoHAsync", array.ctypes.data, one.address, array.nbytes, stream
                    )
                    self.driver.call("cuStreamSynchronize", stream)
                    results.append(array)

            for frame in self.frames:
                address = owned.memory(frame.nbytes)
                self.driver.call("cuMemcpyHtoDAsync", address, frame.ctypes.data, frame.nbytes, stream)
                take(runner.push(DeviceArray(address, frame.shape, None)))
            take(runner.flush())
            device.close()
            owned.close()
        context.close()
        return all(map(np.array_equal, results, self.expected(False)))

    def two_threads(self) -> bool:
        """Two devices at the same time, one whole and one in tiles, both with graphs."""
        right: dict[bool, bool] = {}

        def work(tiled: bool) -> None:
            right[tiled] = self.clip(tiled, 2, True, seed=int(tiled))

        threads = [threading.Thread(target=work, args=(tiled,)) for tiled in (False, True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return right == {False: True, True: True}

    def keeps_nothing(self) -> bool:
        """As much memory is free after three more clips as before."""
        context = Context(self.driver)
        with context.current():
            before, _ = self.driver.call("cuMemGetInfo")
            for seed in range(3):
                self.clip(True, 3, True, seed)
            after, _ = self.driver.call("cuMemGetInfo")
        context.close()
        return bool(before - after < LOST)


def window(kind: tiling.Window, height: int, width: int, overlap: int) -> np.ndarray:
    """A tile's weights as the kernel has them: a product of two FP32 numbers, where numpy rounds that of two FP64's."""
    rows, columns = tiling.window_sides(kind, height, width, overlap)
    return np.outer(rows.astype(np.float32), columns.astype(np.float32))


def main(folder: Path) -> int:
    """Does all checks; prints which hold."""
    logging.basicConfig(level=logging.ERROR)
    tiling.window = window
    check = Check(folder)
    found = {
        f"{'tiles' if tiled else 'whole'}, {slots} slots, {'graphs' if graphs else 'no graphs'}": check.clip(
            tiled, slots, graphs, seed=slots
        )
        for tiled in (False, True)
        for slots in (1, 2, 3)
        for graphs in (False, True)
    }
    found["frames on the GPU"] = check.on_the_gpu()
    found["two devices in two threads"] = check.two_threads()
    found["no memory is kept"] = check.keeps_nothing()
    print(json.dumps({"gpu": str(gpu.detect()), "checks": found}, indent=1))
    return 0 if all(found.values()) else 1


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(Path(sys.argv[1])))
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(main(Path(temporary)))
