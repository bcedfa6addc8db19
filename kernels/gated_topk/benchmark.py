"""Times the operator's forms side by side: `python -m vsr_trt.kernels bench`.

Each form and size is measured in a process of its own, so that its memory is its own: the highest resident
memory during the runs, above what the process held before the first of them.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from vsr_trt.kernels.errors import KernelError
from vsr_trt.kernels.gated_topk.fold import AttentionWeights, fold
from vsr_trt.kernels.gpu.build import is_available
from vsr_trt.kernels.gpu.targets import TARGETS
from vsr_trt.runtime.cuda.driver import Driver, bindings
from vsr_trt.runtime.machine.children import without_interrupts
from vsr_trt.runtime.machine.gpu import detect

HEADS, WIDTH, CHANNELS = 9, 64, 4  # of the published module
_PACKAGES = ("numpy", "torch", "onnxruntime", "triton", "tensorrt-rtx-cu13")
_GRACE = 5.0  # seconds that a process has to end by itself
_PASSES = 20  # of many launches each, on a GPU
_STATUS = Path("/proc/self/status")
_RESET_PEAK = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Measurement:
    """One form at one size.

    Attributes:
        form: its name.
        height, width: of the latents.
        seconds: of each timed run, in order; on a GPU of a launch, from passes of 100.
        memory: highest, above what was held before, in bytes; None where the system does not tell.
        difference: from the first form that was measured: the largest, over the largest value of what that adds to the
            latent.
    """

    form: str
    height: int
    width: int
    seconds: tuple[float, ...]
    memory: int | None
    difference: float

    @property
    def median(self) -> float:
        """Median of the runs, in seconds."""
        return statistics.median(self.seconds)


Run = Callable[[], np.ndarray]


def seeded_weights(seed: int = 0) -> AttentionWeights:
    """Weights of the published module's sizes; a fifth of the scores or so pass the gate."""
    rng = np.random.default_rng(seed)
    rows = HEADS * WIDTH

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape) / np.sqrt(shape[-1])

    return AttentionWeights(
        HEADS,
        normal(rows, CHANNELS),
        normal(rows, CHANNELS),
        normal(rows, CHANNELS),
        normal(CHANNELS, rows),
        threshold=normal(WIDTH),
        query_bias=normal(rows),
        key_bias=normal(rows),
        value_bias=normal(rows),
        proj_bias=normal(CHANNELS),
        threshold_bias=0.1,
    )


def _latents(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    current, previous = rng.standard_normal((2, 1, CHANNELS, height, width), dtype=np.float32)
    return current, previous


def _dense_torch(height: int, width: int) -> Run:
    import torch

    from vsr_trt.kernels.gated_topk.torch_forms import DenseAttention

    module = DenseAttention(seeded_weights()).eval()
    current, previous = map(torch.from_numpy, _latents(height, width))

    def run() -> np.ndarray:
        with torch.no_grad():
            return module(current, previous).numpy()

    return run


def _folded_torch(height: int, width: int) -> Run:
    import torch

    from vsr_trt.kernels.gated_topk.torch_forms import folded_attention

    folded = fold(seeded_weights()).astype(np.float32)
    constants = [torch.from_numpy(array) for array in (folded.M, folded.P, folded.bias)]
    current, previous = map(torch.from_numpy, _latents(height, width))
    return lambda: folded_attention(current, previous, *constants).numpy()


def _onnx_function(height: int, width: int) -> Run:
    import onnxruntime

    from vsr_trt.kernels.gated_topk.onnx_function import Chunking, attention_model

    folded = fold(seeded_weights()).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if hasattr(os, "sched_getaffinity"):
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(
        attention_model(folded, Chunking.scan()).SerializeToString(),
        options,
        # the arena's default doubles every request; the runtime's extends as requested too
        providers=[("CPUExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})],
    )
    current, previous = _latents(height, width)
    return lambda: session.run(None, {"current": current, "previous": previous})[0]


def _kernel(height: int, width: int) -> Run:
    from vsr_trt.kernels.gated_topk.gpu_forms import Kernel

    folded = fold(seeded_weights()).astype(np.float32)
    here = detect()
    assert here is not None
    return Kernel(Driver(bindings()), here.capability, folded, *_latents(height, width))


def _engine(height: int, width: int) -> Run:
    import tensorrt_rtx

    from vsr_trt.kernels.gated_topk.gpu_forms import Engine
    from vsr_trt.kernels.gated_topk.onnx_function import Chunking
    from vsr_trt.kernels.gated_topk.rtx_plan import build_plan

    here = detect()
    assert here is not None
    kind = here.capability.replace("sm_", "SM")
    plan, _ = build_plan(fold(seeded_weights()), height, width, Chunking.for_compilers(None), capability=kind)
    return Engine(Driver(bindings()), tensorrt_rtx, plan, *_latents(height, width))


FORMS: dict[str, Callable[[int, int], Run]] = {
    "torch, dense": _dense_torch,
    "torch, folded": _folded_torch,
    "ONNX function": _onnx_function,
    "GPU kernel": _kernel,
    "GPU engine": _engine,
}
GPU_FORMS = ("GPU kernel", "GPU engine")
DENSE_FORMS = ("torch, dense", "torch, folded")
MOST_DENSE = (
    128 * 128
)  # positions, whose scores those forms hold at once, several times over: 9.7 GB each time


def available_forms(height: int, width: int) -> list[str]:
    """The forms that can run here: those for a GPU need one that kernel or engine are compiled for, those that hold all
    scores at once a small latent."""
    from vsr_trt.kernels.gated_topk.rtx_plan import builds_for

    here = detect()
    able = dict.fromkeys(DENSE_FORMS, height * width <= MOST_DENSE)
    able["GPU kernel"] = here is not None and here.capability in TARGETS and is_available()
    able["GPU engine"] = here is not None and builds_for(here.capability)
    return [form for form in FORMS if able.get(form, True)]


def measure(
    sizes: Sequence[tuple[int, int]],
    seconds: float = 3.0,
    report: Callable[[str], None] = lambda text: None,
) -> list[Measurement]:
    """Measures every form that can run here at every size, one process after another.

    Args:
        sizes: latents, (height, width).
        seconds: to time a form for, at least; three runs are the least, after one for warm-up.
        report: is passed the form and size that is measured next.

    Raises:
        KernelError: a form that cannot be run, or whose process ends before it is done.
    """
    context = multiprocessing.get_context("spawn")
    measured = []
    for height, width in sizes:
        expected: np.ndarray | None = None
        for form in available_forms(height, width):
            report(f"{form} at {height}x{width}")
            times, memory, result = _apart(context, form, height, width, seconds)
            added = result.astype(np.float64) - _latents(height, width)[0]
            expected = added if expected is None else expected
            difference = float(np.abs(added - expected).max() / np.abs(expected).max())
            measured.append(Measurement(form, height, width, tuple(times), memory, difference))
    return measured


def _apart(context: Any, form: str, *arguments: Any) -> tuple[list[float], int | None, np.ndarray]:
    """`_measure_here` in a process of its own: a driver that aborts takes that one with it."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, form, *arguments), daemon=True)
    with without_interrupts():
        process.start()
    theirs.close()  # so that reading ends where the process does
    try:
        found = ours.recv()
    except EOFError:
        process.join()
        found = f"its process ended with exit code {process.exitcode}."
    finally:
        process.terminate()
        process.join(_GRACE)
        process.kill()  # one that waits for a GPU does not hear of anything else
        process.join()
        ours.close()
    if isinstance(found, str):
        raise KernelError(f"{form} was not measured: {found}")
    return found


def _send(connection: Any, *arguments: Any) -> None:
    try:
        found: Any = _measure_here(*arguments)
    except Exception as error:
        # as text: not every library's error can be sent to another process
        found = str(error) or type(error).__name__
    connection.send(found)


def _measure_here(form: str, height: int, width: int, seconds: float) -> tuple[list[float], int | None, Any]:
    small = FORMS[form](16, 16)
    small()  # libraries loaded, threads started
    run = FORMS[form](height, width)
    before = _resident("VmRSS")
    if _RESET_PEAK.exists():
        _RESET_PEAK.write_text("5")
    result = run()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        if hasattr(run, "seconds"):  # the GPU's own time, of many launches
            times.append(run.seconds())
            if len(times) >= _PASSES:
                break
            continue
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    after = _resident("VmHWM")
    if before is None or after is None or hasattr(run, "seconds"):
        return times, None, result
    return times, max(0, after - before), result


def _resident(field: str) -> int | None:
    """A line of Linux's account of this process, in bytes."""
    if not _STATUS.exists() or not _RESET_PEAK.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def machine() -> dict[str, str]:
    """The processor, its cores, and the versions of what was measured."""
    found = {"processor": _processor(), "cores": str(os.cpu_count()), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def plan_memory(sizes: Sequence[tuple[int, int]]) -> list[int | str]:
    """Activation memory of a TensorRT-RTX plan of the function, in bytes for each size; or why there is none."""
    from vsr_trt.kernels.gated_topk.onnx_function import Chunking
    from vsr_trt.kernels.gated_topk.rtx_plan import activation_memory

    folded = fold(seeded_weights())
    found: list[int | str] = []
    for height, width in sizes:
        try:
            found.append(activation_memory(folded, height, width, Chunking.for_compilers(None)))
        except KernelError as error:
            found.append(f"not built: {error}")
    return found
