"""How much memory the process has used."""

from __future__ import annotations

import sys


def peak_bytes() -> int | None:
    """The process's peak resident memory in bytes; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
