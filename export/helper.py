"""A second process that exports networks next to this one: capturing one keeps a single core busy."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from vsr_trt.export.network import Exported, export
from vsr_trt.export.request import BundleRequest
from vsr_trt.runtime.errors import ExportError, VsrError
from vsr_trt.runtime.machine.children import without_interrupts

_GRACE = 1.0  # seconds that the process has to end


class Helper:
    """Takes networks from the front of a list, as this process does, until it is empty.

    Args:
        request: that the networks are of.
        names: of those that nobody has begun, the longest first.
        folder: that they are written into.
        done: is passed each network that is written and checked, in a thread of its own.
    """

    def __init__(
        self, request: BundleRequest, names: deque[str], folder: Path, done: Callable[[Exported], None]
    ) -> None:
        self._names, self._done = names, done
        self._error: VsrError | None = None
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_main, args=(request, folder, theirs), daemon=True)
        with without_interrupts():
            self._process.start()
        theirs.close()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends it now: what it writes is thrown away where it is not done."""
        self._names.clear()
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(_GRACE)
            if self._process.is_alive():
                self._process.kill()
        self._process.join()
        self._thread.join()
        self._pipe.close()

    def check(self) -> None:
        """Raises what the process ended with, if it did.

        Raises:
            VsrError: as from `export`.
        """
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Waits until the list is empty and everything of it is done.

        Raises:
            VsrError: as from `export`.
        """
        while self._thread.is_alive():
            self._thread.join(0.1)  # so that a signal is heard
        self.check()

    def _serve(self) -> None:
        try:
            while True:
                try:
                    name = self._names.popleft()
                except IndexError:
                    self._pipe.send(None)
                    self._process.join(_GRACE)
                    return
                self._pipe.send(name)
                found = self._pipe.recv()
                if isinstance(found, VsrError):
                    self._error = found
                    return
                self._done(found)
        except (EOFError, OSError):
            code = self._process.exitcode
            self._error = ExportError(
                f"the process that exported next to this one has died ({code}); it may have run out of memory. Try "
                "again with --jobs 1."
            )


def _main(request: BundleRequest, folder: Path, pipe: Connection) -> None:
    """The process: exports what it is told through the pipe, and dies with its parent."""
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the parent's business
    from vsr_trt.export.families.registry import family_of

    model: Any = None
    while True:
        try:
            name = pipe.recv()
        except (EOFError, OSError):
            return
        if name is None:
            return
        try:
            if model is None:
                model = family_of(request).open(request, lambda phase: None)
            pipe.send(export(model.spec(name), folder, request.precision))
        except VsrError as error:
            pipe.send(error)
        except Exception as error:  # torch raises many kinds
            pipe.send(ExportError(f"{name} cannot be exported: {type(error).__name__}: {error}"))


def _die_with(parent: int) -> None:
    """Ends this process when its parent is gone, killed or not."""
    while os.getppid() == parent:
        time.sleep(_GRACE)
    os._exit(1)
