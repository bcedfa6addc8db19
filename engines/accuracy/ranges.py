"""Running a network on recorded inputs while the range of every tensor is measured."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from vsr_trt.engines.accuracy import instrument
from vsr_trt.runtime.devices.actions import Buffers
from vsr_trt.runtime.errors import DeviceError
from vsr_trt.runtime.machine.processor import available_cores
from vsr_trt.runtime.onnxruntime.cpu import session_options

LARGEST_HALF = float(np.finfo(np.float16).max)
_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class Range:
    """What was seen of a tensor.

    Attributes:
        tensor, node, op_type, half: see `engines.accuracy.instrument.Probe`.
        largest: max|x| over all runs, NaN passed over; inf where one was seen.
        finite: whether there was neither NaN nor Inf.
    """

    tensor: str
    node: str
    op_type: str
    half: bool
    largest: float
    finite: bool

    @property
    def share(self) -> float:
        """Share of FP16's range, 65504."""
        return self.largest / LARGEST_HALF


@dataclass(frozen=True)
class Measured:
    """A network's ranges, in graph order, and its outputs of each run."""

    ranges: tuple[Range, ...]
    outputs: tuple[Buffers, ...]

    @property
    def first_not_finite(self) -> Range | None:
        """The first tensor, in graph order, that held a NaN or an Inf."""
        return next((entry for entry in self.ranges if not entry.finite), None)


def measure(
    path: Path,
    feeds: Iterable[Buffers],
    threads: int | None = None,
    step: Callable[[], None] = lambda: None,
) -> Measured:
    """Runs a graph on each of the inputs, FP16 emulated (see `engines.accuracy.instrument`).

    Args:
        path: native graph, FP32 or FP16; its inputs and outputs are not FP16.
        feeds: inputs by name, a run each.
        threads: None for the cores that this process may use.
        step: called after each run.

    Raises:
        DeviceError: ONNX Runtime refuses the graph or fails on it.
    """
    with refused(path):
        graph = instrument.prepare(path)
        names = [str(value.name) for value in graph.model.graph.outputs]
        probes = instrument.add_ranges(graph)
        session = open_session(graph, threads, in_graph_order=True)
    wanted = [*names, *(name for probe in probes for name in probe.outputs)]
    peaks = [_Peak() for _ in probes]
    outputs = []
    for feed in feeds:
        with refused(path):
            results = session.run(wanted, feed)
        outputs.append(dict(zip(names, results, strict=False)))
        scalars = iter(results[len(names) :])
        for peak in peaks:
            peak.add(*(float(next(scalars)) for _ in range(3)))
        step()
    ranges = tuple(
        Range(probe.tensor, probe.node, probe.op_type, probe.half, peak.largest, peak.finite)
        for probe, peak in zip(probes, peaks, strict=True)
    )
    return Measured(ranges, tuple(outputs))


@dataclass
class _Peak:
    """The range of one tensor so far."""

    largest: float = 0.0
    finite: bool = True

    def add(self, most: float, least: float, total: float) -> None:
        """Takes in a run's largest and smallest value and its sum of magnitudes."""
        for value in (abs(most), abs(least)):
            if not math.isnan(value):
                self.largest = max(self.largest, value)
        # FP32 holds the sum of any tensor that would fit a GPU, unless a number of it is far beyond FP16
        self.finite &= math.isfinite(total) and math.isfinite(most) and math.isfinite(least)


def open_session(
    graph: instrument.InstrumentedGraph, threads: int | None = None, *, in_graph_order: bool = False
) -> Any:
    """Emulates the graph's FP16 and loads it into ONNX Runtime, weights read from their file.

    Args:
        graph: changed in place.
        threads: None for the cores that this process may use.
        in_graph_order: run nodes in the graph's order as far as possible. ONNX Runtime's own order leaves
            the ranges to the end, which keeps every tensor in memory until then (30 times the memory).
    """
    import onnxruntime

    instrument.emulate_halves(graph)
    options = session_options(onnxruntime, threads or available_cores())
    options.add_session_config_entry(_FOLDER, str(graph.folder))
    if in_graph_order:
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        # fused nodes would come last
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    proto = ir.serde.serialize_model(graph.model)
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])


@contextlib.contextmanager
def refused(path: Path) -> Iterator[None]:
    """Turns what ONNX Runtime and the graph's reader raise into a DeviceError."""
    try:
        yield
    except MemoryError as error:
        raise DeviceError(
            f"there is not enough memory to measure {path.name}; take a smaller clip."
        ) from error
    except Exception as error:  # ONNX Runtime's errors share no base class of their own
        if isinstance(error, DeviceError):
            raise
        if "bad_alloc" in str(error):
            raise DeviceError(
                f"there is not enough memory to measure {path.name}; take a smaller clip."
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DeviceError(f"{path.name} cannot be measured with ONNX Runtime: {reason}") from error


def above(ranges: Sequence[Range], limit: float) -> Mapping[str, str]:
    """What must stay in FP32: names of tensors, or of nodes with such a tensor inside, with the reason.

    Args:
        ranges: of an FP32 graph.
        limit: share of FP16's range.
    """
    reasons: dict[str, str] = {}
    for entry in ranges:
        if not entry.finite:
            reason = f"{entry.tensor} is not finite"
        elif entry.share > limit:
            reason = f"{entry.tensor} reaches {entry.largest:.4g}, {entry.share:.0%} of FP16's range"
        else:
            continue
        reasons.setdefault(entry.tensor, reason)
        if entry.node:
            reasons.setdefault(entry.node, reason)
    return reasons
