"""Graphs that every reader of ONNX takes: local functions written out, and no operator of a vendor's.

The native form calls functions of domain `vsr_trt`, whose bodies are plain ONNX; a reader that does not know functions
refuses it. Here they are written out where they are called. The weights are shared with the native form.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vsr_trt.runtime.errors import ExportError

if TYPE_CHECKING:
    import onnx

FORM = "plain"
_PLAIN = ("", "ai.onnx")


def write(native: Path) -> Path:
    """Writes the plain form next to a native graph; returns its path.

    Args:
        native: the graph, with its functions.

    Raises:
        ExportError: an operator of another domain is left.
    """
    import onnx.inliner

    model = onnx.load(str(native), load_external_data=False)
    inlined = onnx.inliner.inline_local_functions(model)
    if others := sorted({f"{node.domain}.{node.op_type}" for node in _nodes(inlined.graph)}):
        raise ExportError(f"{native.name} has operators that are not ONNX's: {', '.join(others)}.")
    domains = [opset for opset in inlined.opset_import if opset.domain in _PLAIN]
    del inlined.opset_import[:]
    inlined.opset_import.extend(domains)
    path = native.with_suffix(f".{FORM}.onnx")
    path.write_bytes(inlined.SerializeToString())
    return path


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Nodes of other domains, those of branches and bodies, too."""
    for node in graph.node:
        if node.domain not in _PLAIN:
            yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _nodes(inner)
