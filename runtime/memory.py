"""How much memory the process has used."""

from __future__ import annotations

import sys
from pathlib import Path


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
