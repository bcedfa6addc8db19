"""The machine that was measured: without it, numbers say little."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vsr_trt.runtime import doctor
from vsr_trt.runtime.bench.nvml import During, Probe, Sample

# Of one core for each core. One program on a two-core machine is half, on a large one it disturbs nobody.
BUSY = 0.25


@dataclass(frozen=True)
class GpuRecord:
    """What NVML reported: who it is, and how it was before, during and after the measurement.

    Attributes:
        identity: name, driver, largest clocks in MHz.
        before, after: one look each.
        during: looks every 0.2 s of the warm-ups and measurements; None for a backend of the CPU.
    """

    identity: dict[str, str | int | None]
    before: Sample
    during: During | None
    after: Sample


@dataclass(frozen=True)
class Environment:
    """The machine.

    Attributes:
        system: processor, cores, memory, operating system, Python.
        packages: versions of those that are installed.
        gpu: its name, or why there is none.
        cores: of the whole machine.
        load: processes that ran or wanted to, on average over the last minute before the start; None where
            the system does not tell (Windows).
        nvml: None where NVML does not answer; `why_no_nvml` says why.
    """

    system: dict[str, str]
    packages: dict[str, str]
    gpu: str
    cores: int
    load: float | None
    nvml: GpuRecord | None
    why_no_nvml: str

    @property
    def busy(self) -> bool:
        """Whether other programs kept the processor at work before the start."""
        return self.load is not None and self.load > BUSY * self.cores


def load_average() -> float | None:
    """Returns the load of the last minute; None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def describe(load: float | None, probe: Probe, before: Sample | None, sampled: bool) -> Environment:
    """What there is to say after the measurement.

    Args:
        load: the average before it.
        probe: that has been sampling.
        before: what it saw before; None where there is nothing to ask.
        sampled: whether it looked during the measurement.
    """
    found = doctor.diagnose(None)
    record = None
    if before is not None:
        during = probe.during() if sampled else None
        record = GpuRecord(probe.identity(), before, during, probe.sample())
    # load averages are the machine's, so they are compared with all its cores, not with this process's
    return Environment(
        system=found.system,
        packages={name: version for name, version in found.packages.items() if version},
        gpu=found.gpu,
        cores=os.cpu_count() or 1,
        load=load,
        nvml=record,
        why_no_nvml=probe.why_none,
    )
