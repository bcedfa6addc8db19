"""Every warning appears when its reason is there, and only then; what NVML tells is told right."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
from collections.abc import Sequence

import pytest
from helpers.bench_fakes import install_nvml
from helpers.processes import until

from vsr_trt.runtime.bench import environment, nvml
from vsr_trt.runtime.bench.cautions import cautions
from vsr_trt.runtime.bench.environment import Environment, GpuRecord
from vsr_trt.runtime.bench.nvml import Probe
from vsr_trt.runtime.bench.report import ModeResult, Observed
from vsr_trt.runtime.bench.statistics import Series

CALM = Environment({}, {}, "none", cores=4, load=0.2, nvml=None, why_no_nvml="")
STEADY = (0.1,) * 100
WAVERING = (0.095, 0.105) * 50  # 5 %


def mode(
    latency: Sequence[float] = STEADY,
    interval: Sequence[float] | None = None,
    slots: int = 1,
    **observed: Sequence[float],
) -> ModeResult:
    """Without warnings; `observed` names metrics, and stages with a leading underscore."""
    metrics = {name: Series.of(v) for name, v in observed.items() if name[0] != "_"}
    stages = {name[1:]: Series.of(v) for name, v in observed.items() if name[0] == "_"}
    seen = Observed(len(latency), Series.of(latency), metrics, stages)
    intervals = interval or latency
    return ModeResult(
        slots,
        len(latency),
        1,
        0.1,
        sum(intervals),
        1.0,
        {},
        {},
        Series.of(latency),
        Series.of(intervals),
        seen,
    )


def kinds(machine: Environment = CALM, **modes: ModeResult) -> list[str]:
    return [found.kind for found in cautions(modes, machine)]


def text(machine: Environment = CALM, **modes: ModeResult) -> str:
    (found,) = cautions(modes, machine)
    return found.text


def test_nothing_to_say() -> None:
    usual = mode(compute=STEADY, enqueue=(0.01,) * 5, H2D=(0.01,) * 5, D2H=(0.01,) * 5, _unet=STEADY)
    assert kinds(latency=usual, throughput=usual) == []


def test_unsteady_names_what_varies() -> None:
    assert "latency 5.0%" in text(latency=mode(WAVERING))
    found = text(latency=mode(compute=WAVERING, _unet=STEADY, _decoder=WAVERING))
    assert "compute 5.0%, decoder 5.0%" in found
    assert "unet" not in found
    assert kinds(latency=mode((0.0979, 0.1021) * 50)) == []  # 2.1 %


def test_a_tiny_stage_may_vary() -> None:
    assert kinds(latency=mode(_carry=(0.0001, 0.0009) * 50)) == []


def test_throughput_is_judged_by_rounds_of_all_slots() -> None:
    in_twos = (0.001, 0.199) * 50
    assert kinds(throughput=mode(interval=in_twos, slots=2, _unet=WAVERING)) == []
    assert "time for a frame" in text(throughput=mode(interval=in_twos, slots=1))
    slower = (0.1,) * 50 + (0.12,) * 50
    assert "throughput" in text(throughput=mode(interval=slower, slots=2))


def test_enqueue_bound() -> None:
    assert kinds(latency=mode(compute=STEADY, enqueue=(0.081,) * 9)) == ["enqueue-bound"]
    assert kinds(latency=mode(compute=STEADY, enqueue=(0.079,) * 9)) == []


@pytest.mark.parametrize("metric", ["H2D", "D2H"])
def test_transfer_bound(metric: str) -> None:
    assert kinds(latency=mode(compute=STEADY, **{metric: STEADY})) == ["transfer-bound"]
    assert kinds(latency=mode(compute=STEADY, **{metric: (0.09,) * 9})) == []


def test_too_few_for_a_p99() -> None:
    assert kinds(latency=mode(STEADY[:99])) == ["few"]
    assert "99 frames" in text(latency=mode(STEADY[:99]))


def test_a_busy_machine() -> None:
    assert kinds(dataclasses.replace(CALM, load=1.1)) == ["busy"]
    assert kinds(dataclasses.replace(CALM, load=0.9)) == []
    assert kinds(dataclasses.replace(CALM, load=None)) == []


def record(probe: Probe) -> GpuRecord:
    with probe.sampling():
        pass
    return GpuRecord(probe.identity(), probe.sample(), probe.during(), probe.sample())


@pytest.mark.parametrize("old", [False, True])
def test_throttled_clocks(monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    told = install_nvml(monkeypatch, mask=4 + 32, old=old)
    with Probe() as probe:
        found = record(probe)
        assert found.before.reasons == ("SwPowerCap", "SwThermalSlowdown")
        assert "SwPowerCap in 100% of the samples" in text(dataclasses.replace(CALM, nvml=found))
    told["mask"] = 1  # idle
    with Probe() as probe:
        assert kinds(dataclasses.replace(CALM, nvml=record(probe))) == []
    unsampled = dataclasses.replace(found, during=None)
    assert kinds(dataclasses.replace(CALM, nvml=unsampled)) == []


def test_an_older_driver_has_only_the_old_question(monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvml(monkeypatch, mask=4)

    def missing(gpu: object) -> int:
        raise sys.modules["pynvml"].NVMLError("Function Not Found")

    monkeypatch.setattr("pynvml.nvmlDeviceGetCurrentClocksEventReasons", missing)
    with Probe() as probe:
        assert probe.sample().reasons == ("SwPowerCap",)


def test_what_nvml_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    told = install_nvml(monkeypatch)
    with Probe() as probe:
        assert probe.answers
        assert probe.identity() == {
            "name": "Fake 9000", "driver": "600.1", "sm_clock_max": 2000, "memory_clock_max": 2000,
            "pcie_generation_max": 5, "pcie_lanes_max": 16, "pcie_generation": 1, "pcie_lanes": 8,
        }  # fmt: skip
        sample = probe.sample()
        assert (sample.sm_clock, sample.memory_clock, sample.power, sample.temperature) == (
            1500,
            9000,
            250.0,
            60,
        )
        assert (sample.power_state, sample.memory_used, sample.reasons) == (0, 5_000_000_000, ())
    assert told["shutdowns"] == 1
    assert not probe.answers


def test_what_nvml_does_not_tell_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvml(monkeypatch, watts=None, heat=None, used=None, sm=None, max=None, mask=None)
    with Probe() as probe:
        sample = probe.sample()
        assert (sample.sm_clock, sample.power, sample.temperature, sample.memory_used) == (None,) * 4
        assert sample.reasons == ()
        during = record(probe).during
        assert during is not None
        assert (during.sm_clock, during.power, during.memory_used, during.reasons) == (None, None, None, {})


def test_samples_are_taken_while_the_block_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    told = install_nvml(monkeypatch)
    monkeypatch.setattr(nvml, "PERIOD", 0.002)
    with Probe() as probe:
        before = threading.active_count()
        with probe.sampling():
            until(lambda: len(probe._samples) >= 2)
            told |= {"sm": 1200, "mask": 4, "used": 7}
        assert threading.active_count() == before
        found = probe.during()
    assert found.samples >= 3
    assert found.sm_clock is not None
    assert (found.sm_clock.min, found.sm_clock.max) == (1200, 1500)
    assert 1200 < found.sm_clock.mean < 1500
    assert found.memory_used == 5_000_000_000
    assert 0 < found.reasons["SwPowerCap"] < 1


def test_the_thread_ends_when_the_measurement_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvml(monkeypatch)
    with Probe() as probe:
        before = threading.active_count()
        with pytest.raises(KeyboardInterrupt), probe.sampling():
            raise KeyboardInterrupt
        assert threading.active_count() == before


def test_the_gpu_is_the_one_that_cuda_calls_its_first(monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvml(monkeypatch)
    monkeypatch.setattr(nvml, "_bus_of_first", lambda: b"0000:41:00.0")
    assert Probe()._gpu == ("bus", b"0000:41:00.0")
    monkeypatch.setattr(nvml, "_bus_of_first", lambda: None)
    assert Probe()._gpu == ("index", 0)


def test_no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with Probe() as probe:
        assert not probe.answers
        assert probe.why_none == "nvidia-ml-py is not installed"
        found = environment.describe(0.5, probe, None, sampled=False)
    assert found.nvml is None
    assert found.why_no_nvml == probe.why_none
    assert found.cores == os.cpu_count()
    assert found.system["python"]
    assert found.packages["numpy"]
    assert None not in found.packages.values()
    install_nvml(monkeypatch, driver_missing=True)
    assert Probe().why_none == "NVML Shared Library Not Found"


def test_a_system_without_load_averages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.load_average() is not None
    monkeypatch.delattr(os, "getloadavg")
    assert environment.load_average() is None
