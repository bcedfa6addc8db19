"""Python programs and processes that this one starts."""

from __future__ import annotations

import multiprocessing.resource_tracker
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vsr_trt.runtime.machine import shell


def python_child(*program: str) -> tuple[list[str], dict[str, str]]:
    """How a Python program is started with this one's packages.

    Args:
        program: what follows `python`, such as `-m`, a module and its arguments.

    Returns:
        The command, and its environment.
    """
    # -P: this folder's modules are not the standard library's
    paths = os.pathsep.join(path for path in sys.path if path)
    return [sys.executable, "-P", *program], os.environ | {"PYTHONPATH": paths}


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Ctrl-C goes to every process of a terminal; ours stops the others, which shall not print of it.

    A process that is started meanwhile never hears of it. Ours does, afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    multiprocessing.resource_tracker.ensure_running()  # started later, it would end what is begun here
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with shell.shield():  # another thread may still take the signal
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def ended_on_failure(
    command: Sequence[str], end: Callable[[subprocess.Popen[str]], None], **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended where the block fails, or is interrupted.

    An interrupt waits while the process is being started: in the middle of that it would leave one that nobody knows.

    Args:
        command: program and arguments.
        end: ends it.
        options: subprocess.Popen's, for text.

    Raises:
        OSError: it cannot be started.
    """
    process: subprocess.Popen[str] | None = None
    try:
        with shell.shield():
            process = subprocess.Popen(command, **options)
        yield process
    except BaseException:
        if process is not None:
            end(process)
        raise
