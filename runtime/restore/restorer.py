"""The interface that applications embed: frames in, restored frames out."""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
import weakref
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from vsr_trt.runtime import backends
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Manifest
from vsr_trt.runtime.bundle.options import Options, Settings, check_slots, check_threads
from vsr_trt.runtime.bundle.symbols import dimension
from vsr_trt.runtime.cuda.interop import DeviceArray, device_array, on_device, stream_address
from vsr_trt.runtime.devices.in_order import Clock
from vsr_trt.runtime.devices.protocol import Device
from vsr_trt.runtime.devices.runner import Runner
from vsr_trt.runtime.devices.timeline import Observer, Span
from vsr_trt.runtime.errors import DeviceError, FrameError, InputError
from vsr_trt.runtime.media import worked
from vsr_trt.runtime.schedule.build import build
from vsr_trt.runtime.schedule.canvas import FrameShape
from vsr_trt.runtime.schedule.constants import constants
from vsr_trt.runtime.schedule.events import derive
from vsr_trt.runtime.schedule.forms import Form

Frame = npt.NDArray[np.uint8]
_KEPT_TIMINGS = 10_000
_WORK = ("network", "cut", "blend")  # what a stage is made of


class Restorer:
    """Restores frames of a clip with the networks of a bundle, in order, one result a frame.

    Each frame is encoded once; what the next one needs of it is kept. All of that comes
    from the input, so a clip cut anywhere with one frame of overlap gives the same bytes.

    Args:
        bundle: directory made by `vsr-build bundle`.
        settings: how; None for the defaults.
        timeout: seconds that a frame may take once it is waited for; None for ever.
        observer: is passed every step that is done, from whichever thread did it. On a GPU that takes the
            place of CUDA graphs, and costs a little.
        stream: of the application's, on a GPU: its address, or a stream of cuda-python, torch or pycuda.
            Frames that lie on the GPU are read after what was put on it; results that stay there are to
            be read on it. None: the application waits before `push`, and before it pushes more frames.
        changes: single settings by name, in place of those of `settings`, e.g. `slots=2`.
        device_results: results stay on the GPU, with `__cuda_array_interface__` and `__dlpack__`; each is
            valid until the next frame is pushed, or the Restorer closed.

    Raises:
        BundleError: no bundle, or one that lost or changed a file, or of another schema version.
        InputError: an option out of range.
        DeviceError: the backend is not installed, or cannot load the networks.

    One Restorer serves one clip at a time: a call that comes while another thread is inside one is
    refused with a DeviceError. Any number of Restorers may live next to each other.
    """

    def __init__(
        self,
        bundle: str | Path,
        settings: Settings | None = None,
        *,
        timeout: float | None = None,
        observer: Observer | None = None,
        stream: Any = None,
        device_results: bool = False,
        **changes: Any,
    ) -> None:
        started = time.perf_counter()
        settings = replace(settings or Settings(), **changes)
        opened = Bundle.open(bundle, check=settings.check)
        self.manifest = opened.manifest
        self.backend = backends.choose_backend(settings.backend, opened)[0]
        check_slots(settings.slots)
        check_threads(settings.threads)
        self.slots = settings.slots
        self._options = Options.of(self.manifest, settings)
        self._largest = _largest_side(self.manifest)
        self._timeout, self._observer = timeout, observer
        self._busy = threading.Lock()
        self._size: tuple[int, ...] | None = None
        self._clip = 0
        self._clocks: dict[int, Clock] = defaultdict(lambda: defaultdict(float))
        self._timings: deque[Clock] = deque(maxlen=_KEPT_TIMINGS)
        self._returned = 0
        self._runner: Runner | None = None
        self._late: list[Any] = []  # results of a scene that `reset` ended
        self._prepared: tuple[int, int] | None = None
        self._stream, self._device_results = stream_address(stream), device_results
        if (device_results or stream is not None) and self.backend not in backends.ENGINES:
            raise InputError(f"frames and streams on a GPU need the backend {' or '.join(backends.ENGINES)}.")
        self._form: Form | None = None
        self._device: Device | None = backends.open_device(
            self.backend,
            opened,
            self._options,
            settings,
            stream=self._stream,
            device_results=device_results,
        )
        try:
            self._files = opened.constants()
        except BaseException:
            self._device.close()
            raise
        self._loading = time.perf_counter() - started

    def restore(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Restores a clip.

        Args:
            frames: arrays (H,W,3) uint8, RGB, all of one size; any iterable, read as needed.

        Yields:
            An array (4H,4W,3) uint8, RGB, for each frame, in order.

        Raises:
            InputError: a frame of another shape, dtype or size.
            FrameError: a network failed; the results before that frame were yielded.
            DeviceError: the Restorer is closed.
        """
        if self._runner is not None and self._runner.under_way:
            self.flush()  # frames of a clip that was given up
        self.reset()
        clip = self._clip
        try:
            for frame in frames:
                self._check_clip(clip)
                yield from self.push(frame)
            self._check_clip(clip)
            yield from self.flush()
        except FrameError as error:
            yield from error.results
            error.results = []
            raise

    def prepare(self, height: int, width: int) -> None:
        """Makes ready for frames (height, width, 3): loads engines, allocates memory. (A GPU still gets faster over
        the first frames of each slot.)

        Raises:
            InputError: frames of another size are under way.
            DeviceError: not enough memory, or no engine for this size.
        """
        with self._alone():
            self._prepare(height, width)

    def push(self, frame: Any) -> list[Any]:
        """Takes the next frame of a stream.

        Args:
            frame: (H,W,3) uint8, RGB: an array, anything on the CPU that speaks DLPack, or with an engine's
                backend an array on the GPU (`__cuda_array_interface__` or DLPack), which is read where it
                lies and must stay as it is until its result was returned.

        Returns:
            The results that are ready, in order: none, one or several. Every frame's result has been
            returned once `flush` has.

        Raises:
            InputError: a frame of another shape, dtype or size.
            FrameError: this frame or an earlier one failed; it holds the results that were finished.
                The Restorer is of no use afterwards.
        """
        with self._alone():
            taken: Frame | DeviceArray = self._taken(frame)
            self._check(taken)
            height, width = taken.shape[:2]
            shape = FrameShape.of(self.manifest, height, width)
            if not shape.is_plain:
                if isinstance(taken, DeviceArray) or self._device_results:
                    raise InputError(
                        f"frames on the GPU must be of a size that the networks take as it is, and {width}x{height} "
                        f"becomes {shape.given[1]}x{shape.given[0]}; pass and take arrays of the CPU, or frames "
                        "of that size."
                    )
                taken = worked.given(taken, shape, self.manifest)
            runner = self._prepare(height, width)
            return self._first(self._count(runner.push(taken)))

    def flush(self) -> list[Frame]:
        """Returns the results that are still under way. More frames may be pushed afterwards."""
        with self._alone():
            return self._collect()

    def reset(self) -> None:
        """Starts a new clip, or a new scene of one: the next frame has no predecessor."""
        with self._alone():
            self._size = None
            self._clip += 1
            if self._runner is not None:
                self._late += self._count(self._runner.begin())

    @property
    def window(self) -> int:
        """How many frames go through the networks at once."""
        return self.manifest.window.frames

    @property
    def memory(self) -> dict[str, int]:
        """Bytes that frames of the present size take, weights aside; empty before the first one.

        On the CPU that is buffers only: what ONNX Runtime works in, it does not tell.
        """
        return self._device.memory if self._device is not None else {}

    @property
    def form(self) -> Form | None:
        """How frames of the present size go through the VAE, and why; None before the first one."""
        return self._form

    @property
    def load_seconds(self) -> dict[str, float]:
        """What loading took so far, in seconds: by network, and `all`, with the bundle and each size's memory.

        The CPU loads its networks when the Restorer is made, a GPU its engines with `prepare` or the first frame.
        Engines that another Restorer of this process has loaded already take next to nothing.
        """
        networks = self._device.load_seconds if self._device is not None else {}
        return {**networks, "all": self._loading}

    def timings(self) -> list[Clock]:
        """Seconds of each stage, one dict for each of the last frames returned (10 000 at most).

        Empty where measuring would cost time, on GPUs, and nobody observes.
        """
        return list(self._timings)

    def close(self) -> None:
        """Releases everything, results on the GPU too. Closing twice is harmless. Waits for other threads' calls."""
        with self._busy:
            self._runner = None
            if self._device is not None:
                self._device.close()
                self._device = None

    def __del__(self) -> None:
        if getattr(self, "_device", None) is not None:
            warnings.warn("a Restorer was dropped without close()", ResourceWarning, stacklevel=2)
            self.close()

    def __enter__(self) -> Restorer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check_clip(self, clip: int) -> None:
        if self._clip != clip:
            raise DeviceError("another clip was begun on this Restorer; make one for each clip.")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise DeviceError("this Restorer is restoring a frame in another thread; make one for each clip.")
        try:
            yield
        finally:
            self._busy.release()

    def _prepare(self, height: int, width: int) -> Runner:
        if self._device is None:
            raise DeviceError("this Restorer is closed; make a new one.")
        if self._runner is None or self._prepared != (height, width):
            if self._runner is not None and self._runner.under_way:
                raise InputError(
                    f"{self._runner.under_way} frames of another size are under way; call flush() before frames of "
                    f"{width}x{height}."
                )
            self._runner, self._prepared = None, None
            started = time.perf_counter()
            shape = FrameShape.of(self.manifest, height, width)
            arranged = self._device.arrange(*shape.given, self._options)
            schedule = build(self.manifest, *shape.given, arranged.options, self.slots, arranged.batches)
            known = constants(self.manifest, schedule, arranged.options, self._files)
            watched = self._device.times_itself or self._observer is not None
            observer = _weakly(self._observe) if watched else None
            arranged.open(schedule, derive(schedule), known, observer)
            self._form = arranged.form
            self._loading += time.perf_counter() - started
            self._clocks.clear()
            self._returned = 0

            def finish(result: Any) -> Any:
                return result if shape.is_plain else worked.returned(result, shape)

            self._runner = Runner(self._device, self.slots, self._timeout, finish, self.manifest.window)
            self._prepared = height, width
        return self._runner

    def _collect(self) -> list[Frame]:
        return self._first(self._count(self._runner.flush()) if self._runner is not None else [])

    def _first(self, results: list[Any]) -> list[Any]:
        """Results, behind those of a scene that has ended."""
        late, self._late = self._late, []
        return [*late, *results]

    def _count(self, results: list[Frame]) -> list[Frame]:
        """Files the times of frames that are returned."""
        for _ in results:
            clock = self._clocks.pop(self._returned, None)
            self._returned += 1
            if clock is not None:
                self._timings.append({stage.name: clock[stage.name] for stage in self.manifest.stages})
        return results

    def _observe(self, span: Span) -> None:
        if span.action in _WORK:
            self._clocks[span.frame][span.stage] += span.end - span.start
        if self._observer is not None:
            self._observer(span)

    def _taken(self, frame: Any) -> Frame | DeviceArray:
        """The frame as numpy's array, without a copy, or as one on the device."""
        if on_device(frame):
            if self.backend not in backends.ENGINES:
                raise InputError(
                    f"the frame lies on a GPU; the backend {self.backend} takes arrays of the CPU, "
                    f"{' and '.join(backends.ENGINES)} take both."
                )
            return device_array(frame, self._stream)
        if not isinstance(frame, np.ndarray) and hasattr(frame, "__dlpack__"):
            frame = np.from_dlpack(frame)
        if not isinstance(frame, np.ndarray):
            shape = getattr(frame, "shape", type(frame).__name__)
            raise InputError(f"a frame must be an array (H,W,3), not {shape}.")
        if frame.dtype != np.uint8:
            raise InputError(f"a frame must be uint8, not {frame.dtype}.")
        return frame

    def _check(self, frame: Frame | DeviceArray) -> None:
        if len(frame.shape) != 3 or frame.shape[2] != 3:
            raise InputError(f"a frame must be an array (H,W,3), not {frame.shape}.")
        if 0 in frame.shape:
            raise InputError(f"a frame of {frame.shape[1]}x{frame.shape[0]} pixels has nothing to restore.")
        largest = self._largest
        if frame.shape[0] > largest or frame.shape[1] > largest:
            raise InputError(
                f"a frame of {frame.shape[1]}x{frame.shape[0]} is larger than this bundle takes: {largest} a side."
            )
        if self._size is not None and frame.shape != self._size:
            raise InputError(
                f"the frame's size changed from {self._size[1]}x{self._size[0]} to "
                f"{frame.shape[1]}x{frame.shape[0]}; call reset() where a new clip begins."
            )
        self._size = frame.shape


def _weakly(observe: Observer) -> Observer:
    """An observer that does not keep its Restorer: one that is dropped must not live on in its device's threads."""
    held = weakref.WeakMethod(observe)

    def tell(span: Span) -> None:
        if (method := held()) is not None:
            method(span)

    return tell


def _largest_side(manifest: Manifest) -> int:
    """The longest side of a frame that the networks reading it were exported for."""
    frame = next(name for name, given in manifest.inputs.items() if given.source == "frame")
    sides = [
        network.bounds[symbol].max
        for stage in manifest.stages
        for network in [manifest.networks[stage.network]]
        for tensor in network.inputs
        if stage.reads[tensor.name] == frame
        for symbol in (dimension(size)[1] for size in tensor.shape[1:3])
        if symbol is not None
    ]
    return min(sides)
