"""A benchmark next to an earlier one: better, worse, or no difference that could be shown."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsr_trt.runtime.bench.measure import Subject
from vsr_trt.runtime.bench.plan import Mode, Plan
from vsr_trt.runtime.bench.report import KIND, SCHEMA_VERSION, BenchReport, Change, Comparison
from vsr_trt.runtime.bench.statistics import FEW, Ratio, ratio_of_means, ratio_of_medians
from vsr_trt.runtime.errors import InputError

# settings that change the picture, and so the work -> the option that sets them
_SAME = {"tiles": "--tile", "overlaps": "--overlap", "statistics": "--vae-statistics", "choices": "--set"}
_AGAIN = "Measure it again with: vsr bench ... --json"


@dataclass(frozen=True)
class Earlier:
    """What is needed of an earlier report.

    Attributes:
        file: that it was read from.
        created: when it was measured.
        settings: those that must be the same.
        backend: that ran.
        slots: of each mode.
        samples: of each mode: latencies, or intervals between results; in seconds.
        facts: what is only noted where it differs.
    """

    file: Path
    created: str
    settings: dict[str, Any]
    backend: str
    slots: dict[str, int]
    samples: dict[str, list[float]]
    facts: dict[str, str]

    @staticmethod
    def read(file: Path) -> Earlier:
        """Reads what `--json` wrote.

        Raises:
            InputError: it cannot be read, is something else, or of another schema version.
        """
        data = _read(file, "--compare")
        try:
            return _earlier(file, data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"--compare {file}: the report is damaged ({type(error).__name__}: {error}). {_AGAIN} FILE"
            ) from error

    def check_plan(self, plan: Plan) -> None:
        """Refuses what would not be the same measurement, as far as the command line tells.

        Raises:
            InputError: naming what differs.
        """
        self._same("size", self.settings["size"], plan.size, f"--size {self.settings['size']}")
        mode = next(iter(self.samples)) if len(self.samples) == 1 else "both"
        self._same("mode", sorted(self.samples), sorted(plan.modes), f"--mode {mode}")
        frames = self.settings["frames"]
        self._same("frames", frames, plan.frames, f"--frames {frames}")
        for name, option in _SAME.items():
            before = self.settings[name]
            self._same(option, before, _plain(getattr(plan.given, name)), _typed(option, before))

    def check_restorer(self, mode: Mode, subject: Subject) -> None:
        """The same, once a mode's Restorer is there.

        Raises:
            InputError: naming what differs.
        """
        self._same("backend", self.backend, subject.backend, f"--backend {self.backend}")
        if mode == "throughput":
            slots = self.slots[mode]
            self._same("number of slots", slots, subject.slots, f"--slots {slots}")

    def _same(self, what: str, before: Any, now: Any, mend: str) -> None:
        if before != now:
            raise InputError(
                f"--compare {self.file}: its {what} is {_text(before)}, now {_text(now)}; only like can be compared. "
                f"Measure {mend if mend.startswith('without') else 'with ' + mend}, or leave --compare out."
            )


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _typed(option: str, value: Any) -> str:
    """How a setting is typed on the command line."""
    if not isinstance(value, Mapping):
        return f"{option} {value}"
    parts = (f"{option} {f'{name}=' if name else ''}{given}" for name, given in value.items())
    return " ".join(parts) or f"without {option}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " and ".join(map(str, value))
    if isinstance(value, Mapping):
        return (
            " ".join(f"{name}={given}" if name else str(given) for name, given in value.items())
            or "the default"
        )
    return "the default" if value is None else str(value)


def median_stages(file: Path, width: int, height: int) -> dict[str, float]:
    """Median seconds of each stage in a report of bench; in latency mode where it has that.

    Args:
        file: that `--json` wrote.
        width, height: of the restored picture; the report has to be of that size.

    Raises:
        InputError: it cannot be read, is something else, of another size, or without stages.
    """
    data, option = _read(file, "--measured"), "--measured"
    try:
        size, modes = data["settings"]["size"], data["modes"]
        observed = (modes.get("latency") or modes["throughput"])["observed"] or {}
        stages = {
            name: float(series["summary"]["median"]) for name, series in observed.get("stages", {}).items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{option} {file}: the report is damaged ({error}). {_AGAIN} FILE") from error
    if size != f"{width}x{height}":
        raise InputError(f"{option} {file}: it is of {size}, and the plan of {width}x{height}.")
    if not stages:
        raise InputError(f"{option} {file}: it has no stages. {_AGAIN} FILE")
    return stages


def _read(file: Path, option: str) -> dict[str, Any]:
    """A report of bench as it lies in the file; `option` named it."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{option} {file}: there is no such file. {_AGAIN} {file}") from error
    except OSError as error:
        raise InputError(f"{option} {file}: it cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise InputError(f"{option} {file}: it is no JSON, so no report of bench. {_AGAIN} FILE") from error
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise InputError(
            f"{option} {file}: it is no report of bench, which says: kind {KIND!r}. {_AGAIN} FILE"
        )
    if data.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{option} {file}: it has schema version {data.get('schema_version')!r}, and this program reads "
            f"{SCHEMA_VERSION}. {_AGAIN} FILE"
        )
    return data


def _earlier(file: Path, data: Mapping[str, Any]) -> Earlier:
    modes = data["modes"]
    return Earlier(
        file=file,
        created=str(data["created"]),
        settings={name: data["settings"][name] for name in ("size", *_SAME)}
        | {"frames": data["settings"].get("frames")},
        backend=str(data["backend"]),
        slots={name: int(mode["slots"]) for name, mode in modes.items()},
        samples={name: _samples(mode[_series(name)]["samples"]) for name, mode in modes.items()},
        facts=facts(data),
    )


def _series(mode: str) -> str:
    return {"latency": "latency", "throughput": "interval"}[mode]


def _samples(values: Iterable[Any]) -> list[float]:
    samples = [float(value) for value in values]
    if not samples or not all(math.isfinite(value) and value > 0 for value in samples):
        raise ValueError("samples are missing, or no times")
    return samples


def facts(data: Mapping[str, Any]) -> dict[str, str]:
    """Returns of a report as JSON what may differ between two that are compared, and is said where it does."""
    machine = data["environment"]
    named = {name: str(value) for name, value in machine["system"].items()}
    named |= {name: str(value) for name, value in machine["packages"].items()}
    named["GPU"] = str(machine["gpu"])
    if machine["nvml"] is not None:
        named["GPU driver"] = str(machine["nvml"]["identity"]["driver"])
    named["bundle"] = f"{data['bundle']['precision']} {data['bundle']['sha256'][:12]}"
    named["--threads"] = _text(data["settings"]["threads"])
    return named


def compare(earlier: Earlier, report: BenchReport, allowed: float) -> Comparison:
    """Compares each mode's number.

    Args:
        earlier: that has been found comparable.
        report: the new one.
        allowed: percent of speed that may be lost, see `Change.regression`.
    """
    now = facts(json.loads(report.to_json()))
    changes = tuple(_changes(earlier, report, allowed))
    return Comparison(
        str(earlier.file), earlier.created, allowed, changes, tuple(_notes(earlier, report, now))
    )


def _changes(earlier: Earlier, report: BenchReport, allowed: float) -> Iterator[Change]:
    for name, mode in report.modes.items():
        before = earlier.samples[name]
        if name == "latency":
            ratio = ratio_of_medians(mode.latency.samples, before)
            now = mode.latency.summary.median
            yield _change("latency median", now / ratio.value, now, ratio, allowed, more_is_better=False)
        else:
            # frames a second are the reciprocal of the mean time between results
            ratio = ratio_of_means(before, mode.interval.samples)
            yield _change(
                "frames a second", mode.fps / ratio.value, mode.fps, ratio, allowed, more_is_better=True
            )


def _change(
    metric: str, before: float, after: float, ratio: Ratio, allowed: float, *, more_is_better: bool
) -> Change:
    percent, low, high = (100 * (value - 1) for value in (ratio.value, ratio.low, ratio.high))
    lost = -high if more_is_better else low  # at least so much, in percent
    verdict = "no difference shown"
    if not low <= 0 <= high:
        verdict = "better" if (low > 0) == more_is_better else "worse"
    return Change(metric, before, after, percent, low, high, verdict, verdict == "worse" and lost > allowed)


def _notes(earlier: Earlier, report: BenchReport, now: Mapping[str, str]) -> Iterator[str]:
    for name in dict.fromkeys((*earlier.facts, *now)):
        before, after = earlier.facts.get(name, "none"), now.get(name, "none")
        if before != after:
            yield f"{name}: {before} before, {after} now"
    for name, mode in report.modes.items():
        least = min(mode.frames, len(earlier.samples[name]))
        if least < FEW:
            yield f"{name}: {least} frames are too few to resample: the interval is the whole range"
