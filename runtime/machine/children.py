"""Python programs that this one starts."""

from __future__ import annotations

import os
import sys


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
