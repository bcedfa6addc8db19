"""The GPU in the machine, if there is one and its driver answers. Asks cuda-python, which is optional."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """The first GPU that CUDA sees.

    Attributes:
        name: as the driver calls it.
        capability: compute capability, e.g. `sm_89`.
        memory: in bytes.
        driver: the newest CUDA version that the driver serves, e.g. `13.0`.
    """

    name: str
    capability: str
    memory: int
    driver: str

    def __str__(self) -> str:
        return f"{self.name} ({self.capability})"


class _NoGpuError(Exception):
    """Why there is none."""


def detect() -> Gpu | None:
    """The GPU, or None; `why_none` says why."""
    found = _look()
    return found if isinstance(found, Gpu) else None


def why_none() -> str:
    """Why `detect` returns None, in a few words; empty if it does not."""
    found = _look()
    return "" if isinstance(found, Gpu) else found


@cache
def _look() -> Gpu | str:
    try:
        from cuda.bindings import driver
    except ImportError:
        return "cuda-python is not installed"
    try:
        _call(driver.cuInit, 0)
        if _call(driver.cuDeviceGetCount) < 1:
            return "CUDA sees no device"
        device = _call(driver.cuDeviceGet, 0)
        kind = driver.CUdevice_attribute
        major = _call(driver.cuDeviceGetAttribute, kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)
        minor = _call(driver.cuDeviceGetAttribute, kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)
        version = _call(driver.cuDriverGetVersion)
        name = _call(driver.cuDeviceGetName, 128, device).split(b"\0")[0].decode()
        memory = _call(driver.cuDeviceTotalMem, device)
    except _NoGpuError as error:
        return str(error)
    except RuntimeError:  # cuda-python found no driver library
        return "no CUDA driver"
    return Gpu(name, f"sm_{major}{minor}", memory, f"{version // 1000}.{version % 1000 // 10}")


def _call(function: Any, *arguments: Any) -> Any:
    status, *results = function(*arguments)
    if int(status) != 0:
        raise _NoGpuError(f"CUDA answers {status.name}")
    return results[0] if results else None
