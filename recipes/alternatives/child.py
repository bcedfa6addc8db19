"""A process of its own for one measurement, which leaves nothing behind however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from vsr_trt.runtime.errors import DeviceError
from vsr_trt.runtime.machine import children


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: its exit code; negative for a signal.
        output: what it wrote to standard output.
        said: the last line that it wrote to standard error.
    """

    code: int
    output: str
    said: str

    @property
    def refusal(self) -> tuple[str, int] | None:
        """The sentence and the exit code of our own error that it ended with; None where it crashed."""
        try:
            found = json.loads(self.output)
            return str(found["error"]), int(found["exit_code"])
        except (ValueError, TypeError, KeyError):
            return None

    @property
    def reason(self) -> str:
        """Why it failed, in a sentence."""
        if self.refusal is not None:
            return self.refusal[0]
        if self.code < 0:
            return f"the process was killed by signal {-self.code}, most often for lack of memory"
        return self.said or f"the process ended with exit code {self.code}"


def run(command: Sequence[str], variables: Mapping[str, str], hear: Callable[[str], None]) -> Ended:
    """Runs a command to its end.

    Args:
        command: program and arguments.
        variables: added to the environment.
        hear: is passed every line that it writes to standard error.

    Raises:
        DeviceError: it cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="vsr-trt-", ignore_cleanup_errors=True) as folder:
        # Its temporary files go with the folder, even where it is killed in the midst of writing them.
        environment = {**os.environ, "TMPDIR": folder, **variables}
        with tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder) as output:
            with contextlib.ExitStack() as stack:
                try:
                    # A session of its own, so that it can be killed with all that it started. A terminal's Ctrl-C does
                    # not reach it then: that is this process's business.
                    process = stack.enter_context(
                        children.ended_on_failure(
                            list(command),
                            _kill,
                            stdin=subprocess.DEVNULL,
                            stdout=output,
                            stderr=subprocess.PIPE,
                            text=True,
                            encoding="utf-8",
                            errors="replace",
                            env=environment,
                            start_new_session=True,
                        )
                    )
                except OSError as error:
                    raise DeviceError(f"{command[0]} cannot be started: {error.strerror}.") from error
                assert process.stderr is not None
                last: list[str] = []
                listener = threading.Thread(target=_listen, args=(process.stderr, hear, last), daemon=True)
                listener.start()
                try:
                    process.wait()
                finally:
                    _kill(process)
                    listener.join()
            output.seek(0)
            return Ended(process.returncode, output.read(), "".join(last))


def _listen(pipe: IO[str], hear: Callable[[str], None], last: list[str]) -> None:
    for line in pipe:
        if text := line.strip():
            last[:] = [text]
            hear(text)
    pipe.close()


def _kill(process: subprocess.Popen[str]) -> None:
    """Ends the process and whatever it started that is still there, e.g. a compiler."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
