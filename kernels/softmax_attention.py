"""Softmax attention with one head over large pictures, as an ONNX local function: the middle of a VAE.

Compilers fuse an attention, so that its scores are never in memory, up to a head of 256 channels; Stable
Diffusion's VAE has 512. Written as its products, that one keeps all scores: 32640 x 32640 of them for a picture
of 1920x1080, 4.3 GB in FP32. Here its queries go through in chunks that are written out and come one after
another. Narrower heads are left to the compiler as one node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vsr_trt.kernels.errors import KernelError
from vsr_trt.kernels.gated_topk.onnx_function import DOMAIN, OPSET, ordered_after

if TYPE_CHECKING:
    import onnx

SOFTMAX_ATTENTION = "SoftmaxAttention"
CHUNKS = 16  # at 1920x1080 a chunk has 2040 queries, whose FP32 scores take 266 MB
FUSED_CHANNELS = 256  # widest head that TensorRT has fused kernels for


def softmax_attention_function(channels: int, chunks: int = CHUNKS) -> onnx.FunctionProto:
    """Writes the function's body: query, key, value (N,L,C) -> retrieved (N,L,C), all of one type.

    retrieved = softmax(query key^T) value. The query must be scaled already, because the scores of FP16
    tensors are FP16 too where they are written out; the softmax itself is computed in FP32.

    Args:
        channels: C; it decides between one node and chunks.
        chunks: equal parts of the queries. The last part takes what is left, so there must be at least
            chunks * (chunks - 1) queries.

    Raises:
        KernelError: fewer than one chunk or channel.
    """
    import onnx.parser

    if chunks < 1 or channels < 1:
        raise KernelError(f"there must be at least 1 chunk and channel, not {chunks} and {channels}")
    body = _ONE_NODE if channels <= FUSED_CHANNELS else _chunked(chunks)
    return onnx.parser.parse_function(f"""
        <domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
        {SOFTMAX_ATTENTION} (query, key, value) => (retrieved) {{
            {body}
        }}""")


_ONE_NODE = """
            head = Constant <value_ints = [1]> ()
            query_heads = Unsqueeze (query, head)
            key_heads = Unsqueeze (key, head)
            value_heads = Unsqueeze (value, head)
            retrieved_heads = Attention <scale = 1.0> (query_heads, key_heads, value_heads)
            retrieved = Squeeze (retrieved_heads, head)
"""


def _chunked(chunks: int) -> str:
    parts = [f"queries_{i}" for i in range(chunks)]
    results = [f"retrieved_{i}" for i in range(chunks)]
    body = _chunk(parts[0], results[0], "_0")
    for i in range(1, chunks):
        body += ordered_after(results[i - 1], parts[i], f"ordered_{i}", f"_{i}")
        body += _chunk(f"ordered_{i}", results[i], f"_{i}")
    return f"""
            key_columns = Transpose <perm = [0, 2, 1]> (key)
            {", ".join(parts)} = Split <axis = 1, num_outputs = {chunks}> (query)
            {body}
            retrieved = Concat <axis = 1> ({", ".join(results)})
    """


def _chunk(queries: str, out: str, tag: str) -> str:
    return f"""
            scores{tag} = MatMul ({queries}, key_columns)
            single{tag} = Cast <to = 1> (scores{tag})
            shares{tag} = Softmax <axis = -1> (single{tag})
            weights{tag} = CastLike (shares{tag}, {queries})
            {out} = MatMul (weights{tag}, value)
    """
