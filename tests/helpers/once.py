"""What is made once, although several processes run tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A path in the session's temporary folder that `make` fills; in whichever process comes first.

    Args:
        factory: pytest's.
        name: unique for what is made.
        make: writes a file or folder at the path it is given, which does not exist yet.
    """
    base = factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    path, done = folder / name, folder / f"{name}.done"
    with FileLock(folder / f"{name}.lock"):
        if not done.exists():
            make(path)
            done.touch()
    return path
