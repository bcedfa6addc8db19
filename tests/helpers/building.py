"""What the tests of real builds share: TensorRT-RTX compiles on a machine without a GPU."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import processes
from helpers.once import shared
from onnx import TensorProto, helper, numpy_helper

from vsr_trt.engines import plan
from vsr_trt.engines.build import Built, Progress, build_engines
from vsr_trt.engines.cache import Cache
from vsr_trt.engines.tensorrt import shapes
from vsr_trt.engines.tensorrt.library import load
from vsr_trt.engines.tensorrt.targets import parse
from vsr_trt.runtime.bundle.directory import Bundle

ROOT = Path(__file__).parents[2]
rtx = pytest.mark.skipif(sys.platform != "linux", reason="the tests install TensorRT-RTX for Linux only")
MEMORY = 8_000_000_000


def copy_of(bundle: Path, folder: Path) -> Path:
    """A bundle that a test may change."""
    return Path(shutil.copytree(bundle, folder / "bundle"))


def session_cache(factory: pytest.TempPathFactory) -> Cache:
    """A build cache that all test files of a session share: each engine is compiled once."""
    return Cache(shared(factory, "engine-cache", Path.mkdir), 1 << 40)


def build(
    bundle: Path,
    cache: Cache,
    target: Sequence[str] = ("sm_89",),
    sizes: Sequence[str] = ("512x512",),
    progress: Progress | None = None,
    **changed: object,
) -> list[Built]:
    """What `build.py engines` does."""
    opened, library = Bundle.open(bundle), load("tensorrt_rtx")
    request = plan.EngineRequest(
        targets=tuple(parse(target, library)),
        sizes=tuple(shapes.parse_size(text, opened.manifest) for text in sizes),
        **changed,  # type: ignore[arg-type]
    )
    items = plan.list_engines(opened, request, library, cache)
    return build_engines(opened, items, library.backend, cache, 2, MEMORY, progress)


def command(*arguments: object, cache: Path) -> list[str]:
    """The command line of `build.py engines`."""
    return [
        sys.executable,
        str(ROOT / "build.py"),
        "engines",
        *map(str, arguments),
        "--cache-dir",
        str(cache),
    ]


def run(*arguments: object, cache: Path) -> subprocess.CompletedProcess[str]:
    """Runs it to its end."""
    return processes.run(command(*arguments, cache=cache))


def small_graph(path: Path, op_type: str = "Relu", weights: int = 4, domain: str = "") -> Path:
    """x (4,weights) -> op(x W) in FP32, W inside the file."""
    matrix = np.random.default_rng(0).standard_normal((weights, weights), dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["xW"]),
        helper.make_node(op_type, ["xW"], ["y"], name="last", domain=domain),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (4, weights)) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(matrix, "W")])
    imports = [helper.make_opsetid("", 20)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return path
