"""Real frames through a bundle's whole chain, with every network's inputs and outputs kept."""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vsr_trt.engines.accuracy import instrument, ranges
from vsr_trt.runtime import media
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Source
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.devices.actions import Buffers, Networks
from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.onnxruntime.cpu import CpuNetworks
from vsr_trt.runtime.restore.progress import PhaseProgress
from vsr_trt.runtime.restore.restorer import Restorer

_MOST_FRAMES = 10_000
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Clip:
    """Frames to measure with.

    Attributes:
        path: the video, folder of pictures or picture that they are from.
        start: seconds skipped.
        frames: (H,W,3) uint8, as decoded.
        source: name, bytes and hash of the file; of a folder, of its pictures together.
    """

    path: Path
    start: float
    frames: tuple[np.ndarray, ...]
    source: Source

    @property
    def count(self) -> str:
        """How many frames, in words."""
        return "1 frame" if len(self.frames) == 1 else f"{len(self.frames)} frames"


@dataclass(frozen=True)
class Call:
    """One run of a network: inputs and outputs by name."""

    inputs: Buffers
    outputs: Buffers


Calls = dict[str, list[Call]]
Step = Callable[[str], None]


def read_clip(path: Path, frames: int, start: float = 0.0) -> Clip:
    """Reads the first frames of a clip; fewer where it has fewer.

    Raises:
        InputError: fewer than one frame asked for, or the clip cannot be read.
    """
    check_frames(frames)
    with media.open_source(path, start=start, frames=frames) as source:
        pictures = tuple(frame.rgb for frame in itertools.islice(source, frames))
        files = list(source.files)
    return Clip(path, start, pictures, file_source(path.name, files))


def check_frames(frames: int) -> None:
    """Refuses a number of frames that cannot be meant: every one is kept in memory.

    Raises:
        InputError: it is below 1 or above 10 000.
    """
    if not 1 <= frames <= _MOST_FRAMES:
        raise InputError(f"--frames is {frames}; expected 1 to {_MOST_FRAMES}.")


def file_source(name: str, files: Sequence[Path]) -> Source:
    """Bytes and SHA-256 of files, one after another."""
    digest, size = hashlib.sha256(), 0
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
                size += len(block)
    return Source(name, size, digest.hexdigest())


class Recorder:
    """Networks that keep what goes into and comes out of other ones. Inputs are copied: they are the schedule's.

    Attributes:
        calls: of each network, in order.
    """

    def __init__(self, networks: Networks) -> None:
        self.name = networks.name
        self.calls: Calls = defaultdict(list)
        self._networks = networks

    def load(self, network: str) -> None:
        """Loads it there."""
        self._networks.load(network)

    def run(self, network: str, inputs: Buffers) -> Buffers:
        """Runs it there, and keeps the call."""
        outputs = self._networks.run(network, inputs)
        self.calls[network].append(Call({name: value.copy() for name, value in inputs.items()}, outputs))
        return outputs

    def close(self) -> None:
        """Closes those; what was kept stays."""
        self._networks.close()


class HalfNetworks:
    """Runs a bundle's FP16 graphs on the CPU, rounding to FP16 where a GPU would (see `engines.accuracy.instrument`).

    Networks that are FP32 in every bundle run as they do in the runtime.
    """

    name = "fp16-emulated"

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self._bundle, self._threads = bundle, threads
        self._host = CpuNetworks(bundle, threads)
        self._sessions: dict[str, Any] = {}

    def load(self, network: str) -> None:
        """Loads a network, once."""
        record = self._bundle.manifest.networks[network]
        if record.always_fp32 is not None:
            self._host.load(network)
        elif network not in self._sessions:
            graph = record.graph("fp16", self._bundle.manifest.precision)
            assert graph is not None  # whoever makes this device has looked
            path = self._bundle.file(graph)
            with ranges.refused(path):
                self._sessions[network] = ranges.open_session(instrument.prepare(path), self._threads)

    def run(self, network: str, inputs: Buffers) -> Buffers:
        """Runs a network; returns its outputs by name."""
        if network not in self._sessions:
            return self._host.run(network, inputs)
        record = self._bundle.manifest.networks[network]
        names = [tensor.name for tensor in record.outputs]
        with ranges.refused(self._bundle.path / record.graphs["native"]):
            return dict(zip(names, self._sessions[network].run(names, inputs), strict=True))

    def close(self) -> None:
        """Releases the networks."""
        self._sessions.clear()
        self._host.close()


def run_chain(
    bundle: Bundle, networks: Networks, frames: Sequence[np.ndarray], step: Step = lambda done: None
) -> list[np.ndarray]:
    """Restores a clip as the runtime does, with the default options and given networks, which are closed afterwards.

    Args:
        bundle: whose stages are followed.
        networks: that run.
        frames: (H,W,3) uint8.
        step: is passed what is done, in words.

    Returns:
        (4H,4W,3) uint8, for each frame.
    """

    def phase(at: PhaseProgress) -> None:
        step(f"{at.phase}, {at.done}" + ("" if at.total is None else f" of {at.total}"))

    results = []
    with Restorer(bundle.path, networks=networks, progress=phase) as restorer:
        for result in restorer.restore(frames):
            results.append(result)
            step(f"frame {len(results)} of {len(frames)}")
    return results


def stage_networks(bundle: Bundle) -> list[str]:
    """The networks that `run_chain` runs, in the order of the stages."""
    return Options().networks(bundle.manifest)
