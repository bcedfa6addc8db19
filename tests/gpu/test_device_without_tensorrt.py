"""The CUDA device on the real driver, without TensorRT: see device_without_tensorrt, which is a program of its own."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from helpers import processes

PROGRAM = Path(__file__).with_name("device_without_tensorrt.py")


def test_every_check_holds(tmp_path: Path) -> None:
    done = processes.run([sys.executable, PROGRAM, tmp_path])
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)["checks"]
    assert [name for name, holds in found.items() if not holds] == [], done.stderr


def test_the_sanitizer_finds_nothing(tmp_path: Path) -> None:
    if shutil.which("compute-sanitizer") is None:
        pytest.skip("not run: compute-sanitizer is not installed")
    command = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", sys.executable, PROGRAM]
    done = processes.run([*command, tmp_path])
    assert done.returncode == 0, done.stdout + done.stderr
