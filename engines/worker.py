"""The process that compiles one network: tells its progress through a pipe, and dies with its parent."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from vsr_trt.engines.onnxruntime.plan import optimise
from vsr_trt.engines.tensorrt import library
from vsr_trt.engines.tensorrt.builder import BuildOrder, Facts, Listener, compile_network
from vsr_trt.runtime.errors import EngineError, VsrError
from vsr_trt.runtime.machine.memory import peak_bytes

_PERIOD = 0.1  # seconds between two reports of progress


@dataclass(frozen=True)
class Phase:
    """The compiler's phase, and how many of its steps are done."""

    name: str
    done: int
    total: int


@dataclass(frozen=True)
class Complaint:
    """An error of the compiler, reported at once in case that it does not survive it."""

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


def main(backend: library.Backend, order: BuildOrder, out: Path, pipe: Connection) -> None:
    """Entry of the process: compiles `order` into `out`; everything that happens goes into the pipe."""
    threading.Thread(target=_die_with_parent, args=(pipe,), daemon=True).start()
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the parent's business
    said, told = "", 0.0
    sending = threading.Lock()  # compilers call back from threads of their own

    def send(message: Message) -> None:
        with sending:
            pipe.send(message)

    def phase(name: str, done: int, total: int) -> None:
        nonlocal said, told
        now = time.monotonic()
        if name != said or now - told >= _PERIOD:
            said, told = name, now
            send(Phase(name, done, total))

    try:
        if backend == "onnxruntime":
            phase("optimising the graph", 0, 0)
            facts = optimise(order, out)
        else:
            listener = Listener(phase, lambda text: send(Complaint(text)))
            facts = compile_network(library.load(backend), order, out, listener)
        send(Done(facts, peak_bytes()))
    except VsrError as error:
        send(Failed(error))
    except Exception as error:  # compilers and their bindings raise many kinds
        send(Failed(EngineError(f"{order.network} cannot be built: {type(error).__name__}: {error}")))


def _die_with_parent(pipe: Connection) -> None:
    """The parent says nothing; the pipe ends when it is gone, killed or not."""
    try:
        pipe.recv()
    except (EOFError, OSError):
        os._exit(1)
