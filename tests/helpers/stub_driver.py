"""Compiles the CUDA driver of tests/data/stub, and makes the environment of child processes that find a GPU there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vsr_trt.recipes.acceptance.cli import STAND_IN

TESTS = Path(__file__).parents[1]
STANDS_IN = "a driver and a library of tests/, which compute on the CPU,"
NAME = "NVIDIA GeForce RTX 4090"  # a GPU that the roofline has figures of
_FLAGS = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC", "-ffp-contract=off")


def compiled(folder: Path) -> Path:
    """Compiles the driver into a folder, and returns it. Skips the test where that is not possible."""
    compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if compiler is None or sys.platform != "linux":
        pytest.skip("NOT RUN: the stub driver needs a C compiler (cc, gcc or clang) and Linux")
    pytest.importorskip("cuda.bindings.driver", reason="NOT RUN: cuda-python is not installed")
    pytest.importorskip("tensorrt_rtx", reason="NOT RUN: TensorRT-RTX is not installed")
    source = TESTS / "data" / "stub" / "libcuda.c"
    subprocess.run([compiler, *_FLAGS, "-o", folder / "libcuda.so.1", source], check=True)
    return folder


def environment(driver: Path, store: Path) -> dict[str, str]:
    """Variables of a process whose children, and theirs, have the fake GPU.

    VSR_STUB_FAULT and VSR_FAKE_FAULT put faults into it: see tests/data/stub/libcuda.c and `helpers.fake_library`.

    Args:
        driver: folder of the compiled driver.
        store: folder where plans and kernels are remembered by what they were made from.
    """
    # first: the folder whose sitecustomize changes what is imported
    paths = [str(TESTS / "data" / "fake_gpu"), str(TESTS), *filter(None, sys.path)]
    return {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "LD_LIBRARY_PATH": os.pathsep.join([str(driver), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]),
        "VSR_STUB_NAME": NAME,
        STAND_IN: STANDS_IN,
        "VSR_STUB_MODULES": str(store / "kernels"),
        "VSR_FAKE_STORE": str(store / "plans"),
    }
