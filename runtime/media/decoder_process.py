"""Decoders as programs of their own: one that crashes on a damaged file takes no restored frames with it."""

from __future__ import annotations

import contextlib
import signal
import subprocess

from vsr_trt.runtime.machine.children import python_child


def start(*program: str) -> subprocess.Popen[bytes]:
    """Starts a Python program that is spoken to over its pipes, with this one's packages.

    It has a session of its own: Ctrl-C in the terminal is for who reads, and the program's end is that of the pipe.
    """
    command, variables = python_child(*program)
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=variables,
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
