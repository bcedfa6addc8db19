"""The result of a benchmark: what is printed, written as JSON (`bench.schema.json`) and compared later."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from vsr_trt.runtime.bench.environment import Environment
from vsr_trt.runtime.bench.statistics import Series
from vsr_trt.runtime.devices.timeline import Span

KIND = "vsr-trt bench"
SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Observed:
    """A second, shorter pass with an observer, which slows things down a little: its times go nowhere else.

    Attributes:
        frames: that count.
        latency: of each frame, to tell what observing costs.
        metrics, stages: see `runtime.bench.stages`.
    """

    frames: int
    latency: Series
    metrics: dict[str, Series]
    stages: dict[str, Series]


@dataclass(frozen=True)
class ModeResult:
    """One mode's measurement, without an observer, and what an observer saw afterwards.

    Attributes:
        slots: of the Restorer.
        frames: that count; `warmup_frames` before them do not, nor do the `warmup_seconds` that those took.
        seconds: from the first to the last moment that counts.
        fps: frames / seconds.
        load_seconds, memory: as the Restorer tells them; seconds and bytes.
        latency: of each frame, from the call of `push` until its result was returned.
        interval: from each result to the next.
        observed: None before that pass.
    """

    slots: int
    frames: int
    warmup_frames: int
    warmup_seconds: float
    seconds: float
    fps: float
    load_seconds: dict[str, float]
    memory: dict[str, int]
    latency: Series
    interval: Series
    observed: Observed | None = None


@dataclass(frozen=True)
class Caution:
    """Why numbers may mislead. `kind` is for programs: see `runtime.bench.cautions`."""

    kind: str
    text: str


@dataclass(frozen=True)
class Change:
    """One number next to an earlier one.

    Attributes:
        metric: `latency median` (of the mode latency) or `frames a second` (of the mode throughput).
        before, after: in seconds or frames a second.
        percent, low, high: the change, and the interval that holds it with 95 % confidence.
        verdict: `better`, `worse` or `no difference shown`.
        regression: whether the whole interval is beyond what was allowed.
    """

    metric: str
    before: float
    after: float
    percent: float
    low: float
    high: float
    verdict: str
    regression: bool


@dataclass(frozen=True)
class Comparison:
    """With an earlier report.

    Attributes:
        file: that it was read from.
        created: when it was measured.
        allowed: percent that may be lost.
        changes: of each mode.
        notes: what else differs: machine, versions, bundle.
    """

    file: str
    created: str
    allowed: float
    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def regression(self) -> bool:
        """Whether any change is one."""
        return any(change.regression for change in self.changes)


@dataclass(frozen=True)
class BenchReport:
    """All of it. `spans` are not part of the JSON: they make the trace.

    Attributes:
        created: UTC, ISO 8601.
        settings: what was asked for.
        backend: that ran.
        bundle: path, SHA-256 of bundle.json, family, precision.
        environment: of the measurement.
        peak_host_bytes: of the process before the observed passes; None where the system does not tell.
        modes: by name.
        cautions: why numbers may mislead.
        comparison: with an earlier report, where one was given.
    """

    created: str
    settings: dict[str, Any]
    backend: str
    bundle: dict[str, str]
    environment: Environment
    peak_host_bytes: int | None
    modes: dict[str, ModeResult]
    cautions: tuple[Caution, ...] = ()
    comparison: Comparison | None = None
    spans: dict[str, list[Span]] = field(default_factory=dict, repr=False, compare=False)

    def to_json(self) -> str:
        """The file's text."""
        values = dataclasses.asdict(dataclasses.replace(self, spans={}))
        del values["spans"]
        content = {"kind": KIND, "schema_version": SCHEMA_VERSION, **values}
        return json.dumps(content, indent=1, allow_nan=False) + "\n"
