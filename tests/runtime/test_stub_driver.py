"""The real cuda-python on a driver that is compiled here: every call passes the real binary interface."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from helpers import processes, stub_driver

TESTS = Path(__file__).parents[1]
MAKES = {
    "cuMemAlloc": "cuMemFree",
    "cuMemHostAlloc": "cuMemFreeHost",
    "cuStreamCreate": "cuStreamDestroy",
    "cuEventCreate": "cuEventDestroy",
    "cuModuleLoadData": "cuModuleUnload",
    "cuGraphInstantiate": "cuGraphExecDestroy",
    "cuStreamEndCapture": "cuGraphDestroy",
    "cuDevicePrimaryCtxRetain": "cuDevicePrimaryCtxRelease",
}


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stub_driver.compiled(tmp_path_factory.mktemp("stub"))


def through(stub: Path, folder: Path, graphs: str) -> tuple[dict, list[list[str]]]:
    log = folder / "calls.log"
    (folder / "bundle").mkdir()
    paths = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
    variables = {"LD_LIBRARY_PATH": str(stub), "VSR_STUB_LOG": str(log), "PYTHONPATH": paths}
    script = TESTS / "helpers" / "stub_run.py"
    done = processes.run([sys.executable, script, folder / "bundle", graphs], env=os.environ | variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), [line.split() for line in log.read_text().splitlines()]


def test_the_bytes_are_the_cpus_and_everything_is_given_back(stub: Path, tmp_path: Path) -> None:
    found, calls = through(stub, tmp_path, "eager")
    assert found["gpu"] == "Stub (sm_89)"
    assert found["got"] == found["expected"]
    count = Counter(call[0] for call in calls)
    for make, release in MAKES.items():
        assert count[make] == count[release], f"{make} and {release}"
    assert ["cuMemcpyHtoDAsync", str(136 * 200 * 3)] in calls
    assert ["cuMemcpyDtoHAsync", str(16 * 136 * 200 * 3)] in calls
    # blocks, threads, shared memory and integers of both blendings, as numbers that came through the interface
    assert {" ".join(call[1:]) for call in calls if call[0] == "cuLaunchKernel"} == {
        "1 72 4 128 1 1 0: 2 2 4 64 64 72 104",
        "7 576 3 128 1 1 0: 2 2 3 512 512 576 832",
    }
    assert count["cuMemcpy3DAsync"] > 0


def test_graphs_are_made_launched_and_destroyed(stub: Path, tmp_path: Path) -> None:
    _, calls = through(stub, tmp_path, "graphs")
    count = Counter(call[0] for call in calls)
    for make, release in MAKES.items():
        assert count[make] == count[release], f"{make} and {release}"
    assert count["cuStreamBeginCapture"] == count["cuGraphInstantiate"] > 0
    assert {call[1] for call in calls if call[0] == "cuStreamBeginCapture"} == {"1"}, "thread-local"
    assert count["cuGraphLaunch"] == 3 * count["cuGraphInstantiate"] // 2  # 3 frames, 2 slots
    last = max(i for i, call in enumerate(calls) if call[0] == "cuGraphExecDestroy")
    first = next(i for i, call in enumerate(calls) if call[0] == "cuMemFree")
    assert last < first, "graphs go before the memory that they work in"


@pytest.mark.thorough
def test_the_check_for_a_real_driver_holds_here(stub: Path, tmp_path: Path) -> None:
    """The program for machines with a GPU and no TensorRT: whole, tiles, slots, graphs, threads, interop, leaks."""
    (tmp_path / "bundle").mkdir()
    variables = {"LD_LIBRARY_PATH": str(stub), "VSR_STUB_LOG": str(tmp_path / "log")}
    program = TESTS / "gpu" / "device_without_tensorrt.py"
    done = processes.run([sys.executable, program, tmp_path / "bundle"], env=os.environ | variables)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert len(found["checks"]) == 15
    assert all(found["checks"].values())
    log = (tmp_path / "log").read_text()
    refused, found = log.count("cuModuleLoadData no machine"), log.count("cuModuleGetFunction blend_tiles")
    assert refused == found > 0, "what is no machine code, then its PTX"


def test_it_imports_nothing_but_numpy_cuda_python_and_the_runtime() -> None:
    text = (TESTS / "gpu" / "device_without_tensorrt.py").read_text()
    roots = {match[1] for match in re.finditer(r"^(?:from|import) (\w+)", text, re.MULTILINE)}
    assert roots - set(sys.stdlib_module_names) == {"numpy", "cuda", "vsr_trt"}
    assert set(re.findall(r"vsr_trt\.(\w+)", text)) == {"runtime"}


@pytest.mark.parametrize("target", ["sm_75", "sm_90", "sm_120"])
def test_its_kernels_are_assembled(target: str, tmp_path: Path) -> None:
    knobs = pytest.importorskip(
        "triton.knobs", reason="NOT RUN: Triton, which brings ptxas, is not installed"
    )
    for name in ("mix", "blend_tiles"):
        text = (TESTS / "data" / "stub" / f"{name}.ptx").read_text()
        (tmp_path / "k.ptx").write_text(text)
        command = [knobs.nvidia.ptxas_blackwell.path, f"-arch={target}", "k.ptx", "-o", "k.cubin"]
        subprocess.run(command, check=True, cwd=tmp_path)


def test_a_driver_without_a_function_is_too_old_and_not_missing(stub: Path, tmp_path: Path) -> None:
    script = """
from cuda.bindings import driver
from vsr_trt.runtime.cuda.driver import Driver
Driver(driver).call("cuCtxSynchronize")
"""
    variables = {"LD_LIBRARY_PATH": str(stub), "VSR_STUB_LOG": str(tmp_path / "log")}
    done = processes.run([sys.executable, "-c", script], env=os.environ | variables)
    assert "this CUDA driver is too old: it has no cuCtxSynchronize" in done.stderr
