"""Acceptance on a GPU: its steps, its report, and the refusal without one."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers import processes
from rich.console import Console

from vsr_trt.recipes.acceptance import REPORT, SIZES, Task, accept, tasks

BENCH = {"modes": {"throughput": {"fps": 24.5}, "latency": {"latency": {"summary": {"median": 0.0412}}}}}


def steps(tmp_path: Path) -> list[Task]:
    model = {"sd": tmp_path / "sd", "checkpoint": tmp_path / "model.pkl"}
    return tasks(Path("build.py"), tmp_path, "tensorrt_rtx", model, tmp_path / "clip")


class Commands:
    """Stands in for the commands: all pass, but for those named."""

    def __init__(self, *failing: str) -> None:
        self.failing, self.ran = failing, []

    def __call__(self, arguments: Sequence[str]) -> tuple[int, str, str]:
        self.ran.append(" ".join(arguments))
        if any(name in self.ran[-1] for name in self.failing):
            return 10, "", "error: sm_89 is not to be had\n"
        if "bench" in arguments and "vsr_trt.runtime" in arguments:
            Path(arguments[arguments.index("--json") + 1]).write_text(json.dumps(BENCH))
        return 0, '{"fine": true}', ""


def test_every_step_is_in_the_report(tmp_path: Path) -> None:
    console, run = Console(record=True, width=100), Commands()
    assert accept(steps(tmp_path), tmp_path, console, run) == 0
    report = json.loads((tmp_path / REPORT).read_text())
    assert [step["state"] for step in report] == ["passed"] * len(steps(tmp_path))
    assert {step["name"] for step in report} >= {"tests", "engines", "verify", *(f"bench {s}" for s in SIZES)}
    assert [step["result"] for step in report if step["name"] == "bench 512x512"] == [BENCH]
    assert "24.5" in console.export_text()
    assert not list(tmp_path.glob("*.tmp"))


def test_what_depends_on_a_failed_step_is_not_run(tmp_path: Path) -> None:
    console, run = Console(record=True, width=100), Commands("engines")
    assert accept(steps(tmp_path), tmp_path, console, run) == 9
    states = {step["name"]: step for step in json.loads((tmp_path / REPORT).read_text())}
    assert states["engines"]["state"] == "failed"
    assert states["engines"]["said"] == ["error: sm_89 is not to be had"]
    for name in ("verify", "bench 1280x720"):
        assert states[name]["state"] == "not run"
        assert states[name]["said"] == ["engines did not pass"]
    assert states["tests"]["state"] == states["kernel"]["state"] == "passed", "the others go on"


def test_every_command_is_understood(tmp_path: Path) -> None:
    """The parsers of the commands take the arguments of the steps."""
    from vsr_trt import build
    from vsr_trt.runtime.cli import main as cli

    for step in steps(tmp_path):
        if step.arguments[0] == "build.py":
            build.parser().parse_args(step.arguments[1:])
        elif step.arguments[1] == "vsr_trt.runtime":
            cli.parser().parse_args(step.arguments[2:])


def test_without_a_gpu_it_is_refused(tmp_path: Path) -> None:
    from helpers.gpu_hooks import why_not

    if why_not() is None:
        pytest.skip("this machine has a GPU")
    script = Path(__file__).parents[2] / "build.py"
    done = processes.run([sys.executable, str(script), "gpu-acceptance", "--out", str(tmp_path / "out")])
    assert done.returncode == 7
    assert "acceptance needs an NVIDIA GPU" in done.stderr
    assert not (tmp_path / "out").exists()
