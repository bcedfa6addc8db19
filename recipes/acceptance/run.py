"""Doing the steps, whatever becomes of each, and writing the report after every one."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vsr_trt.recipes import SCRIPT
from vsr_trt.recipes.acceptance import page
from vsr_trt.recipes.acceptance.steps import Task
from vsr_trt.runtime.errors import OutputError
from vsr_trt.runtime.machine import children
from vsr_trt.runtime.machine.files import write_whole

REPORT, PAGE = "gpu-acceptance.json", "gpu-acceptance.html"
_KEPT_LINES = 40  # of what a failed step said
_GRACE = 20.0  # seconds that a step has to end by itself after its limit
_LOST = -9  # exit code of a process that cannot be ended


@dataclass
class Outcome:
    """What became of a step.

    Attributes:
        state: `passed`, `failed` or `not run`.
        exit_code: of the command, None where it was not run.
        result: the JSON that it wrote or printed.
        said: the end of what a failed one printed, or why it failed or was not run.
    """

    name: str
    command: str
    state: str
    seconds: float = 0.0
    exit_code: int | None = None
    result: Any = None
    said: list[str] = field(default_factory=list)


Run = Callable[[Sequence[str], float], tuple[int, str, str]]
"""Runs a program with a limit in seconds: exit code, standard output, standard error."""


def accept(
    steps: Sequence[Task],
    out: Path,
    console: Console,
    run: Run | None = None,
    about: Mapping[str, Any] | None = None,
    given: Sequence[Path] = (),
) -> int:
    """Does all steps, and writes the report after each, so that a machine that goes down leaves what was done.

    Args:
        steps: in order.
        out: folder of the report.
        console: where to show what is done.
        run: another way to run programs, for tests.
        about: what is the same for all steps; at the head of the report.
        given: files and folders of the user's, of which the report has the last name alone.

    Returns:
        0 where all passed or could not be run for want of a program of others, else 9.

    Raises:
        OutputError: the report cannot be written.
    """
    outcomes: dict[str, Outcome] = {}
    for number, step in enumerate(steps, 1):
        console.rule(f"{number}/{len(steps)} {step.name}")
        outcomes[step.name] = _do(step, outcomes, run or run_program, console)
        _write(out, list(outcomes.values()), len(steps), about or {}, console, given)
    _show(list(outcomes.values()), console)
    for name in (REPORT, PAGE):
        console.print(f"report: {escape(str(out / name))}", highlight=False, soft_wrap=True)
    optional = {step.name for step in steps if step.program}
    done = [o for o in outcomes.values() if o.state != "not run" or o.name not in optional]
    return 0 if all(outcome.state == "passed" for outcome in done) else 9


def _do(step: Task, before: dict[str, Outcome], run: Run, console: Console) -> Outcome:
    program = [*step.program, sys.executable, *step.arguments]
    outcome = Outcome(
        step.name, " ".join(["python" if p == sys.executable else p for p in program]), "not run"
    )
    missing = [name for name in step.needs if before[name].state != "passed"]
    if missing:
        outcome.said = [f"{', '.join(missing)} did not pass"]
    elif step.program and shutil.which(step.program[0]) is None:
        outcome.said = [f"{step.program[0]} is not installed"]
    if outcome.said:
        console.print(f"not run: {escape(outcome.said[0])}")
        return outcome
    console.print(f"[dim]{escape(outcome.command)}[/]", highlight=False, soft_wrap=True)
    started = time.perf_counter()
    printed = said = ""
    try:
        if step.before is not None:
            step.before()
        started = time.perf_counter()
        outcome.exit_code, printed, said = run(program, step.limit)
        outcome.seconds = time.perf_counter() - started
        outcome.state = "passed" if outcome.exit_code == 0 else "failed"
        wrong = _read(step, outcome, printed)
    except Exception as error:  # whatever it is: hours of measuring do not end with one step
        outcome.state, wrong = "failed", f"{type(error).__name__}: {error}"
    if outcome.state == "failed" or wrong is not None:
        outcome.state = "failed"
        if outcome.result is None or step.result is not None:  # else what it printed is in the report already
            said += printed
        outcome.said = [*said.splitlines()[-_KEPT_LINES:], *([wrong] if wrong else [])]
        if outcome.seconds >= step.limit:
            outcome.said.append(f"it was ended after its limit of {step.limit:.0f} seconds")
        console.print(escape("\n".join(outcome.said)), highlight=False)
    return outcome


def _read(step: Task, outcome: Outcome, printed: str) -> str | None:
    """Takes the step's result; a sentence where the result is not what it must be."""
    try:
        if step.result is not None:
            outcome.result = step.result()
        else:
            text = step.file.read_text(encoding="utf-8") if step.file is not None else printed
            outcome.result = json.loads(text)
    except (OSError, ValueError) as error:
        # not every command has a report to give
        return str(error) if step.result is not None and outcome.state == "passed" else None
    return step.check(outcome.result) if step.check is not None else None


def _write(
    out: Path,
    outcomes: Sequence[Outcome],
    count: int,
    about: Mapping[str, Any],
    console: Console,
    given: Sequence[Path],
) -> None:
    personal = _personal(out, given)
    content = [_impersonal(asdict(outcome), personal) for outcome in outcomes]
    head = _impersonal(dict(about), personal)
    try:
        report = {"about": head, "steps": count, "done": content}
        write_whole(out / REPORT, json.dumps(report, indent=1) + "\n")
        write_whole(out / PAGE, _page(content, count, head, console))
    except OSError as error:
        raise OutputError(f"the report in {out} cannot be written: {error.strerror or error}.") from error


def _page(
    content: Sequence[Mapping[str, Any]], count: int, about: Mapping[str, Any], console: Console
) -> str:
    try:
        return page.html(content, count, about)
    except Exception as error:  # the JSON has all of it
        console.print(f"the page cannot be drawn: {type(error).__name__}: {escape(str(error))}")
        return page.undrawn(f"{type(error).__name__}: {_impersonal(str(error), _personal(Path.cwd()))}")


_Personal = Sequence[tuple[re.Pattern[str], str]]


def _impersonal(value: Any, personal: _Personal) -> Any:
    """Without paths of the machine, its name, and the user's: the report is for sending."""
    if isinstance(value, dict):
        return {_impersonal(name, personal): _impersonal(inner, personal) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_impersonal(inner, personal) for inner in value]
    if not isinstance(value, str):
        return value
    for pattern, instead in personal:
        value = pattern.sub(instead, value)
    return value


def _personal(out: Path, given: Sequence[Path] = ()) -> _Personal:
    """What is replaced, the longest first, and by what."""
    folders = {str(form.parent): "GIVEN" for path in given for form in (path.absolute(), path.resolve())}
    names = {str(SCRIPT.parent): "SOURCE", str(SCRIPT.parent.resolve()): "SOURCE", sys.prefix: "PYTHON"}
    names |= {str(Path.cwd()): ".", str(out.absolute()): "OUT", str(out.resolve()): "OUT", str(out): "OUT"}
    names |= {name: instead for name, instead in folders.items() if name != os.sep}
    names |= {os.path.expanduser("~"): "~"}  # noqa: PTH111  (no home is no error)
    host = socket.gethostname()
    names |= {host: "HOST", host.partition(".")[0]: "HOST"}
    found = [
        (re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])"), names[name])
        for name in sorted(names, key=len, reverse=True)
        if len(name) > 1 and name != "localhost"
    ]
    with contextlib.suppress(OSError, KeyError, ImportError):  # a user without a name
        user = getpass.getuser()
        if user != "root":  # which is nobody's
            # of folders alone: it may be a word, too. Temporary ones of pytest's hold it in their name.
            found.append((re.compile(rf"(?<=[/\\]){re.escape(user)}(?![\w-])"), "USER"))
            found.append((re.compile(rf"(?<=pytest-of-){re.escape(user)}(?![\w-])"), "USER"))
    return found


def _show(outcomes: Sequence[Outcome], console: Console) -> None:
    table = Table(title="acceptance", title_justify="left")
    for column in ("step", "", "seconds", "frames a second", "latency, ms"):
        table.add_column(column, justify="left" if column in ("step", "") else "right")
    for outcome in outcomes:
        throughput, latency = page.figures(outcome.result)
        seconds = f"{outcome.seconds:.0f}" if outcome.exit_code is not None else ""
        table.add_row(outcome.name, outcome.state, seconds, throughput, latency)
    console.print(table)


def run_program(program: Sequence[str], limit: float) -> tuple[int, str, str]:
    """Shows what the program says as it goes, on standard error, and keeps its standard output.

    After the limit, and where this process is interrupted, it is ended with all that it started.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    # a group of its own: what it started is ended with it, and hears of a terminal's Ctrl-C from nobody else
    group = {"process_group": 0} if os.name == "posix" else {}
    kept: tuple[list[str], list[str]] = ([], [])
    with (
        contextlib.suppress(subprocess.TimeoutExpired),
        children.ended_on_failure(
            program,
            _end,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",  # a driver's words may be of any encoding
            env=environment,
            **group,
        ) as process,
    ):
        followers = [
            threading.Thread(target=_follow, args=(stream, lines, lines is kept[1]), daemon=True)
            for stream, lines in zip((process.stdout, process.stderr), kept, strict=True)
        ]
        for follower in followers:
            follower.start()
        process.wait(limit)
    for follower in followers:
        follower.join(_GRACE)  # not for ever: what the program left behind may hold its output open
    printed, said = ("".join(list(lines)) for lines in kept)
    if process.returncode is None:
        return _LOST, printed, said + "it cannot be ended, and was left behind\n"
    return process.returncode, printed, said


def _follow(stream: IO[str], lines: list[str], aloud: bool) -> None:
    with contextlib.suppress(ValueError, OSError):
        for line in stream:
            lines.append(line)
            if aloud:
                sys.stderr.write(line)


def _end(process: subprocess.Popen[str]) -> None:
    """Politely, so that it tidies up; then for certain, with all that it started.

    What a background shell started would ignore SIGINT. What waits for a driver cannot even be killed, and is given up.
    """
    process.terminate()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    finally:
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE)
