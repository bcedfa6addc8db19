"""What the person at the terminal sees of a benchmark: progress, tables, the verdict."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from vsr_trt.runtime.bench.environment import GpuRecord
from vsr_trt.runtime.bench.report import BenchReport, Change, Comparison, ModeResult
from vsr_trt.runtime.bench.statistics import Series

_REFRESH_SECONDS = 0.25
_LOG_SECONDS = 10.0
_NUMBERS = ("min", "median", "mean", "p90", "p95", "p99", "max")
_COLOURS = {"better": "green", "worse": "red"}


class Measuring:
    """A bar that is drawn between frames only: no thread draws it while something is timed."""

    def __init__(self, console: Console, seconds: float) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24))
        self.progress = Progress(*columns, console=console, auto_refresh=False, transient=True)
        self._console = console
        self._task = self.progress.add_task("", total=max(seconds, 1e-9))
        self._title = ""
        self._drawn = self._said = time.monotonic()

    def loading(self, title: str) -> None:
        """A Restorer is being made, for a new pass."""
        self._title = title.removesuffix(": loading")
        self.progress.update(self._task, description=title, completed=0)
        self.progress.refresh()

    def frame(self, phase: str, frames: int, seconds: float) -> None:
        """A frame is done."""
        now = time.monotonic()
        text = f"{self._title}: {phase}, {frames} frames"
        if not self._console.is_terminal:
            if now - self._said >= _LOG_SECONDS:  # a log file shows no bar: a line now and then instead
                self._said = now
                self._console.print(text, highlight=False)
        elif now - self._drawn >= _REFRESH_SECONDS:
            self._drawn = now
            done = seconds if phase == "measuring" else 0
            self.progress.update(self._task, description=text, completed=done)
            self.progress.refresh()


@contextlib.contextmanager
def measuring(console: Console, seconds: float) -> Iterator[Measuring]:
    """Shows how far things are."""
    shown = Measuring(console, seconds)
    with shown.progress:
        yield shown


def report(console: Console, found: BenchReport) -> None:
    """The tables, and why they may mislead."""
    _machine(console, found)
    for name, mode in found.modes.items():
        _mode(console, name, mode)
    shown = found.modes.get("latency") or next(iter(found.modes.values()))
    _stages(console, shown)
    for caution in found.cautions:
        console.print(f"[yellow]warning:[/] {escape(caution.text)}", highlight=False, soft_wrap=True)
    if found.comparison is not None:
        comparison(console, found.comparison)


def _machine(console: Console, found: BenchReport) -> None:
    machine = found.environment
    table = Table(title="measured on", title_justify="left", show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    rows = dict(machine.system)
    rows["GPU"] = machine.gpu
    if machine.nvml is not None:
        rows["driver"] = str(machine.nvml.identity["driver"])
        rows |= _gpu(machine.nvml)
    if machine.load is not None:
        rows["load average before"] = f"{machine.load:.2f}"
    rows["backend"] = found.backend
    rows["bundle"] = f"{found.bundle['family']}, {found.bundle['precision']}, {found.bundle['sha256'][:12]}"
    rows["size"] = str(found.settings["size"])
    if found.peak_host_bytes is not None:
        rows["peak memory"] = f"{found.peak_host_bytes / 1e9:.2f} GB"
    for name, value in rows.items():
        table.add_row(name, escape(value))
    console.print(table)


def _gpu(record: GpuRecord) -> dict[str, str]:
    before, during = record.before, record.during
    rows = {"GPU clock": f"{before.sm_clock} MHz before, {record.identity['sm_clock_max']} at most"}
    link = record.identity
    if link.get("pcie_generation_max") is not None:
        rows["PCIe"] = (
            f"generation {link['pcie_generation']} x {link['pcie_lanes']} lanes, "
            f"{link['pcie_generation_max']} x {link['pcie_lanes_max']} at most"
        )
    if during is None:
        return rows
    if during.sm_clock is not None:
        rows["GPU clock"] = f"{during.sm_clock.min:.0f} to {during.sm_clock.max:.0f} MHz, {rows['GPU clock']}"
    if during.power is not None:
        rows["GPU power"] = f"{during.power.mean:.0f} W, {during.power.max:.0f} at most"
    if during.temperature is not None:
        rows["GPU temperature"] = f"{during.temperature.min:.0f} to {during.temperature.max:.0f} °C"
    if during.memory_used is not None:
        rows["GPU memory"] = f"{during.memory_used / 1e9:.2f} GB used by all programs, at most"
    return rows


def _mode(console: Console, name: str, mode: ModeResult) -> None:
    slots = "1 slot" if mode.slots == 1 else f"{mode.slots} slots"
    memory = f", {sum(mode.memory.values()) / 1e9:.2f} GB of buffers" if mode.memory else ""
    loading = f", loaded in {mode.load_seconds['all']:.1f} s, warmed up in {mode.warmup_seconds:.1f} s"
    console.print(
        f"[bold]{name}, {slots}: {mode.fps:.3f} frames a second[/] ({mode.frames} frames in {mode.seconds:.1f} s"
        f"{loading}{memory})",
        highlight=False,
        soft_wrap=True,
    )
    rows = {"latency": mode.latency}
    if name == "throughput":
        rows["interval"] = mode.interval
    if mode.observed is not None:
        rows |= {key: series for key, series in mode.observed.metrics.items() if key != "frame"}
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("ms")
    for column in (*_NUMBERS, "cv %"):
        table.add_column(column, justify="right")
    for key, series in rows.items():
        numbers = [_milliseconds(getattr(series.summary, column)) for column in _NUMBERS]
        table.add_row(key, *numbers, f"{series.summary.cv:.1%}".removesuffix("%"))
    console.print(table)


def _stages(console: Console, mode: ModeResult) -> None:
    observed = mode.observed
    if observed is None or not observed.stages:
        return
    cost = observed.latency.summary.median / mode.latency.summary.median - 1
    slots = "1 slot" if mode.slots == 1 else f"{mode.slots} slots"
    console.print(
        f"[bold]where the time goes, {slots}[/], in milliseconds ({observed.frames} observed frames, each {cost:+.1%} "
        "for observing)",
        highlight=False,
        soft_wrap=True,
    )
    table = Table()
    for column in ("stage", "median", "p99", "cv %", "share"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    total = sum(_sum(series) for series in observed.stages.values())
    for name, series in observed.stages.items():
        summary = series.summary
        share = _sum(series) / total if total else 0.0
        variation = f"{summary.cv:.1%}".removesuffix("%")
        table.add_row(
            escape(name), _milliseconds(summary.median), _milliseconds(summary.p99), variation, f"{share:.1%}"
        )
    console.print(table)


def _sum(series: Series) -> float:
    return series.summary.mean * series.summary.n


def _milliseconds(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def comparison(console: Console, found: Comparison) -> None:
    """Each mode's number next to the earlier one."""
    console.print(f"[bold]next to {escape(found.file)}[/], {found.created}", highlight=False, soft_wrap=True)
    for change in found.changes:
        before, after = _value(change, change.before), _value(change, change.after)
        colour = _COLOURS.get(change.verdict, "default")
        console.print(
            f"{change.metric}: [{colour}]{change.verdict}[/], {change.percent:+.1f} % ({change.low:+.1f} to "
            f"{change.high:+.1f} % with 95 % confidence); {before} before, {after} now",
            highlight=False,
            soft_wrap=True,
        )
    for note in found.notes:
        console.print(f"[yellow]note:[/] {escape(note)}", highlight=False, soft_wrap=True)
    for change in found.changes:
        if change.regression:
            console.print(
                f"[bold red]regression:[/] {change.metric} got worse by more than {found.allowed:g} %; "
                "the exit code is 11.",
                highlight=False,
                soft_wrap=True,
            )


def _value(change: Change, value: float) -> str:
    return f"{_milliseconds(value)} ms" if change.metric.startswith("latency") else f"{value:.4g}"
