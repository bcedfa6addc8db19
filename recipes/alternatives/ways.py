"""One way to restore frames, timed in this process: what `vsr-build time` does.

The ways in torch come from build.py, as everything that needs the exporters: engines never import them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vsr_trt.recipes.alternatives import COMPILED, LEAST, PLAIN
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.options import Options
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
        """Restores the next frame (H,W,3) u8; returns the result and the seconds of each stage."""

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
        networks = _Native(opened, threads)
        self.threads, self.versions = threads, {"onnxruntime": networks.library.__version__}
        self._networks = networks
        self._pipeline = Pipeline(opened.manifest, networks, Options(), opened.constants())

    def run(self, frame: np.ndarray) -> tuple[np.ndarray, Clock]:
        """See `Way.run`."""
        return self._pipeline.run(frame)

    def close(self) -> None:
        """See `Way.close`."""
        self._networks.close()


class _Native:
    """Networks for `Pipeline`: nothing is set but the number of threads, where it is asked for."""

    name = "onnxruntime, native graphs"

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        self.library = _onnxruntime()
        self._bundle, self._threads = bundle, threads
        self._sessions: dict[str, Any] = {}
        self._calls = Calls(self.library)

    def load(self, network: str) -> None:
        options = self.library.SessionOptions()
        options.log_severity_level = 3  # errors: hints would stand between the lines that tell how far it is
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        path = self._bundle.file(self._bundle.manifest.networks[network].graphs["native"])
        self._sessions[network] = open_session(self.library, path, options, ["CPUExecutionProvider"])

    def run(self, network: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [tensor.name for tensor in self._bundle.manifest.networks[network].outputs]
        return self._calls.run(self._sessions[network], network, names, inputs)

    def close(self) -> None:
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
        InputError: fewer than two frames.
    """
    if source.info.frame_count_exact and (source.info.frame_count or 0) < LEAST:
        raise _too_short(clip)


def _too_short(clip: Path) -> InputError:
    return InputError(f"{clip} has fewer than {LEAST} frames that can be read; the first one is warm-up.")


def measure(
    way: str, opening: Open, source: Source, clip: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Restores the frames of a clip and times each; the first one is warm-up.

    Args:
        way: its name.
        opening: makes it ready. That counts as loading, libraries included.
        source: the clip, at most as many frames as shall be restored. Reading it is not timed.
        clip: its name.
        say: is called with how far it is, always between frames.

    Returns:
        What `vsr-build time` prints.

    Raises:
        InputError: the clip ends with the warm-up.
        VsrError: what the way refuses.
    """
    info = source.info
    of = f" of {info.frame_count}" if info.frame_count else ""
    say("loading")
    started = time.perf_counter()
    opened = opening(info.height, info.width)
    try:
        load_seconds = time.perf_counter() - started
        seconds: list[float] = []
        clocks: list[Clock] = []
        for frame in source:
            say(f"frame {len(seconds) + 1}{of}" + ("" if seconds else ", warm-up"))
            started = time.perf_counter()
            _, clock = opened.run(frame.rgb)
            seconds.append(time.perf_counter() - started)
            clocks.append(clock)
        peak = peak_bytes()
    finally:
        opened.close()
    if len(seconds) < LEAST:
        raise _too_short(clip)
    warmup, *measured = seconds
    compiling = max(0.0, warmup - statistics.median(measured)) if way == COMPILED else None
    return {
        "way": way,
        "width": info.width,
        "height": info.height,
        "seconds": measured,
        "warmup_seconds": warmup,
        "stages": {stage: statistics.median(clock[stage] for clock in clocks[1:]) for stage in clocks[0]},
        "load_seconds": load_seconds,
        "compile_seconds": compiling,
        "peak_memory": peak,
        "threads": opened.threads,
        "versions": opened.versions,
    }
