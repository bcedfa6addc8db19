"""What engines are built for: GPUs by compute capability, several at once, or the one in the machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vsr_trt.engines.tensorrt.library import CompilerLibrary
from vsr_trt.runtime.bundle.engine_check import OLDEST_PORTABLE, capability_number
from vsr_trt.runtime.errors import EngineError, InputError
from vsr_trt.runtime.machine import gpu

PORTABLE = "portable"
THIS_GPU = "this-gpu"
# TensorRT-RTX builds plans that hold code for several capabilities. Turing's is left out of portable ones: a
# plan that names sm_75 next to others is laid out as for sm_75 alone.
_NOT_PORTABLE = ("sm_75",)


@dataclass(frozen=True)
class Target:
    """What one engine is for.

    Attributes:
        name: folder and column: `sm_89`, `portable`, or the GPU's capability for `this-gpu`.
        capabilities: compute capabilities whose GPUs run it, e.g. ("sm_80", "sm_86").
        device: name of the only GPU that runs it, None for all of the capabilities'.
        driver: newest CUDA version that its driver serves, where the engine is tuned on it.
    """

    name: str
    capabilities: tuple[str, ...]
    device: str | None = None
    driver: str | None = None


def parse(names: Sequence[str], library: CompilerLibrary) -> list[Target]:
    """Reads `--target`: names separated by commas, or given several times; without any, `portable` where
    that needs no GPU, and the GPU in the machine otherwise.

    Raises:
        InputError: a name that is none.
        EngineError: a target that this library does not build for, or no GPU where one is needed.
    """
    given = [name.strip() for text in names for name in text.split(",") if name.strip()]
    given = given or [PORTABLE if library.targets else THIS_GPU]
    return list(dict.fromkeys(_parse(name, library) for name in given))


def _parse(name: str, library: CompilerLibrary) -> Target:
    if name == THIS_GPU:
        return _this_gpu(library)
    if name == PORTABLE:
        return _portable(library)
    if not re.fullmatch(r"sm_\d{2,3}", name):
        known = ", ".join([*library.targets, PORTABLE, THIS_GPU])
        raise InputError(f"--target {name}: there is no such target; expected one of {known}.")
    if name in library.targets:
        return Target(name, (name,))
    if not library.targets:
        here = gpu.detect()
        if here is not None and here.capability == name:
            return _this_gpu(library)
        raise EngineError(
            f"{library.title} builds only for the GPU in the machine, which is {here or 'absent'}; run this on a "
            f"machine with an {name} GPU, or build for RTX GPUs without one: --backend tensorrt-rtx."
        )
    raise EngineError(
        f"{library.title} {library.version} has no target {name}; it builds for {', '.join(library.targets)}. "
        "For other GPUs, data-centre ones of sm_90 and sm_100 among them, use --backend tensorrt on a machine "
        "with that GPU."
    )


def _portable(library: CompilerLibrary) -> Target:
    if not library.targets:  # TensorRT: tuned on this GPU, for Ampere and newer ones
        here = _this_gpu(library)
        if capability_number(here.name) < OLDEST_PORTABLE:
            raise EngineError(
                f"the GPU in this machine is {here.device} ({here.name}), and portable engines of {library.title} are "
                f"for sm_{OLDEST_PORTABLE} and newer; build for it alone: --target {THIS_GPU}."
            )
        return Target(PORTABLE, (f"sm_{OLDEST_PORTABLE}",), None, here.driver)
    return Target(PORTABLE, tuple(name for name in library.targets if name not in _NOT_PORTABLE))


def _this_gpu(library: CompilerLibrary) -> Target:
    here = gpu.detect()
    if here is None:
        instead = ", ".join(library.targets)
        way = (
            f"name the target instead: {instead}" if instead else "use --backend tensorrt-rtx --target sm_89"
        )
        raise EngineError(
            f"there is no GPU in this machine ({gpu.why_none()}), so --target {THIS_GPU} names none; {way}."
        )
    if not library.targets:
        return Target(here.capability, (here.capability,), here.name, here.driver)
    return _parse(here.capability, library)
