"""NVML of a GPU that only answers: what `pynvml` has, as far as the bench asks for it."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

NVML = {
    "sm": 1500, "max": 2000, "mem": 9000, "watts": 250, "heat": 60, "used": 5_000_000_000, "mask": 0, "shutdowns": 0,
    "old": False, "driver_missing": False,
}  # fmt: skip


def content(told: dict[str, Any]) -> dict[str, Any]:
    """The module's names.

    Args:
        told: answers, see `NVML`; they may be changed afterwards. None: not supported.
    """

    class NVMLError(Exception):
        pass

    def tell(name: str, factor: int = 1) -> Callable[..., Any]:
        def answer(*arguments: object) -> Any:
            if told[name] is None:
                raise NVMLError("Not Supported")
            return told[name] * factor

        return answer

    def init() -> None:
        if told["driver_missing"]:
            raise NVMLError("NVML Shared Library Not Found")

    def shutdown() -> None:
        told["shutdowns"] += 1

    def memory(gpu: object) -> Any:
        return types.SimpleNamespace(used=tell("used")())

    prefix = "nvmlClocksThrottleReason" if told["old"] else "nvmlClocksEventReason"
    reasons = {
        "GpuIdle": 1, "ApplicationsClocksSetting": 2, "UserDefinedClocks": 2, "SwPowerCap": 4, "SwThermalSlowdown": 32,
        "None": 0, "All": 39,
    }  # fmt: skip
    found = {
        "NVMLError": NVMLError, "nvmlInit": init, "nvmlShutdown": shutdown,
        "NVML_CLOCK_SM": "sm", "NVML_CLOCK_MEM": "mem", "NVML_TEMPERATURE_GPU": 0,
        "nvmlDeviceGetHandleByIndex": lambda index: ("index", index),
        "nvmlDeviceGetHandleByPciBusId": lambda bus: ("bus", bus),
        "nvmlDeviceGetName": lambda gpu: b"Fake 9000", "nvmlSystemGetDriverVersion": lambda: "600.1",
        "nvmlDeviceGetClockInfo": lambda gpu, kind: tell(kind)(), "nvmlDeviceGetMaxClockInfo": tell("max"),
        "nvmlDeviceGetMaxPcieLinkGeneration": lambda gpu: 5, "nvmlDeviceGetMaxPcieLinkWidth": lambda gpu: 16,
        "nvmlDeviceGetCurrPcieLinkGeneration": lambda gpu: 1, "nvmlDeviceGetCurrPcieLinkWidth": lambda gpu: 8,
        "nvmlDeviceGetPowerUsage": tell("watts", 1000), "nvmlDeviceGetTemperature": tell("heat"),
        "nvmlDeviceGetPerformanceState": lambda gpu: 0, "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetCurrentClocksThrottleReasons": tell("mask"),
    }  # fmt: skip
    if not told["old"]:
        found["nvmlDeviceGetCurrentClocksEventReasons"] = tell("mask")
    return found | {prefix + name: bit for name, bit in reasons.items()}
