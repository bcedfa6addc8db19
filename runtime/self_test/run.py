"""Restores two frames the way that `vsr restore` does, and compares them with what they were where this was made."""

from __future__ import annotations

import json
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.errors import VsrError
from vsr_trt.runtime.restore.job import Job, restore
from vsr_trt.runtime.self_test import clip

BUNDLE, EXPECTED = "bundle.zip", "expected.json"
# Levels (0 to 255) that a block's mean may be off. Without loss: another order of sums makes 0.01, a UNet with half its
# weights 1.25. As H.264: 1.1 here.
_MOST, _MOST_LOSSY = 0.5, 6.0


@dataclass(frozen=True)
class Check:
    """What was tried.

    Attributes:
        name: of the check.
        passed: whether it is as it should be.
        found: what was seen, or the error's sentence.
        seconds: that it took.
    """

    name: str
    passed: bool
    found: str
    seconds: float


def run() -> Iterator[Check]:
    """Yields each check when it is done; after one that fails nothing follows, as each needs the one before.

    Everything is made in a temporary folder, which is gone at the end.
    """
    with tempfile.TemporaryDirectory(prefix="vsr-self-test-") as name:
        folder = Path(name)
        steps: tuple[tuple[str, Callable[[Path], str]], ...] = (
            ("the bundle is whole", _unpack),
            ("a clip is written and read", _clip),
            ("the clip is restored", _restore),
            ("the picture is right", _compare),
            ("H.264 is written and read", _as_h264),
        )
        for title, step in steps:
            start = time.perf_counter()
            try:
                found, passed = step(folder), True
            except (VsrError, OSError, ValueError, AssertionError) as error:
                found, passed = str(error) or type(error).__name__, False
            yield Check(title, passed, found, time.perf_counter() - start)
            if not passed:
                return


def _unpack(folder: Path) -> str:
    with resources.files(__package__).joinpath(BUNDLE).open("rb") as file:
        zipfile.ZipFile(file).extractall(folder / "bundle")
    bundle = Bundle.open(folder / "bundle", check=True)
    return f"{len(bundle.manifest.files)} files, {len(bundle.manifest.networks)} networks"


def _clip(folder: Path) -> str:
    clip.write(folder / "clip.mkv")
    read = clip.read(folder / "clip.mkv")
    if not all(np.array_equal(one, other) for one, other in zip(read, clip.frames(), strict=True)):
        raise ValueError("FFmpeg changed a clip that it should keep as it is")
    return f"{len(read)} frames of {clip.SIDE}x{clip.SIDE}"


def _restore(folder: Path) -> str:
    report = restore(Job(folder / "clip.mkv", folder / "restored.mkv", folder / "bundle", codec="ffv1"))
    return f"{report.frames} frames of {report.width}x{report.height} by {report.backend}"


def _compare(folder: Path) -> str:
    return _within(folder / "restored.mkv", _MOST)


def _as_h264(folder: Path) -> str:
    restore(Job(folder / "clip.mkv", folder / "restored.mp4", folder / "bundle"))
    return _within(folder / "restored.mp4", _MOST_LOSSY)


def _within(restored: Path, most: float) -> str:
    """Compares the means of a restored clip's blocks with those that are carried along.

    Raises:
        ValueError: one is more than `most` levels off, or there are not as many.
    """
    expected = json.loads(resources.files(__package__).joinpath(EXPECTED).read_text())
    found = np.array([clip.means(frame) for frame in clip.read(restored)])
    if found.shape != np.shape(expected):
        raise ValueError(f"the restored clip is {found.shape} blocks, expected {np.shape(expected)}")
    worst = float(np.abs(found - expected).max())
    if not worst <= most:
        raise ValueError(f"a block of the picture is {worst:.2f} levels off, expected {most} at most")
    return f"no block is more than {worst:.2f} of 255 levels off"
