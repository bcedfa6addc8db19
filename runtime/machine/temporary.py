"""Folders for what is being made, which the next process removes where theirs was killed."""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
from pathlib import Path

_SUFFIX = ".tmp"


def make(parent: Path, purpose: str) -> Path:
    """Makes a hidden folder; those that killed processes of this machine left for the same purpose are removed.

    Args:
        parent: where to make it.
        purpose: begins its name; the same for all processes that make the same thing here.

    Raises:
        OSError: it cannot be made.
    """
    host = re.sub(r"\W", "-", socket.gethostname())
    begins = f".{purpose}.{host}-"
    for path in parent.iterdir():
        found = re.fullmatch(rf"{re.escape(begins)}(\d+)-\w+{re.escape(_SUFFIX)}", path.name)
        if found and path.is_dir() and not path.is_symlink() and not _lives(int(found[1])):
            shutil.rmtree(path, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{begins}{os.getpid()}-", suffix=_SUFFIX, dir=parent))


def _lives(process: int) -> bool:
    """Whether a process of this machine exists; of one that may not be asked, yes."""
    if os.name == "nt":
        return True  # asking a process there may end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
