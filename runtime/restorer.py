"""The interface that applications embed: frames in, restored frames out."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from runtime.bundle import Bundle
from runtime.errors import DeviceError, InputError
from runtime.host import HostDevice
from runtime.manifest import Manifest, dimension
from runtime.pipeline import Clock, Device, Options, Pipeline
from runtime.provider_device import ProviderDevice
from runtime.providers import PROVIDERS
from runtime.resample import enlarged_size, resize_bicubic

Frame = npt.NDArray[np.uint8]
_KEPT_TIMINGS = 10_000
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
        engine_cache: where GPU backends keep what they compile; None for the user's cache folder.
        check: compare every file's SHA-256 with the manifest before use.

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
        engine_cache: str | Path | None = None,
        check: bool = False,
    ) -> None:
        opened = Bundle.open(bundle, check=check)
        self.manifest = opened.manifest
        self.backend = choose_backend(backend)[0]
        choices = {} if color is None else {"color": color}
        vae_overlap = min(Options.vae_overlap, vae_tile // 4)
        options = Options(choices, tile, overlap, vae_tile, vae_overlap)
        self._largest = _largest_side(self.manifest)
        self._busy = threading.Lock()
        self._size: tuple[int, ...] | None = None
        self._clip = 0
        self._timings: deque[Clock] = deque(maxlen=_KEPT_TIMINGS)
        self._device = _device(self.backend, opened, threads, engine_cache)
        try:
            self._pipeline: Pipeline | None = Pipeline(
                self.manifest, self._device, options, opened.constants()
            )
        except BaseException:
            self._device.close()
            raise

    def restore(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Restores a clip.

        Args:
            frames: arrays (H,W,3) uint8, RGB, all of one size; any iterable, read as needed.

        Yields:
            An array (4H,4W,3) uint8, RGB, for each frame, in order.

        Raises:
            InputError: a frame of another shape, dtype or size.
            DeviceError: a network failed, or the Restorer is closed.
        """
        self.reset()
        clip = self._clip
        for frame in frames:
            if self._clip != clip:
                raise DeviceError("another clip was begun on this Restorer; make one for each clip.")
            yield from self.push(frame)
        yield from self.flush()

    def push(self, frame: Frame) -> list[Frame]:
        """Takes the next frame of a stream, (H,W,3) uint8.

        Returns:
            The results that are ready, in order: none, one or several. Every frame's result has been
            returned once `flush` has.
        """
        with self._alone():
            if self._pipeline is None:
                raise DeviceError("this Restorer is closed; make a new one.")
            self._check(frame)
            result, clock = self._restore_one(self._pipeline, frame)
            self._timings.append(clock)
            return [result]

    def flush(self) -> list[Frame]:
        """Returns the results that are still under way. More frames may be pushed afterwards."""
        return []  # the CPU backend restores a frame before `push` returns

    def reset(self) -> None:
        """Starts a new clip, or a new scene of one: the next frame has no predecessor."""
        with self._alone():
            self._size = None
            self._clip += 1
            if self._pipeline is not None:
                self._pipeline.reset()

    def timings(self) -> list[Clock]:
        """Seconds of each stage, one dict for each of the last frames (10 000 at most)."""
        return list(self._timings)

    def close(self) -> None:
        """Releases the networks. Closing twice is harmless; so is a frame that another thread has under way."""
        with self._busy:
            self._pipeline = None
            self._device.close()

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

    def _restore_one(self, pipeline: Pipeline, frame: Frame) -> tuple[Frame, Clock]:
        height, width = frame.shape[:2]
        least = self.manifest.minimum_side
        if min(height, width) >= least:
            result, clock = pipeline.run(np.ascontiguousarray(frame))
            return result, clock
        # too small for the networks: enlarge first, reduce the result again
        enlarged = resize_bicubic(frame, *enlarged_size(height, width, least))
        result, clock = pipeline.run(enlarged)
        scale = self.manifest.scale
        return resize_bicubic(result, height * scale, width * scale), clock


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


def _device(backend: str, bundle: Bundle, threads: int | None, engine_cache: str | Path | None) -> Device:
    if backend in PROVIDERS:
        return ProviderDevice(bundle, backend, threads, None if engine_cache is None else Path(engine_cache))
    if engine_cache is not None:
        raise InputError(f"the backend {backend} compiles nothing; leave --engine-cache out.")
    return HostDevice(bundle, threads)


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
