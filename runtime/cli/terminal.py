"""What the command lines show: progress, tables, errors."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from vsr_trt.runtime.doctor import Diagnosis, EngineVerdict
from vsr_trt.runtime.errors import OutputError, TruncatedInputError, VsrError
from vsr_trt.runtime.machine import shell
from vsr_trt.runtime.media import SourceInfo
from vsr_trt.runtime.media.staging import discard_unfinished
from vsr_trt.runtime.restore.job import RestoreReport, Watcher
from vsr_trt.runtime.restore.progress import PhaseProgress
from vsr_trt.runtime.schedule.forms import Form

_LOG_SECONDS = 10.0


@dataclass
class Outcome:
    """The exit code that a command ends with."""

    code: int = 0


@contextlib.contextmanager
def errors(as_json: bool = False) -> Iterator[Outcome]:
    """Turns our errors and signals into a sentence and an exit code."""
    outcome = Outcome()
    console = Console(stderr=True)
    with shell.working():
        try:
            yield outcome
        except VsrError as error:
            with shell.closing():
                outcome.code = error.exit_code
                if shell.interrupted_by() is None or isinstance(error, OutputError):
                    _print_error(console, error, as_json)
                _end_interrupted(console, outcome)  # else the error is what a library made of the signal
        except KeyboardInterrupt as stop:
            with shell.closing():
                outcome.code = shell.INTERRUPTED
                _end_interrupted(console, outcome, stop)
        except Exception:
            with shell.closing():
                # a library turned the signal's exception into one of its own
                if not _end_interrupted(console, outcome):
                    raise


def _print_error(console: Console, error: VsrError, as_json: bool) -> None:
    console.print(f"[bold red]error:[/] {escape(printable(str(error)))}", highlight=False, soft_wrap=True)
    if as_json:
        refusal = {"error": str(error), "kind": type(error).__name__, "exit_code": error.exit_code}
        if isinstance(error, TruncatedInputError):
            refusal["partial"] = error.partial
        print(json.dumps(refusal))  # noqa: T201


def _end_interrupted(console: Console, outcome: Outcome, stop: KeyboardInterrupt | None = None) -> bool:
    """The sentence and the exit code after a signal; False if there was none."""
    number = shell.interrupted_by()
    if number is None and stop is None:
        return False
    discard_unfinished()
    if number is not None:
        outcome.code = shell.code_of(number)
    kept = (
        stop.kept if isinstance(stop, shell.Hangup) and stop.kept else "nothing half-written was left behind."
    )
    console.print(f"interrupted; {escape(printable(kept))}", highlight=False, soft_wrap=True)
    return True


def printable(text: str) -> str:
    """The text with control characters shown instead of sent: a file's name may hold what a terminal obeys."""
    return "".join(
        f"\\x{ord(c):02x}" if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 else c for c in text
    )


class _Speed(ProgressColumn):
    """Frames a second since the start."""

    def render(self, task: Task) -> Text:
        """Shows the mean so far; nothing in a phase that makes no frames."""
        if task.fields.get("phase"):
            return Text("")
        elapsed = task.elapsed or 0.0
        if not task.completed or not elapsed:
            return Text("- fps")
        return Text(_rate(task.completed, elapsed))


@contextlib.contextmanager
def restoring(console: Console, source: Path, notes: list[str]) -> Iterator[Watcher]:
    """A progress bar: frames, frames a second, elapsed, remaining. Notes that are printed are added to `notes`."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Speed(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("remaining"),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=console,
    )
    task = progress.add_task("loading the networks", total=None, start=False)

    def opened(info: SourceInfo) -> None:
        progress.update(task, total=info.frame_count)
        console.print(f"{escape(printable(str(source)))}: {escape(info.description)}", highlight=False)

    def loaded(seconds: float) -> None:
        progress.start_task(task)
        progress.update(task, description="restoring")

    def arranged(form: Form) -> None:
        names = {
            "whole": "whole",
            "strips": "whole, in strips",
            "tiles": "in tiles with statistics of their own",
        }
        console.print(
            f"the VAE works {names[form.name]}: {escape(form.why)}", highlight=False, soft_wrap=True
        )

    def noted(sentence: str) -> None:
        notes.append(sentence)
        console.print(f"[yellow]note:[/] {escape(sentence)}", highlight=False, soft_wrap=True)

    said = time.monotonic()

    def frame(done: int) -> None:
        nonlocal said
        progress.update(task, completed=done)
        if not console.is_terminal and time.monotonic() - said >= _LOG_SECONDS:
            # a log file or a pipe shows no bar: a line now and then instead
            said = time.monotonic()
            console.print(f"{done} of {progress.tasks[task].total or '?'} frames", highlight=False)

    of_clip: float | None = None

    def phase(now: PhaseProgress) -> None:
        nonlocal said, of_clip
        name = f"phase {now.number} of {now.phases}, {now.phase}"
        if now.number == 1:
            of_clip = progress.tasks[task].total
            progress.update(task, description=name, completed=now.done)
        elif now.number == now.phases:  # its frames are counted as they are written
            if not now.done:
                progress.reset(task, description=name, total=of_clip, phase=False)
        elif not now.done:
            progress.reset(task, description=name, total=now.total, phase=True)
        else:
            progress.update(task, completed=now.done)
        if not console.is_terminal and time.monotonic() - said >= _LOG_SECONDS:
            said = time.monotonic()
            what = "frames" if now.number == 1 else "runs of networks"
            console.print(f"{name}: {now.done} of {now.total or of_clip or '?'} {what}", highlight=False)

    with progress:
        yield Watcher(opened, loaded, arranged, noted, frame, phase)


def _frames(count: object) -> str:
    return f"{count} frame{'' if count == 1 else 's'}"


def _rate(frames: float, seconds: float) -> str:
    """How fast it is, in the unit that has digits."""
    if frames and seconds > 10 * frames:
        return f"{seconds / frames:.0f} s a frame"
    return f"{frames / seconds:.2f} fps" if seconds > 0 else "- fps"


def print_report(console: Console, report: RestoreReport, printed: Collection[str] = ()) -> None:
    """The table of stages, the notes that were not `printed` before, and what was made."""
    table = Table(title="time for a frame, median", title_justify="left")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    total = sum(report.stages.values())
    for name, seconds in report.stages.items():
        table.add_row(name, f"{seconds:.3f}", f"{seconds / total:.0%}")
    table.add_row("[bold]all", f"[bold]{total:.3f}", "")
    console.print(table)
    for note in (note for note in report.notes if note not in printed):
        console.print(f"[yellow]note:[/] {escape(printable(note))}", highlight=False, soft_wrap=True)
    memory = f", {report.peak_memory / 1e9:.1f} GB of memory at most" if report.peak_memory else ""
    console.print(
        f"[bold]{escape(printable(report.output))}[/]: {_frames(report.frames)} {report.width}x{report.height} in "
        f"{report.seconds:.1f} s ({_rate(report.frames, report.seconds)}; loading took "
        f"{report.load_seconds:.1f} s{memory}; {report.backend})",
        highlight=False,
        soft_wrap=True,
    )


def print_diagnosis(console: Console, found: Diagnosis) -> None:
    """The findings of `doctor`."""
    table = _facts("installation")
    for name, value in found.system.items():
        table.add_row(name, value)
    for name, version in found.packages.items():
        table.add_row(name, version or "[dim]not installed")
    table.add_row("GPU", escape(found.gpu))
    table.add_row("backend of `auto`", f"{found.backend}: {found.backend_reason}")
    console.print(table)
    if found.bundle is not None:
        _print_bundle(console, found.bundle)
    if found.engines:
        print_verdicts(console, found.engines)
    if found.vae:
        table = Table(
            title="how a picture goes through on this CPU, by size of the restored picture",
            title_justify="left",
        )
        for column in ("size", "works", "memory, estimated", "why"):
            table.add_column(column, overflow="fold")
        for size, form in found.vae.items():
            need = form["estimated_memory"]
            told = "unknown" if need is None else f"{int(str(need)) / 1e9:.1f} GB"
            table.add_row(size, str(form["form"]), told, escape(str(form["why"])))
        console.print(table)
    _print_costs(console, found.costs)
    for problem in found.problems:
        console.print(f"[bold red]problem:[/] {escape(printable(problem))}", highlight=False, soft_wrap=True)
    if not found.problems:
        console.print("[green]everything is in order[/]")


def _print_costs(console: Console, costs: Sequence[dict[str, Any]]) -> None:
    """What a frame takes here, by size of the restored picture."""
    for cost in costs:
        console.print(_cost_table(cost))
    for cost in costs[:1]:
        console.print(
            f"{cost['how']} ({cost['operations_per_second'] / 1e9:.0f} GFLOP/s); measure with: vsr bench",
            highlight=False,
            soft_wrap=True,
        )


def _cost_table(cost: dict[str, Any]) -> Table:
    table = Table(title=f"what a frame takes here with {cost['of']}, estimated", title_justify="left")
    for column in ("size", "seconds", "memory", "TFLOP"):
        table.add_column(column, justify="left" if column == "size" else "right")
    for size, each in cost["sizes"].items():
        memory = "unknown" if each["memory"] is None else f"{each['memory'] / 1e9:.1f} GB"
        table.add_row(size, f"{each['seconds']:.3g}", memory, f"{each['operations'] / 1e12:.3g}")
    if cost["frames"]:
        table.caption = f"a frame's share of a clip of {cost['frames']}"
    return table


def _facts(title: str) -> Table:
    """A table of names and values, which are whole in the narrowest terminal, too."""
    table = Table(title=title, title_justify="left", show_header=False)
    for _ in range(2):
        table.add_column(overflow="fold")
    return table


def print_verdicts(console: Console, engines: Sequence[EngineVerdict]) -> None:
    """Which engines of a bundle run here, those of one folder and one reason together."""
    if not engines:
        console.print("the bundle has no engines; build them with: vsr-build engines BUNDLE", highlight=False)
        return
    groups: dict[tuple[str, str | None], list[str]] = {}
    for engine in engines:
        folder, _, name = engine.file.removeprefix("engines/").partition("/")
        groups.setdefault((folder, engine.why_not), []).append(name)
    table = Table(title="engines of the bundle", title_justify="left")
    for column in ("for", "engines", "run here"):
        table.add_column(column, overflow="fold")
    for (folder, why_not), names in groups.items():
        verdict = "[green]yes" if why_not is None else f"no: {escape(why_not)}"
        table.add_row(
            folder, f"{len(names)}: {', '.join(dict.fromkeys(n.split('.')[0] for n in names))}", verdict
        )
    console.print(table)


def _print_bundle(console: Console, bundle: dict[str, Any]) -> None:
    table = _facts("bundle")
    for name in (
        "path",
        "family",
        "schema_version",
        "precision",
        "scale",
        "top_k",
        "prompt",
        "negative_prompt",
        "bytes",
    ):
        if bundle[name] is not None:
            table.add_row(name, escape(printable(str(bundle[name]))))
    for name, tiling in bundle["tilings"].items():
        exact = ", cut only where asked" if tiling["exact"] else ""
        table.add_row(f"tiling {name}", f"{tiling['side']} latents, {tiling['overlap']} shared{exact}")
    for name, option in bundle["options"].items():
        choices = f" of {', '.join(option['choices'])}" if option["choices"] else ""
        table.add_row(f"option {name}", escape(f"{option['default']}{choices}: {option['help']}"))
    if bundle["window"]["frames"] > 1:
        table.add_row("window", "{frames} frames, {overlap} shared".format(**bundle["window"]))
    for name, window in bundle["phases"].items():
        frames = window["frames"] or "all"
        table.add_row(f"phase {escape(name)}", f"{_frames(frames)} at once")
    for name, chunks in bundle["chunks"].items():
        table.add_row(
            f"chunks {escape(name)}",
            escape(
                f"{chunks['frames']} frames, {chunks['overlap']:.0%} shared, the last up to {chunks['stretch']:g} x"
            ),
        )
    provenance = bundle["provenance"] or {}
    for name in ("checkpoint_layout", "stage", "adapters", "merged_sha256", "created", "tools"):
        if provenance.get(name):
            table.add_row(name, escape(str(provenance[name])))
    if "checkpoint" in provenance:
        found = provenance["checkpoint"]
        table.add_row("checkpoint", escape(f"{found['name']} {found['sha256']}"))
    console.print(table)
    networks = bundle["networks"]
    table = Table(title="networks", title_justify="left")
    for column in ("network", "forms", "nodes", "parameters"):
        justify: Literal["left", "right"] = "left" if column in ("network", "forms") else "right"
        table.add_column(column, justify=justify, overflow="fold")
    for name, network in networks.items():
        forms, nodes, count = ", ".join(network["forms"]), str(network["nodes"]), f"{network['parameters']:,}"
        table.add_row(name, forms, nodes, count)
    console.print(table)
