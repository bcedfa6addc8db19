"""How much memory the process has used, and how much is free."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

RESERVE = 500_000_000
"""Bytes of what is free that are left to others where nobody says how much may be used."""


def free_bytes() -> int | None:
    """Memory that the process may still take: what is free, within a container's own limit; None if nobody tells."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # "max" for none
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        found.append(limit - int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii")))
    return min(found, default=None)


def resident_bytes() -> int:
    """What the process has now; 0 where the system does not tell."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


def peak_bytes() -> int | None:
    """The process's peak resident memory in bytes; None where the system does not tell (Windows)."""
    try:
        # not getrusage's: that one begins with the peak of the process that started this one
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
