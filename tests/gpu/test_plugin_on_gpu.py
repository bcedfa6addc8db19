"""Engines with the plugin inside against engines of the function form, with TensorRT on a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import processes
from helpers.operands import exact_constants, random_constants

from vsr_trt.kernels import PLUGIN_ATTRIBUTES, Chunking, attention_model, gated_topk_attention
from vsr_trt.kernels.gated_topk import plugin as tensorrt_plugin
from vsr_trt.kernels.gated_topk.onnx_function import DType
from vsr_trt.kernels.gpu.targets import TARGETS

trt = pytest.importorskip("tensorrt", reason="not run: no TensorRT")
SIZES = ((1, 16, 16), (1, 64, 64), (2, 96, 96))  # of the profile: (N, h, w), least, best, most


@pytest.fixture(scope="module", autouse=True)
def target(torch_on_gpu: None) -> str:
    """The GPU in the machine, with the plugins registered for it."""
    major, minor = torch.cuda.get_device_capability()
    name = f"sm_{major}{minor}"
    if name not in TARGETS:
        pytest.skip(f"no kernel is compiled for {name}")
    tensorrt_plugin.register(name)
    return name


def build(model: Any, plugin: bool) -> bytes:
    """An engine of the operator; without `plugin` the node loses what makes TensorRT look for one."""
    if not plugin:
        (call,) = model.graph.node
        kept = [attribute for attribute in call.attribute if attribute.name not in PLUGIN_ATTRIBUTES]
        del call.attribute[:]
        call.attribute.extend(kept)
        for name in PLUGIN_ATTRIBUTES:
            model.functions[0].attribute.remove(name)
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    flag = trt.NetworkDefinitionCreationFlag
    flags = 1 << int(flag.PREFER_AOT_PYTHON_PLUGINS)
    if hasattr(flag, "STRONGLY_TYPED"):
        flags |= 1 << int(flag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString()), parser.get_error(0).desc()
    kinds = {network.get_layer(index).type for index in range(network.num_layers)}
    assert (trt.LayerType.PLUGIN_V3 in kinds) == plugin
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        shapes = [(n, 4, h, w) for n, h, w in SIZES]
        profile.set_shape(network.get_input(index).name, *shapes)
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    return bytes(plan)


_RUN = """
import sys
import numpy as np, tensorrt as trt, torch

plan, inputs, output = sys.argv[1:]
engine = trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(open(plan, "rb").read())
assert engine is not None
context = engine.create_execution_context()
arrays = {name: torch.from_numpy(array).cuda() for name, array in np.load(inputs).items()}
arrays["fused"] = torch.empty_like(arrays["current"])
for name, array in arrays.items():
    if name != "fused":
        assert context.set_input_shape(name, tuple(array.shape))
    context.set_tensor_address(name, array.data_ptr())
stream = torch.cuda.Stream()
torch.cuda.synchronize()
assert context.execute_async_v3(stream.cuda_stream)
stream.synchronize()
np.save(output, arrays["fused"].cpu().numpy())
assert not any(name == "kernels" or name.startswith("tensorrt.plugin") for name in sys.modules)
"""


def run(plan: bytes, folder: Path, current: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """Runs an engine in a process that knows nothing of the plugin."""
    (folder / "plan").write_bytes(plan)
    np.savez(folder / "in.npz", current=current, previous=previous)
    arguments = [sys.executable, "-c", _RUN, folder / "plan", folder / "in.npz", folder / "out.npy"]
    processes.run(arguments, check=True)
    return np.load(folder / "out.npy")


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("k", [None, 20])
def test_plugin_and_function_agree(tmp_path: Path, dtype: DType, k: int | None) -> None:
    rng = np.random.default_rng(0)
    scalar = {"fp32": np.float32, "fp16": np.float16}[dtype]
    folded = random_constants(rng, heads=9, width=64) if k is None else exact_constants(2)
    plans = [
        build(attention_model(folded, Chunking.for_compilers(k), k, dtype), plugin=plugin)
        for plugin in (True, False)
    ]
    for n, h, w in (*SIZES, (1, 33, 47)):
        # integers with k: what is among the k best does not depend on rounding
        current, previous = (
            rng.standard_normal((2, n, 4, h, w)) if k is None else rng.integers(-2, 3, (2, n, 4, h, w))
        ).astype(scalar)
        with_plugin, without = (run(plan, tmp_path, current, previous) for plan in plans)
        scale = np.abs(without).max()
        rounding = {"fp32": 1e-5, "fp16": 2**-10}[dtype]
        assert np.abs(with_plugin.astype(np.float64) - without).max() <= rounding * scale
        if h * w <= 64 * 64:
            wide = (latent.astype(np.float64) for latent in (current, previous))
            expected = gated_topk_attention(*wide, folded.astype(np.float32).astype(np.float64), k)
            assert np.abs(with_plugin - expected).max() <= rounding * np.abs(expected).max()
