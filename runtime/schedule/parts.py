"""What of a manifest one schedule executes: all of it, or a phase.

A family without phases has one part. With phases, a clip goes through one part after another, each with a schedule of
its own: what they hand on is kept, a row for each frame, between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vsr_trt.runtime.bundle.manifest import ROW, Manifest, Stage, Window
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.errors import InputError


@dataclass(frozen=True)
class Part:
    """Stages that one schedule executes.

    Attributes:
        phase: its name; None for a family without phases.
        stages: in order.
        window: the unit of work.
        frames: of the windows that are meant: of the window, or of a clip that goes through at once.
        takes: buffers that come in with every window: the frame, or what earlier phases made; and noise, as
            `name[i]` where each step of a loop has its own.
        gives: buffers that are handed on, or the restored frames.
        last: whether those are the restored frames.
    """

    phase: str | None
    stages: tuple[Stage, ...]
    window: Window
    frames: int
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    last: bool

    def of(self, frames: int) -> Part:
        """Returns the part for windows of so many frames."""
        return replace(self, frames=frames)


def parts(manifest: Manifest, frames: int = 1) -> tuple[Part, ...]:
    """The parts of a family, in order.

    Args:
        manifest: the family's.
        frames: of the clip; what goes through at once has as many.
    """
    source = next(name for name, given in manifest.inputs.items() if given.source == "frame")
    if not manifest.phases:
        window, takes = manifest.window, (source, *_noise(manifest, manifest.stages))
        return (
            Part(None, manifest.stages, window, window.frames or frames, takes, (manifest.output,), True),
        )
    found, made = list[Part](), list[str]()
    for number, (name, window) in enumerate(manifest.phases.items()):
        stages = tuple(stage for stage in manifest.stages if stage.phase == name)
        later = {
            read
            for phase in list(manifest.phases)[number + 1 :]
            for stage in manifest.stages
            if stage.phase == phase
            for read in stage.reads.values()
        }
        written = dict.fromkeys(buffer for stage in stages for buffer in stage.writes.values())
        reads = {read for stage in stages for read in stage.reads.values()}
        takes = tuple(buffer for buffer in (source, *made) if buffer in reads) + _noise(manifest, stages)
        last = number == len(manifest.phases) - 1
        gives = (manifest.output,) if last else tuple(buffer for buffer in written if buffer in later)
        found.append(Part(name, stages, window, window.frames or frames, takes, gives, last))
        made += [buffer for buffer in gives if buffer not in made]
    return tuple(found)


def clip_parts(manifest: Manifest, frames: int) -> tuple[Part, ...]:
    """The parts that a clip of so many frames goes through, each with its longest windows.

    Those are no longer than the clip where a phase's last window may be short.
    """
    found = parts(manifest, frames)
    if not manifest.phases:
        return found
    return tuple(part.of(min(part.frames, frames)) if part.window.last == "short" else part for part in found)


def _noise(manifest: Manifest, stages: Sequence[Stage]) -> tuple[str, ...]:
    """The noise that stages read, in the order of the manifest."""
    drawn = [name for name, given in manifest.inputs.items() if given.source == "noise"]
    reads = {read for stage in stages for read in stage.reads.values()}
    return tuple(read for name in drawn for read in (name, f"{name}{ROW}") if read in reads)


def usual_clip(manifest: Manifest, options: Options) -> int:
    """Frames of the clip that stands for others where nobody says how long one is: those of a chunk, or 1."""
    if not manifest.phases:
        return 1
    return max((chunk_sizes(manifest, name, options)[0] for name in manifest.chunks), default=1)


def clip_frames(manifest: Manifest, frames: int | None) -> int:
    """How many frames a clip has, as `--frames` says; 1 for a family that does not need to know.

    Raises:
        InputError: the family has phases, and nobody says it.
    """
    if frames is not None and frames < 1:
        raise InputError(f"--frames {frames}: expected 1 or more.")
    if manifest.phases and frames is None:
        raise InputError(
            "this family takes a clip through phases; say how many frames it has, e.g. --frames 32."
        )
    return frames or 1


def only(manifest: Manifest) -> Part:
    """The part of a family without phases.

    Raises:
        ValueError: it has phases; the caller must say which is meant.
    """
    if manifest.phases:
        raise ValueError(f"a phase must be named: {', '.join(manifest.phases)}")
    return parts(manifest)[0]


@dataclass(frozen=True)
class Span:
    """A chunk of a window.

    Attributes:
        start, end: its frames, the end excluded.
        first, last: those whose results are its own, the end excluded.
    """

    start: int
    end: int
    first: int
    last: int

    @property
    def frames(self) -> int:
        """How many."""
        return self.end - self.start


def chunk_sizes(manifest: Manifest, chunks: str, options: Options) -> tuple[int, int]:
    """Frames of a chunk, and of the longest that is taken in one piece."""
    record = manifest.chunks[chunks]
    size = record.frames if isinstance(record.frames, int) else int(options.value(manifest, record.frames))
    return size, int(size * record.stretch)


def spans(manifest: Manifest, chunks: str, frames: int, options: Options) -> tuple[Span, ...]:
    """How a window of so many frames is cut into chunks.

    Args:
        manifest: the family's.
        chunks: a name of its `chunks`.
        frames: of the window.
        options: the user's.
    """
    size, longest = chunk_sizes(manifest, chunks, options)
    overlap = int(size * manifest.chunks[chunks].overlap)
    if frames <= longest:
        return (Span(0, frames, 0, frames),)
    starts = [0]
    while starts[-1] + longest < frames:
        starts.append(starts[-1] + size - overlap)
    ends = [*(start + size for start in starts[:-1]), frames]
    cuts = [0, *(start + overlap // 2 for start in starts[1:]), frames]
    return tuple(
        Span(start, end, first, last)
        for start, end, first, last in zip(starts, ends, cuts[:-1], cuts[1:], strict=True)
    )
