"""Softmax attention over large pictures as an ONNX local function whose memory a chunk bounds.

The VAE's middle attention has one head of 512 channels, for which no compiler has a fused kernel. Written as
its products it keeps all scores: 32640 x 32640 of them for a picture of 1920x1080, 4.3 GB in FP32. Here the
queries go through in chunks that are written out and come one after another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.errors import KernelError
from kernels.onnx_function import DOMAIN, OPSET, ordered_after

if TYPE_CHECKING:
    import onnx

SOFTMAX_ATTENTION = "ChunkedSoftmaxAttention"
CHUNKS = 16  # at 1920x1080 a chunk has 2040 queries, whose FP32 scores take 266 MB


def softmax_attention_function(chunks: int = CHUNKS) -> onnx.FunctionProto:
    """Writes the function's body: query, key, value (N,L,C) -> retrieved (N,L,C), all of one type.

    retrieved = softmax(query key^T) value. The query must be scaled already, because the scores of FP16
    tensors are FP16 too; the softmax itself is computed in FP32.

    Args:
        chunks: equal parts of the queries. The last part takes what is left, so there must be at least
            chunks * (chunks - 1) queries.

    Raises:
        KernelError: fewer than one chunk.
    """
    import onnx.parser

    if chunks < 1:
        raise KernelError(f"there must be at least 1 chunk, not {chunks}")
    parts = [f"queries_{i}" for i in range(chunks)]
    results = [f"retrieved_{i}" for i in range(chunks)]
    body = _chunk(parts[0], results[0], "_0")
    for i in range(1, chunks):
        body += ordered_after(results[i - 1], parts[i], f"ordered_{i}", f"_{i}")
        body += _chunk(f"ordered_{i}", results[i], f"_{i}")
    return onnx.parser.parse_function(f"""
        <domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
        {SOFTMAX_ATTENTION} (query, key, value) => (retrieved) {{
            key_columns = Transpose <perm = [0, 2, 1]> (key)
            {", ".join(parts)} = Split <axis = 1, num_outputs = {chunks}> (query)
            {body}
            retrieved = Concat <axis = 1> ({", ".join(results)})
        }}""")


def _chunk(queries: str, out: str, tag: str) -> str:
    return f"""
            scores{tag} = MatMul ({queries}, key_columns)
            single{tag} = Cast <to = 1> (scores{tag})
            shares{tag} = Softmax <axis = -1> (single{tag})
            weights{tag} = CastLike (shares{tag}, {queries})
            {out} = MatMul (weights{tag}, value)
    """
