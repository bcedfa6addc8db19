"""FP16 graphs from the FP32 graphs of a finished bundle, with the nodes in FP32 that a measurement names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vsr_trt.engines.graphs.precision import Conversion, convert
from vsr_trt.runtime.errors import ExportError

_INLINE = 1024  # bytes from which a weight lies next to the graph instead of in it
_LARGEST = float(np.finfo(np.float16).max)


def write(native: Path, target: Path, keep: Mapping[str, str]) -> Conversion:
    """Writes the FP16 form of a graph; its weights go into `<target>.data`.

    Weights are read, converted and written one after another, so the network is never in memory as a whole.

    Args:
        native: an FP32 graph.
        target: an .onnx that does not exist yet, in another folder or under another name.
        keep: names of nodes and values that stay in FP32, each with the reason. Nodes with a weight that
            FP16 cannot hold stay so besides.

    Returns:
        How many nodes compute in FP16, and the others with the reason.

    Raises:
        ExportError: the graph cannot be read or converted.
        OSError: it cannot be written.
    """
    try:
        model = ir.load(native)
        conversion = convert(model, {**_heavy_weights(model), **keep})
    except (ExportError, OSError):
        raise
    except Exception as error:  # onnx_ir's and protobuf's errors share no base class
        raise ExportError(f"{native} cannot be converted to FP16: {error}") from error
    ir.save(model, target, external_data=f"{target.name}.data", size_threshold_bytes=_INLINE)
    return conversion


def _heavy_weights(model: ir.Model) -> dict[str, str]:
    """Weights beyond FP16's range, with the sentence that says so."""
    heavy = {}
    for name, value in model.graph.initializers.items():
        if value.dtype != ir.DataType.FLOAT or value.const_value is None:
            continue
        largest = float(np.abs(value.const_value.numpy()).max(initial=0))
        if not largest <= _LARGEST:
            heavy[name] = f"the weight {name} reaches {largest:.4g}, FP16 ends at {_LARGEST:.0f}"
    return heavy
