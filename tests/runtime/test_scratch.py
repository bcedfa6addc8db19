"""All networks on the CPU work in one arena, which gives back what no size needs any more."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.small_bundle import NETWORK, make, picture

from vsr_trt.runtime.onnxruntime.cpu import CpuNetworks

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
