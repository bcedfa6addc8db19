"""Processes that tests start: signals mean to them what they mean in a terminal, whoever started the tests; and they
are ended, with all that they started, whatever happens to the test."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
GUARD = 900.0
"""Seconds after which a test that hangs is given up. No test is about how long something takes."""
_LOOK = 0.02  # seconds between looks
_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
)


@contextlib.contextmanager
def _usual_signals(ignored: Sequence[int]) -> Iterator[None]:
    """In a background job (`make test &`, nohup) signals are ignored, and children inherit that."""
    before = {
        number: signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
        for number in _SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def started(
    command: Sequence[object], ignored: Sequence[int] = (), **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own, its output in pipes; killed at the end with its whole group.

    Args:
        command: program and arguments.
        ignored: signals that it ignores from its start on, as nohup does it.
        options: of Popen.
    """
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    text = {"text": True, "encoding": "utf-8", "errors": "replace"}
    options = pipes | text | {"start_new_session": True} | options
    with _usual_signals(ignored):
        process = subprocess.Popen([*map(str, command)], **options)
    guard = threading.Timer(GUARD, _kill, [process])
    guard.start()
    try:
        yield process
    finally:
        guard.cancel()
        _kill(process)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def run(
    command: Sequence[object], *, check: bool = False, **options: Any
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` with its output captured."""
    with started(command, **options) as process:
        output, said = process.communicate()
        done = subprocess.CompletedProcess(process.args, process.returncode, output, said)
    assert not check or done.returncode == 0, f"{done.args}: {done.returncode}\n{output}\n{said}"
    return done


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def said(process: subprocess.Popen[str], words: str) -> str:
    """Waits until the process has said so on standard error; all that it said up to then."""
    assert process.stderr is not None
    heard = ""
    for line in process.stderr:
        heard += line
        if words in line:
            return heard
    raise AssertionError(f"it ended before it said {words!r}: {heard}")


def until(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Waits until something is the case; fails where the process ends before."""
    end = time.monotonic() + GUARD
    while not condition():
        if process is not None and process.poll() is not None and not condition():
            _, text = process.communicate()
            raise AssertionError(f"it ended with {process.returncode}: {text}")
        if time.monotonic() > end:
            raise AssertionError("it did not happen")
        time.sleep(_LOOK)
