"""A whole benchmark: opens Restorers, measures each mode, observes each once more, looks at the machine."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from vsr_trt.runtime.bench import environment, measure, stages
from vsr_trt.runtime.bench.cautions import cautions
from vsr_trt.runtime.bench.nvml import Probe
from vsr_trt.runtime.bench.plan import CHOICES, Mode, Plan, clip
from vsr_trt.runtime.bench.report import BenchReport, ModeResult, Observed
from vsr_trt.runtime.bench.statistics import Series
from vsr_trt.runtime.bundle.manifest import MANIFEST_NAME, Manifest, sha256
from vsr_trt.runtime.bundle.reading import read_manifest
from vsr_trt.runtime.devices.timeline import Span
from vsr_trt.runtime.machine.memory import peak_bytes
from vsr_trt.runtime.schedule.parts import clip_frames

Factory = Callable[..., measure.Subject]
_OBSERVED_SHARE = 0.25  # of the seconds that a mode is measured for


class Watcher(Protocol):
    """Is called with how far things are, always between frames."""

    def loading(self, title: str) -> None:
        """A Restorer is being made."""

    def frame(self, phase: str, frames: int, seconds: float) -> None:
        """A frame is done, in `warm-up` or `measuring`."""


def run(
    plan: Plan,
    factory: Factory,
    watcher: Watcher,
    opened: Callable[[Mode, measure.Subject], None] = lambda mode, subject: None,
    clock: measure.Seconds = time.perf_counter,
) -> BenchReport:
    """Measures each mode without an observer, then each once more, for a quarter of the time, with one.

    Args:
        plan: checked already.
        factory: makes a Restorer.
        watcher: is called with how far things are.
        opened: is passed each mode's Restorer before it is measured, and may refuse it by raising.
        clock: seconds; another one for tests.

    Raises:
        VsrError: what the Restorer refuses.
    """
    manifest = read_manifest(plan.bundle)
    clip_frames(manifest, plan.frames)  # before anything is loaded
    created = datetime.now(UTC).isoformat(timespec="seconds")
    load = environment.load_average()
    bench = _Bench(plan, factory, watcher, clock, manifest)
    with Probe() as probe:
        before = probe.sample() if probe.answers else None
        modes: dict[str, ModeResult] = {mode: bench.measured(mode, probe, opened) for mode in plan.modes}
        peak = peak_bytes()
        for mode in plan.modes:
            modes[mode] = dataclasses.replace(modes[mode], observed=bench.observed(mode))
        machine = environment.describe(load, probe, before, bench.sampled)
    settings: dict[str, Any] = {
        "size": plan.size,
        "modes": list(plan.modes),
        "slots": plan.slots,
        "seconds": plan.seconds,
        "warmup": plan.warmup,
        **({} if plan.frames is None else {"frames": plan.frames}),
        **{name: getattr(plan.given, name) for name in CHOICES},
    }
    return BenchReport(
        created=created,
        settings=settings,
        backend=bench.backend,
        bundle={
            "path": str(plan.bundle),
            "sha256": sha256(plan.bundle / MANIFEST_NAME),
            "family": manifest.family,
            "precision": manifest.precision,
        },
        environment=machine,
        peak_host_bytes=peak,
        modes=modes,
        cautions=cautions(modes, machine),
        spans=bench.spans,
    )


class _Bench:
    """What the passes have in common."""

    def __init__(
        self, plan: Plan, factory: Factory, watcher: Watcher, clock: measure.Seconds, manifest: Manifest
    ) -> None:
        self._plan, self._factory, self._watcher, self._clock = plan, factory, watcher, clock
        self._frames = clip(plan.width // manifest.scale, plan.height // manifest.scale)
        self._manifest = manifest
        self.backend = ""
        self.sampled = False
        self.spans: dict[str, list[Span]] = {}

    def measured(
        self, mode: Mode, probe: Probe, opened: Callable[[Mode, measure.Subject], None]
    ) -> ModeResult:
        """One mode without an observer."""
        with self._open(mode, f"{mode}: loading") as subject:
            self.backend = subject.backend
            opened(mode, subject)
            # the CPU backend leaves the GPU alone, and looking at it costs the CPU time
            sampling = probe.answers and not subject.backend.endswith("-cpu")
            self.sampled = self.sampled or sampling
            with probe.sampling() if sampling else contextlib.nullcontext():
                run = self._run(mode, subject, self._plan.seconds)
            return ModeResult(
                slots=subject.slots,
                frames=len(run.intervals),
                warmup_frames=run.first,
                warmup_seconds=run.warmup,
                seconds=run.seconds,
                fps=len(run.intervals) / run.seconds,
                load_seconds=dict(subject.load_seconds),
                memory=dict(subject.memory),
                latency=Series.of(run.latencies),
                interval=Series.of(run.intervals),
            )

    def observed(self, mode: Mode) -> Observed:
        """One mode with an observer."""
        heard: list[Span] = []  # appending is safe from any thread
        ends: list[int] = []  # how many had been heard when a clip ended
        with self._open(mode, f"{mode}, observed: loading", observer=heard.append) as subject:
            share = self._plan.seconds * _OBSERVED_SHARE
            run = self._run(mode, subject, share, lambda: ends.append(len(heard)))
            title = f"{mode}, slots: {subject.slots}"
        if ends:  # windows are counted anew in each phase; a clip's spans belong together
            numbers = (number for number, end in enumerate(ends) for _ in range(end - ([0, *ends])[number]))
            heard = [dataclasses.replace(span, frame=n) for span, n in zip(heard, numbers, strict=True)]
            spans = stages.measured(heard, run.first, len(run.latencies))
        else:
            spans = stages.measured(heard, *self._windows(run))
        self.spans[title] = spans
        return Observed(
            len(run.intervals), Series.of(run.latencies), stages.metrics(spans), stages.stages(spans)
        )

    def _windows(self, run: measure.Run) -> tuple[int, int]:
        """The first window whose frames all count, and how many of those there are."""
        each = self._manifest.window.size - self._manifest.window.overlap
        first = -(-run.first // each)
        return first, max(1, (run.first + len(run.latencies)) // each - first)

    def _open(
        self, mode: Mode, title: str, **more: Any
    ) -> contextlib.AbstractContextManager[measure.Subject]:
        self._watcher.loading(title)
        slots = 1 if mode == "latency" else self._plan.slots
        if slots is not None:
            more["slots"] = slots
        return contextlib.closing(self._factory(self._plan.bundle, self._plan.given, **more))

    def _run(
        self,
        mode: Mode,
        subject: measure.Subject,
        seconds: float,
        ended: Callable[[], None] = lambda: None,
    ) -> measure.Run:
        subject.prepare(*self._frames[0].shape[:2])  # counts as loading, not as warm-up
        times = self._plan.warmup, seconds, self._clock, self._watcher.frame
        if subject.window == 0:
            count = clip_frames(self._manifest, self._plan.frames)
            return measure.clips(subject, self._frames, count, *times, ended)
        time_them = measure.latency if mode == "latency" else measure.throughput
        return time_them(subject, self._frames, *times)
