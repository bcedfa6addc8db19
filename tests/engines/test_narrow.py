"""Weights that FP16 holds exactly are kept so, and change nothing else."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.small_bundle import make, with_files
from helpers.stages import dloral_manifest
from onnx import TensorProto, helper, numpy_helper

from vsr_trt.engines.graphs.cpu import lower
from vsr_trt.engines.graphs.narrow import LEAST
from vsr_trt.engines.onnxruntime.save import save_optimised
from vsr_trt.engines.plan import inspect
from vsr_trt.export import network
from vsr_trt.export.network import Input, NetworkSpec, Output
from vsr_trt.runtime.bundle.manifest import Bound, FileEntry
from vsr_trt.runtime.schedule.forms import weights, weights_on_cpu

_SIDE = 256  # from 129 on ONNX Runtime adds in another order where a weight is no constant


def weight(name: str, *shape: int, exact: bool = True, seed: int = 0) -> onnx.TensorProto:
    """Numbers that FP16 holds, or of which one needs a bit more."""
    array = (np.random.default_rng(seed).standard_normal(shape) / 8).astype(np.float16).astype(np.float32)
    if not exact:
        array.flat[-1] = 1 + 2**-11
    return numpy_helper.from_array(array, name)


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto],
    shape: tuple[int | str, ...] = ("n", _SIDE, 3, 4, 4),
) -> Path:
    """A graph of x -> y, its weights in external data."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=1000)
    return path


def run(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == ["x"]
    x = np.random.default_rng(9).standard_normal((2, _SIDE, 3, 4, 4)).astype(np.float32)
    (found,) = session.run(None, {"x": x})
    return np.asarray(found)


def chain(path: Path, second_is_exact: bool = True) -> Path:
    """A convolution over frames, a product over channels (whose weight is read twice), and a Gemm."""
    nodes = [
        helper.make_node("Conv", ["x", "conv"], ["a"], kernel_shape=[3, 1, 1], pads=[1, 0, 0, 1, 0, 0]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 3, 4, 1]),
        helper.make_node("MatMul", ["b", "first"], ["c"]),
        helper.make_node("MatMul", ["c", "first"], ["d"]),
        helper.make_node("MatMul", ["d", "second"], ["e"]),
        helper.make_node("Reshape", ["e", "rows"], ["f"]),
        helper.make_node("Gemm", ["f", "third"], ["y"], transB=1),
    ]
    weights = [
        weight("conv", _SIDE, _SIDE, 3, 1, 1),
        weight("first", _SIDE, _SIDE, seed=1),
        weight("second", _SIDE, _SIDE, exact=second_is_exact, seed=2),
        weight("third", 5, _SIDE, seed=3),
        numpy_helper.from_array(np.array([-1, _SIDE], np.int64), "rows"),
    ]
    return save(path, nodes, weights)


def kept(path: Path) -> dict[str, int]:
    """The types of a graph's constants."""
    return {t.name: t.data_type for t in onnx.load(path, load_external_data=False).graph.initializer}


def assert_alike(found: np.ndarray, expected: np.ndarray) -> None:
    """The same but for rounding."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * float(np.abs(expected).max()))


def test_results_are_the_same_with_half_of_the_weights(tmp_path: Path) -> None:
    native = chain(tmp_path / "net.onnx")
    (lowered,) = lower(native, narrow_from=1)
    assert (lowered.form, lowered.data) == ("cpu", tmp_path / "net.cpu.onnx.data")
    assert_alike(run(lowered.path), run(native))
    types = kept(lowered.path)
    halves = {name for name, kind in types.items() if kind == TensorProto.FLOAT16}
    assert halves == {"conv:fp16", "first:fp16", "second:fp16", "third:fp16"}
    assert TensorProto.FLOAT not in types.values()


def test_a_weight_that_fp16_does_not_hold_stays(tmp_path: Path) -> None:
    native = chain(tmp_path / "net.onnx", second_is_exact=False)
    (lowered,) = lower(native, narrow_from=1)
    assert kept(lowered.path)["second"] == TensorProto.FLOAT
    assert_alike(run(lowered.path), run(native))


@pytest.mark.parametrize("value", [2**-25, 65520.0, 1 / 3])
def test_no_number_is_rounded(tmp_path: Path, value: float) -> None:
    array = np.zeros((_SIDE, _SIDE), np.float32)
    array[-1, -1] = value
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 2, 3, 4, 1]),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]
    native = save(tmp_path / "net.onnx", nodes, [numpy_helper.from_array(array, "w")])
    assert lower(native, narrow_from=1) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]


@pytest.mark.parametrize(
    ("least", "taken"), [(_SIDE * _SIDE * 4, ["w"]), (_SIDE * _SIDE * 4 + 1, []), (1, ["w"])]
)
@pytest.mark.parametrize("read_by_another", [False, True])
def test_what_is_small_or_read_by_other_nodes_stays(
    tmp_path: Path, least: int, taken: list[str], read_by_another: bool
) -> None:
    row = "w" if read_by_another else "other"
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 2, 3, 4, 1]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Gather", [row, "index"], ["c"], axis=0),
        helper.make_node("Add", ["b", "c"], ["y"]),
    ]
    weights = [weight(name, _SIDE, _SIDE) for name in ("w", "other")]
    native = save(tmp_path / "net.onnx", nodes, [*weights, numpy_helper.from_array(np.array(0), "index")])
    found = [name for lowered in lower(native, narrow_from=least) for name in kept(lowered.path)]
    assert [name for name in found if name.endswith(":fp16")] == (
        [] if read_by_another else [f"{name}:fp16" for name in taken]
    )


_PEAK = """
import sys
import numpy as np, onnxruntime
from vsr_trt.runtime.machine.memory import peak_bytes
from vsr_trt.runtime.onnxruntime import scratch
from vsr_trt.runtime.onnxruntime.cpu import open_session, session_options
options = session_options(onnxruntime, 1)
scratch.share(onnxruntime, options)
session = open_session(onnxruntime, sys.argv[1], options, ["CPUExecutionProvider"])
session.run(None, {"x": np.ones((1, 1024), np.float32)})
print(peak_bytes())
"""


def peak(graph: Path) -> int:
    """Bytes that a process takes at most that runs it once."""
    command = [sys.executable, "-c", _PEAK, str(graph)]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)


def test_weights_are_widened_one_after_another(tmp_path: Path) -> None:
    """ONNX Runtime decides about the order: all widened at once would take more than FP32 weights do."""
    count, each = 32, 1024 * 1024 * 4
    nodes, value = [], "x"
    for i in range(count):
        nodes += [
            helper.make_node("MatMul", [value, f"w{i}"], [f"a{i}"]),
            helper.make_node("Sin", [f"a{i}"], [f"b{i}"]),
        ]
        value = f"b{i}"
    nodes.append(helper.make_node("Identity", [value], ["y"]))
    weights = [weight(f"w{i}", 1024, 1024, seed=i) for i in range(count)]
    native = save(tmp_path / "net.onnx", nodes, weights, ("n", 1024))
    (lowered,) = lower(native, narrow_from=LEAST)
    saved = tmp_path / "saved.onnx"
    save_optimised(lowered.path, saved)
    for narrowed in (lowered.path, saved):
        assert peak(native) - peak(narrowed) > count * each / 8


def test_an_exported_network_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "LEAST", 1)
    module = (
        torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 8)).half().float()
    )
    spec = NetworkSpec(
        name="net",
        module=module,
        inputs=(Input("input", torch.float32, ("n", 8)),),
        outputs=(Output("y", torch.float32, ("n", 8)),),
        bounds={"n": Bound(1, 8)},
        dummy_inputs=lambda sizes, generator: {"input": torch.randn(sizes["n"], 8, generator=generator)},
        traced={"n": 2},
        checked=({"n": 3},),
        narrow=True,
    )
    (tmp_path / "onnx").mkdir()
    exported = network.export(spec, tmp_path / "onnx", "fp32")
    assert exported.record.graphs == {"native": "onnx/net.onnx", "cpu": "onnx/net.cpu.onnx"}
    data = tmp_path / "onnx" / "net.cpu.onnx.data"
    assert data.stat().st_size >= 2 * 2 * 8 * 16
    assert exported.bytes == sum(path.stat().st_size for path in (tmp_path / "onnx").iterdir())


def test_memory_is_estimated_with_them() -> None:
    manifest = dloral_manifest()
    files = {"onnx/unet.onnx.data": FileEntry(1000, ""), "onnx/unet.cpu.onnx.data": FileEntry(300, "")}
    graphs = {"native": "onnx/unet.onnx", "cpu": "onnx/unet.cpu.onnx"}
    unet = dataclasses.replace(manifest.networks["unet"], graphs=graphs)
    manifest = dataclasses.replace(manifest, files=files, networks={**manifest.networks, "unet": unet})
    assert (weights(manifest, ["unet"]), weights_on_cpu(manifest, ["unet"])) == (1000, 700)


@pytest.mark.parametrize("spoil", [{}, {"offset": "abc"}, {"length": "abc"}, {"length": "9" * 5000}])
def test_the_builder_counts_what_a_graph_refers_to(tmp_path: Path, spoil: dict[str, str]) -> None:
    """A network's forms may share a file; and what a graph says about one may be anything."""
    folder = make(tmp_path / "bundle").path
    graph, data = folder / "onnx" / "net.onnx", folder / "onnx" / "net.onnx.data"
    data.write_bytes(data.read_bytes() + bytes(10**6))
    model = onnx.load(graph, load_external_data=False)
    lengths = [
        int(entry.value)
        for t in model.graph.initializer
        for entry in t.external_data
        if entry.key == "length"
    ]
    for entry in model.graph.initializer[0].external_data:
        entry.value = spoil.get(entry.key, entry.value)
    onnx.save(model, graph)
    found = inspect(with_files(folder), "onnx/net.onnx")
    counted = lengths[1:] if "length" in spoil else lengths
    assert found.bytes == graph.stat().st_size + sum(counted)
