"""Graphs as ONNX Runtime's CPU provider optimises them, saved so that loading them takes no optimisation.

Such a graph holds nodes that only the CPU provider knows (fused and blocked convolutions), weights in the layout
of one kind of CPU, and what was computed from constants, as Winograd's transformed weights: the file may be a few
times as large, and is mapped instead of read. It runs on that kind of CPU and that version of ONNX Runtime only.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import onnxruntime
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from vsr_trt.runtime.errors import DeviceError, EngineError, OutputError
from vsr_trt.runtime.machine.processor import available_cores, cpu_target
from vsr_trt.runtime.onnxruntime.cpu import open_session, session_options

__all__ = ["cpu_target", "save_optimised"]

_CPU = ["CPUExecutionProvider"]
# Of a tensor that goes into the external data; smaller ones stay in the graph. ONNX Runtime's own default.
_EXTERNAL_BYTES = 1024
_SPARE = 1 << 20  # bytes left on a disk that is called full


def save_optimised(graph: Path, out: Path) -> list[Path]:
    """Has ONNX Runtime optimise a graph for this CPU, and saves what it made.

    Args:
        graph: .onnx, with external data next to it if it has any.
        out: .onnx in a folder that exists; larger tensors are put next to it into `<name>.onnx.data`. The graph
            names that file, so that both may be moved together but not renamed.

    Returns:
        The files written: the graph, and its data if it has any.

    Raises:
        EngineError: ONNX Runtime refuses the graph, or cannot load what it saved.
        OutputError: the disk is full, or the folder cannot be written.
    """
    data = out.with_name(f"{out.name}.data")
    files = [out, data]
    try:
        _save(graph, out, data)
        _check(out, data)
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise
    return [file for file in files if file.exists()]


def _save(graph: Path, out: Path, data: Path) -> None:
    try:
        # ONNX Runtime's own message for a folder that it cannot write is a number
        out.touch()
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}.") from error
    options = session_options(onnxruntime, available_cores())
    options.optimized_model_filepath = str(out)
    prefix = "session.optimized_model_external_initializers"
    options.add_session_config_entry(f"{prefix}_file_name", data.name)
    options.add_session_config_entry(f"{prefix}_min_size_in_bytes", str(_EXTERNAL_BYTES))
    try:
        open_session(onnxruntime, graph, options, _CPU)
    except DeviceError as error:
        full = shutil.disk_usage(out.parent).free < _SPARE
        if full or "Failed to write" in str(error):
            reason = "the disk is full" if full else str(error).rstrip(".")
            raise OutputError(
                f"the weights of {out.name} could not be written to {out.parent}: {reason}. It takes up to four "
                "times the space of the network's own weights; free some, or choose another folder."
            ) from error
        raise EngineError(f"{error} Build the bundle again with: vsr-build bundle") from error
    _put_casts_first(out)


def _put_casts_first(path: Path) -> None:
    """Puts nodes that widen narrow weights where `engines.graphs.narrow` had put them, which says why.

    ONNX Runtime saves nodes in the order in which it runs them, and reads another one out of that.
    """
    model = _read(path)
    kept = {tensor.name for tensor in model.graph.initializer}
    nodes = sorted(model.graph.node, key=lambda node: not (node.op_type == "Cast" and node.input[0] in kept))
    if nodes != list(model.graph.node):
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        try:
            onnx.save(model, path)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}.") from error


def _read(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's, whose module depends on its version
        raise EngineError(f"{path.name} was saved incompletely and cannot be read again: {error}.") from error


def _check(out: Path, data: Path) -> None:
    """Loads what was saved, and looks whether it is whole and refers to nothing but its own data."""
    model = _read(out)
    for tensor in model.graph.initializer:
        if uses_external_data(tensor):
            info = ExternalDataInfo(tensor)
            end = (info.offset or 0) + (info.length or 0)
            if info.location != data.name or end > data.stat().st_size:
                raise EngineError(
                    f"ONNX Runtime {onnxruntime.__version__} saved {out.name} without all of its weights: "
                    f"{tensor.name} lies at {info.location}:{end}. Install another version of ONNX Runtime."
                )
    options = session_options(onnxruntime, available_cores(), optimise=False)
    try:
        open_session(onnxruntime, out, options, _CPU)
    except DeviceError as error:
        raise EngineError(f"{out.name} was saved and cannot be read again. {error}") from error
