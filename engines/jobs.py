"""Runs builds in processes of their own, as many at once as memory allows, and can stop them at any moment."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vsr_trt.engines import worker
from vsr_trt.engines.tensorrt.builder import BuildOrder
from vsr_trt.engines.tensorrt.library import Backend
from vsr_trt.runtime.errors import EngineError, VsrError
from vsr_trt.runtime.machine.children import without_interrupts

_TICK = 0.1  # seconds
_GRACE = 1.0  # seconds that a process has to end


@dataclass(frozen=True)
class BuildJob:
    """One build.

    Attributes:
        order: what to compile.
        out: where its plan is written.
        memory: estimated peak, bytes.
        tag: of the caller.
    """

    order: BuildOrder
    out: Path
    memory: int
    tag: Any = None


@dataclass(frozen=True)
class Result:
    """A build that ended: `done`, or the error that it ended with."""

    job: BuildJob
    done: worker.Done | None
    error: VsrError | None


@dataclass
class _Running:
    job: BuildJob
    process: Any
    pipe: multiprocessing.connection.Connection
    complaints: list[str] = field(default_factory=list)


Watch = Callable[[BuildJob, worker.Phase], None]


class Pool:
    """Builds jobs as they are offered.

    Args:
        backend: that compiles.
        limit: processes at once.
        memory: bytes that the running builds may take together by estimate; one build always runs.
        watch: is passed the phases.
    """

    def __init__(
        self, backend: Backend, limit: int, memory: int, watch: Watch = lambda job, phase: None
    ) -> None:
        self._backend, self._limit, self._memory, self._watch = backend, limit, memory, watch
        self._running: list[_Running] = []

    def run(self, jobs: Iterable[BuildJob]) -> Generator[Result, None, None]:
        """Builds them, the order of results being that of their ends. Closing the iterator stops the rest."""
        waiting = deque(sorted(jobs, key=lambda job: -job.memory))  # the long ones first
        try:
            while waiting or self._running:
                while (job := self._next(waiting)) is not None:
                    self._running.append(self._start(job))
                yield from self._poll()
        finally:
            self._stop_all()

    def _next(self, waiting: deque[BuildJob]) -> BuildJob | None:
        """The first that fits next to those that run."""
        taken = sum(running.job.memory for running in self._running)
        if len(self._running) >= self._limit:
            return None
        for job in waiting:
            if not self._running or taken + job.memory <= self._memory:
                waiting.remove(job)
                return job
        return None

    def _start(self, job: BuildJob) -> _Running:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (self._backend, job.order, job.out, theirs)
        process = context.Process(target=worker.main, args=arguments, daemon=True)
        with without_interrupts():
            process.start()
        theirs.close()
        return _Running(job, process, ours)

    def _poll(self) -> list[Result]:
        """Hears what there is to hear, for a moment."""
        pipes = {running.pipe: running for running in self._running}
        results = []
        for pipe in multiprocessing.connection.wait(list(pipes), timeout=_TICK):
            running = pipes[pipe]  # type: ignore[index]
            try:
                message: worker.Message = running.pipe.recv()
            except (EOFError, OSError):
                results.append(Result(running.job, None, self._died(running)))
                self._end(running)
                continue
            if isinstance(message, worker.Phase):
                self._watch(running.job, message)
            elif isinstance(message, worker.Complaint):
                running.complaints.append(message.text)
            elif isinstance(message, worker.Failed):
                results.append(Result(running.job, None, message.error))
                self._end(running)
            else:
                results.append(Result(running.job, message, None))
                self._end(running)
        return results

    def _died(self, running: _Running) -> EngineError:
        running.process.join(_GRACE)
        code = running.process.exitcode
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        words = f" Its last words: {running.complaints[-1]}" if running.complaints else ""
        memory = " It may have run out of memory: try fewer --jobs." if code == -9 else ""
        return EngineError(
            f"the compiler died while it built {running.job.order.network} ({how}).{memory}{words}"
        )

    def _end(self, running: _Running) -> None:
        self._running.remove(running)
        running.pipe.close()
        running.process.join(_GRACE)
        if running.process.is_alive():
            running.process.kill()
            running.process.join()

    def _stop_all(self) -> None:
        """Ends every build now: what they wrote is thrown away anyway."""
        for running in self._running:
            running.process.terminate()
        deadline = time.monotonic() + _GRACE
        for running in self._running:
            running.process.join(max(0.0, deadline - time.monotonic()))
            if running.process.is_alive():
                running.process.kill()
                running.process.join()
            running.pipe.close()
        self._running.clear()
