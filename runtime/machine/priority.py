"""Threads keep the priority that they had, whatever a library makes of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_THREADS = Path("/proc/self/task")


@contextlib.contextmanager
def ordinary_priority() -> Iterator[None]:
    """Puts threads back that became real-time ones meanwhile: the calling one, and those that were begun.

    SVT-AV1 makes its threads, and the one that opens it, the first of the whole machine (SCHED_FIFO, 99) where the
    system lets it, as it does root. What such a thread begins inherits that; everything else on the machine then waits
    for what only waits itself.
    """
    before = _real_time()
    try:
        yield
    finally:
        for thread in _real_time() - before:
            with contextlib.suppress(OSError):  # it has ended
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def _real_time() -> set[int]:
    """The process's threads that are real-time ones; on Linux, empty elsewhere."""
    found = set()
    if _THREADS.is_dir():
        for entry in _THREADS.iterdir():
            with contextlib.suppress(OSError):
                if os.sched_getscheduler(int(entry.name)) in (os.SCHED_FIFO, os.SCHED_RR):
                    found.add(int(entry.name))
    return found
