"""All networks on the CPU work in one arena, which gives back what no size needs any more."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from helpers.small_bundle import NETWORK, make, picture
from onnx.parser import parse_model

from vsr_trt.runtime.onnxruntime import scratch
from vsr_trt.runtime.onnxruntime.cpu import CpuNetworks, session_options

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the process's memory is read from /proc")

LARGE, SMALL = picture(1024, 1024), picture(64, 64)
# (1,16,1024,1024) FP32, of which the network holds two at once
PLANE = 64 << 20


def resident() -> int:
    """Bytes of this process that are in memory now."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")
    )
    return int(line.split()[1]) * 1024


def page_faults() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.fixture
def device(tmp_path: Path) -> Iterator[CpuNetworks]:
    device = CpuNetworks(make(tmp_path / "bundle"), threads=1)
    device.load(NETWORK)
    yield device
    device.close()


def test_runs_after_the_first_ask_the_system_for_no_memory(device: CpuNetworks) -> None:
    device.run(NETWORK, LARGE)
    before = page_faults()
    device.run(NETWORK, LARGE)
    assert (page_faults() - before) * 4096 < PLANE, "the results alone are handed out again"


def test_networks_work_in_the_same_memory(device: CpuNetworks, tmp_path: Path) -> None:
    device.run(NETWORK, LARGE)
    other = CpuNetworks(make(tmp_path / "other", sign=-1), threads=1)
    other.load(NETWORK)
    before = resident()
    other.run(NETWORK, LARGE)
    assert resident() - before < PLANE / 2
    other.close()


def test_what_another_size_needed_is_given_back(device: CpuNetworks) -> None:
    device.run(NETWORK, LARGE)
    before = resident()
    device.run(NETWORK, SMALL)
    assert before - resident() > PLANE


def test_closing_gives_everything_back(device: CpuNetworks) -> None:
    device.run(NETWORK, SMALL)
    before = resident()
    device.run(NETWORK, LARGE)
    device.run(NETWORK, LARGE)
    assert resident() - before > PLANE
    device.close()
    assert resident() - before < PLANE / 2


def test_memory_is_not_kept_for_a_later_tensor_of_the_same_shape() -> None:
    """Widths 12 to 15, each twice: what is there at once is 15 wide, and not the sum of all widths."""
    widths = [*range(12, 16)] * 2
    lines = [
        f"t{k} = Concat<axis = 1>({', '.join([f'x{k}'] * width)}) m{k} = ReduceMax(t{k}, a) x{k + 1} = Add(x{k}, m{k})"
        for k, width in enumerate(widths)
    ]
    graph = "\n".join(["a = Constant<value = int64[1] {1}>()", *lines])
    head = '<ir_version: 10, opset_import: ["" : 23]>'
    model = parse_model(f"{head} g (float[1,1,h,w] x0) => (float[1,1,h,w] x{len(widths)}) {{ {graph} }}")
    options = session_options(onnxruntime, 1)
    scratch.share(onnxruntime, options)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    picture = np.ones((1, 1, 1024, 1024), np.float32)
    before = resident()
    session.run(None, {"x0": picture})
    assert resident() - before < 30 * picture.nbytes
    scratch.give_back(onnxruntime)
