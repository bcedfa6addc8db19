"""Engines that leave the attention to its kernel: the graph without it, and both kinds side by side."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.building import build, copy_of, give_operator, rtx

from vsr_trt.engines import plan
from vsr_trt.engines import report as build_report
from vsr_trt.engines.accuracy import gpu_check
from vsr_trt.engines.accuracy.recording import Call
from vsr_trt.engines.build import Built
from vsr_trt.engines.cache import Cache
from vsr_trt.engines.display import print_plan
from vsr_trt.engines.tensorrt import shapes
from vsr_trt.engines.tensorrt.library import CompilerLibrary, load
from vsr_trt.engines.tensorrt.operator import leave_out
from vsr_trt.engines.tensorrt.targets import Target
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.errors import EngineError
from vsr_trt.runtime.bundle.manifest import WARP, Operator
from vsr_trt.runtime.bundle.reading import read_manifest
from vsr_trt.runtime.machine import gpu
from vsr_trt.runtime.machine.gpu import Gpu

ATTENTION = Operator("cfr", "latent", "warped", "fused", {}, None)


@pytest.fixture(scope="module")
def graph(golden_bundle: Path) -> Path:
    return golden_bundle / "onnx" / "cfr.onnx"


def test_without_the_operator_the_rest_is_the_same(graph: Path) -> None:
    left = leave_out(graph, ATTENTION)
    onnx.checker.check_model(left)
    assert [value.name for value in left.graph.input] == ["previous_latent", "flow"]
    assert [value.name for value in left.graph.output] == ["warped"]
    assert not left.functions
    assert {entry.domain for entry in left.opset_import} == {""}
    used = {name for node in left.graph.node for name in node.input}
    assert {tensor.name for tensor in left.graph.initializer} <= used

    rng = np.random.default_rng(0)
    feeds = {
        "latent": rng.standard_normal((2, 4, 40, 48), dtype=np.float32),
        "previous_latent": rng.standard_normal((2, 4, 40, 48), dtype=np.float32),
        "flow": rng.standard_normal((2, 2, 40, 48), dtype=np.float32) * 5,
    }
    (expected,) = session(graph.read_bytes()).run(["warped"], feeds)
    del feeds["latent"]
    (got,) = session(left.SerializeToString()).run(None, feeds)
    assert np.array_equal(got, expected)


def session(model: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    "change",
    [{"output": "warped"}, {"output": "nothing"}, {"current": "flow"}, {"previous": "previous_latent"}],
)
def test_a_graph_that_has_it_elsewhere_is_refused(graph: Path, change: dict[str, str]) -> None:
    with pytest.raises(EngineError, match=r"cfr\.onnx does not compute .* Build the bundle again"):
        leave_out(graph, dataclasses.replace(ATTENTION, **change))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bundle(golden_bundle_fp16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = copy_of(golden_bundle_fp16, tmp_path_factory.mktemp("operator"))
    give_operator(bundle)
    return bundle


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def both(bundle: Path, cache: Cache) -> tuple[Built, Built]:
    """The engine of all of the network, and the one without its operator, in one bundle."""
    (whole,) = build(bundle, cache, networks=("cfr",))
    (warp,) = build(bundle, cache, networks=("cfr",), operator="kernel")
    return whole, warp


@rtx
def test_both_are_in_the_bundle(bundle: Path, both: tuple[Built, Built]) -> None:
    whole, warp = (one.engine for one in both)
    assert Bundle.open(bundle, check=True).manifest.engines == (whole, warp)
    assert whole.file == "engines/tensorrt_rtx-sm_89/cfr.fp32.n1-64x64.engine"
    assert warp.file == "engines/tensorrt_rtx-sm_89/cfr.fp32.n1-64x64.warp.engine"
    assert (whole.flags, warp.flags) == ((), (WARP,))
    assert whole.key != warp.key
    assert set(whole.profiles) == {"latent", "previous_latent", "flow"}
    assert set(warp.profiles) == {"previous_latent", "flow"}
    assert set(both[0].report["outputs"]) == {"warped", "fused"}
    assert set(both[1].report["outputs"]) == {"warped"}
    assert both[1].report["layers"] < both[0].report["layers"]


@rtx
def test_each_is_found_again_and_replaced_alone(
    bundle: Path, cache: Cache, both: tuple[Built, Built]
) -> None:
    whole, warp = (one.engine for one in both)
    assert [one.origin for one in build(bundle, cache, networks=("cfr",))] == ["bundle"]
    assert [one.origin for one in build(bundle, cache, networks=("cfr",), operator="kernel")] == ["bundle"]
    (again,) = build(bundle, cache, networks=("cfr",), operator="kernel", force=True)
    assert again.origin == "built"
    assert Bundle.open(bundle, check=True).manifest.engines == (whole, again.engine)
    assert again.engine == warp
    assert set(build_report.read_all(bundle)) == {
        "tensorrt_rtx-sm_89/cfr.fp32.n1-64x64",
        "tensorrt_rtx-sm_89/cfr.fp32.n1-64x64.warp",
    }


@rtx
def test_a_dry_run_tells_them_apart(bundle: Path, cache: Cache, both: tuple[Built, Built]) -> None:
    from rich.console import Console

    opened, library = Bundle.open(bundle), load("tensorrt_rtx")
    target = Target("sm_86", ("sm_86",))
    request = plan.EngineRequest(
        (target,), (shapes.Size(512, 512),), networks=("cfr", "unet"), operator="kernel"
    )
    items = plan.list_engines(opened, request, library, cache)
    assert [(item.order.network, item.order.flags) for item in items] == [("cfr", (WARP,)), ("unet", ())]
    console = Console(record=True, width=80)
    print_plan(console, items)
    assert "n1-64x64 warp" in console.export_text()


@rtx
def test_a_bundle_without_kernels_is_refused(bundle: Path, cache: Cache, tmp_path: Path) -> None:
    without = copy_of(bundle, tmp_path)
    dataclasses.replace(read_manifest(without), operator=None).write(without)
    with pytest.raises(EngineError, match=r"has no GPU kernels.*--operator kernel.*without --no-kernels"):
        build(without, cache, networks=("cfr",), operator="kernel")


@rtx
def test_tensorrt_gets_no_plugin_where_there_is_nothing_for_it(
    bundle: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "detect", lambda: Gpu("NVIDIA L4", "sm_89", 24 << 30, "13.0"))
    library = CompilerLibrary("tensorrt", object(), "11.0.0.1")  # type: ignore[arg-type]
    target = Target("sm_89", ("sm_89",), "NVIDIA L4", "13.0")
    found = {}
    for operator in ("inside", "kernel"):
        request = plan.EngineRequest(
            (target,),
            (shapes.Size(512, 512),),
            networks=("cfr",),
            operator=operator,  # type: ignore[arg-type]
        )
        (found[operator],) = plan.list_engines(Bundle.open(bundle), request, library, cache)
    assert found["inside"].order.plugin == "sm_89"
    assert found["kernel"].order.plugin is None
    assert found["kernel"].parts["plugin"] is None
    assert found["kernel"].order.without == read_manifest(bundle).operator


@rtx
def test_verification_runs_it_on_what_it_takes_and_compares_what_it_gives(
    bundle: Path, both: tuple[Built, Built], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    names = {"latent": 4, "previous_latent": 4, "flow": 2}
    inputs = {name: rng.standard_normal((1, c, 64, 64), dtype=np.float32) for name, c in names.items()}
    operator = read_manifest(bundle).operator
    assert operator is not None
    left = leave_out(bundle / "onnx" / "cfr.onnx", operator).SerializeToString()

    def run_apart(
        plan: Path, backend: str, feeds: list[dict[str, np.ndarray]]
    ) -> list[dict[str, np.ndarray]]:
        return [{"warped": session(left).run(None, feed)[0]} for feed in feeds]  # type: ignore[misc]

    monkeypatch.setattr(gpu_check, "run_apart", run_apart)
    found = gpu_check._compare(Bundle.open(bundle), both[1].engine, [Call(inputs, {})])
    assert found.difference.max <= 1e-5
