"""Tests in tests/gpu need an NVIDIA GPU: they run by themselves where one is found, and are reported elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "gpu"


def why_not() -> str | None:
    """Why GPU tests cannot run here, None if they can."""
    try:
        from cuda.bindings import driver

        status = driver.cuInit(0)[0]
    except ImportError as error:
        return f"cuda-python is missing ({error})"
    except RuntimeError:  # it finds no driver; cuda-python has no error of its own for that
        return "no CUDA driver"
    return None if status == driver.CUresult.CUDA_SUCCESS else f"no GPU that CUDA can use ({status.name})"


def why_no_torch() -> str | None:
    """Why torch cannot compute on the GPU, None if it can."""
    import torch

    return None if torch.cuda.is_available() else "torch is a build without CUDA, or newer than the driver"


def skip_without_gpu(items: Sequence[pytest.Item]) -> None:
    """Skips the folder's tests where there is no GPU."""
    ours = [item for item in items if FOLDER in item.path.parents]
    reason = why_not() if ours else None
    for item in ours if reason else ():
        item.add_marker(pytest.mark.skip(reason=f"not run: {reason}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says in plain words what was not run."""
    reports = terminalreporter.getreports("skipped")
    reasons = {r.longrepr[2].removeprefix("Skipped: ") for r in reports if r.nodeid.startswith("tests/gpu/")}
    count = sum(r.nodeid.startswith("tests/gpu/") for r in reports)
    if count:
        terminalreporter.section("GPU tests")
        terminalreporter.line(f"{count} tests of tests/gpu: {'; '.join(sorted(reasons))}")
