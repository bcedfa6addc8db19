"""Python programs and processes that this one starts."""

from __future__ import annotations

import multiprocessing.resource_tracker
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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
