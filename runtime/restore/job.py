"""Restoring a file: what `vsr restore` does, without the terminal."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from vsr_trt.runtime import backends, media
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.options import Options, Settings
from vsr_trt.runtime.bundle.reading import read_manifest
from vsr_trt.runtime.errors import OutputError, TruncatedInputError, VsrError
from vsr_trt.runtime.machine.memory import peak_bytes
from vsr_trt.runtime.machine.shell import Hangup
from vsr_trt.runtime.media.video_sink import VideoSink
from vsr_trt.runtime.restore import fit, small_frames
from vsr_trt.runtime.restore import read_ahead as beside
from vsr_trt.runtime.restore.progress import PhaseProgress
from vsr_trt.runtime.restore.restorer import Restorer
from vsr_trt.runtime.restore.segments import Segments
from vsr_trt.runtime.schedule import forms
from vsr_trt.runtime.schedule.forms import Available, Form


@dataclass(frozen=True)
class Job:
    """What to restore, with which bundle, into what.

    Attributes:
        input: a video, a folder of pictures, or one picture.
        output: a video file, a folder (no suffix), or a .png for a single picture.
        bundle: directory made by `vsr-build bundle`.
        settings: see `Restorer`.
        start: seconds to skip at the beginning.
        frames: how many frames to restore at most, None for all.
        codec, crf: of the output video, None for the container's defaults.
        overwrite: replace an existing output.
        fps: of a video made of pictures, None for 25; a Fraction is kept exactly, e.g. Fraction(30000, 1001). A
            video keeps its own times.
        segment: frames that go through at once, of a family that takes whole clips through its steps, and how many of
            them neighbouring segments share; None for the whole clip, which alone is exact.
        noise: recorded noise in place of what the family draws, an .npz file; see `runtime.restore.noise`.
    """

    input: Path
    output: str | Path
    bundle: Path
    settings: Settings = field(default_factory=Settings)
    start: float = 0.0
    frames: int | None = None
    codec: str | None = None
    crf: int | None = None
    overwrite: bool = False
    fps: Fraction | float | None = None
    noise: Path | None = None
    segment: tuple[int, int] | None = None


@dataclass
class RestoreReport:
    """What was done. Times in seconds, sizes in pixels or bytes.

    `stages` holds the median of each stage of the networks, and of reading and writing, for a frame;
    reading and writing happen next to them, and so do stages of several frames where there are several slots;
    `vae` says whether pictures went through the VAE whole, in strips or in tiles, and why.
    `seconds` is from the first frame's reading to the finished file, loading excluded.
    """

    output: str
    backend: str
    slots: int = 1
    frames: int = 0
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    load_seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    peak_memory: int | None = None
    vae: Mapping[str, object] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def fps(self) -> float:
        """Frames a second, reading and writing included."""
        return self.frames / self.seconds if self.seconds else 0.0


class TruncatedError(TruncatedInputError):
    """A damaged input, with the report of what could be restored."""

    def __init__(self, message: str, report: RestoreReport) -> None:
        super().__init__(message, partial=report.output)
        self.report = report


@dataclass(frozen=True)
class Watcher:
    """Called as the work proceeds: the source is open, networks are loaded, the way is clear, something takes
    longer than one would think, a frame is written, a phase goes on."""

    opened: Callable[[media.SourceInfo], None] = lambda info: None
    loaded: Callable[[float], None] = lambda seconds: None
    arranged: Callable[[Form], None] = lambda form: None
    noted: Callable[[str], None] = lambda sentence: None
    frame: Callable[[int], None] = lambda done: None
    phase: Callable[[PhaseProgress], None] = lambda progress: None


def restore(job: Job, watcher: Watcher | None = None) -> RestoreReport:
    """Restores the input into the output, which appears whole or not at all.

    Where it cannot go on, or the command line's terminal is lost, the frames that were finished are kept under another
    name: <stem>.partial<suffix>.

    Raises:
        InputError, OutputError, BundleError, DeviceError: it could not begin, or not go on.
        TruncatedError: the input ended in damage; what was readable is restored and kept under
            another name, which the error holds.
    """
    watcher = watcher or Watcher()
    with media.open_source(job.input, start=job.start, frames=job.frames, isolated=True) as source:
        watcher.opened(source.info)
        manifest = read_manifest(job.bundle)
        sink = media.open_sink(
            job.output,
            source,
            scale=manifest.scale,
            codec=job.codec,
            crf=job.crf,
            overwrite=job.overwrite,
            fps=media.DEFAULT_FPS if job.fps is None else job.fps,
        )
        with sink:
            report = RestoreReport(str(job.output), "")
            try:
                if manifest.phases and source.info.frame_count is not None:
                    _refuse_what_does_not_fit(job, source.info, source.info.frame_count)
                _load_and_run(job, source, sink, report, watcher)
            except Hangup as hangup:
                hangup.kept = _keep(sink, report)
                raise
            except VsrError as error:
                if kept := _keep(sink, report):
                    error.args = (f"{error} But {kept}", *error.args[1:])
                raise
            report.notes += [*source.notes, *sink.notes]
            report.peak_memory = peak_bytes()
            if source.damage is not None:
                raise TruncatedError(
                    f"{job.input} is damaged: {source.damage} The {report.frames} readable frames were "
                    f"restored and kept as {report.output}.",
                    report,
                )
    return report


def _keep(sink: media.Sink, report: RestoreReport) -> str | None:
    """Keeps the frames that were finished under another name; a sentence about it, None if there are none."""
    if not report.frames:
        return None
    try:
        kept = sink.close(partial=True)
    except OutputError as error:
        return f"what was finished could not be kept: {error}"
    what = (
        "1 frame that was finished is"
        if report.frames == 1
        else f"{report.frames} frames that were finished are"
    )
    return f"{what} kept as {kept}."


def _load_and_run(
    job: Job, source: media.Source, sink: media.Sink, report: RestoreReport, watcher: Watcher
) -> None:
    started = time.perf_counter()
    with Restorer(job.bundle, job.settings, noise=job.noise, progress=watcher.phase) as restorer:
        report.backend = restorer.backend
        report.load_seconds = time.perf_counter() - started
        watcher.loaded(report.load_seconds)
        for note in _early_notes(job, restorer, source, sink):
            report.notes.append(note)
            watcher.noted(note)
        by_segments = None if job.segment is None else Segments(restorer, *job.segment)
        _run(restorer, by_segments or restorer, source, sink, report, watcher)


def _refuse_what_does_not_fit(job: Job, info: media.SourceInfo, count: int) -> None:
    """A clip of so many frames that are in memory together; on the CPU."""
    bundle = Bundle.open(job.bundle)
    backend = backends.choose_backend(job.settings.backend, bundle)[0]
    backends.check_backend(backend, bundle, job.settings)
    if backend not in backends.ENGINES:
        options, available = Options.of(bundle.manifest, job.settings), Available.of(job.settings.memory)
        given = (count, job.frames, job.segment and job.segment[0])
        frames = max(1, min(each for each in given if each is not None))
        fit.check(bundle, info.height, info.width, frames, options, available)


def _early_notes(job: Job, restorer: Restorer, source: media.Source, sink: media.Sink) -> Iterator[str]:
    """What is worth knowing before the work, not only after it."""
    info = source.info
    yield from restorer.notes
    if job.fps is not None and (info.time_base is not None or not isinstance(sink, VideoSink)):
        why = (
            "the output is pictures"
            if info.time_base is None
            else "the input's frames have times of their own"
        )
        yield f"The frame rate that was given is for a video made of pictures and is not used: {why}."
    small = small_frames.note(restorer.manifest, restorer.backend, info.height, info.width, info.frame_count)
    if small is not None:
        yield small


def _run(
    restorer: Restorer,
    way: Restorer | Segments,
    source: media.Source,
    sink: media.Sink,
    report: RestoreReport,
    watcher: Watcher,
) -> None:
    """Takes every frame through the restorer, and finishes the file. Frames are read and written next to the work."""
    started = time.perf_counter()
    reading: list[float] = []
    writing: list[float] = []
    waiting: deque[media.Frame] = deque()  # results come later than their frames

    def timed(frames: Iterable[media.Frame]) -> Iterator[media.Frame]:
        last = time.perf_counter()
        for frame in frames:
            reading.append(time.perf_counter() - last)
            yield frame
            last = time.perf_counter()

    def write(pair: tuple[np.ndarray, media.Frame]) -> None:
        before = time.perf_counter()
        sink.write(*pair)
        writing.append(time.perf_counter() - before)
        report.frames += 1
        watcher.frame(report.frames)

    with beside.Behind(write) as behind:

        def hand_over(results: list[np.ndarray]) -> None:
            for restored in results:
                report.height, report.width = restored.shape[:2]
                behind.put((restored, waiting.popleft()))

        for frame in beside.ahead(timed(source)):
            if report.vae is None:
                restorer.prepare(*frame.rgb.shape[:2])
                if restorer.form is not None:
                    report.vae = forms.as_json(restorer.form)
                    watcher.arranged(restorer.form)
            waiting.append(frame)
            hand_over(way.push(frame.rgb))
        for restored in way.drain():
            hand_over([restored])
    report.output = str(sink.close(partial=source.damage is not None))
    report.seconds = time.perf_counter() - started
    report.slots = restorer.slots
    clocks = restorer.timings()
    report.stages = {
        "read": statistics.median(reading),
        **(
            {name: statistics.median(clock[name] for clock in clocks) for name in clocks[0]} if clocks else {}
        ),
        "write": statistics.median(writing),
    }
