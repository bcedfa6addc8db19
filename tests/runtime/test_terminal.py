"""What `restore` says at its end."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from vsr_trt.runtime.cli.terminal import print_report
from vsr_trt.runtime.restore.job import RestoreReport


@pytest.mark.parametrize(
    ("frames", "seconds", "expected"),
    [
        (1, 1486.1, "1 frame 64x48 in 1486.1 s (1486 s a frame;"),
        (30, 330.0, "30 frames 64x48 in 330.0 s (11 s a frame;"),
        (30, 300.0, "30 frames 64x48 in 300.0 s (0.10 fps;"),
        (50, 2.0, "50 frames 64x48 in 2.0 s (25.00 fps;"),
        (0, 2.0, "0 frames 64x48 in 2.0 s (0.00 fps;"),
        (0, 0.0, "0 frames 64x48 in 0.0 s (- fps;"),
    ],
)
def test_the_rate_has_digits(frames: int, seconds: float, expected: str) -> None:
    shown = io.StringIO()
    report = RestoreReport("out.mp4", "onnxruntime-cpu", frames=frames, width=64, height=48, seconds=seconds)
    print_report(Console(file=shown, width=200), report)
    assert f"out.mp4: {expected} loading took" in shown.getvalue()
