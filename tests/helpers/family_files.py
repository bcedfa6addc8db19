"""Writes the graphs of a family that exists in the tests alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.parser

from vsr_trt.runtime.bundle.manifest import Bound, FileEntry, Network, Tensor

_HEADER = '<ir_version: 10, opset_import: ["" : 23]>\n'
Weights = Mapping[str, Mapping[str, tuple[int, ...]]]


def write_networks(
    folder: Path,
    graphs: Mapping[str, str],
    weights: Weights,
    tensors: Mapping[str, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]],
    bounds: Callable[[str], dict[str, Bound]],
    least: Callable[[str], float] = lambda network: -0.1,
) -> dict[str, Network]:
    """Graphs for ONNX Runtime in a folder, and their records.

    Args:
        folder: of the bundle, which does not exist yet.
        graphs: network -> its text.
        weights: network -> weight -> shape.
        tensors: network -> inputs and outputs.
        bounds: network -> of its sizes.
        least: network -> of its weights; they are at most 0.4, and a quarter of that is taken.
    """
    (folder / "onnx").mkdir(parents=True)
    networks = {}
    for index, (name, text) in enumerate(graphs.items()):
        model = onnx.parser.parse_model(_HEADER + text)
        rng = np.random.default_rng(index)
        for weight, shape in weights.get(name, {}).items():
            values = rng.uniform(least(name), 0.4, shape).astype(np.float32) / 4
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, weight))
        model = onnx.shape_inference.infer_shapes(model)  # exporters write every tensor's type down
        onnx.save(model, folder / "onnx" / f"{name}.onnx")
        graph = {"native": f"onnx/{name}.onnx"}
        networks[name] = Network(*tensors[name], bounds(name), graph, 0, 0, "it is small")
    return networks


def files_of(folder: Path) -> dict[str, FileEntry]:
    """All files below a folder, as a manifest has them."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): FileEntry.of(path) for path in paths}
