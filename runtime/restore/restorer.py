"""The interface that applications embed: frames in, restored frames out."""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from vsr_trt.runtime.devices.actions import Networks
from vsr_trt.runtime.devices.in_order import Clock
from vsr_trt.runtime.devices.protocol import Device
from vsr_trt.runtime.devices.runner import Runner
from vsr_trt.runtime.devices.timeline import Observer, Span
from vsr_trt.runtime.errors import DeviceError, FrameError, InputError
from vsr_trt.runtime.media import worked
from vsr_trt.runtime.restore import prompts
from vsr_trt.runtime.restore.noise import Drawn, Noise, Recorded, Wanted, purposes, seeds
from vsr_trt.runtime.restore.progress import Meter, PhaseProgress
from vsr_trt.runtime.schedule.build import build
from vsr_trt.runtime.schedule.canvas import FrameShape
from vsr_trt.runtime.schedule.constants import constants
from vsr_trt.runtime.schedule.events import derive
from vsr_trt.runtime.schedule.forms import Form
from vsr_trt.runtime.schedule.parts import Part, parts

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
        noise: recorded noise in place of what the family draws, see `runtime.restore.noise.Recorded`: the arrays by
            name, or an .npz file of them. Its frames are those of one clip.
        progress: is passed how far the phases of a clip are, of a family that has any.
        networks: run the bundle's networks in place of a backend's, on arrays of the CPU. Several threads may call
            them at once. Closed with the Restorer.
        device_results: results stay on the GPU, with `__cuda_array_interface__` and `__dlpack__`; each is
            valid until the next frame is pushed, or the Restorer closed.

    Raises:
        BundleError: no bundle, or one that lost or changed a file, or of another schema version.
        InputError: an option out of range, or a prompt that the bundle cannot take.
        DeviceError: the backend is not installed, or cannot load the networks; a prompt needs a package more.

    `notes` are sentences about what it was given, for people: a prompt that is too long.

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
        noise: Mapping[str, np.ndarray] | str | Path | None = None,
        progress: Callable[[PhaseProgress], None] | None = None,
        networks: Networks | None = None,
        **changes: Any,
    ) -> None:
        started = time.perf_counter()
        settings = replace(settings or Settings(), **changes)
        opened = Bundle.open(bundle, check=settings.check)
        self.manifest = opened.manifest
        self.backend = (
            networks.name if networks is not None else backends.choose_backend(settings.backend, opened)[0]
        )
        check_slots(settings.slots)
        check_threads(settings.threads)
        self.slots = settings.slots
        self._options = Options.of(self.manifest, settings)
        self._noise = _noise(self.manifest, self._options, noise)
        self._wanted: tuple[
            Wanted, ...
        ] = ()  # noise that comes in with each frame of the part that is under way
        self._begins, self._pushed = 0, 0  # number of the clip's first frame, frames of the clip
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
        self._parts = parts(self.manifest)
        self._meter = Meter(progress, list(self.manifest.phases))
        self._runs = 0  # of networks, in a window of the part that is under way
        self._rows: list[Any] = []  # what the first phase made of each frame so far
        self._rest: Iterator[list[Any]] | None = None  # results of a clip whose last phase is under way
        self._spent: Clock = defaultdict(float)  # seconds of a clip's stages, in all of its phases
        self._stream, self._device_results = stream_address(stream), device_results
        if (device_results or stream is not None) and self.backend not in backends.ENGINES:
            raise InputError(f"frames and streams on a GPU need the backend {' or '.join(backends.ENGINES)}.")
        if networks is None:
            backends.check_backend(self.backend, opened, settings)
        self._files = opened.constants(self._options)
        prompted = prompts.embed(opened, settings, self._files)  # the networks then take its memory
        self._files |= prompted.constants
        self.notes = prompted.notes
        self._form: Form | None = None
        self._device: Device | None = (
            backends.device_of(networks, self.manifest, self._options)
            if networks is not None
            else backends.open_device(
                self.backend,
                opened,
                self._options,
                settings,
                stream=self._stream,
                device_results=device_results,
            )
        )
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
        if self._under_way or self._rest is not None:
            self._abandon()  # frames of a clip that was given up
        self.reset()
        clip = self._clip
        try:
            for frame in frames:
                self._check_clip(clip)
                yield from self.push(frame)
            self._check_clip(clip)
            yield from self.drain()
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
            self._finish_clip()
            runner = self._prepare(height, width)
            if not self._pushed and self._parts[0].phase is not None:
                self._meter.begin(self._parts[0].phase, None)
            row = self._with_noise({self._parts[0].takes[0]: taken}, self._begins + self._pushed)
            if len(row) > 1 and isinstance(taken, DeviceArray):
                raise InputError(
                    "noise is drawn on the CPU for each frame of this family; pass arrays of the CPU."
                )
            results = self._first(self._taken_on(runner.push(row if len(row) > 1 else taken)))
            self._pushed += 1
            self._meter.reach(self._pushed)
            return results

    def flush(self) -> list[Frame]:
        """Returns the results that are still under way. More frames may be pushed afterwards.

        Of a family with phases those are all frames' since the clip began; `drain` returns them one by one.
        """
        return list(self.drain())

    def drain(self) -> Iterator[Frame]:
        """Yields the results that are still under way, as `flush` returns them, without keeping all of them at once."""
        with self._alone():
            results = self._first(self._taken_on(self._runner.flush()) if self._runner is not None else [])
            self._end_clip()
        yield from results
        while self._rest is not None:
            with self._alone():
                ended: Any = object()
                found = next(self._rest, ended) if self._rest is not None else ended
                results = [] if found is ended else found
                if found is ended:
                    self._rest = None
            yield from results

    def reset(self, number: int = 0) -> None:
        """Starts a new clip, or a new scene of one: the next frame has no predecessor.

        Of a family with phases the clip so far goes through all of them first.

        Args:
            number: of that frame, where it is a part of a longer clip: its noise is that frame's.
        """
        with self._alone():
            self._size = None
            self._clip += 1
            if self._runner is not None:
                self._late += self._taken_on(self._runner.begin())
            if len(self._parts) > 1:
                if self._runner is not None:
                    self._taken_on(self._runner.flush())
                self._end_clip()
                self._finish_clip()
            self._begins, self._pushed = number, 0

    @property
    def window(self) -> int:
        """How many frames go through the networks at once; 0 where that is a whole clip."""
        return self.manifest.window.size if len(self._parts) == 1 else 0

    @property
    def memory(self) -> dict[str, int]:
        """Bytes that frames of the present size take, weights aside; empty before the first one.

        On the CPU that is buffers only: what ONNX Runtime works in, it does not tell. `clip`: what is kept of a clip
        between its phases, on the host.
        """
        kept = {"clip": sum(_bytes(row) for row in self._rows)} if self._rows else {}
        return {**self._device.memory, **kept} if self._device is not None else {}

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

        Empty where measuring would cost time, on GPUs, and nobody observes. Of a family with phases each frame has its
        share of the clip's.
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
            if self._under_way and self._prepared not in (None, (height, width)):
                raise InputError(
                    f"{self._under_way} frames of another size are under way; call flush() before frames of "
                    f"{width}x{height}."
                )
            self._runner, self._prepared = None, None
            self._clocks.clear()
            self._returned = 0
            self._runner = self._open(self._parts[0], height, width)
            self._prepared = height, width
        return self._runner

    def _open(self, part: Part, height: int, width: int) -> Runner:
        """Makes the device ready for a part's windows."""
        assert self._device is not None
        started = time.perf_counter()
        shape = FrameShape.of(self.manifest, height, width)
        arranged = self._device.arrange(*shape.given, self._options, part if part.phase is not None else None)
        slots = self.slots if part.window.frames is not None else 1
        schedule = build(self.manifest, *shape.given, arranged.options, slots, arranged.batches, part)
        known = constants(self.manifest, schedule, arranged.options, self._files)
        watched = self._device.times_itself or self._observer is not None
        observer = _weakly(self._observe) if watched else None
        arranged.open(schedule, derive(schedule), known, observer)
        self._form = arranged.form
        self._wanted = Wanted.of(self.manifest, schedule)
        self._runs = sum(step.action == "network" for step in schedule.steps)
        self._loading += time.perf_counter() - started

        def finish(result: Any) -> Any:
            return result if shape.is_plain or not part.last else worked.returned(result, shape)

        timeout = self._timeout
        if timeout is not None and part.window.frames is None:
            timeout *= part.frames
        window = replace(part.window, frames=part.frames)
        return Runner(self._device, slots, timeout, finish, window)

    @property
    def _under_way(self) -> int:
        """Frames that were taken and whose results were not returned."""
        return len(self._rows) + (self._runner.under_way if self._runner is not None else 0)

    def _abandon(self) -> None:
        """Ends what is under way; its results are lost."""
        with self._alone():
            if self._runner is not None:
                self._taken_on(self._runner.flush())
            self._rows, self._rest, self._late = [], None, []
            self._spent.clear()

    def _taken_on(self, results: list[Any]) -> list[Any]:
        """Results of the first part: those of the Restorer, or what the clip's next phase takes."""
        if len(self._parts) == 1:
            return self._count(results)
        self._rows += [_named(self._parts[0], row) for row in results]
        return []

    def _end_clip(self) -> None:
        """Takes a clip through its phases up to the last one, whose results then come as they are asked for."""
        if len(self._parts) == 1 or not self._rows:
            return
        self._pushed = 0
        assert self._prepared is not None
        (height, width), frames = self._prepared, len(self._rows)
        rows, self._rows, self._runner = self._rows, [], None
        for part in self._parts[1:-1]:
            made = [row for results in self._through(part, rows, height, width) for row in results]
            rows = [_joined(part, old, new) for old, new in zip(rows, made, strict=True)]
        self._rest = self._last_phase(rows, height, width, frames)

    def _finish_clip(self) -> None:
        """Makes those results of a clip's last phase that nobody asked for yet; they come before the next ones."""
        self._late += [result for results in self._rest or () for result in results]
        self._rest = None

    def _last_phase(self, rows: list[Any], height: int, width: int, frames: int) -> Iterator[list[Any]]:
        yield from self._through(self._parts[-1], rows, height, width)
        each = {stage.name: self._spent[stage.name] / frames for stage in self.manifest.stages}
        if self._spent:
            self._timings.extend([each] * frames)
        self._spent.clear()

    def _through(self, part: Part, rows: list[Any], height: int, width: int) -> Iterator[list[Any]]:
        """A clip's rows through a phase, window by window."""
        size = part.window.frames or len(rows)
        number = returned = 0
        whole = len(rows) // size * size if part.window.last == "short" else len(rows)
        for frames, some in ((size, rows[:whole]), (len(rows) - whole, rows[whole:])):
            if not some:
                continue
            runner = self._open(part.of(frames), height, width)
            if not number:
                self._meter.begin(part.phase or "", -(-len(rows) // size) * self._runs)
            for row in some:
                taken = {name: row[name] for name in part.takes if name in row}
                wanted = self._with_noise(taken, self._begins + number)
                results = runner.push(wanted if len(wanted) > 1 else next(iter(wanted.values())))
                number += 1
                returned += len(results)
                self._meter.reach(returned // size * self._runs)
                yield results
            results = runner.flush()
            returned += len(results)
            self._meter.reach(-(-returned // size) * self._runs)
            yield results

    def _with_noise(self, row: dict[str, Any], frame: int) -> dict[str, Any]:
        """A frame's row, with the noise that comes in with it."""
        drawn = {w.name: self._noise.row(w.purpose, w.step, frame, w.shape) for w in self._wanted}
        return {**row, **drawn}

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
            clock = self._clocks[span.frame] if len(self._parts) == 1 else self._spent
            clock[span.stage] += span.end - span.start
            if span.action == "network":
                self._meter.step()
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


def _noise(
    manifest: Manifest, options: Options, recorded: Mapping[str, np.ndarray] | str | Path | None
) -> Noise:
    """Where noise comes from.

    Raises:
        InputError: recorded noise that does not fit, or of a family that draws none.
    """
    if recorded is None:
        return Drawn(seeds(manifest, options))
    wanted = purposes(manifest, options)
    if not wanted:
        raise InputError("this family draws no noise; leave the recorded one out.")
    return Recorded(Recorded.read(Path(recorded)) if isinstance(recorded, str | Path) else recorded, wanted)


def _named(part: Part, row: Any) -> dict[str, np.ndarray]:
    """What a part made of a frame, by name."""
    return row if isinstance(row, dict) else {part.gives[0]: row}


def _joined(part: Part, old: dict[str, np.ndarray], new: Any) -> dict[str, np.ndarray]:
    """What earlier phases made of a frame, with what this one did."""
    return {**old, **_named(part, new)}


def _bytes(row: dict[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in row.values())


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
