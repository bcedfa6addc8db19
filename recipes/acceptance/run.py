"""Doing the steps, whatever becomes of each, and writing the report after every one."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vsr_trt.recipes.acceptance import page
from vsr_trt.recipes.acceptance.steps import Task
from vsr_trt.runtime.errors import OutputError
from vsr_trt.runtime.machine.files import write_whole

REPORT, PAGE = "gpu-acceptance.json", "gpu-acceptance.html"
_KEPT_LINES = 40  # of what a failed step said
_GRACE = 20.0  # seconds that a step has to end by itself after its limit


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


def accept(steps: Sequence[Task], out: Path, console: Console, run: Run | None = None) -> int:
    """Does all steps, and writes the report after each, so that a machine that goes down leaves what was done.

    Returns:
        0 where all passed or could not be run for want of a program of others, else 9.

    Raises:
        OutputError: the report cannot be written.
    """
    outcomes: dict[str, Outcome] = {}
    for number, step in enumerate(steps, 1):
        console.rule(f"{number}/{len(steps)} {step.name}")
        outcomes[step.name] = _do(step, outcomes, run or run_program, console)
        _write(out, list(outcomes.values()), len(steps))
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
    if step.before is not None:
        step.before()
    started = time.perf_counter()
    outcome.exit_code, printed, said = run(program, step.limit)
    outcome.seconds = time.perf_counter() - started
    outcome.state = "passed" if outcome.exit_code == 0 else "failed"
    wrong = _read(step, outcome, printed)
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


def _write(out: Path, outcomes: Sequence[Outcome], count: int) -> None:
    content = [_impersonal(asdict(outcome), out) for outcome in outcomes]
    try:
        write_whole(out / REPORT, json.dumps({"steps": count, "done": content}, indent=1) + "\n")
        write_whole(out / PAGE, page.html(content, count))
    except OSError as error:
        raise OutputError(f"the report in {out} cannot be written: {error.strerror or error}.") from error


def _impersonal(value: Any, out: Path) -> Any:
    """Without paths of the machine, its name, and the user's: the report is for sending."""
    if isinstance(value, dict):
        return {name: _impersonal(inner, out) for name, inner in value.items()}
    if isinstance(value, list):
        return [_impersonal(inner, out) for inner in value]
    if not isinstance(value, str):
        return value
    names = {str(out.absolute()): "OUT", str(out): "OUT", sys.prefix: "PYTHON", str(Path.cwd()): "."}
    names |= {os.path.expanduser("~"): "~", socket.gethostname(): "HOST"}  # noqa: PTH111  (no home is no error)
    for name in sorted(filter(None, names), key=len, reverse=True):
        if len(name) > 1:
            value = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", names[name], value)
    return value


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
    """Shows what the program says as it goes, on standard error, and keeps its standard output."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    said: list[str] = []
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None

        def follow(stream: IO[str]) -> None:
            for line in stream:
                said.append(line)
                sys.stderr.write(line)

        follower = threading.Thread(target=follow, args=(process.stderr,), daemon=True)
        follower.start()
        late = threading.Timer(limit, _end, (process,))
        late.start()
        try:
            assert process.stdout is not None
            printed = process.stdout.read()
        except BaseException:
            process.terminate()  # not killed: it may have processes of its own to end
            raise
        finally:
            late.cancel()
        follower.join()
    return process.returncode, printed, "".join(said)


def _end(process: subprocess.Popen[str]) -> None:
    """Politely, so that it tidies up; then for certain. What a background shell started would ignore SIGINT."""
    process.terminate()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
