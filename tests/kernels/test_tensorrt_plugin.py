"""The plugin, driven as TensorRT's builder drives it, through the real sources of `tensorrt.plugin`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.tensorrt_standin import (
    DynamicPluginTensorDesc,
    ExprBuilder,
    IDimensionExpr,
    PluginField,
    PluginTensorDesc,
    bindings,
    standin,
)
from hypothesis import given
from hypothesis import strategies as st

from vsr_trt.kernels import DOMAIN, OPERATORS, PLUGIN_ATTRIBUTES, KernelError
from vsr_trt.kernels.gated_topk import plugin as tensorrt_plugin
from vsr_trt.kernels.gpu import launch, ptx
from vsr_trt.kernels.gpu.build import compile_kernel
from vsr_trt.kernels.gpu.launch import DType

pytest.importorskip("triton", reason="Triton exists for Linux only")
pytestmark = pytest.mark.skipif(bindings() is None, reason="TensorRT's bindings exist for Linux only")

INPUTS = ("current", "previous", "M", "P", "bias")
SIZES = {"N": 2, "h": 96, "w": 64}


@pytest.fixture(scope="module")
def trt() -> Iterator[ModuleType]:
    with standin() as module, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorrt_plugin, "_registered", {})
        tensorrt_plugin.register("sm_89")
        yield module


class Builder:
    """TensorRT's side: makes a plugin for a node and asks it what a build asks, in that order."""

    def __init__(self, trt: ModuleType, dtype: DType = "fp32", k: int = 0, latent: Any = None) -> None:
        self.trt = trt
        latent_type = latent or {"fp32": trt.DataType.FLOAT, "fp16": trt.DataType.HALF}[dtype]
        self.types = [latent_type, latent_type, *[trt.DataType.FLOAT] * 3]
        version = str(PLUGIN_ATTRIBUTES["plugin_version"])
        creator = trt.get_plugin_registry().get_creator(OPERATORS[dtype], version, DOMAIN)
        assert creator is not None
        # the parser hands over the node's attributes that the creator names
        named = {field.name: field.type for field in creator.field_names}
        assert set(named) == {"k"}
        fields = [PluginField("k", np.array([k], np.int64), named["k"])]
        self.plugin = creator.create_plugin(
            OPERATORS[dtype],
            DOMAIN,
            fields,
            trt.TensorRTPhase.BUILD,
            trt.QuickPluginCreationRequest.PREFER_AOT,
        )

    def shapes(self, channels: int = 4) -> list[list[IDimensionExpr]]:
        """Dynamic latents, constant constants."""
        latent = [IDimensionExpr("N"), IDimensionExpr(channels), IDimensionExpr("h"), IDimensionExpr("w")]
        constants = [(9, channels + 1, channels + 1), (9, channels, channels + 1), (channels,)]
        return [latent, latent, *([IDimensionExpr(size) for size in shape] for shape in constants)]

    def build(self, channels: int = 4) -> SimpleNamespace:
        """Outputs, launch, scalars, entry and PTX."""
        trt, plugin = self.trt, self.plugin
        shapes = self.shapes(channels)
        types = plugin.get_output_data_types(self.types, [len(shape) for shape in shapes])
        outputs = plugin.get_output_shapes(shapes, [], ExprBuilder())
        dims = [
            [-1 if isinstance(e.value, str) else e.value for e in shape] for shape in (*shapes, shapes[0])
        ]
        sizes = [[e.evaluate(SIZES) for e in shape] for shape in (*shapes, shapes[0])]
        in_out = [
            DynamicPluginTensorDesc(PluginTensorDesc(kind, trt.TensorFormat.LINEAR, dim), size, size, size)
            for kind, dim, size in zip((*self.types, *types), dims, sizes, strict=True)
        ]
        combination = plugin.get_supported_format_combinations(in_out, len(self.types))
        plugin.configure_plugin(in_out[:-1], in_out[-1:])
        plugin.set_tactic(0)
        launch_params, scalars = SimpleNamespace(), Scalars()
        plugin.get_launch_params(shapes, in_out, len(self.types), launch_params, scalars, ExprBuilder())
        tensors = [tensor.desc for tensor in in_out]
        entry, text = plugin.clone().get_kernel(tensors[:-1], tensors[-1:])
        return SimpleNamespace(
            types=types, outputs=outputs, combination=combination, params=launch_params, scalars=scalars,
            entry=entry, ptx=text,
        )  # fmt: skip


class Scalars(dict[int, Any]):
    """What TensorRT calls a SymExprSetter."""

    nbSymExprs = 0  # noqa: N815 (the name is TensorRT's)


_built: dict[tuple[DType, int], SimpleNamespace] = {}


def built(trt: ModuleType, dtype: DType, k: int) -> SimpleNamespace:
    if (dtype, k) not in _built:
        _built[dtype, k] = Builder(trt, dtype, k).build()
    return _built[dtype, k]


def test_both_operators_are_registered_under_the_graphs_names(trt: ModuleType) -> None:
    creators = trt.get_plugin_registry().creators
    version, namespace = PLUGIN_ATTRIBUTES["plugin_version"], PLUGIN_ATTRIBUTES["plugin_namespace"]
    assert set(creators) == {(name, version, namespace) for name in OPERATORS.values()}


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_output_is_like_the_current_latent(trt: ModuleType, dtype: DType) -> None:
    found = built(trt, dtype, 0)
    assert found.types == [{"fp32": trt.DataType.FLOAT, "fp16": trt.DataType.HALF}[dtype]]
    (shape,) = found.outputs
    assert [size.evaluate(SIZES) for size in shape] == [2, 4, 96, 64]
    assert {tensor.format for tensor in found.combination} == {trt.TensorFormat.LINEAR}


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("k", [0, 64])
def test_launch_expressions_hold_for_every_shape(trt: ModuleType, dtype: DType, k: int) -> None:
    found = built(trt, dtype, k)
    info = compile_kernel("sm_89", dtype, k > 0).launch
    assert found.scalars.nbSymExprs == 3

    @given(n=st.integers(1, 64), h=st.integers(1, 400), w=st.integers(1, 400))
    def holds(n: int, h: int, w: int) -> None:
        def value(expression: Any) -> int:
            return expression.expr.evaluate({"N": n, "h": h, "w": w})

        params = found.params
        assert tuple(value(getattr(params, f"grid_{axis}")) for axis in "xyz") == info.blocks(
            pictures=n, positions=h * w
        )
        assert tuple(value(getattr(params, f"block_{axis}")) for axis in "xyz") == (info.threads, 1, 1)
        assert value(params.shared_mem) == info.shared_memory
        assert [value(found.scalars[index]) for index in range(3)] == [9, h * w, k]

    holds()


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("k", [0, 64])
def test_arguments_are_in_the_order_of_the_ptx(trt: ModuleType, dtype: DType, k: int) -> None:
    """TensorRT passes inputs, then the scalars, then outputs."""
    found = built(trt, dtype, k)
    passed = [".u64"] * len(INPUTS) + [".u32"] * found.scalars.nbSymExprs + [".u64"]
    assert ptx.parameters(found.ptx.decode()) == passed
    declared = launch.arguments(dtype)
    assert [argument.name for argument in declared] == [*INPUTS, "heads", "positions", "k", "fused"]
    assert all(found.scalars[index].dtype == trt.PluginArgDataType.INT32 for index in range(3))
    assert f".entry {found.entry}(" in found.ptx.decode()


@pytest.mark.parametrize("target", ["sm_75", "sm_120"])
def test_engines_get_the_kernel_of_their_target(trt: ModuleType, target: str) -> None:
    tensorrt_plugin.register(target)
    try:
        text = Builder(trt).build().ptx.decode()
    finally:
        tensorrt_plugin.register("sm_89")
    assert ptx.target(text) == target


def test_strict_requests_get_the_compiled_form_too(trt: ModuleType) -> None:
    creator = trt.get_plugin_registry().get_creator(OPERATORS["fp32"], "1", DOMAIN)
    fields = [PluginField("k", np.array([0]), None)]
    request = trt.QuickPluginCreationRequest
    plugin = creator.create_plugin(OPERATORS["fp32"], DOMAIN, fields, None, request.STRICT_AOT)
    assert type(plugin).__name__ == "_TemplateAOTPlugin"
    with pytest.raises(ValueError, match="JIT implementation requested, but not defined"):
        creator.create_plugin(OPERATORS["fp32"], DOMAIN, fields, None, request.STRICT_JIT)


# -- refusals ------------------------------------------------------------------------------------------


def test_latents_of_other_widths_are_refused(trt: ModuleType) -> None:
    with pytest.raises(KernelError, match=r"GatedTopKAttention: expected latents of \(N,4,h,w\)"):
        Builder(trt).build(channels=16)


def test_latents_of_the_other_type_are_refused(trt: ModuleType) -> None:
    with pytest.raises(KernelError, match=r"GatedTopKAttention: .*HALF.*expected .*FLOAT"):
        Builder(trt, "fp32", latent=trt.DataType.HALF).build()


def test_negative_k_is_refused(trt: ModuleType) -> None:
    with pytest.raises(KernelError, match="k = -1, expected a positive number, or 0"):
        Builder(trt, k=-1).build()


def test_unknown_target_is_refused_before_anything_is_registered() -> None:
    with standin() as module, pytest.raises(KernelError, match="no target 'sm_61'"):
        tensorrt_plugin.register("sm_61")
    assert not module.get_plugin_registry().creators


def test_missing_tensorrt_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.delitem(sys.modules, "tensorrt.plugin", raising=False)
    with pytest.raises(KernelError, match=r"TensorRT cannot be imported.*pip install"):
        tensorrt_plugin.register("sm_89")


def test_a_tensorrt_without_such_plugins_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with standin():
        import tensorrt.plugin

        monkeypatch.delattr(tensorrt.plugin, "aot_impl")
        with pytest.raises(
            KernelError, match=r"TensorRT stand-in has no tensorrt\.plugin\.aot_impl; .*10\.9"
        ):
            tensorrt_plugin.register("sm_89")
