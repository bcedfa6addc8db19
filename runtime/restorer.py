"""The interface that applications embed: frames in, restored frames out."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from runtime.bundle import Bundle
from runtime.device import Device
from runtime.errors import DeviceError, InputError
from runtime.host import HostDevice
from runtime.lanes import HostLanes
from runtime.manifest import Manifest, dimension
from runtime.options import Options
from runtime.pipeline import Clock
from runtime.provider_device import ProviderDevice
from runtime.providers import PROVIDERS
from runtime.resample import enlarged_size, resize_bicubic
from runtime.runner import FrameError, Runner
from runtime.schedule.build import build
from runtime.schedule.events import derive
from runtime.timeline import Observer, Span

Frame = npt.NDArray[np.uint8]
_KEPT_TIMINGS = 10_000
_WORK = ("network", "cut", "blend")  # what a stage is made of
BACKENDS = ("auto", HostDevice.name, *PROVIDERS)


class Restorer:
    """Restores frames of a clip with the networks of a bundle, in order, one result a frame.

    Each frame is encoded once; what the next one needs of it (latent and thumb) is kept. Both come
    from the input, so a clip cut anywhere with one frame of overlap gives the same bytes.

    Args:
        bundle: directory made by `build.py bundle`.
        backend: `auto` takes the best that is installed and that the bundle serves; see `BACKENDS`.
        color: how colours are aligned to the input's: `adain`, `wavelet` or `none`; None for the
            bundle's default.
        tile: side of a tile in latents (8 pixels of the result) for frames larger than that.
        overlap: of neighbouring tiles, in latents.
        vae_tile: the same limit for the VAE.
        threads: of the CPU; None for all cores that the process may use.
        slots: frames in flight. With one, `push` returns the frame's own result; with more, stages of
            several frames run beside each other, and results come later and take more memory.
        timeout: seconds that a frame may take once it is waited for; None for ever.
        engine_cache: where GPU backends keep what they compile; None for the user's cache folder.
        check: compare every file's SHA-256 with the manifest before use.
        observer: told every step that is done, from whichever thread did it.

    Raises:
        BundleError: no bundle, or one that lost or changed a file, or of another schema version.
        InputError: an option out of range.
        DeviceError: the backend is not installed, or cannot load the networks.

    One Restorer serves one clip at a time: a call that comes while another thread is inside one is
    refused with a DeviceError. Any number of Restorers may live beside each other.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        backend: str = "auto",
        color: str | None = None,
        tile: int = Options.tile,
        overlap: int = Options.overlap,
        vae_tile: int = Options.vae_tile,
        threads: int | None = None,
        slots: int = 1,
        timeout: float | None = None,
        engine_cache: str | Path | None = None,
        check: bool = False,
        observer: Observer | None = None,
    ) -> None:
        opened = Bundle.open(bundle, check=check)
        self.manifest = opened.manifest
        self.backend = choose_backend(backend)[0]
        if slots < 1:
            raise InputError(f"--slots is {slots}; expected 1 or more.")
        self.slots = slots
        choices = {} if color is None else {"color": color}
        self._options = Options(choices, tile, overlap, vae_tile, min(Options.vae_overlap, vae_tile // 4))
        self._options.check(self.manifest)
        self._largest = _largest_side(self.manifest)
        self._timeout, self._observer = timeout, observer
        self._busy = threading.Lock()
        self._size: tuple[int, ...] | None = None
        self._clip = 0
        self._clocks: dict[int, Clock] = defaultdict(lambda: defaultdict(float))
        self._timings: deque[Clock] = deque(maxlen=_KEPT_TIMINGS)
        self._returned = 0
        self._constants = opened.constants()
        self._runner: Runner | None = None
        self._prepared: tuple[int, int] | None = None
        self._device: Device | None = _device(
            self.backend, opened, self._options.networks(self.manifest), threads, engine_cache
        )

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
        self.reset()
        clip = self._clip
        try:
            for frame in frames:
                if self._clip != clip:
                    raise DeviceError("another clip was begun on this Restorer; make one for each clip.")
                yield from self.push(frame)
            yield from self.flush()
        except FrameError as error:
            yield from error.results
            error.results = []
            raise

    def prepare(self, height: int, width: int) -> None:
        """Makes ready for frames (height, width, 3), so that the first one takes no longer than others.

        Raises:
            DeviceError: not enough memory, or no engine for this size.
        """
        with self._alone():
            self._prepare(height, width)

    def push(self, frame: Frame) -> list[Frame]:
        """Takes the next frame of a stream, (H,W,3) uint8.

        Returns:
            The results that are ready, in order: none, one or several. Every frame's result has been
            returned once `flush` has.

        Raises:
            InputError: a frame of another shape, dtype or size.
            FrameError: this frame or an earlier one failed; it holds the results that were finished.
                The Restorer is of no use afterwards.
        """
        with self._alone():
            self._check(frame)
            height, width = frame.shape[:2]
            results = self._collect() if self._prepared != (height, width) else []
            runner = self._prepare(height, width)
            least = self.manifest.minimum_side
            if (
                min(height, width) < least
            ):  # too small for the networks: enlarge first, reduce the result again
                frame = resize_bicubic(frame, *enlarged_size(height, width, least))
            return results + self._count(runner.push(frame))

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
                self._runner.begin()

    def timings(self) -> list[Clock]:
        """Seconds of each stage, one dict for each of the last frames returned (10 000 at most).

        Empty where measuring would cost time, on GPUs, and nobody observes.
        """
        return list(self._timings)

    def close(self) -> None:
        """Releases everything. Closing twice is harmless; so is a frame that another thread has under way."""
        with self._busy:
            self._runner = None
            if self._device is not None:
                self._device.close()
                self._device = None

    def __enter__(self) -> Restorer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

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
            self._runner, self._prepared = None, None
            inside = enlarged_size(height, width, self.manifest.minimum_side)
            schedule = build(self.manifest, *inside, self._options, self.slots)
            watched = self._device.times_itself or self._observer is not None
            observer = self._observe if watched else None
            self._device.open(schedule, derive(schedule), self._constants, observer)
            self._clocks.clear()
            self._returned = 0
            scale = self.manifest.scale

            def take(staged: np.ndarray) -> np.ndarray:
                if inside == (height, width):
                    return staged[0].copy()
                return resize_bicubic(staged[0], height * scale, width * scale)

            self._runner = Runner(self._device, self.slots, self._timeout, take)
            self._prepared = height, width
        return self._runner

    def _collect(self) -> list[Frame]:
        return self._count(self._runner.flush()) if self._runner is not None else []

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

    def _check(self, frame: Frame) -> None:
        if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3:
            shape = getattr(frame, "shape", type(frame).__name__)
            raise InputError(f"a frame must be an array (H,W,3), not {shape}.")
        if frame.dtype != np.uint8:
            raise InputError(f"a frame must be uint8, not {frame.dtype}.")
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


def choose_backend(backend: str) -> tuple[str, str]:
    """The backend that a request stands for, and why.

    Raises:
        InputError: there is no such backend.
    """
    if backend not in BACKENDS:
        raise InputError(f"there is no backend {backend!r}; expected one of {', '.join(BACKENDS)}.")
    if backend == "auto":
        return HostDevice.name, "it runs on every machine; the others are taken when asked for"
    return backend, "as asked"


def _device(
    backend: str,
    bundle: Bundle,
    networks: Iterable[str],
    threads: int | None,
    engine_cache: str | Path | None,
) -> Device:
    loaded: HostDevice | ProviderDevice
    if backend in PROVIDERS:
        cache = None if engine_cache is None else Path(engine_cache)
        loaded = ProviderDevice(bundle, backend, threads, cache)
    elif engine_cache is not None:
        raise InputError(f"the backend {backend} compiles nothing; leave --engine-cache out.")
    else:
        loaded = HostDevice(bundle, threads)
    try:
        for network in networks:
            loaded.load(network)
    except BaseException:
        loaded.close()
        raise
    return HostLanes(loaded, loaded.cancel)


def _largest_side(manifest: Manifest) -> int:
    """The longest side of a frame that the networks reading it were exported for."""
    sides = [
        network.bounds[symbol].max
        for stage in manifest.stages
        for network in [manifest.networks[stage.network]]
        for tensor in network.inputs
        if stage.reads[tensor.name] == "frame"
        for symbol in (dimension(size)[1] for size in tensor.shape[1:3])
        if symbol is not None
    ]
    return min(sides)
