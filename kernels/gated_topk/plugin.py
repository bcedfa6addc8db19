"""The operator as a TensorRT plugin that an engine carries inside: nothing of it is needed to load or run.

A quickly deployable plugin with an ahead-of-time implementation (TensorRT 10.9 and later): while TensorRT builds
an engine, it asks for the kernel's PTX and for its launch as expressions of the shapes, and puts both into the
plan. It is registered in the process that builds, before the ONNX file is parsed:

    from vsr_trt.kernels.gated_topk import plugin
    plugin.register("sm_89")

The parser then takes it for nodes `vsr_trt::GatedTopKAttention` (FP32 latents) and
`vsr_trt::GatedTopKAttentionFP16`; without it, or in TensorRT-RTX, which has no such plugins, the same file's
function body is compiled.
"""

from __future__ import annotations

from importlib import import_module
from types import GenericAlias, ModuleType
from typing import Any

from vsr_trt.kernels.errors import KernelError
from vsr_trt.kernels.gated_topk.onnx_function import DOMAIN, OPERATORS
from vsr_trt.kernels.gpu.build import compile_kernel
from vsr_trt.kernels.gpu.launch import CHANNELS, DType
from vsr_trt.kernels.gpu.targets import find

_NEEDED = ("TensorDesc", "KernelLaunchParams", "SymIntExprs", "SymInt32", "register", "aot_impl", "cdiv")
_DATA_TYPES: dict[DType, str] = {"fp32": "FLOAT", "fp16": "HALF"}  # as TensorRT calls them
# TensorRT keeps registered plugins for the life of the process, so what they compile for is looked up late.
_registered: dict[str, str] = {}


def register(target: str) -> tuple[str, ...]:
    """Registers the operators with TensorRT; engines built from now on get the kernel for `target`.

    Calling it again changes the target.

    Args:
        target: of the engine, a name of `gpu.targets.TARGETS`.

    Returns:
        The operators' names, with their namespace.

    Raises:
        KernelError: unknown target, or a TensorRT that is missing or too old.
    """
    find(target)
    plugin = _plugin_module()
    for dtype, operator in OPERATORS.items():
        name = f"{DOMAIN}::{operator}"
        if name not in _registered:
            _define(plugin, name, dtype)
        _registered[name] = target
    return tuple(_registered)


def _plugin_module() -> ModuleType:
    try:
        import tensorrt.plugin as plugin
    except ImportError as error:
        raise KernelError(
            f"TensorRT cannot be imported ({error}), and a plugin is of use there only. Install it with: "
            "pip install 'vsr-trt[gpu]'"
        ) from error
    missing = [name for name in _NEEDED if not hasattr(plugin, name)]
    if missing:
        import tensorrt

        raise KernelError(
            f"TensorRT {tensorrt.__version__} has no tensorrt.plugin.{missing[0]}; plugins that are compiled "
            "ahead of time need 10.9 or later."
        )
    return plugin


def _define(plugin: ModuleType, name: str, dtype: DType) -> None:
    """Tells TensorRT the operator's output, its kernel and its launch.

    TensorRT reads names, order and annotations of both functions: tensors, then attributes, outputs, tactic.
    """
    Desc = plugin.TensorDesc

    def describe(current, previous, M, P, bias, k):  # type: ignore[no-untyped-def]
        return current.like()

    tensors = dict.fromkeys(("current", "previous", "M", "P", "bias"), Desc)
    describe.__annotations__ = {**tensors, "k": int, "return": Desc}
    plugin.register(name)(describe)

    def implement(current, previous, M, P, bias, k, outputs, tactic):  # type: ignore[no-untyped-def]
        return _implementation(plugin, name, dtype, (current, previous, M, P, bias), k)

    implement.__annotations__ = {
        **tensors,
        "k": int,
        "outputs": GenericAlias(tuple, (Desc,)),
        "tactic": int,
        "return": GenericAlias(
            tuple, (str | bytes, str | bytes, plugin.KernelLaunchParams, plugin.SymIntExprs)
        ),
    }
    plugin.aot_impl(name)(implement)


def _implementation(
    plugin: ModuleType, name: str, dtype: DType, inputs: tuple[Any, ...], k: int
) -> tuple[str, str, Any, Any]:
    """Kernel name, PTX, launch parameters and the scalars that stand between inputs and output."""
    current, _, M, _, _ = inputs
    if k < 0:
        raise KernelError(f"{name}: k = {k}, expected a positive number, or 0 for all positions.")
    wanted = getattr(import_module("tensorrt").DataType, _DATA_TYPES[dtype])
    if current.dtype != wanted:
        raise KernelError(f"{name}: the latents are {current.dtype}, expected {wanted}.")
    shape = current.shape_expr
    if len(shape) != 4 or (shape[1].is_constant and shape[1].constant_value() != CHANNELS):
        raise KernelError(f"{name}: expected latents of (N,{CHANNELS},h,w).")
    compiled = compile_kernel(_registered[name], dtype, top_k=k > 0)
    positions = shape[2] * shape[3]
    launch = plugin.KernelLaunchParams()
    launch.grid_x = plugin.cdiv(positions, compiled.launch.tile["queries"])
    launch.grid_y = shape[0]
    launch.block_x = compiled.launch.threads
    launch.shared_mem = compiled.launch.shared_memory
    scalars = plugin.SymIntExprs(3)
    for index, value in enumerate((M.shape_expr[0], positions, k)):
        scalars[index] = plugin.SymInt32(value)
    return compiled.launch.kernel, compiled.ptx, launch, scalars
