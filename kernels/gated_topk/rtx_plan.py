"""How much memory the operator's function takes in a TensorRT-RTX plan, which is built without a GPU."""

from __future__ import annotations

import re

from vsr_trt.kernels.errors import KernelError
from vsr_trt.kernels.gated_topk.fold import FoldedAttention
from vsr_trt.kernels.gated_topk.onnx_function import Chunking, DType, attention_model

_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+)")


def builds_for(capability: str) -> bool:
    """Whether TensorRT-RTX is installed and builds for a compute capability, e.g. `sm_89`; not for data-centre GPUs."""
    try:
        import tensorrt_rtx as trt
    except ImportError:
        return False
    return hasattr(trt.ComputeCapability, capability.replace("sm_", "SM"))


def activation_memory(
    folded: FoldedAttention,
    height: int,
    width: int,
    chunking: Chunking,
    k: int | None = None,
    dtype: DType = "fp32",
    capability: str = "SM89",
) -> int:
    """Activation memory of a plan of the operator alone, in bytes; see `build_plan`."""
    return build_plan(folded, height, width, chunking, k, dtype, capability)[1]


def build_plan(
    folded: FoldedAttention,
    height: int,
    width: int,
    chunking: Chunking,
    k: int | None = None,
    dtype: DType = "fp32",
    capability: str = "SM89",
) -> tuple[bytes, int]:
    """Builds a plan of the operator alone.

    Returns:
        The plan, and its activation memory in bytes.

    Raises:
        KernelError: TensorRT-RTX is not installed or refuses the graph; the message is its own.
    """
    try:
        import tensorrt_rtx as trt
    except ImportError as error:
        raise KernelError(
            f"TensorRT-RTX cannot be imported ({error}). Install it with: pip install 'vsr-trt[rtx]'"
        ) from error

    lines: list[tuple[object, str]] = []

    class Collector(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: object, message: str) -> None:
            lines.append((severity, message))

    logger = Collector()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(attention_model(folded, chunking, k, dtype).SerializeToString()):
        raise KernelError(f"TensorRT-RTX does not parse the operator: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    shape = (1, folded.P.shape[1], height, width)
    for index in range(network.num_inputs):
        profile.set_shape(network.get_input(index).name, shape, shape, shape)
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    plan = builder.build_serialized_network(network, config)
    errors = [text for severity, text in lines if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)]
    if plan is None:
        raise KernelError(f"TensorRT-RTX builds no plan of the operator: {'; '.join(errors)}")
    found = [int(match[1]) for _, text in lines if (match := _ACTIVATIONS.search(text))]
    if not found:
        raise KernelError("TensorRT-RTX did not say how much memory the plan takes.")
    return bytes(plan), found[-1]
