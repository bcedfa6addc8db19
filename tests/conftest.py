"""Fixtures that several test files share. Bundles are built once a session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import captures
from helpers.examples import examples
from helpers.golden import GOLDEN, PROMPT, read_png
from helpers.gpu_hooks import pytest_terminal_summary, skip_without_gpu, why_no_torch
from helpers.once import shared
from hypothesis import settings

from vsr_trt.export.bundle import BundleRequest, build
from vsr_trt.recipes.kernel_store import open_store

__all__ = ["pytest_terminal_summary"]  # pytest looks for hooks here

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # as many processes as cores: threads of each would wait for those of the others

# No test is about how long something takes.
settings.register_profile("default", deadline=None, max_examples=examples(100))
settings.load_profile("default")


@pytest.fixture(scope="session")
def golden() -> Path:
    """The golden case: a small model in the published layouts and what the published code makes of it."""
    return GOLDEN


@pytest.fixture(scope="session")
def golden_arrays() -> dict[str, np.ndarray]:
    """`prompt_embeds`, and for each frame `raw_i` and `latent_i`."""
    with np.load(GOLDEN / "golden.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def golden_frames() -> list[np.ndarray]:
    """The golden case's 4 input frames, (128,128,3) uint8."""
    return [read_png(path) for path in sorted((GOLDEN / "in").glob("*.png"))]


@pytest.fixture(scope="session")
def golden_results() -> list[np.ndarray]:
    """The published code's 4 output frames, (512,512,3) uint8."""
    return [read_png(path) for path in sorted((GOLDEN / "out").glob("*.png"))]


@pytest.fixture(scope="session")
def golden_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden model's bundle in FP32. Read it only: copy it to change it."""
    return shared(tmp_path_factory, "fp32", lambda out: _build(out, "fp32"))


@pytest.fixture(scope="session")
def golden_bundle_fp16(tmp_path_factory: pytest.TempPathFactory, golden_bundle: Path) -> Path:
    """The same in FP16. Modules are captured once for both, which is most of an export's time."""
    return shared(tmp_path_factory, "fp16", lambda out: _build(out, "fp16"))


def _build(out: Path, precision: str) -> None:
    request = BundleRequest(
        checkpoint=GOLDEN / "model.pkl",
        out=out,
        parts={"sd": GOLDEN / "sd"},
        prompt=PROMPT,
        precision=precision,
        kernel_store=open_store(out.parent / "kernels"),
        jobs=1,
    )
    with captures.kept(out.parent / "captures"):
        build(request)


@pytest.fixture(scope="session")
def torch_on_gpu() -> None:
    """For tests of `gpu/` that compute with torch; the others need the driver alone."""
    if (reason := why_no_torch()) is not None:
        pytest.skip(f"not run: {reason}")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tensors of a few numbers, threads cost more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def ordinary_priority() -> Iterator[None]:
    """A thread that a library made the first of the machine would starve all tests after it."""
    yield
    assert getattr(os, "sched_getscheduler", lambda process: 0)(0) == 0


# Files in which most of the time goes. The first ones need no bundle of the golden model: two processes are at them for
# about the time until one of them makes that, at the fifth file, while the other one goes on with the next ones.
SLOW = (
    "test_star_export", "test_star", "test_media", "test_pictures",
    "test_parity", "test_cuda_device", "test_triton_kernel", "test_phases", "test_strips",
    "test_corpus", "test_alternatives", "test_engine_faults", "test_engine_builds", "test_restorer", "test_cli",
    "test_engines_chained", "test_verify", "test_shell", "test_lean_install", "test_acceptance", "test_bundle",
    "test_kernels_cli", "test_stub_driver", "test_onnx_function", "test_rtx_plan", "test_schedule_file",
    "test_host_engines", "test_schema_1",
)  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fast files first; with several processes the slow ones, so that none is left alone at the end. GPU tests are
    skipped where there is no GPU."""
    skip_without_gpu(items)

    def place(item: pytest.Item) -> int:
        return SLOW.index(item.path.stem) if item.path.stem in SLOW else len(SLOW)

    alone = "PYTEST_XDIST_WORKER" not in os.environ
    items.sort(key=lambda item: -place(item) if alone else place(item))
