"""A Restorer that only waits, on a clock of its own, and a GPU that only answers."""

from __future__ import annotations

import argparse
import functools
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.fake_nvml import NVML, content
from helpers.small_manifest import small

from vsr_trt.runtime import doctor
from vsr_trt.runtime.bench import environment
from vsr_trt.runtime.bundle.options import Settings
from vsr_trt.runtime.cli import bench as cli
from vsr_trt.runtime.devices.timeline import Span


class Clock:
    """Seconds that pass only when somebody lets them."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Maker:
    """Makes fake Restorers and remembers them.

    Args:
        seconds: that frame n keeps the only resource for.
        late: even with one slot, results come with `flush` only.
        load: seconds that the very first frame takes more.
        observing: seconds that an observed frame takes more.
    """

    def __init__(
        self,
        seconds: Callable[[int], float] = lambda n: 1 / 64,  # sums of these are exact
        *,
        late: bool = False,
        load: float = 0.0,
        observing: float = 0.0,
        backend: str = "onnxruntime-cpu",
        slots: int = 2,
    ) -> None:
        self.clock = Clock()
        self.seconds, self.late, self.load, self.observing = seconds, late, load, observing
        self.backend, self.slots = backend, slots
        self.made: list[Fake] = []
        self.fail_at: tuple[int, BaseException] | None = None  # a frame's number, over all Restorers
        self.frames = 0

    def __call__(self, bundle: Path, settings: Settings | None = None, **options: Any) -> Fake:
        self.made.append(Fake(self, settings or Settings(), options))
        return self.made[-1]


class Fake:
    window = 1

    def __init__(
        self, maker: Maker, settings: Settings | None = None, options: dict[str, Any] | None = None
    ) -> None:
        settings, options = settings or Settings(), options or {}
        self.maker, self.settings, self.options = maker, settings, options
        self.backend, self.slots = maker.backend, options.get("slots", maker.slots)
        self.load_seconds, self.memory = {"unet": 1.5, "all": 2.0}, {"buffers": 2 * 10**9, "pinned": 10**9}
        self.observer = options.get("observer")
        self.waiting: list[int] = []
        self.pushed = 0
        self.sizes: list[tuple[int, ...]] = []
        self.prepared: tuple[int, int] | None = None
        self.open = True

    def prepare(self, height: int, width: int) -> None:
        self.prepared = height, width

    def push(self, frame: np.ndarray) -> list[np.ndarray]:
        assert self.open
        assert self.prepared in (None, frame.shape[:2])
        if self.maker.fail_at is not None and self.maker.frames == self.maker.fail_at[0]:
            raise self.maker.fail_at[1]
        self.maker.frames += 1
        self.sizes.append(frame.shape)
        self.waiting.append(self.pushed)
        self.pushed += 1
        keep = self.slots if self.maker.late else self.slots - 1
        return [self._finish() for _ in range(len(self.waiting) - keep)]

    def flush(self) -> list[np.ndarray]:
        return [self._finish() for _ in range(len(self.waiting))]

    def close(self) -> None:
        self.open = False

    def _finish(self) -> np.ndarray:
        number = self.waiting.pop(0)
        start = self.maker.clock.now
        seconds = self.maker.seconds(number) + (self.maker.load if number == 0 else 0)
        self.maker.clock.now += seconds + (self.maker.observing if self.observer else 0)
        if self.observer:
            for span in spans(number, number % self.slots, start, seconds):
                self.observer(span)
        return np.zeros((1, 1, 3), np.uint8)


def spans(frame: int, slot: int, start: float, seconds: float) -> list[Span]:
    """Of one frame: upload 10 %, unet in two steps 60 %, decoder 20 % with the next lane, download 10 %."""
    ends = [start + seconds * share for share in (0, 0.1, 0.4, 0.7, 0.9, 1)]
    steps = [
        ("upload", "upload", "copies", "upload"),
        ("unet[0]", "unet", "main", "network"),
        ("unet[1]", "unet", "main", "network"),
        ("decode", "decoder", "side", "network"),
        ("download", "download", "copies", "download"),
    ]
    return [
        Span(frame, slot, step, stage, lane, action, ends[i], ends[i + 1], enqueue=0.002 * seconds)
        for i, (step, stage, lane, action) in enumerate(steps)
    ]


def bundle(folder: Path) -> Path:
    """A directory with a manifest, which is all that is read of it."""
    folder.mkdir(exist_ok=True)
    (folder / "bundle.json").write_text(json.dumps(small()))
    return folder


_diagnosis = functools.cache(lambda: doctor.diagnose(None))


def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle machine, whose packages are looked up once, and a terminal of 80 columns."""
    found = _diagnosis()
    monkeypatch.setattr(environment, "load_average", lambda: 0.0)
    monkeypatch.setattr(doctor, "diagnose", lambda bundle: found)
    monkeypatch.setenv("COLUMNS", "80")


def options(*arguments: object) -> argparse.Namespace:
    """As the command line reads them."""
    parser = argparse.ArgumentParser()
    cli.add_command(parser.add_subparsers(dest="command"))
    return parser.parse_args(["bench", *map(str, arguments)])


def install_nvml(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> dict[str, Any]:
    """Puts a fake pynvml in place; its answers may be changed afterwards. None: not supported."""
    told = NVML | answers
    library = types.ModuleType("pynvml")
    library.__dict__.update(content(told))
    monkeypatch.setitem(sys.modules, "pynvml", library)
    return told
