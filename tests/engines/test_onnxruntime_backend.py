"""Optimised graphs: saved whole or refused, loaded without optimisation, the same results to the last bit."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import processes
from helpers.small_bundle import convolutions, picture
from onnx import TensorProto, helper, numpy_helper

from vsr_trt.engines.onnxruntime.save import cpu_target, save_optimised
from vsr_trt.runtime.errors import EngineError, OutputError
from vsr_trt.runtime.machine.processor import target_of
from vsr_trt.runtime.onnxruntime.cpu import session_options

_BLOCK = {"cpu-avx512": 16, "cpu-avx2": 8, "cpu-sse": 8}


def run(path: Path, inputs: dict[str, np.ndarray], optimise: bool) -> list[np.ndarray]:
    options = session_options(onnxruntime, 1, optimise=optimise)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, inputs)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(convolutions(), path, save_as_external_data=True, location="net.onnx.data", size_threshold=0)
    return path


def test_results_are_the_same_bits_wherever_the_files_lie(graph: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "net.onnx"
    out.parent.mkdir()
    files = save_optimised(graph, out)
    assert files == [out, out.with_name("net.onnx.data")]
    assert sorted(out.parent.iterdir()) == sorted(files)
    nodes = onnx.load(out, load_external_data=False).graph.node
    assert any(node.op_type == "MatMul" for node in nodes)
    assert not any(node.op_type == "Relu" for node in nodes)  # fused: the file is not the graph once more
    expected = run(graph, picture(), optimise=True)
    shutil.move(out.parent, tmp_path / "moved")
    for path in tmp_path.glob("net.onnx*"):  # nothing refers to the network's own weights
        path.unlink()
    (got,) = run(tmp_path / "moved" / "net.onnx", picture(), optimise=False)
    assert np.array_equal(got, expected[0])


@pytest.mark.skipif(cpu_target() not in _BLOCK, reason="convolutions are not laid out in blocks here")
def test_the_target_tells_the_blocks_that_onnx_runtime_lays_weights_out_in(tmp_path: Path) -> None:
    onnx.save(convolutions(channels=4), tmp_path / "net.onnx")  # fewer than a block: filled up to one
    save_optimised(tmp_path / "net.onnx", tmp_path / "out.onnx")
    model = onnx.load(tmp_path / "out.onnx")
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    blocked = [
        node for node in model.graph.node if node.domain == "com.microsoft.nchwc" and node.op_type == "Conv"
    ]
    assert [weights[node.input[1]][0] for node in blocked] == [_BLOCK[cpu_target()]] * 2


def test_small_graphs_have_no_data(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    body = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "small", [value], [result])
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "net.onnx")
    assert save_optimised(tmp_path / "net.onnx", tmp_path / "out.onnx") == [tmp_path / "out.onnx"]


def test_weights_inside_a_scan_are_kept(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    row = helper.make_tensor_value_info("row", TensorProto.FLOAT, [2, 32])
    product = helper.make_tensor_value_info("product", TensorProto.FLOAT, [2, 32])
    inner = [numpy_helper.from_array(weight, "weight")]
    body = helper.make_graph(
        [helper.make_node("MatMul", ["row", "weight"], ["product"])], "body", [row], [product], inner
    )
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2, 32]) for name in "xy")
    scan = helper.make_node("Scan", ["x"], ["y"], num_scan_inputs=1, body=body)
    outer = helper.make_graph([scan], "scan", [x], [y])
    onnx.save(
        helper.make_model(outer, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        tmp_path / "net.onnx",
    )
    inputs = {"x": np.random.default_rng(1).standard_normal((3, 2, 32)).astype(np.float32)}
    expected = run(tmp_path / "net.onnx", inputs, optimise=True)
    save_optimised(tmp_path / "net.onnx", tmp_path / "out.onnx")
    assert np.array_equal(run(tmp_path / "out.onnx", inputs, optimise=False)[0], expected[0])


def test_a_damaged_graph_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"abc")
    (tmp_path / "out").mkdir()
    with pytest.raises(
        EngineError, match=r"cannot load .*net\.onnx: .*Build the bundle again with: vsr-build"
    ):
        save_optimised(tmp_path / "net.onnx", tmp_path / "out" / "net.onnx")
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_that_is_missing_is_named(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"none/net\.onnx cannot be written: No such file"):
        save_optimised(graph, tmp_path / "none" / "net.onnx")


_LIMITED = """
import resource, sys
from pathlib import Path
from vsr_trt.engines.onnxruntime.save import save_optimised
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save_optimised(Path(sys.argv[1]), Path(sys.argv[2]))
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX's")
def test_weights_that_cannot_be_written_are_told_and_nothing_is_left(graph: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", _LIMITED, graph, tmp_path / "out" / "net.onnx"]
    done = processes.run(command, cwd=processes.ROOT)
    assert "OutputError: the weights of net.onnx could not be written" in done.stderr
    assert not list((tmp_path / "out").iterdir())


def test_a_full_disk_is_called_so(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    usage = type(shutil.disk_usage(tmp_path))(100, 100, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    def refuse(*arguments: object, **named: object) -> None:
        raise RuntimeError("Failed to write external initializer")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(OutputError, match=r"the disk is full\. It takes up to four times"):
        save_optimised(graph, tmp_path / "out" / "net.onnx")


@pytest.mark.parametrize("lost", ["data", "graph"])
def test_what_is_saved_incompletely_is_refused(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "net.onnx"
    make = onnxruntime.InferenceSession

    def cut(*arguments: object, **named: object) -> object:
        session = make(*arguments, **named)
        path = out.with_name("net.onnx.data") if lost == "data" else out
        path.write_bytes(path.read_bytes()[: 100 if lost == "data" else 20])
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", cut)
    with pytest.raises(EngineError, match=r"without all of its weights|cannot be read again"):
        save_optimised(graph, out)
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize(
    ("machine", "system", "features", "target"),
    [
        ("x86_64", "linux", "sse2 avx avx2 fma", "cpu-avx2"),
        ("AMD64", "win32", "avx2 fma avx512f avx512bw", "cpu-avx512"),
        ("x86_64", "linux", "avx2 fma avx512f", "cpu-avx512"),
        ("x86_64", "linux", "sse2 avx", "cpu-sse"),
        ("x86_64", "linux", "avx2 avx512f", "cpu-sse"),  # ONNX Runtime wants FMA next to AVX2
        ("aarch64", "linux", "fp asimd", "cpu-neon-linux"),
        ("aarch64", "linux", "fp asimd asimdhp", "cpu-neon-fp16-linux"),
        ("arm64", "darwin", "", "cpu-neon-darwin"),
        ("ppc64le", "linux", "", "cpu-ppc64le"),
    ],
)
def test_targets(machine: str, system: str, features: str, target: str) -> None:
    assert target_of(machine, system, frozenset(features.split())) == target
