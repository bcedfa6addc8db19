"""From a torch module to a checked ONNX file: what all networks have in common.

A `NetworkSpec` describes one network (tensors, symbolic sizes and their bounds, inputs to try it on).
`export` traces it, cleans the graph, writes it with its weights next to it, and compares the file's
results in ONNX Runtime with torch's, at sizes other than the traced one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from vsr_trt.engines.graphs import precision as fp16
from vsr_trt.engines.graphs.clean import attach_functions, clean, count_nodes, count_parameters
from vsr_trt.engines.graphs.cpu import lower
from vsr_trt.engines.graphs.narrow import LEAST
from vsr_trt.engines.graphs.work import measure
from vsr_trt.export.capture import to_onnx
from vsr_trt.runtime.bundle.manifest import Bound, Network, Work
from vsr_trt.runtime.bundle.manifest import Tensor as TensorRecord
from vsr_trt.runtime.bundle.symbols import Polynomial, dimension
from vsr_trt.runtime.errors import ExportError

if TYPE_CHECKING:
    import onnx

OPSET = 23  # Attention and GroupNormalization are single nodes from here on
Precision = Literal["fp32", "fp16"]
Sizes = dict[str, int]

_DTYPES = {
    torch.float32: ("float32", ir.DataType.FLOAT),
    torch.float16: ("float16", ir.DataType.FLOAT16),
    torch.uint8: ("uint8", ir.DataType.UINT8),
    torch.int64: ("int64", ir.DataType.INT64),
}
_TINY = 1e-6  # below this an output counts as zero, and differences from it as absolute
STRIPS = 8  # of pictures: latents come in multiples of 8 rows
_INLINE = 1024  # bytes from which a weight lies next to the graph instead of in it
_FP32_TOLERANCE = 2e-4  # largest difference, in units of the largest value
_FP16_TOLERANCE = 5e-2


@dataclass(frozen=True)
class Input:
    """A network's input: name, torch dtype, symbolic shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]


class Output(Input):
    """A network's output: name, torch dtype, symbolic shape."""


@dataclass(frozen=True)
class NetworkSpec:
    """What `export` needs to know of a network.

    Attributes:
        name: the network's name, also the file's.
        module: takes the inputs by name; returns one tensor or a tuple.
        inputs, outputs: in order.
        bounds: of each symbolic dimension.
        dummy_inputs: (sizes, generator) -> inputs by name, shaped by `sizes`.
        traced: the sizes it is traced at.
        checked: the sizes it is compared with torch at.
        always_fp32: why it is not converted to FP16, or None if it is.
        tolerance: largest difference from torch, in units of the largest value; for integer outputs
            in levels. None for the precision's own.
        functions: ONNX local functions that the graph calls.
        in_strips: whether it may be computed in strips of rows: a network on pictures that normalises over them.
        scratch: bytes that a run on the CPU works in, as was measured at full size; empty where nobody did, or where
            the lowering for the CPU tells.
        narrow: whether the CPU keeps weights in FP16 that FP16 holds exactly, and widens them in each run: worth it for
            a network with large weights that does much work with each of them.
    """

    name: str
    module: nn.Module
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    bounds: dict[str, Bound]
    dummy_inputs: Callable[[Sizes, torch.Generator], dict[str, Tensor]]
    traced: Sizes
    checked: tuple[Sizes, ...]
    always_fp32: str | None = None
    tolerance: float | None = None
    functions: tuple[onnx.FunctionProto, ...] = field(default=())
    in_strips: bool = False
    scratch: Mapping[str, float] = field(default_factory=dict)
    narrow: bool = False


@dataclass(frozen=True)
class Exported:
    """The result: the manifest's record of the network, and what the table shows.

    Attributes:
        record: for the manifest; `graphs` has `native` and, where the lowering gave one, `cpu`.
        bytes: of all its files.
        seconds: spent on trace, conversion, writing and checks.
        worst: largest difference from torch that the checks found, as for `tolerance`.
        uncounted: why `record.work` is missing, None where it is there.
        phases: seconds of each phase of the export.
    """

    name: str
    record: Network
    bytes: int
    seconds: float
    worst: float
    uncounted: str | None = None
    phases: Mapping[str, float] = field(default_factory=dict)


class _Phases:
    """Seconds of each phase; the next one ends the one before.

    Args:
        tell: is passed the name of each phase as it starts.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._began = tell, dict[str, float]()

    def __call__(self, name: str) -> None:
        """Begins a phase."""
        self._began[name] = time.perf_counter()
        self._tell(name)

    def seconds(self) -> dict[str, float]:
        """What each has taken, the last one up to now."""
        ends = [*list(self._began.values())[1:], time.perf_counter()]
        return {name: end - began for (name, began), end in zip(self._began.items(), ends, strict=True)}


def export(
    spec: NetworkSpec,
    folder: Path,
    precision: Precision,
    phase: Callable[[str], None] = lambda name: None,
    *,
    cpu: bool = True,
) -> Exported:
    """Writes `<folder>/<name>.onnx` (weights in `<name>.onnx.data`) and checks it.

    The spec's module is given up: full-size weights must not be in memory twice when ONNX Runtime
    loads the file, so the caller should hold no other reference.

    Args:
        spec: the network.
        folder: an existing directory.
        precision: `fp16` stores weights and computes in FP16, but for the islands that
            `engines.graphs.precision` names; inputs and outputs stay as the spec says.
        phase: is passed the name of each phase as it starts.
        cpu: write the form for the CPU, too.

    Raises:
        ExportError: the graph is refused, or its results differ from torch's.
    """
    started, phases = time.perf_counter(), _Phases(phase)
    phases("reference")
    references = [_reference(spec, sizes) for sizes in spec.checked]
    phases("trace")
    model = trace(spec)
    native = folder / f"{spec.name}.onnx"
    if precision == "fp16" and spec.always_fp32 is None:
        phases("fp16")
        fp16.convert(model)
    nodes, parameters = count_nodes(model), count_parameters(model)
    phases("write")
    files = _write(model, spec, native)
    del model
    _release(spec)
    phases("count")
    work, uncounted = _work(native, spec)
    graphs = {"native": native}
    scratch: dict[str, Polynomial] = {"cpu": dict(spec.scratch)} if spec.scratch else {}
    if cpu:
        phases("lower")
        for lowered in lower(native, spec.in_strips, LEAST if spec.narrow else None):
            graphs[lowered.form] = lowered.path
            files += [lowered.path] if lowered.data is None else [lowered.path, lowered.data]
            if lowered.scratch:
                scratch[lowered.form] = _polynomial(spec, lowered.scratch)
    phases("check")
    worst = max(_compare(spec, path, references, precision) for path in graphs.values())
    record = Network(
        inputs=tuple(_record(tensor) for tensor in spec.inputs),
        outputs=tuple(_record(tensor) for tensor in spec.outputs),
        bounds=spec.bounds,
        graphs={form: f"{folder.name}/{path.name}" for form, path in graphs.items()},
        nodes=nodes,
        parameters=parameters,
        always_fp32=spec.always_fp32,
        work=work,
        strips=STRIPS if "cpu_strips" in graphs else 1,
        scratch=scratch,
    )
    size = sum(path.stat().st_size for path in files)
    return Exported(
        spec.name, record, size, time.perf_counter() - started, worst, uncounted, phases.seconds()
    )


def _polynomial(spec: NetworkSpec, each: float) -> Polynomial:
    """So many for each pixel of the network's picture."""
    picture = next(tensor for tensor in spec.inputs if len(tensor.shape) == 4)
    (high, row), (wide, column) = (dimension(size) for size in picture.shape[2:])
    return {f"{row}*{column}": each * high * wide}


def trace(spec: NetworkSpec) -> ir.Model:
    """Traces the module into a clean ONNX graph, weights by reference."""
    inputs = _inputs(spec, spec.traced)
    dims = _torch_dims(spec)
    shapes = {
        tensor.name: {axis: dims[size] for axis, size in enumerate(tensor.shape) if isinstance(size, str)}
        for tensor in spec.inputs
    }
    try:
        model = to_onnx(spec.module.eval(), inputs, shapes, [tensor.name for tensor in spec.outputs], OPSET)
    except Exception as error:  # torch raises many kinds; the reader needs the network's name
        raise ExportError(f"{spec.name} could not be traced: {error}") from error
    _name_shapes(model, spec)
    clean(model)
    return model


def _torch_dims(spec: NetworkSpec) -> dict[str, Any]:
    """A torch dimension for each symbolic size, e.g. "8*h" -> 64 * Dim("_h") + 16 when h is 2, 10, 18 and so on."""
    units: dict[str, Any] = {}
    for name, bound in spec.bounds.items():
        step = bound.multiple_of
        low, high = -(-(bound.min - bound.offset) // step), (bound.max - bound.offset) // step
        units[name] = torch.export.Dim(f"_{name}", min=low, max=high)
    sizes = {size for tensor in spec.inputs for size in tensor.shape if isinstance(size, str)}
    dims = {}
    for size in sizes:
        factor, symbol = dimension(size)
        assert symbol is not None
        bound = spec.bounds[symbol]
        unit, step = units[symbol], factor * bound.multiple_of
        dims[size] = unit if step == 1 else step * unit
        if bound.offset:
            dims[size] += factor * bound.offset
    return dims


def _inputs(spec: NetworkSpec, sizes: Sizes) -> dict[str, Tensor]:
    inputs = spec.dummy_inputs(sizes, torch.Generator().manual_seed(0))
    for tensor in spec.inputs:
        expected = tuple(_size(size, sizes) for size in tensor.shape)
        got = inputs[tensor.name]
        if tuple(got.shape) != expected or got.dtype != tensor.dtype:
            raise ExportError(f"{spec.name}: dummy {tensor.name} is {got.dtype} {tuple(got.shape)}")
    return inputs


def _size(size: int | str, sizes: Sizes) -> int:
    factor, name = dimension(size)
    return factor * sizes[name] if name else factor


def _reference(spec: NetworkSpec, sizes: Sizes) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    inputs = _inputs(spec, sizes)
    with torch.no_grad():
        outputs = spec.module.eval()(**inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return {name: value.numpy() for name, value in inputs.items()}, [value.numpy() for value in outputs]


def _name_shapes(model: ir.Model, spec: NetworkSpec) -> None:
    """Gives inputs and outputs the manifest's symbolic shapes instead of the tracer's."""
    for values, tensors in ((model.graph.inputs, spec.inputs), (model.graph.outputs, spec.outputs)):
        for value, tensor in zip(values, tensors, strict=True):
            value.name = tensor.name
            value.shape = ir.Shape(tensor.shape)
            value.dtype = _DTYPES[tensor.dtype][1]


def _record(tensor: Input) -> TensorRecord:
    return TensorRecord(tensor.name, _DTYPES[tensor.dtype][0], tensor.shape)


def _write(model: ir.Model, spec: NetworkSpec, path: Path) -> list[Path]:
    attach_functions(model, spec.functions)
    data = path.with_name(path.name + ".data")
    if not any(
        value.const_value.nbytes >= _INLINE
        for value in model.graph.initializers.values()
        if value.const_value
    ):
        ir.save(model, path)
        return [path]
    ir.save(model, path, external_data=data.name, size_threshold_bytes=_INLINE)
    return [path, data]


def _work(native: Path, spec: NetworkSpec) -> tuple[Work | None, str | None]:
    """Counts the work, or says why it cannot be: a bundle restores clips without, so that is no error."""
    import onnx

    try:
        return measure(onnx.load(native, load_external_data=False), spec.bounds), None
    except Exception as error:  # onnx raises many kinds
        return None, str(error)


def _release(spec: NetworkSpec) -> None:
    """Frees the weights: the module's parameters are replaced by empty ones."""
    for module in spec.module.modules():
        for name in list(module._parameters):
            module._parameters[name] = None


def _compare(
    spec: NetworkSpec,
    path: Path,
    references: Sequence[tuple[dict[str, np.ndarray], list[np.ndarray]]],
    precision: Precision,
) -> float:
    """Runs the file at every size of the references and returns the largest difference from torch.

    Raises:
        ExportError: the difference is above the tolerance, or not a number.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    converted = precision == "fp16" and spec.always_fp32 is None
    default = _FP16_TOLERANCE if converted else _FP32_TOLERANCE
    tolerance = default if spec.tolerance is None else spec.tolerance
    worst = 0.0
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for sizes, (inputs, expected) in zip(spec.checked, references, strict=True):
            outputs = session.run(None, inputs)
            difference = _difference(f"{path.name} at {sizes}", outputs, expected)
            worst = max(worst, difference)
    except ExportError:
        raise
    except Exception as error:  # ONNX Runtime's errors share no base class of their own
        raise ExportError(f"ONNX Runtime refuses {path.name}: {error}") from error
    if worst > tolerance:
        raise ExportError(
            f"{path.name} differs from torch by {worst:.2e}, allowed are {tolerance:.0e}. The export is "
            "wrong for these weights or library versions; please report it with what `doctor` prints."
        )
    return worst


def _difference(what: str, outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """The largest difference: in units of the largest value, for integers in levels."""
    worst = 0.0
    for got, want in zip(outputs, expected, strict=True):
        if got.shape != want.shape:
            raise ExportError(f"{what}: the output is {got.shape}, torch's {want.shape}")
        difference = np.abs(got.astype(np.float64) - want.astype(np.float64)).max()
        if np.issubdtype(want.dtype, np.floating):
            difference /= max(float(np.abs(want).max()), _TINY)
        worst = max(worst, float(difference)) if np.isfinite(difference) else float("inf")
    return worst
