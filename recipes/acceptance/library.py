"""Which library compiles for a GPU: TensorRT-RTX for the cards that it knows, TensorRT for all others."""

from __future__ import annotations

from dataclasses import dataclass

from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.machine.gpu import Gpu
from vsr_trt.runtime.plan.roofline.machines import called

# Compute capabilities that TensorRT-RTX 1.7 builds for; the builder is asked again when engines are built.
RTX_TARGETS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
PORTABLE_TARGETS = RTX_TARGETS[1:]  # its portable engines run from Ampere on


@dataclass(frozen=True)
class Library:
    """What to compile with, and for.

    Attributes:
        backend: `tensorrt_rtx` or `tensorrt`.
        target: of `vsr-build engines`.
        extra: of the package, that installs it.
        figures: what the roofline calls the GPU; None where it has no figures of it.
    """

    backend: str
    target: str
    extra: str
    figures: str | None = None


def library_for(gpu: Gpu, asked: str = "auto") -> Library:
    """The library for a GPU.

    Args:
        gpu: the one in the machine.
        asked: `auto`, or one of the two backends.

    Raises:
        InputError: TensorRT-RTX is asked for, and does not build for this GPU.
    """
    known = gpu.capability in RTX_TARGETS
    if asked == "tensorrt_rtx" and not known:
        raise InputError(
            f"TensorRT-RTX does not build for {gpu}, only for {', '.join(RTX_TARGETS)}; take --backend tensorrt, "
            "which the extra 'gpu' installs."
        )
    if asked == "tensorrt" or not known:
        return Library("tensorrt", "this-gpu", "gpu", called(gpu.name))
    return Library("tensorrt_rtx", gpu.capability, "rtx", called(gpu.name))
