"""What a frame costs on this processor, estimated: the work that a bundle counts, at a rate that is measured here."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from importlib.resources import files

from vsr_trt.runtime.bundle.manifest import Manifest
from vsr_trt.runtime.bundle.reading import migrated
from vsr_trt.runtime.bundle.records import parse
from vsr_trt.runtime.machine.children import python_child
from vsr_trt.runtime.machine.processor import available_cores
from vsr_trt.runtime.plan import roofline

HOW = "the networks' work at the rate of this processor's matrix products, measured now: at best"
_PUBLISHED = "full_size.json"  # in the folder of a family
_PATIENCE = 10.0  # seconds after which there is no estimate


@dataclass(frozen=True)
class Cost:
    """Of a frame.

    Attributes:
        operations: floating point operations, two for a multiply-add.
        seconds: at the measured rate.
    """

    operations: float
    seconds: float


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


def of(manifest: Manifest, rate: float) -> dict[tuple[int, int], Cost]:
    """(width, height) of the restored picture -> what a frame of a video costs on the CPU.

    Args:
        manifest: of the bundle whose networks run.
        rate: operations a second, see `processor_rate`.

    Raises:
        BundleError: it was built before its work was counted.
    """
    work = {size: roofline.operations(manifest, *size) for size in roofline.SIZES}
    return {size: Cost(operations, operations / rate) for size, operations in work.items()}


def published() -> list[Manifest]:
    """What networks of the families' published sizes take: manifests of such bundles, which are not here.

    Their files lie with the build side, as `recipes.counts` writes them; nothing is imported there.
    """
    folders = sorted((files("vsr_trt") / "export" / "families").iterdir(), key=lambda folder: folder.name)
    found = [file for folder in folders if (file := folder / _PUBLISHED).is_file()]
    return [
        parse(Manifest, migrated(json.loads(file.read_text(encoding="utf-8"))), file.name) for file in found
    ]
