"""cfr, cross-frame retrieval: fuses what it retrieves of the warped previous latent.

It is one node, `vsr_trt::GatedTopKAttention` (see `kernels`), which a compiler may take as a plugin and everybody else
as an ONNX local function; a GPU kernel of the bundle computes it, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from vsr_trt import kernels
from vsr_trt.export.network import Input, NetworkSpec, Output
from vsr_trt.kernels.gated_topk.torch_forms import folded_attention
from vsr_trt.runtime.bundle.manifest import Bound, Kernel

TEMPERATURE = 3000.0  # a constant of the published code, not a weight


def attention_weights(weights: Mapping[str, Tensor]) -> kernels.AttentionWeights:
    """Takes `cross_attn_module.*` of the checkpoint; the number of heads follows from the shapes."""

    def take(name: str) -> np.ndarray:
        return weights[f"cross_attn_module.{name}"].double().numpy()

    threshold = take("threshold_fc.weight")[0]
    query = take("query_conv.weight")[:, :, 0, 0]
    return kernels.AttentionWeights(
        heads=query.shape[0] // threshold.shape[0],
        query=query,
        key=take("key_conv.weight")[:, :, 0, 0],
        value=take("value_conv.weight")[:, :, 0, 0],
        proj=take("proj_out.weight")[:, :, 0, 0],
        threshold=threshold,
        query_bias=take("query_conv.bias"),
        key_bias=take("key_conv.bias"),
        value_bias=take("value_conv.bias"),
        proj_bias=take("proj_out.bias"),
        threshold_bias=float(take("threshold_fc.bias")[0]),
        temperature=TEMPERATURE,
    )


def operands(weights: Mapping[str, Tensor]) -> kernels.FoldedAttention:
    """The attention's constants in FP32, as the graph has them and the bundle gives them to hosts of the kernel."""
    return kernels.fold(attention_weights(weights)).astype(np.float32)


def kernel(launch: Sequence[str], constants: Mapping[str, str], top_k: int | None) -> Kernel:
    """How the kernel with these launch metadata computes the network; `constants` are the files of its operands."""
    operands = {"current": "latent", "previous": "warped", "fused": "fused"}
    k = ("positions",) if top_k is None else (top_k, "positions")
    return Kernel(tuple(launch), operands, dict(constants), {"k": k})


class CrossFrameRetrieval(nn.Module):
    """latent, warped (n,4,h,w) -> fused (n,4,h,w); the constants are FP32."""

    def __init__(self, folded: kernels.FoldedAttention, top_k: int | None) -> None:
        super().__init__()
        self.register_buffer("M", torch.from_numpy(folded.M))
        self.register_buffer("P", torch.from_numpy(folded.P))
        self.register_buffer("bias", torch.from_numpy(folded.bias))
        self.top_k = top_k

    def forward(self, latent: Tensor, warped: Tensor) -> Tensor:
        """See the class."""
        if torch.compiler.is_exporting():
            return torch.onnx.ops.symbolic(
                f"{kernels.DOMAIN}::{kernels.OPERATOR}",
                (latent, warped, self.M, self.P, self.bias),
                {"k": self.top_k or 0, **kernels.PLUGIN_ATTRIBUTES},  # k = 0 stands for all positions
                dtype=latent.dtype,
                shape=latent.shape,
                version=1,
            )
        return folded_attention(latent, warped, self.M, self.P, self.bias, self.top_k)


def dummy_inputs(sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
    """Latents of unit deviation."""
    shape = (sizes["n"], 4, sizes["h"], sizes["w"])
    return {name: torch.randn(shape, generator=generator) for name in ("latent", "warped")}


def spec(weights: Mapping[str, Tensor], top_k: int | None) -> NetworkSpec:
    """The network as it is exported, with the checkpoint's weights, folded."""
    latent = ("n", 4, "h", "w")
    return NetworkSpec(
        name="cfr",
        module=CrossFrameRetrieval(operands(weights), top_k),
        inputs=(Input("latent", torch.float32, latent), Input("warped", torch.float32, latent)),
        outputs=(Output("fused", torch.float32, latent),),
        bounds={"n": Bound(1, 32), "h": Bound(32, 192, 8), "w": Bound(32, 192, 8)},
        dummy_inputs=dummy_inputs,
        traced={"n": 2, "h": 72, "w": 64},
        checked=({"n": 1, "h": 32, "w": 40}, {"n": 3, "h": 40, "w": 32}),
        # scores next to the k-th are so near to each other that rounding decides which of them counts
        tolerance=None if top_k is None else 5e-2,
        always_fp32="the gate compares scores with a threshold, and sums run over thousands of positions",
        functions=(kernels.attention_function(kernels.Chunking.for_compilers(top_k), top_k),),
    )
