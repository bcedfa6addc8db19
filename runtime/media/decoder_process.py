"""Decoders as programs of their own: one that crashes on a damaged file takes no restored frames with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys


def start(*program: str) -> subprocess.Popen[bytes]:
    """Starts a Python program that is spoken to over its pipes, with this one's packages.

    It has a session of its own: Ctrl-C in the terminal is for who reads, and the program's end is that of the pipe.
    """
    return subprocess.Popen(
        [sys.executable, "-P", *program],  # -P: this folder's modules are not the standard library's
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        start_new_session=True,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends the program at once, whatever it does."""
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            pipe.close()  # type: ignore[union-attr]
    process.kill()
    process.wait()


def last_words(process: subprocess.Popen[bytes]) -> str:
    """How a program that has closed its pipe came to its end: "SIGSEGV", "exit code 3"."""
    code = process.wait()
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
