"""The CUDA device: a schedule on streams, one a lane.

In steady state a frame costs one upload and one download of u8 pictures, launches, records and waits of events on
streams, and one wait of the host: for the frame's result. Nothing is allocated and nothing is synchronised.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Engine
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.cuda.driver import Context, Driver
from vsr_trt.runtime.cuda.engines import LoadedEngine, RuntimeCache, share
from vsr_trt.runtime.cuda.lanes import Lanes, Setup
from vsr_trt.runtime.devices.actions import Buffers
from vsr_trt.runtime.devices.protocol import Arrangement, Ticket
from vsr_trt.runtime.devices.timeline import Observer
from vsr_trt.runtime.errors import DeviceError
from vsr_trt.runtime.schedule.engine_choice import EngineChoice
from vsr_trt.runtime.schedule.events import Event
from vsr_trt.runtime.schedule.graph import Schedule
from vsr_trt.runtime.schedule.parts import Part

Choose = Callable[[int, int, Options, Part | None], EngineChoice]
"""The engines for frames of a height and width, and the tiles that they take; for a part, or all of a family."""


class CudaDevice:
    """Executes schedules with engines of a bundle.

    Args:
        bundle: whose engines and kernels they are.
        backend: `tensorrt` or `tensorrt_rtx`.
        trt: that library.
        driver: CUDA's.
        capability: of the GPU, e.g. `sm_89`.
        choose: picks the engines for a size of frames.
        cache: names the files for kernels that TensorRT-RTX compiles, `STEM-HASH.SUFFIX` for each set of engines; None
            to keep none.
        graphs: capture CUDA graphs.
        stream: of the caller's, an address: frames that lie on the device are read after what is on it, and
            results that stay there are to be read on it. None: the caller has waited, and will wait.
        device_results: results stay on the device, as `runtime.cuda.interop.DeviceFrame`.
    """

    times_itself = False  # events around every step, and no graphs

    def __init__(
        self,
        bundle: Bundle,
        backend: str,
        trt: Any,
        driver: Driver,
        capability: str,
        choose: Choose,
        *,
        cache: Path | None = None,
        graphs: bool = True,
        stream: int | None = None,
        device_results: bool = False,
    ) -> None:
        self.name = backend
        self._bundle, self._trt, self._driver = bundle, trt, driver
        self._capability, self._choose = capability, choose
        self._graphs, self._caller, self._device_results = graphs, stream, device_results
        self._cache_file, self._caches = cache, dict[Path, RuntimeCache]()
        self._context: Context | None = Context(driver)
        self._engines: dict[str, tuple[Engine, LoadedEngine]] = {}
        self._lanes: Lanes | None = None
        self.load_seconds: dict[str, float] = {}

    def arrange(self, height: int, width: int, options: Options, part: Part | None = None) -> Arrangement:
        """See `runtime.devices.protocol.Device.arrange`: as the engines for this size have it."""
        choice = self._choose(height, width, options, part)
        return Arrangement(choice.options, choice.batches, choice.form, functools.partial(self._open, choice))

    def receive(self, slot: int, frame: Any, index: int = 0) -> None:
        """Takes a frame: into staging memory, or where it lies on the device."""
        self._opened.receive(slot, frame, index)

    def deliver(self, slot: int, index: int = 0) -> Any:
        """A slot's result: a copy, or where it lies on the device (valid until the next frame is received)."""
        return self._opened.deliver(slot, index)

    def submit(self, ticket: Ticket) -> None:
        """See `runtime.devices.protocol.Device.submit`.

        Raises:
            StepError: a step could not be put on its stream.
        """
        with self._current():
            self._opened.submit(ticket)

    def is_done(self, ticket: Ticket) -> bool:
        """See `runtime.devices.protocol.Device.is_done`."""
        with self._current():
            return self._opened.is_done(ticket)

    def wait(self, ticket: Ticket, timeout: float | None) -> None:
        """See `runtime.devices.protocol.Device.wait`."""
        with self._current():
            self._opened.wait(ticket, timeout)

    def close(self) -> None:
        """See `runtime.devices.protocol.Device.close`. What is under way is waited for: it uses what is given back."""
        context = self._context
        if context is None:
            return
        try:
            with context.current():
                # from here on, and not if even this fails: then closing can be tried again
                self._context = None
                self._release()
                self._engines.clear()
                for cache in self._caches.values():
                    cache.save()
        finally:
            if self._context is None:
                context.close()

    @property
    def memory(self) -> dict[str, int]:
        """Bytes that were allocated: `buffers` on the device, scratch included, and `pinned` on the host."""
        return self._lanes.memory if self._lanes is not None else {"buffers": 0, "pinned": 0}

    def _current(self) -> AbstractContextManager[None]:
        if self._context is None:
            raise DeviceError("the device is closed.")
        return self._context.current()

    @property
    def _opened(self) -> Lanes:
        if self._lanes is None:
            raise DeviceError("the device has no schedule yet.")
        return self._lanes

    def _open(
        self,
        choice: EngineChoice,
        schedule: Schedule,
        events: Sequence[Event],
        constants: Buffers,
        observer: Observer | None,
    ) -> None:
        with self._current():
            self._release()
            self._load(choice)
            cache = self._cache(choice)
            setup = Setup(
                self._driver,
                self._bundle,
                self._capability,
                self._engines,
                cache,
                self._graphs,
                self._caller,
                self._device_results,
            )
            self._lanes = Lanes(setup, schedule, events, constants, observer)
            if cache is not None:
                cache.save()  # all kernels were needed by now; a process that is killed later keeps them

    def _cache(self, choice: EngineChoice) -> RuntimeCache | None:
        """A file for each set of engines: processes with other engines do not overwrite it."""
        if self._cache_file is None:
            return None
        hashes = sorted(self._bundle.manifest.files[record.file].sha256 for record in choice.engines.values())
        digest = hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]
        file = self._cache_file.with_name(f"{self._cache_file.stem}-{digest}{self._cache_file.suffix}")
        return self._caches.setdefault(file, RuntimeCache(file))

    def _release(self) -> None:
        lanes, self._lanes = self._lanes, None
        if lanes is not None:
            lanes.release()

    def _load(self, choice: EngineChoice) -> None:
        """The engines that were chosen; those that are loaded and still fit stay."""
        assert self._context is not None
        hashes = {
            network: self._bundle.manifest.files[record.file].sha256
            for network, record in choice.engines.items()
        }
        context, former = self._context.address, self._engines
        # what does not stay goes first: two sizes' engines need not fit at the same time
        self._engines = {
            network: found
            for network, found in former.items()
            if self._bundle.manifest.files[found[0].file].sha256 == hashes.get(network)
        }
        former = dict(self._engines)
        for network, record in choice.engines.items():
            started = time.perf_counter()
            loaded = share(self._trt, self._bundle.file(record.file), hashes[network], context)
            self._engines[network] = record, loaded
            if network not in former or former[network][1] is not loaded:
                self.load_seconds[network] = time.perf_counter() - started
