"""What kind of CPU this is, as far as a graph that ONNX Runtime has optimised depends on it.

The optimiser lays convolutions' weights out in blocks of as many channels as a vector register of the CPU
holds: 16 with AVX-512, 8 on other x86 CPUs. Kernels of the other size read such weights as nonsense,
without an error. Source: `MLAS_PLATFORM::NchwcBlockSize` in ONNX Runtime's onnxruntime/core/mlas/lib/platform.cpp.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from pathlib import Path

_X86 = frozenset({"x86_64", "amd64", "i386", "i686", "x86"})
_ARM = frozenset({"aarch64", "arm64"})


@functools.cache
def cpu_target() -> str:
    """The kind of the CPU in the machine, e.g. `cpu-avx2`, `cpu-avx512`, `cpu-neon-linux`."""
    return target_of(platform.machine(), sys.platform, _features())


def target_of(machine: str, system: str, features: frozenset[str]) -> str:
    """The kind of a CPU.

    Args:
        machine: as `platform.machine` calls it.
        system: as `sys.platform` calls it.
        features: instruction sets, in the words of Linux's /proc/cpuinfo.
    """
    name = machine.lower()
    if name in _X86:
        if not features >= {"avx2", "fma"}:
            return "cpu-sse"
        # only looked for where AVX2 is found, as ONNX Runtime does
        return "cpu-avx512" if "avx512f" in features else "cpu-avx2"
    if name in _ARM:
        # Whether convolutions are laid out in blocks is decided when ONNX Runtime is compiled for a
        # system, and FP16 convolutions are rewritten where the CPU computes in FP16.
        half = "-fp16" if features & {"asimdhp"} else ""
        return f"cpu-neon{half}-{system}"
    return f"cpu-{name}"


def _features() -> frozenset[str]:
    """What the system says about the CPU's instruction sets, those only that it lets programs use."""
    if sys.platform == "linux":
        return _linux_features(Path("/proc/cpuinfo"))
    if sys.platform == "darwin":
        names = {"avx2": "hw.optional.avx2_0", "fma": "hw.optional.fma", "avx512f": "hw.optional.avx512f"}
        return frozenset(name for name, key in names.items() if _sysctl(key))
    if sys.platform == "win32":
        kernel = ctypes.WinDLL("kernel32")
        # PF_AVX2_INSTRUCTIONS_AVAILABLE, PF_AVX512F_INSTRUCTIONS_AVAILABLE of winnt.h. It has no name
        # for FMA, which every CPU with AVX2 has.
        numbers = {"avx2": 40, "fma": 40, "avx512f": 41}
        return frozenset(name for name, number in numbers.items() if kernel.IsProcessorFeaturePresent(number))
    return frozenset()


def _linux_features(cpuinfo: Path) -> frozenset[str]:
    """The first CPU's `flags` (x86) or `Features` (ARM)."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def _sysctl(name: str) -> bool:
    value, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    status = ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0)
    return status == 0 and bool(value.value)


def available_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
