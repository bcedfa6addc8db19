"""Processes that are started: none is left that nobody knows."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest

from vsr_trt.runtime.machine import children, shell


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_a_process_is_started_ends_it(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    started: list[subprocess.Popen[str]] = []
    ended: list[subprocess.Popen[str]] = []
    start = subprocess.Popen

    def interrupted(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        process = start(*arguments, **options)
        signal.raise_signal(number)  # it runs, and whoever asked for it does not know it yet
        started.append(process)
        return process

    def end(process: subprocess.Popen[str]) -> None:
        process.kill()
        process.wait()
        ended.append(process)

    monkeypatch.setattr(children.subprocess, "Popen", interrupted)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (
        shell.working(),
        pytest.raises(KeyboardInterrupt),
        children.ended_on_failure(command, end, text=True),
    ):
        pytest.fail("the interrupt comes before the work")
    assert len(started) == 1
    assert ended == started


def test_a_program_that_is_not_there_is_not_ended() -> None:
    with pytest.raises(OSError, match="nothing"), children.ended_on_failure(["/nothing"], pytest.fail):
        pytest.fail("it cannot be started")
