"""What the person at the terminal sees of a comparison: how far it is, the table, what it means."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from vsr_trt.recipes.alternatives import RUNTIME
from vsr_trt.recipes.alternatives.comparison import Record

# Of the machine's matrix products; above it there is little else that could be waited for.
_BOUND = 0.7
_LOG_SECONDS = 10.0
_NOT_RUN, _SECONDS = "not run", "seconds a frame"
_ROWS = (
    "  least to most",
    "  frames",
    "ours is faster",
    "  between",
    "memory, GB",
    "  ours is",
    "loading, s",
    "compiling, s",
    "matrices, GFLOP/s",
)


class Comparing:
    """One line: which way runs, how far it is, since when."""

    def __init__(self, console: Console, progress: Progress, ways: int) -> None:
        self._console, self._progress = console, progress
        self._task = progress.add_task("", total=ways)
        self._way = self._phase = ""
        self._logged = time.monotonic()

    def began(self, way: str) -> None:
        """See `comparison.Watcher`."""
        self._way = way
        self.said("starting")

    def said(self, text: str) -> None:
        """See `comparison.Watcher`."""
        phase, now = f"{self._way}: {text.partition(' ')[0]}", time.monotonic()
        text = f"{self._way}: {escape(text)}"
        self._progress.update(self._task, description=text)
        # a log file shows no bar: a line for what is new, and now and then, instead
        if not self._console.is_terminal and (phase != self._phase or now - self._logged >= _LOG_SECONDS):
            self._phase, self._logged = phase, now
            self._console.print(text, highlight=False)

    def ended(self, way: str, record: Record) -> None:
        """See `comparison.Watcher`."""
        self._progress.advance(self._task)
        if "not_run" in record:
            text = "not run"
        else:
            text = f"{_number(record['summary']['median'])} s a frame"
            if record["peak_memory"]:
                text += f", {record['peak_memory'] / 1e9:.1f} GB of memory at most"
        self._console.print(f"  {way}: {text}", highlight=False)


@contextlib.contextmanager
def comparing(console: Console, ways: int) -> Iterator[Comparing]:
    """Shows how far things are. Drawn once a second, for drawing takes time from what is measured."""
    columns = (
        SpinnerColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, refresh_per_second=1) as progress:
        yield Comparing(console, progress, ways)


def show(console: Console, report: dict[str, Any]) -> None:
    """The table, and in sentences what was not run, what bounds the runtime, and the machine."""
    console.print(_table(report))
    for way, record in report["ways"].items():
        if "not_run" in record:
            _say(console, f"[yellow]{way} was not run:[/] {escape(record['not_run'].rstrip('.'))}.")
    if RUNTIME in report["ways"]:
        _say(console, f"[bold]What bounds the runtime:[/] {_bound(report)}")
    _say(console, escape(_machine(report)))
    for caution in report["cautions"]:
        _say(console, f"[yellow]caution:[/] {escape(caution['text'])}")


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)


def _table(report: dict[str, Any]) -> Table:
    columns = {way: _column(record) for way, record in report["ways"].items()}
    table = Table(title=_title(report), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for way in columns:
        table.add_column(way, justify="right", no_wrap=True)

    def row(label: str, style: str = "") -> None:
        cells = [column.get(label, "") for column in columns.values()]
        if any(cells):
            table.add_row(label, *cells, style=style)

    row(_NOT_RUN, "yellow")
    row(_SECONDS, "bold")
    for label in _ROWS:
        row(label)
    table.add_section()
    for label in dict.fromkeys(label for column in columns.values() for label in column):
        if label not in (_NOT_RUN, _SECONDS, *_ROWS):
            row(label)
    return table


def _column(record: Record) -> dict[str, str]:
    """What one way has to show, by row; the stages after all else."""
    if "not_run" in record:
        return {_NOT_RUN: _NOT_RUN}
    summary = record["summary"]
    values = {
        _SECONDS: _number(summary["median"]),
        "  least to most": _range(summary["min"], summary["max"]),
        "  frames": str(summary["n"]),
        "loading, s": _number(record["load_seconds"]),
    }
    if "faster" in record:
        faster = record["faster"]
        values["ours is faster"] = f"{faster['value']:.2f}x"
        values["  between"] = _range(faster["low"], faster["high"])
    if record["peak_memory"] is not None:
        values["memory, GB"] = f"{record['peak_memory'] / 1e9:.2f}"
    if record.get("memory_share") is not None:
        values["  ours is"] = f"{record['memory_share']:.0%}"
    if record["compile_seconds"] is not None:
        values["compiling, s"] = _number(record["compile_seconds"])
    if record["matmul_flops"] is not None:
        values["matrices, GFLOP/s"] = f"{record['matmul_flops'] / 1e9:.0f}"
    return values | {f"  {stage}": _number(seconds) for stage, seconds in record["stages"].items()}


def _title(report: dict[str, Any]) -> str:
    scale, precision = report["bundle"]["scale"], report["bundle"]["precision"].upper()
    sizes = [(record["width"], record["height"]) for record in report["ways"].values() if "width" in record]
    size = "".join(f", {w}x{h} -> {w * scale}x{h * scale}" for w, h in sizes[:1])
    settings = report["settings"]
    what = settings["clip"] if settings["network"] is None else f"{settings['network']} at {settings['at']}"
    return escape(f"{what}{size}, a bundle in {precision}")


def _range(low: float, high: float) -> str:
    return f"{_number(low)}-{_number(high)}"


def _number(value: float) -> str:
    """Three digits, of small numbers three behind the point."""
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}"


def _bound(report: dict[str, Any]) -> str:
    bound = report["bound"]
    if bound is None:
        return (
            "it cannot be said. It takes what the bundle counts of its networks' work, which bundles built by earlier "
            "versions lack, and the machine's matrix products."
        )
    rate = bound["flops"] / bound["share"]
    verdict = (
        "the processor's arithmetic"
        if bound["share"] >= _BOUND
        else "more than arithmetic: memory, small operations, or other programs"
    )
    return (
        f"{verdict}. A frame's counted work is {_flop(bound['flop'])}FLOP, two for a multiply-add. In "
        f"{_number(bound['seconds'])} s that is {bound['flops'] / 1e9:.0f} GFLOP/s, {bound['share']:.0%} of the "
        f"{rate / 1e9:.0f} GFLOP/s at which this machine multiplied FP32 matrices right after. Convolutions in "
        "Winograd's form multiply less than is counted, so the share may be above what the multipliers do."
    )


def _flop(operations: float) -> str:
    return f"{operations / 1e12:.2f} T" if operations >= 1e11 else f"{operations / 1e9:.2f} G"


def _machine(report: dict[str, Any]) -> str:
    system = report["machine"]["system"]
    versions: dict[str, str] = {}
    for record in report["ways"].values():
        versions |= record.get("versions", {})
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{system['processor']}, {system['cores']} cores; Python {system['python']}, {named}. "
        f"The ways ran in this order: {', '.join(report['order'])}."
    )
