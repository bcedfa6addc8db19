"""A bundle of one small network, made in a moment: what the tests of devices load and run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from helpers.small_manifest import small
from onnx import TensorProto, helper, numpy_helper

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Engine, FileEntry
from vsr_trt.runtime.bundle.reading import read_manifest

NETWORK = "net"


def convolutions(channels: int = 16, seed: int = 0, sign: int = 1) -> onnx.ModelProto:
    """x (n,3,8*h,8*w) -> two 3x3 convolutions, a product over channels, y (n,3,8*h,8*w) of that sign."""
    rng = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((rng.standard_normal(shape) / 8).astype(np.float32), name)

    shape = ["n", 3, "8*h", "8*w"]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "first"], ["a"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "second"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            helper.make_node("Transpose", ["c"], ["d"], perm=[0, 2, 3, 1]),
            helper.make_node("MatMul", ["d", "third"], ["e"]),
            helper.make_node("Transpose", ["e"], ["y"], perm=[0, 3, 1, 2]),
        ],
        "convolutions",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [
            weight("first", channels, 3, 3, 3),
            weight("second", channels, channels, 3, 3),
            numpy_helper.from_array(sign * numpy_helper.to_array(weight("third", channels, 3)), "third"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def picture(height: int = 32, width: int = 40, seed: int = 1) -> dict[str, np.ndarray]:
    """The network's input."""
    return {"x": np.random.default_rng(seed).standard_normal((1, 3, height, width)).astype(np.float32)}


def make(folder: Path, sign: int = 1) -> Bundle:
    """Writes the bundle, its weights in external data."""
    manifest_data = small() | {"engines": [], "calibration": None}
    (folder / "onnx").mkdir(parents=True)
    path = folder / "onnx" / "net.onnx"
    onnx.save(
        convolutions(sign=sign), path, save_as_external_data=True, location="net.onnx.data", size_threshold=0
    )
    (folder / "prompt.npy").write_bytes(b"")
    record = manifest_data["networks"][NETWORK]
    record["outputs"], record["kernel"] = record["outputs"][:1], None
    manifest_data["stages"][0]["writes"] = {"y": "result"}
    for tensor in (*record["inputs"], *record["outputs"]):
        tensor["shape"] = ["n", 3, "8*h", "8*w"]
    manifest_data["files"] = {key: {"bytes": 0, "sha256": ""} for key in ("onnx/net.onnx", "prompt.npy")}
    (folder / "bundle.json").write_text(json.dumps(manifest_data))
    return with_files(folder)


def with_files(folder: Path, **changes: Any) -> Bundle:
    """Lists every file of the folder in its manifest, makes `changes` to that, and opens the bundle."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "bundle.json":
            content = path.read_bytes()
            entry = FileEntry(len(content), hashlib.sha256(content).hexdigest())
            files[path.relative_to(folder).as_posix()] = entry
    dataclasses.replace(read_manifest(folder), files=files, **changes).write(folder)
    return Bundle.open(folder)


def engine(file: str, network: str = NETWORK, **changes: Any) -> Engine:
    """An ONNX Runtime engine for no CPU and no version, unless `changes` name them."""
    values = {
        "network": network,
        "backend": "onnxruntime",
        "version": "0",
        "target": "cpu-none",
        "targets": (),
        "device": None,
        "precision": "fp32",
        "profiles": {},
        "flags": (),
        "file": file,
        "report": "prompt.npy",
        "key": "00",
    }
    return Engine(**(values | changes))
