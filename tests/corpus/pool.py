"""Runs recipes in worker processes: a crash or a hang is a finding of the file that was being worked on."""

from __future__ import annotations

import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from corpus.recipe import Recipe

ROOT = Path(__file__).parents[2]
PATHS = [str(ROOT / "tests")]
HANG = 300  # seconds for a file


@dataclass
class Checked:
    """What became of a recipe. result: "restored", "refused", "damaged", "not made", "crash" or "hang"."""

    recipe: Recipe
    result: str
    findings: list[str] = field(default_factory=list)
    said: str = ""
    seconds: float = 0.0


class Worker:
    """A process that checks one recipe after the other."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def check(self, recipe: Recipe) -> Checked:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "corpus.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(PATHS)},
            )
        process = self._process
        assert process.stdin is not None
        process.stdin.write(recipe.dumps() + "\n")
        process.stdin.flush()
        folder = self._line()
        answer = self._line() if folder else ""
        if answer:
            return Checked(recipe, **json.loads(answer))
        hung = not self._ended(process)
        if hung:
            process.kill()
        code = process.wait()
        self.close()
        if folder:
            shutil.rmtree(folder.strip(), ignore_errors=True)
        if hung:
            return Checked(recipe, "hang", [f"no answer within {HANG} s"])
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Checked(recipe, "crash", [f"the process died: {how}"])

    def _line(self) -> str:
        """The next line of the answer; empty if it does not come."""
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], HANG)
        return self._process.stdout.readline() if ready else ""

    @staticmethod
    def _ended(process: subprocess.Popen[str]) -> bool:
        try:
            process.wait(1)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def run(recipes: list[Recipe], jobs: int) -> Iterator[Checked]:
    """Checks all, `jobs` at a time, and yields each as it is done."""
    waiting: queue.SimpleQueue[Recipe | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[Checked | BaseException] = queue.SimpleQueue()
    for recipe in recipes:
        waiting.put(recipe)
    for _ in range(jobs):
        waiting.put(None)

    def work() -> None:
        worker = Worker()
        try:
            while (recipe := waiting.get()) is not None:
                done.put(worker.check(recipe))
        except BaseException as error:
            done.put(error)
        finally:
            worker.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for _ in recipes:
        checked = done.get()
        if isinstance(checked, BaseException):
            raise checked
        yield checked
    for thread in threads:
        thread.join()
