"""The process that compiles one network: tells its progress through a pipe, and dies with its parent."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from engines import library
from engines.builder import Facts, Listener, Order, compile_network
from engines.onnxruntime_builds import optimise
from runtime.errors import VsrError
from runtime.memory import peak_bytes

_PERIOD = 0.1  # seconds between two reports of progress


@dataclass(frozen=True)
class Phase:
    """The compiler's phase, and how many of its steps are done."""

    name: str
    done: int
    total: int


@dataclass(frozen=True)
class Complaint:
    """An error of the compiler, told at once in case that it does not survive it."""

    text: str


@dataclass(frozen=True)
class Failed:
    """The build ended with an error of ours."""

    error: VsrError


@dataclass(frozen=True)
class Done:
    """The plan is written. `peak` is the process's peak of memory, in bytes."""

    facts: Facts
    peak: int | None


Message = Phase | Complaint | Failed | Done


def main(backend: library.Backend, order: Order, out: Path, pipe: Connection) -> None:
    """Entry of the process: compiles `order` into `out`; everything that happens goes into the pipe."""
    threading.Thread(target=_die_with_parent, args=(pipe,), daemon=True).start()
    said, told = "", 0.0

    def phase(name: str, done: int, total: int) -> bool:
        nonlocal said, told
        now = time.monotonic()
        if name != said or now - told >= _PERIOD:
            said, told = name, now
            pipe.send(Phase(name, done, total))
        return True

    try:
        if backend == "onnxruntime":
            phase("optimising the graph", 0, 1)
            facts = optimise(order, out)
        else:
            listener = Listener(phase, lambda text: pipe.send(Complaint(text)))
            facts = compile_network(library.load(backend), order, out, listener)
        pipe.send(Done(facts, peak_bytes()))
    except VsrError as error:
        pipe.send(Failed(error))


def _die_with_parent(pipe: Connection) -> None:
    """The parent says nothing; the pipe ends when it is gone, killed or not."""
    try:
        pipe.recv()
    except (EOFError, OSError):
        os._exit(1)
