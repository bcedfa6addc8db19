"""What the commands about engines show: progress, tables."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from vsr_trt.engines import report as reports
from vsr_trt.engines.build import Built
from vsr_trt.engines.build import Progress as Hooks
from vsr_trt.engines.cache import Cache, Entry
from vsr_trt.engines.doctor import Findings
from vsr_trt.engines.plan import Item
from vsr_trt.engines.report import Change
from vsr_trt.engines.worker import Phase
from vsr_trt.runtime.cli.terminal import print_verdicts

_LOG_SECONDS = 10.0
# Seconds of a build: fixed, and by GB of weights. Only for the estimate, and only until a like engine was built.
_SECONDS, _SECONDS_PER_GB = 1.5, 6.0


class Builds:
    """Progress of all builds: a line for each that runs, with its phase, elapsed time and estimate.

    Args:
        console: where to show it.
        items: what is to be made.
        cache: that knows how long like engines took.
        jobs, memory: the bounds that are kept, to be said.
    """

    def __init__(self, console: Console, items: Sequence[Item], cache: Cache, jobs: int, memory: int) -> None:
        self._console, self._items, self._jobs, self._memory = console, items, jobs, memory
        self._estimates = {item.key: estimate_seconds(item, cache) for item in items}
        self._bars: dict[str, TaskID] = {}
        self._started = time.perf_counter()
        self._said: dict[str, float] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            TextColumn("{task.elapsed:.0f} of about {task.fields[estimate]:.0f} s"),
            TextColumn("[dim]{task.fields[phase]}"),
            console=console,
            transient=True,
        )
        self.progress = Hooks(self._phase, self._done, self._note)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._started

    def __enter__(self) -> Builds:
        building = [item for item in self._items if item.state == "build"]
        if building:
            largest = max(item.memory for item in building)
            self._console.print(
                f"building {len(building)} of {len(self._items)} engines, at most {self._jobs} at once within "
                f"{self._memory / 1e9:.1f} GB of memory; the largest build takes about {largest / 1e9:.1f} GB",
                highlight=False,
            )
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def _phase(self, item: Item, phase: Phase) -> None:
        label = f"{item.target.name} {item.name}"
        steps = f" {phase.done}/{phase.total}" if phase.total else ""
        estimate = self._estimates[item.key]
        if item.key not in self._bars:
            self._bars[item.key] = self._progress.add_task(
                f"{item.target.name} {item.order.network}", total=estimate, phase="", estimate=estimate
            )
            self._said[item.key] = time.monotonic()
            if not self._console.is_terminal:
                self._console.print(f"  {escape(label)}: begun, about {estimate:.0f} s", highlight=False)
        bar = self._bars[item.key]
        task = next(task for task in self._progress.tasks if task.id == bar)
        done = min(task.elapsed or 0.0, 0.99 * estimate)
        self._progress.update(bar, phase=escape(f"{phase.name.lower()}{steps}"), completed=done)
        if not self._console.is_terminal and time.monotonic() - self._said[item.key] >= _LOG_SECONDS:
            self._said[item.key] = time.monotonic()
            self._console.print(f"  {escape(label)}: {phase.name.lower()}{steps}", highlight=False)

    def _done(self, built: Built) -> None:
        item = built.item
        if (bar := self._bars.pop(item.key, None)) is not None:
            self._progress.remove_task(bar)
        words = {
            "bundle": "is in the bundle",
            "cache": "taken from the cache",
            "built": f"built in {built.report['seconds']:.1f} s",
        }[built.origin]
        self._console.print(
            f"  {escape(item.target.name)} {escape(item.name)}: {words}", highlight=False, soft_wrap=True
        )

    def _note(self, text: str) -> None:
        self._console.print(f"[yellow]note:[/] {escape(text)}", highlight=False, soft_wrap=True)


def estimate_seconds(item: Item, cache: Cache) -> float:
    """What building it will take: as long as the most similar engine took, or by its weights."""
    nearest = cache.nearest(item.parts)
    if nearest is not None and nearest.report.get("seconds"):
        return float(nearest.report["seconds"])
    return _SECONDS + _SECONDS_PER_GB * item.weights / 1e9


def _engines(found: Sequence[object]) -> str:
    return "engine" if len(found) == 1 else "engines"


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    """Plain, so that a row is one line on a terminal of 80 columns wherever it can be."""
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for column in left:
        table.add_column(column, overflow="fold")
    for column in right:
        table.add_column(column, justify="right", overflow="fold")
    return table


def _shape(shape: str, parts: Mapping[str, Any]) -> str:
    """With the flags, which make another engine of the same network and shape."""
    return " ".join([shape, *parts.get("flags", ())])


def print_plan(console: Console, items: Sequence[Item]) -> None:
    """The table of `--dry-run`."""
    table = _table("what would be done", ("target", "network", "shapes", "do", "memory", "why"), ())
    words = {"bundle": "nothing", "cache": "copy", "build": "build"}
    for item in items:
        memory = f"{item.memory / 1e9:.1f} GB" if item.state == "build" else ""
        shape = _shape(item.shape, item.parts)
        table.add_row(
            item.target.name, item.order.network, shape, words[item.state], memory, escape(item.why)
        )
    console.print(table)


def print_engines(console: Console, bundle: Path, built: Sequence[Built], seconds: float) -> None:
    """The tables of a finished run, one for each target, and what the engines need on a GPU."""
    for target in dict.fromkeys(one.item.target.name for one in built):
        _print_target(console, bundle, target, [one for one in built if one.item.target.name == target])
    made = sum(one.origin == "built" for one in built)
    console.print(
        f"[bold]{len(built)} {_engines(built)}[/], {made} built, in {seconds:.1f} s", highlight=False
    )


def _print_target(console: Console, bundle: Path, target: str, built: Sequence[Built]) -> None:
    table = _table(f"{bundle}: {target}", ("network", "shapes"), ("layers", "MB", "act.", "fused", "s", "GB"))
    for one in sorted(built, key=lambda one: one.item.name):
        shape = _shape(one.item.shape, one.item.parts)
        table.add_row(one.item.order.network, shape, *_figures(one.report))
    console.print(table)
    legend = "act.: MB of activations. fused: attentions that are one kernel. s, GB: of the build."
    console.print(f"[dim]{legend}", highlight=False)
    weights, scratch = reports.gpu_memory(one.report for one in built)
    if weights:
        console.print(
            f"{target}: on a GPU these engines take {weights / 1e9:.2f} GB for weights and {scratch / 1e9:.2f} GB for "
            f"the largest activations, {(weights + scratch) / 1e9:.2f} GB in all, as the builder reports it.",
            highlight=False,
            soft_wrap=True,
        )
    for one in built:
        if one.report.get("split_attentions"):
            console.print(
                f"[yellow]note:[/] {escape(one.item.name)}: {one.report['split_attentions']} of "
                f"{one.report['attentions']} attentions were not fused; their scores go through memory.",
                highlight=False,
                soft_wrap=True,
            )


def _figures(report: dict[str, Any]) -> list[str]:
    def mega(value: int | None) -> str:
        return "-" if value is None else f"{value / 1e6:.1f}"

    peak = report.get("peak_memory")
    attentions = f"{report['fused_attentions']}/{report['attentions']}" if report["attentions"] else ""
    return [
        str(report["layers"] or "-"),
        mega(report["bytes"]),
        mega(report["activations"]),
        attentions,
        f"{report['seconds']:.1f}",
        f"{peak / 1e9:.1f}" if peak else "-",
    ]


def print_entries(console: Console, cache: Cache, entries: Sequence[Entry]) -> None:
    """The table of `cache list`."""
    table = _table(str(cache.folder), ("key", "network", "shapes", "target"), ("MB", "used"))
    for entry in entries:
        used = time.strftime("%m-%d %H:%M", time.localtime(entry.used))
        parts = entry.parts
        shapes = _shape(str(entry.report.get("shapes", "")), parts)
        table.add_row(
            entry.key[:9], parts["network"], shapes, parts["target"], f"{entry.bytes / 1e6:.1f}", used
        )
    console.print(table)
    total = sum(entry.bytes for entry in entries)
    console.print(
        f"{len(entries)} {'entry' if len(entries) == 1 else 'entries'}, {total / 1e9:.2f} GB", highlight=False
    )


def print_parts(console: Console, entry: Entry) -> None:
    """What made an engine."""
    table = Table(title=entry.key, title_justify="left", show_header=False)
    for name, value in {**entry.parts, "bytes": entry.bytes, "folder": str(entry.folder)}.items():
        table.add_row(name, escape(str(value)))
    console.print(table)


def print_changes(
    console: Console, changes: Sequence[Change], before: Sequence[str], after: Sequence[str]
) -> None:
    """The table of `diff`."""
    table = _table("engines that both have", ("engine", "figure"), ("A", "B", "change"))
    for change in changes:
        old, new = change.before, change.after
        numbers = isinstance(old, int | float) and isinstance(new, int | float) and old
        share = f"{(new - old) / old:+.1%}" if numbers else ""  # type: ignore[operator]
        table.add_row(change.engine, change.figure, _number(change.before), _number(change.after), share)
    console.print(table if changes else "no figure differs")
    for title, names in (("only in A", before), ("only in B", after)):
        if names:
            console.print(f"{title}:", *(f"  {escape(name)}" for name in names), sep="\n", highlight=False)


def _number(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:,}"


def print_findings(console: Console, findings: Findings) -> None:
    """What `doctor` found."""
    table = Table(title="compilers", title_justify="left")
    for column in ("backend", "version", "builds for", "remark"):
        table.add_column(column, overflow="fold")
    for compiler in findings.compilers:
        table.add_row(
            compiler.backend,
            compiler.version or "-",
            ", ".join(compiler.targets) or "-",
            escape(compiler.remark),
        )
    console.print(table)
    console.print(f"GPU: {escape(findings.gpu)}", highlight=False)
    if findings.engines is not None:
        print_verdicts(console, findings.engines)
