"""What NVML tells of the GPU: clocks, power, heat, and what holds the clocks down. Needs `nvidia-ml-py`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

PERIOD = 0.2  # seconds between two samples
_HARMLESS = frozenset({"GpuIdle", "None"})
_REASON = "nvmlClocksEventReason"
_OLD_REASON = "nvmlClocksThrottleReason"  # the same in older releases; newer ones keep it for a part of them


@dataclass(frozen=True)
class Sample:
    """One look at the GPU; None where it does not tell. MHz, watts, degrees Celsius, bytes.

    `reasons` are NVML's names of what holds the clocks down, e.g. SwPowerCap; idleness is none.
    """

    sm_clock: int | None
    memory_clock: int | None
    power_state: int | None
    power: float | None
    temperature: int | None
    memory_used: int | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Range:
    """Summary of what was sampled."""

    min: float
    mean: float
    max: float


@dataclass(frozen=True)
class During:
    """What the samples of the measurement have in common; None where the GPU does not tell.

    `reasons`: share of the samples in which something held the clocks down.
    """

    samples: int
    sm_clock: Range | None
    power: Range | None
    temperature: Range | None
    memory_used: int | None
    reasons: dict[str, float]


class Probe:
    """Asks NVML about the GPU that CUDA calls its first. `why_none` says why there is nothing to ask."""

    def __init__(self) -> None:
        self.why_none = ""
        self._library: Any = None
        self._samples: list[Sample] = []
        try:
            import pynvml
        except ImportError:
            self.why_none = "nvidia-ml-py is not installed"
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self.why_none = str(error)
            return
        try:
            self._gpu = _first(pynvml)
        except pynvml.NVMLError as error:
            self.why_none = str(error)
            pynvml.nvmlShutdown()
            return
        self._library = pynvml

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *error: object) -> None:
        library, self._library = self._library, None
        if library is not None:
            library.nvmlShutdown()

    @property
    def answers(self) -> bool:
        """Whether there is something to ask."""
        return self._library is not None

    def identity(self) -> dict[str, str | int | None]:
        """Name, driver, largest clocks in MHz, and the PCIe link: its generation and lanes, at most and now.

        A GPU that is idle may save power with a slower link.
        """
        nvml = self._library

        def text(value: str | bytes | None) -> str | None:
            return value.decode() if isinstance(value, bytes) else value

        return {
            "name": text(self._ask(nvml.nvmlDeviceGetName, self._gpu)),
            "driver": text(self._ask(nvml.nvmlSystemGetDriverVersion)),
            "sm_clock_max": self._ask(nvml.nvmlDeviceGetMaxClockInfo, self._gpu, nvml.NVML_CLOCK_SM),
            "memory_clock_max": self._ask(nvml.nvmlDeviceGetMaxClockInfo, self._gpu, nvml.NVML_CLOCK_MEM),
            "pcie_generation_max": self._ask(nvml.nvmlDeviceGetMaxPcieLinkGeneration, self._gpu),
            "pcie_lanes_max": self._ask(nvml.nvmlDeviceGetMaxPcieLinkWidth, self._gpu),
            "pcie_generation": self._ask(nvml.nvmlDeviceGetCurrPcieLinkGeneration, self._gpu),
            "pcie_lanes": self._ask(nvml.nvmlDeviceGetCurrPcieLinkWidth, self._gpu),
        }

    def sample(self) -> Sample:
        """How it is now."""
        nvml, gpu = self._library, self._gpu
        power = self._ask(nvml.nvmlDeviceGetPowerUsage, gpu)
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, gpu)
        return Sample(
            sm_clock=self._ask(nvml.nvmlDeviceGetClockInfo, gpu, nvml.NVML_CLOCK_SM),
            memory_clock=self._ask(nvml.nvmlDeviceGetClockInfo, gpu, nvml.NVML_CLOCK_MEM),
            power_state=self._ask(nvml.nvmlDeviceGetPerformanceState, gpu),
            power=None if power is None else power / 1000,
            temperature=self._ask(nvml.nvmlDeviceGetTemperature, gpu, nvml.NVML_TEMPERATURE_GPU),
            memory_used=None if memory is None else int(memory.used),
            reasons=self._reasons(),
        )

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Samples in a thread of its own while the block runs."""
        stop = threading.Event()

        def look() -> None:
            while not stop.wait(PERIOD):
                self._samples.append(self.sample())

        thread = threading.Thread(target=look, name="nvml", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self._samples.append(self.sample())  # so that a short block has one, too

    def during(self) -> During:
        """What all blocks of `sampling` saw."""
        samples = self._samples
        names = dict.fromkeys(reason for sample in samples for reason in sample.reasons)
        used = [sample.memory_used for sample in samples if sample.memory_used is not None]
        return During(
            samples=len(samples),
            sm_clock=_range([sample.sm_clock for sample in samples]),
            power=_range([sample.power for sample in samples]),
            temperature=_range([sample.temperature for sample in samples]),
            memory_used=max(used, default=None),
            reasons={name: sum(name in s.reasons for s in samples) / len(samples) for name in names},
        )

    def _reasons(self) -> tuple[str, ...]:
        nvml = self._library
        ask = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
        mask = self._ask(ask, self._gpu) if ask is not None else None
        if mask is None:  # an older nvidia-ml-py, or an older driver
            mask = self._ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, self._gpu)
        return tuple(name for bit, name in _names(nvml).items() if (mask or 0) & bit)

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The answer, or None: which questions a GPU answers depends on what it is and on who asks."""
        try:
            return function(*arguments)
        except self._library.NVMLError:
            return None


def _names(nvml: Any) -> dict[int, str]:
    names: dict[int, str] = {}
    for prefix in (_OLD_REASON, _REASON):
        for constant, bit in vars(nvml).items():
            name = constant.removeprefix(prefix)
            if name != constant and name not in ("All", "UserDefinedClocks", *_HARMLESS):
                names[bit] = name
    return names


def _range(values: list[Any]) -> Range | None:
    told = [value for value in values if value is not None]
    return Range(min(told), sum(told) / len(told), max(told)) if told else None


def _first(nvml: Any) -> Any:
    """NVML counts GPUs in another order than CUDA, and does not know CUDA_VISIBLE_DEVICES: the bus tells them apart."""
    bus = _bus_of_first()
    return nvml.nvmlDeviceGetHandleByIndex(0) if bus is None else nvml.nvmlDeviceGetHandleByPciBusId(bus)


def _bus_of_first() -> bytes | None:
    try:
        from cuda.bindings import driver
    except ImportError:
        return None
    try:
        if int(driver.cuInit(0)[0]):
            return None
        status, device = driver.cuDeviceGet(0)
        status, bus = driver.cuDeviceGetPCIBusId(32, device) if not int(status) else (status, b"")
    except RuntimeError:  # cuda-python found no driver library
        return None
    return bytes(bus).split(b"\0")[0] if not int(status) else None
