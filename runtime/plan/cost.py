"""What a frame costs on this processor, estimated: the work that a bundle counts, at a rate that is measured here."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.machine.children import python_child
from vsr_trt.runtime.machine.processor import available_cores
from vsr_trt.runtime.plan import roofline
from vsr_trt.runtime.schedule import forms
from vsr_trt.runtime.schedule.canvas import FrameShape

SIZES = ((512, 512), (1280, 720), (1920, 1080))  # of the restored picture
HOW = "the networks' work at the rate of this processor's matrix products, measured now: at best"
_PATIENCE = 10.0  # seconds after which there is no estimate


@dataclass(frozen=True)
class Cost:
    """Of a frame.

    Attributes:
        operations: floating point operations, two for a multiply-add.
        seconds: at the measured rate.
        memory: bytes that the process takes at most, estimated; None where that is not known.
    """

    operations: float
    seconds: float
    memory: int | None


def processor_rate(seconds: float = 1.0) -> float | None:
    """Operations a second of all cores, from one of them; None if that does not end in time.

    Measured in a process of its own: on a busy machine OpenBLAS spent minutes in a threaded product, its threads
    waiting for each other, where no signal reaches Python. An estimate must not cost the work.

    Args:
        seconds: how long it is measured.
    """
    program = f"from vsr_trt.runtime.plan import roofline; print(roofline.matrix_rate({seconds}))"
    command, variables = python_child("-c", program)
    variables |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=variables,
            timeout=_PATIENCE,
            check=True,
        )
        return float(done.stdout) * available_cores()
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def of(bundle: Bundle, rate: float) -> dict[tuple[int, int], Cost]:
    """(width, height) of the restored picture -> what a frame of a video costs on the CPU.

    Args:
        bundle: whose networks run.
        rate: operations a second, see `processor_rate`.

    Raises:
        BundleError: it was built before its work was counted.
    """
    found = {}
    manifest = bundle.manifest
    for width, height in SIZES:
        operations = roofline.operations(manifest, width, height)
        shape = FrameShape.of_result(manifest, width, height)
        form = forms.choose_form(bundle, *shape.given, Options(), forms.Available.of(None))
        found[width, height] = Cost(operations, operations / rate, form.memory)
    return found
