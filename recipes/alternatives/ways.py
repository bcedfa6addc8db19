"""One way to restore frames, timed in this process: what `vsr-build time` does.

The ways in torch come from build.py, as everything that needs the exporters: engines never import them.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vsr_trt.recipes.alternatives import COMPILED, LEAST, PLAIN
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Manifest
from vsr_trt.runtime.bundle.options import Options, Settings
from vsr_trt.runtime.bundle.symbols import dimension
from vsr_trt.runtime.devices.actions import Networks
from vsr_trt.runtime.devices.in_order import Clock, Pipeline
from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.machine.memory import peak_bytes
from vsr_trt.runtime.media import Source
from vsr_trt.runtime.onnxruntime.cpu import Calls, CpuNetworks, open_session, thread_count
from vsr_trt.runtime.restore.restorer import Restorer


class Way(Protocol):
    """Restores the frames of a clip, one after another.

    Attributes:
        versions: of what does the work.
        threads: of the CPU; None where the library decides by itself.
    """

    versions: dict[str, str]
    threads: int | None

    def run(self, frame: np.ndarray) -> tuple[np.ndarray, Clock]:
        """Restores the next frame (H,W,3) u8; returns the result and the seconds of each stage.

        Of a family that takes clips at once it is a whole clip, (F,H,W,3), and the seconds are a frame's share.
        """

    def close(self) -> None:
        """Releases everything."""


Open = Callable[[int, int], Way]
"""Makes a way ready for frames of a height and a width."""


class Runtime:
    """Our runtime on the CPU, as `vsr restore` runs it."""

    def __init__(self, bundle: Path, threads: int | None, height: int, width: int) -> None:
        self.threads: int | None = thread_count(threads)
        self._restorer = Restorer(bundle, backend=CpuNetworks.name, threads=threads)
        self.versions = {"onnxruntime": _onnxruntime().__version__}
        self._restorer.prepare(height, width)

    def run(self, frame: np.ndarray) -> tuple[np.ndarray, Clock]:
        """See `Way.run`."""
        [result] = self._restorer.push(frame)
        return result, self._restorer.timings()[-1]

    def close(self) -> None:
        """See `Way.close`."""
        self._restorer.close()


class WholeClips:
    """A family that takes clips at once: this runtime's stages, and the networks run by whatever is given.

    Args:
        bundle: whose stages are followed.
        choices: the family's options.
        threads: None for the library's own choice.
        networks: None for the runtime's own.
        versions: of what runs them.
    """

    def __init__(
        self,
        bundle: Path,
        choices: Mapping[str, str],
        threads: int | None,
        networks: Networks | None,
        versions: dict[str, str],
    ) -> None:
        self.threads, self.versions = threads if networks is not None else thread_count(threads), versions
        settings = Settings(backend=CpuNetworks.name, threads=threads, choices=dict(choices))
        self._restorer = Restorer(bundle, settings, networks=networks)

    def run(self, frame: np.ndarray) -> tuple[np.ndarray, Clock]:
        """See `Way.run`."""
        results = np.stack(list(self._restorer.restore(frame)))
        return results, self._restorer.timings()[-1]

    def close(self) -> None:
        """See `Way.close`."""
        self._restorer.close()


class OneNetwork:
    """A network alone, on random numbers: what a large one takes, without the rest of the way.

    Args:
        bundle: that has it.
        name: of the network.
        sizes: its symbolic sizes.
        networks: that run it.
        threads, versions: of those.

    Raises:
        InputError: no such network, or sizes that it does not take.
    """

    def __init__(
        self,
        bundle: Bundle,
        name: str,
        sizes: Mapping[str, int],
        networks: Networks,
        threads: int | None,
        versions: dict[str, str],
    ) -> None:
        self.threads, self.versions = threads, versions
        self._name, self._networks = name, networks
        self._feeds = random_inputs(bundle.manifest, name, sizes)
        networks.load(name)

    def run(self, frame: np.ndarray) -> tuple[np.ndarray, Clock]:
        """Runs it once; the frame is not looked at."""
        started = time.perf_counter()
        self._networks.run(self._name, self._feeds)
        return frame, {self._name: time.perf_counter() - started}

    def close(self) -> None:
        """See `Way.close`."""
        self._networks.close()


def random_inputs(manifest: Manifest, name: str, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Inputs of a network: normal numbers, or bytes.

    Raises:
        InputError: no such network, or sizes that it does not take.
    """
    if name not in manifest.networks:
        raise InputError(f"--network {name}: the bundle has {', '.join(manifest.networks)}.")
    network = manifest.networks[name]
    wanted = {symbol for tensor in network.inputs for size in tensor.shape if (symbol := dimension(size)[1])}
    sizes = {"n": 1, **sizes} if "n" in wanted else sizes
    if set(sizes) != wanted:
        example = ",".join(f"{symbol}={network.bounds[symbol].min}" for symbol in sorted(wanted - {"n"}))
        raise InputError(f"--at: {name} has the sizes {example}; give each of them.")
    for symbol, size in sizes.items():
        if not network.bounds[symbol].has(size):
            raise InputError(f"--at {symbol}={size}: {name} takes {network.bounds[symbol]}.")
    generator = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    for tensor in network.inputs:
        shape = [factor * (sizes[symbol] if symbol else 1) for factor, symbol in map(dimension, tensor.shape)]
        if tensor.dtype == "float32":
            feeds[tensor.name] = generator.standard_normal(shape, dtype=np.float32)
        elif tensor.dtype == "uint8":
            feeds[tensor.name] = generator.integers(0, 256, shape, dtype=np.uint8)
        else:
            raise InputError(
                f"--network {name}: {tensor.name} is {tensor.dtype}, for which nothing is made up."
            )
    return feeds


class Plain:
    """The bundle's native graphs in ONNX Runtime with its default options, one after another.

    Args:
        bundle: whose graphs are run.
        threads: None for ONNX Runtime's own choice.
        height, width: of the frames.

    Raises:
        InputError: frames that are smaller than the networks take.
        DeviceError: ONNX Runtime refuses a graph, or there is not enough memory.
    """

    def __init__(self, bundle: Path, threads: int | None, height: int, width: int) -> None:
        opened = Bundle.open(bundle)
        refuse_small(PLAIN, min(opened.manifest.canvas.least), height, width)
        networks = Native(opened, threads)
        self.threads, self.versions = threads, {"onnxruntime": networks.library.__version__}
        self._networks = networks
        self._pipeline = Pipeline(opened.manifest, networks, Options(), opened.constants())

    def run(self, frame: np.ndarray) -> tuple[np.ndarray, Clock]:
        """See `Way.run`."""
        return self._pipeline.run(frame)

    def close(self) -> None:
        """See `Way.close`."""
        self._networks.close()


class Native:
    """A bundle's native graphs in ONNX Runtime: nothing is set but the number of threads, where it is asked for."""

    name = "onnxruntime, native graphs"

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        self.library = _onnxruntime()
        self._bundle, self._threads = bundle, threads
        self._sessions: dict[str, Any] = {}
        self._calls = Calls(self.library)

    def load(self, network: str) -> None:
        """See `Networks.load`."""
        options = self.library.SessionOptions()
        options.log_severity_level = 3  # errors: hints would stand between the lines that tell how far it is
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        path = self._bundle.file(self._bundle.manifest.networks[network].graphs["native"])
        self._sessions[network] = open_session(self.library, path, options, ["CPUExecutionProvider"])

    def run(self, network: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `Networks.run`."""
        names = [tensor.name for tensor in self._bundle.manifest.networks[network].outputs]
        return self._calls.run(self._sessions[network], network, names, inputs)

    def close(self) -> None:
        """See `Networks.close`."""
        self._sessions.clear()


def _onnxruntime() -> Any:
    import onnxruntime

    return onnxruntime


def refuse_small(way: str, least: int, height: int, width: int) -> None:
    """Refuses frames that only the runtime restores.

    Raises:
        InputError: a side is shorter than `least`.
    """
    if min(height, width) < least:
        raise InputError(
            f"the frames are {width}x{height}; {way} takes frames of at least {least}x{least}. "
            "(The runtime takes any.)"
        )


def refuse_short(source: Source, clip: Path) -> None:
    """Refuses clips that end with the warm-up, as far as is known before they are read.

    Raises:
        InputError: fewer than two frames, of a family that takes them one by one.
    """
    if source.info.frame_count_exact and (source.info.frame_count or 0) < LEAST:
        raise _too_short(clip)


def _too_short(clip: Path) -> InputError:
    return InputError(f"{clip} has fewer than {LEAST} frames that can be read; the first one is warm-up.")


def measure(
    way: str,
    opening: Open,
    source: Source,
    clip: Path,
    say: Callable[[str], None],
    clips: int | None = None,
) -> dict[str, Any]:
    """Restores the frames of a clip and times each; the first one is warm-up.

    Args:
        way: its name.
        opening: makes it ready. That counts as loading, libraries included.
        source: the clip, at most as many frames as shall be restored. Reading it is not timed.
        clip: its name.
        say: is called with how far it is, always between frames.
        clips: of a family that takes clips at once: how often it is restored. A frame's time is its share.

    Returns:
        What `vsr-build time` prints.

    Raises:
        InputError: the clip ends with the warm-up.
        VsrError: what the way refuses.
    """
    info = source.info
    if clips is None:
        of = f" of {info.frame_count}" if info.frame_count else ""
        pieces: Iterable[np.ndarray] = (frame.rgb for frame in source)
        names = (f"frame {number}{of}" for number in itertools.count(1))
        frames = 1
    else:
        whole = np.stack([frame.rgb for frame in source])
        pieces, frames = itertools.repeat(whole, clips), len(whole)
        names = (f"clip {number} of {clips}" for number in itertools.count(1))
    found = _timed(way, lambda: opening(info.height, info.width), pieces, names, frames, say)
    if len(found["seconds"]) < 1:
        raise _too_short(clip)
    return {"way": way, "width": info.width, "height": info.height, "frames": frames, **found}


def measure_network(
    way: str, opening: Callable[[], Way], runs: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Runs a network several times and times each; the first one is warm-up. See `measure`."""
    nothing = np.zeros(0, np.uint8)
    names = (f"run {number} of {runs}" for number in itertools.count(1))
    return {"way": way, **_timed(way, opening, itertools.repeat(nothing, runs), names, 1, say)}


def _timed(
    way: str,
    opening: Callable[[], Way],
    pieces: Iterable[np.ndarray],
    names: Iterator[str],
    frames: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Times pieces of so many frames each, the first of which is warm-up; `seconds` are of a frame."""
    say("loading")
    started = time.perf_counter()
    opened = opening()
    try:
        load_seconds = time.perf_counter() - started
        seconds: list[float] = []
        clocks: list[Clock] = []
        for piece, name in zip(pieces, names, strict=False):
            say(name + ("" if seconds else ", warm-up"))
            started = time.perf_counter()
            _, clock = opened.run(piece)
            seconds.append((time.perf_counter() - started) / frames)
            clocks.append(clock)
        peak = peak_bytes()
    finally:
        opened.close()
    warmup, *measured = seconds or [0.0]
    compiling = (
        max(0.0, warmup - statistics.median(measured)) * frames if way == COMPILED and measured else None
    )
    return {
        "seconds": measured,
        "warmup_seconds": warmup,
        "stages": {stage: statistics.median(clock[stage] for clock in clocks[1:]) for stage in clocks[0]}
        if measured
        else {},
        "load_seconds": load_seconds,
        "compile_seconds": compiling,
        "peak_memory": peak,
        "threads": opened.threads,
        "versions": opened.versions,
    }
