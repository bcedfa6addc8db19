"""Acceptance on a GPU: one command that builds, verifies and measures, and writes one report.

Nothing is measured here: each step is a command that a user could type, and its own output is what is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
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
from vsr_trt.recipes.demo import crop_clip, real_clip
from vsr_trt.runtime.bundle.errors import DeviceError, OutputError
from vsr_trt.runtime.cli.values import output_folder
from vsr_trt.runtime.machine.files import write_whole

SIZES = ("512x512", "1280x720", "1920x1080")
SLOTS = 3
REPORT = "gpu-acceptance.json"
_SIDE = 128  # of the pictures to calibrate and verify with
_KEPT_LINES = 40  # of what a failed step said


@dataclass(frozen=True)
class Task:
    """A step.

    Attributes:
        name: unique.
        arguments: of Python.
        file: JSON that the command writes; None where it prints JSON on standard output, or none at all.
        needs: steps without which it makes no sense.
    """

    name: str
    arguments: tuple[str, ...]
    file: Path | None = None
    needs: tuple[str, ...] = ()


@dataclass
class Outcome:
    """What became of a step.

    Attributes:
        state: `passed`, `failed` or `not run`.
        exit_code: of the command, None where it was not run.
        result: the JSON that it wrote or printed.
        said: the end of what a failed one printed.
    """

    name: str
    command: str
    state: str
    seconds: float = 0.0
    exit_code: int | None = None
    result: Any = None
    said: list[str] = field(default_factory=list)


Run = Callable[[Sequence[str]], tuple[int, str, str]]
"""Runs Python with arguments: exit code, standard output, standard error."""


def tasks(build_script: Path, out: Path, backend: str, model: Mapping[str, Path], clip: Path) -> list[Task]:
    """The steps, in order.

    Args:
        build_script: path of build.py.
        out: folder for everything.
        backend: `tensorrt_rtx` or `tensorrt`.
        model: `sd` and `checkpoint`, weights that were written before.
        clip: frames to calibrate and verify with.
    """
    script, bundle = str(build_script), str(out / "bundle")
    sizes = [word for size in SIZES for word in ("--size", size)]
    engines = [script, "engines", bundle, "--backend", backend.replace("_", "-"), *sizes, "--json"]
    made = ("bundle", "calibrate", "engines")
    benches = []
    for size in SIZES:
        file = out / f"bench-{size}.json"
        arguments = [
            "-m",
            "vsr_trt.runtime",
            "bench",
            "--bundle",
            bundle,
            "--size",
            size,
            "--backend",
            backend,
        ]
        arguments += ["--slots", str(SLOTS), "--json", str(file), "--overwrite"]
        benches.append(Task(f"bench {size}", tuple(arguments), file, made))
    kernel = out / "kernel.json"
    weights = ("--sd", str(model["sd"]), "--checkpoint", str(model["checkpoint"]))
    return [
        Task("doctor", ("-m", "vsr_trt.runtime", "doctor", "--json")),
        Task("tests", ("-m", "pytest", "-q", "tests/gpu")),
        Task("bundle", (script, "bundle", *weights, "--out", bundle, "--kernels", "--overwrite", "--json")),
        Task(
            "calibrate",
            (script, "calibrate", bundle, "--clip", str(clip), "--frames", "2"),
            None,
            ("bundle",),
        ),
        Task("engines", tuple(engines), None, ("bundle", "calibrate")),
        Task("engines with the kernel", (*engines, "--operator", "kernel"), None, made),
        Task("verify", (script, "verify", bundle, "--clip", str(clip), "--frames", "2"), None, made),
        *benches,
        Task("kernel", ("-m", "vsr_trt.kernels", "bench", "--json", str(kernel)), kernel),
    ]


def accept(steps: Sequence[Task], out: Path, console: Console, run: Run | None = None) -> int:
    """Does all steps, whatever becomes of each, and writes the report.

    Returns:
        0 where all passed, else 9.

    Raises:
        OutputError: the report cannot be written.
    """
    outcomes: dict[str, Outcome] = {}
    for number, step in enumerate(steps, 1):
        console.rule(f"{number}/{len(steps)} {step.name}")
        outcomes[step.name] = _do(step, outcomes, run or _run, console)
    _show(list(outcomes.values()), console)
    report = out / REPORT
    try:
        write_whole(report, json.dumps([asdict(outcome) for outcome in outcomes.values()], indent=1) + "\n")
    except OSError as error:
        raise OutputError(f"the report {report} cannot be written: {error.strerror or error}.") from error
    console.print(f"report: {escape(str(report))}", highlight=False, soft_wrap=True)
    return 0 if all(outcome.state == "passed" for outcome in outcomes.values()) else 9


def gpu_acceptance(build_script: Path, out: Path, backend: str, console: Console) -> int:
    """Full-size networks with random weights, through everything that a GPU is needed for.

    Args:
        build_script: path of build.py.
        out: folder, about 20 GB; an earlier run's report in it is replaced.
        backend: `tensorrt_rtx` or `tensorrt`.
        console: where to show what is done.

    Returns:
        0 where all passed, else 9.
    """
    from vsr_trt.recipes.synthetic.random import write_model  # torch takes seconds, which help need not

    found = subprocess.run(
        [sys.executable, "-m", "vsr_trt.runtime", "doctor", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    check_gpu(json.loads(found.stdout))
    weights, clip = out / "weights", out / "input"
    try:
        make_room(out)
        console.rule("random weights of full size, in the published layouts")
        with console.status("writing…"):
            model = write_model(weights, overwrite=True)
        crop_clip(real_clip(), clip, 4, _SIDE)
        sources = {"sd": model.sd, "checkpoint": model.checkpoint}
        return accept(tasks(build_script, out, backend, sources, clip), out, console)
    finally:
        for folder in (weights, out / "bundle"):
            shutil.rmtree(folder, ignore_errors=True)


def check_gpu(doctor: Mapping[str, Any]) -> None:
    """Refuses a machine without a GPU.

    Args:
        doctor: what `vsr doctor --json` prints.

    Raises:
        DeviceError: says what is missing.
    """
    if str(doctor["gpu"]).startswith("none"):
        raise DeviceError(
            f"acceptance needs an NVIDIA GPU: {doctor['gpu']}. Without one, `make test` and `make full-size` test "
            "everything that can be tested."
        )


def _do(step: Task, before: Mapping[str, Outcome], run: Run, console: Console) -> Outcome:
    outcome = Outcome(step.name, "python " + " ".join(step.arguments), "not run")
    missing = [name for name in step.needs if before[name].state != "passed"]
    if missing:
        outcome.said = [f"{', '.join(missing)} did not pass"]
        console.print(f"not run: {escape(outcome.said[0])}")
        return outcome
    console.print(f"[dim]{escape(outcome.command)}[/]", highlight=False, soft_wrap=True)
    started = time.perf_counter()
    outcome.exit_code, printed, said = run(step.arguments)
    outcome.seconds = time.perf_counter() - started
    outcome.state = "passed" if outcome.exit_code == 0 else "failed"
    try:
        text = step.file.read_text(encoding="utf-8") if step.file is not None else printed
        outcome.result = json.loads(text)
    except (OSError, ValueError):
        outcome.result = None  # not every command has a report to give
    if outcome.state == "failed":
        outcome.said = (said + printed).splitlines()[-_KEPT_LINES:]
        console.print(escape("\n".join(outcome.said)), highlight=False)
    return outcome


def _show(outcomes: Sequence[Outcome], console: Console) -> None:
    table = Table(title="acceptance", title_justify="left")
    for column in ("step", "", "seconds", "frames a second", "latency, ms"):
        table.add_column(column, justify="left" if column in ("step", "") else "right")
    for outcome in outcomes:
        throughput, latency = _figures(outcome)
        seconds = f"{outcome.seconds:.0f}" if outcome.exit_code is not None else ""
        table.add_row(outcome.name, outcome.state, seconds, throughput, latency)
    console.print(table)


def _figures(outcome: Outcome) -> tuple[str, str]:
    """Throughput and median latency of a bench report, else nothing."""
    modes = outcome.result.get("modes", {}) if isinstance(outcome.result, dict) else {}
    try:
        throughput = f"{modes['throughput']['fps']:.1f}"
        latency = f"{modes['latency']['latency']['summary']['median'] * 1e3:.1f}"
    except (KeyError, TypeError):
        return "", ""
    return throughput, latency


def _run(arguments: Sequence[str]) -> tuple[int, str, str]:
    """Shows what the command says as it goes, on standard error, and keeps its standard output."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    said: list[str] = []
    with subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None

        def follow(stream: IO[str]) -> None:
            for line in stream:
                said.append(line)
                sys.stderr.write(line)

        follower = threading.Thread(target=follow, args=(process.stderr,), daemon=True)
        follower.start()
        try:
            printed = process.stdout.read()
        except BaseException:
            process.terminate()  # not killed: it may have processes of its own to end
            raise
        follower.join()
    return process.returncode, printed, "".join(said)


def make_room(out: Path) -> None:
    """An empty folder; what an earlier run left there goes.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"the folder {out} cannot be made: {error.strerror or error}.") from error


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds `gpu-acceptance` to the build side's commands."""
    accept = commands.add_parser(
        "gpu-acceptance",
        help="on a machine with a GPU: build, verify and measure full-size engines, and write one report",
        description="Full-size networks with random weights: engines for the GPU in this machine, the tests that "
        "need one, verification, and benchmarks at three sizes. Goes on where a step fails, and exits with 9 then. "
        "Needs 25 GB of disk while it runs.",
    )
    accept.add_argument(
        "--out", type=output_folder, default=Path("gpu-acceptance-out"), help="folder (default: %(default)s)"
    )
    accept.add_argument(
        "--backend",
        choices=("tensorrt-rtx", "tensorrt"),
        default="tensorrt-rtx",
        help="(default: %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    """Runs `gpu-acceptance`; returns its exit code."""
    backend = options.backend.replace("-", "_")
    return gpu_acceptance(SCRIPT, options.out, backend, Console(stderr=True))
