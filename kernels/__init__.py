"""GatedTopKAttention, the operator at the heart of the cross-frame retrieval module.

For each head h and position p of the current latent, over positions q of the warped previous latent::

    s[h,p,q] = <Q_h[p], K_h[q]> / sqrt(d) - tau_h[p]          tau_h[p] = <w, Q_h[p]> + b
    y[p]     = z[p] + proj(concat_h  sum over q in topk(s[h,p,:])  relu(s[h,p,q]) / T * V_h[q])

`fold` turns the module's weights into the small matrices of the folded form, `reference` states the
meaning in numpy, `onnx_function` writes it as an ONNX local function of standard operators, `gpu` is its
GPU kernel, `gated_topk.plugin` puts that kernel into TensorRT engines. `python -m vsr_trt.kernels --help`
has the tools.
"""

from vsr_trt.kernels.errors import KernelError
from vsr_trt.kernels.gated_topk.fold import AttentionWeights, FoldedAttention, fold
from vsr_trt.kernels.gated_topk.onnx_function import (
    DOMAIN,
    OPERATOR,
    OPERATORS,
    PLUGIN_ATTRIBUTES,
    Chunking,
    attention_function,
    attention_model,
)
from vsr_trt.kernels.gated_topk.reference import gated_topk_attention
from vsr_trt.kernels.softmax_attention import SOFTMAX_ATTENTION, softmax_attention_function

__all__ = [
    "DOMAIN",
    "OPERATOR",
    "OPERATORS",
    "PLUGIN_ATTRIBUTES",
    "SOFTMAX_ATTENTION",
    "AttentionWeights",
    "Chunking",
    "FoldedAttention",
    "KernelError",
    "attention_function",
    "attention_model",
    "fold",
    "gated_topk_attention",
    "softmax_attention_function",
]
