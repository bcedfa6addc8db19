"""GatedTopKAttention as an ONNX local function of standard operators, on the folded form.

The dense form needs all scores at once: 9 x 9216 x 9216 numbers at 96x96, 3 GB in FP32. Both forms
here work through the queries in chunks, so that memory is bounded by the chunk:

* `scan`: a Scan over chunks of a fixed number of queries, any size. For ONNX Runtime.
* `unrolled`: a fixed number of chunks, written out. For TensorRT-RTX, which does not parse Scan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import onnx

DOMAIN = "vsr_trt"
OPERATOR = "GatedTopKAttention"
OPSET = 23


@dataclass(frozen=True)
class Chunking:
    """How the queries are divided.

    Attributes:
        form: `scan` or `unrolled`.
        size: for `scan` the queries in a chunk; for `unrolled` the number of chunks.
    """

    form: Literal["scan", "unrolled"]
    size: int

    @staticmethod
    def scan(queries: int = 64) -> Chunking:
        """Chunks of `queries` positions; 64 was the fastest of 32 to 512 on a CPU."""
        return Chunking("scan", queries)

    @staticmethod
    def unrolled(chunks: int = 16) -> Chunking:
        """`chunks` equal parts: 16 keep the scores of a 96x96 tile at 191 MB in FP32.

        The last part takes what is left, so there must be at least chunks * (chunks - 1) positions:
        16x16 for 16 chunks, a quarter of the smallest tile.
        """
        return Chunking("unrolled", chunks)


def attention_function(chunking: Chunking, k: int | None = None) -> onnx.FunctionProto:
    """Writes the function's body.

    Inputs of the function: current (N,C,h,w), previous (N,C,h,w), M (heads,C+1,C+1), P (heads,C,C+1),
    bias (C), all of one floating point type. Output: fused (N,C,h,w).

    Args:
        chunking: how the queries are divided.
        k: positions retrieved for a query, None for all; a k above the number of positions
            means all of them. Scores that tie with the k-th are all kept.

    Raises:
        ValueError: k or the chunk below 1.
    """
    import onnx.parser

    if k is not None and k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if chunking.size < 1:
        raise ValueError(f"a chunk must have at least 1 element, not {chunking.size}")
    body = _PREPARE + (_scan(chunking.size, k) if chunking.form == "scan" else _unrolled(chunking.size, k))
    text = f"""
        <domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
        {OPERATOR} <k> (current, previous, M, P, bias) => (fused) {{
            {body}
            update = Transpose <perm = [0, 2, 1]> (flat_update)
            update_2d = Reshape (update, latent_shape)
            channel_axes = Constant <value_ints = [1, 2]> ()
            bias_3d = Unsqueeze (bias, channel_axes)
            residual = Add (current, bias_3d)
            fused = Add (residual, update_2d)
        }}"""
    return onnx.parser.parse_function(text)


# z' = [z, 1] of both latents: rows (N, hw, C+1) for the queries, columns (N, C+1, hw) for the keys.
# M and P are laid side by side over the heads, so that each chunk takes four plain matrix products.
_PREPARE = """
            latent_shape = Shape (current)
            flat_shape = Constant <value_ints = [0, 0, -1]> ()
            z_columns = Reshape (current, flat_shape)
            previous_columns = Reshape (previous, flat_shape)
            zero = Constant <value_ints = [0]> ()
            one = Constant <value_ints = [1]> ()
            two = Constant <value_ints = [2]> ()
            three = Constant <value_ints = [3]> ()
            batch = Shape <start = 0, end = 1> (previous_columns)
            positions = Shape <start = 2, end = 3> (previous_columns)
            ones_shape = Concat <axis = 0> (batch, one, positions)
            ones_fp32 = ConstantOfShape <value = float[1] {1.0}> (ones_shape)
            ones = CastLike (ones_fp32, current)
            key_columns = Concat <axis = 1> (previous_columns, ones)
            keys = Transpose <perm = [0, 2, 1]> (key_columns)
            query_columns = Concat <axis = 1> (z_columns, ones)
            queries = Transpose <perm = [0, 2, 1]> (query_columns)
            M_rows = Transpose <perm = [1, 0, 2]> (M)
            side_then_rest = Constant <value_ints = [0, -1]> ()
            M_flat = Reshape (M_rows, side_then_rest)
            M_shape = Shape (M)
            heads = Slice (M_shape, zero, one)
            key_width = Slice (M_shape, two, three)
            P_heads = Transpose <perm = [0, 2, 1]> (P)
            P_shape = Shape (P)
            channels = Slice (P_shape, one, two)
            minus_one = Constant <value_ints = [-1]> ()
            P_flat_shape = Concat <axis = 0> (minus_one, channels)
            P_flat = Reshape (P_heads, P_flat_shape)
            per_head_shape = Concat <axis = 0> (zero, minus_one, key_width)
            all_heads_width = Mul (heads, key_width)
            joined_shape = Concat <axis = 0> (zero, minus_one, all_heads_width)
"""


def _chunk(queries: str, out: str, k: int | None, tag: str = "") -> str:
    """One chunk: (N, c, C+1) queries -> (N, c, C) update. Heads lie beside the queries as rows."""
    if k is None:
        gate = f"gated{tag} = Relu (scores{tag})"
    else:
        gate = f"""wanted{tag} = Constant <value_ints = [{k}]> ()
            positions_shape{tag} = Shape <start = 2, end = 3> (key_columns)
            k_{tag} = Min (wanted{tag}, positions_shape{tag})
            best{tag}, best_at{tag} = TopK <axis = -1> (scores{tag}, k_{tag})
            last_axis{tag} = Constant <value_ints = [-1]> ()
            kth{tag} = ReduceMin <keepdims = 1> (best{tag}, last_axis{tag})
            kept{tag} = GreaterOrEqual (scores{tag}, kth{tag})
            positive{tag} = Relu (scores{tag})
            none{tag} = Sub (kth{tag}, kth{tag})
            gated{tag} = Where (kept{tag}, positive{tag}, none{tag})"""
    return f"""
            mixed{tag} = MatMul ({queries}, M_flat)
            mixed_rows{tag} = Reshape (mixed{tag}, per_head_shape)
            scores{tag} = MatMul (mixed_rows{tag}, key_columns)
            {gate}
            retrieved{tag} = MatMul (gated{tag}, keys)
            joined{tag} = Reshape (retrieved{tag}, joined_shape)
            {out} = MatMul (joined{tag}, P_flat)
    """


def _unrolled(chunks: int, k: int | None) -> str:
    names = [f"queries_{i}" for i in range(chunks)]
    split = f"{', '.join(names)} = Split <axis = 1, num_outputs = {chunks}> (queries)"
    body = "".join(_chunk(name, f"update_{i}", k, f"_{i}") for i, name in enumerate(names))
    join = f"flat_update = Concat <axis = 1> ({', '.join(f'update_{i}' for i in range(chunks))})"
    return f"{split}\n{body}\n{join}"


def _scan(size: int, k: int | None) -> str:
    # Scan wants equal chunks: the queries are padded with zero rows, whose results are cut off.
    return f"""
            count = Shape <start = 1, end = 2> (queries)
            chunk = Constant <value_ints = [{size}]> ()
            rest = Mod (count, chunk)
            missing_or_chunk = Sub (chunk, rest)
            missing = Mod (missing_or_chunk, chunk)
            no_padding = Constant <value_ints = [0, 0, 0, 0]> ()
            padding = Concat <axis = 0> (no_padding, missing, zero)
            padded = Pad (queries, padding)
            width = Shape <start = 2, end = 3> (queries)
            chunked_shape = Concat <axis = 0> (zero, minus_one, chunk, width)
            by_chunk = Reshape (padded, chunked_shape)
            updates = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
                body = one_chunk (float[n, c, i] chunk_queries) => (float[n, c, o] chunk_update) {{
                    {_chunk("chunk_queries", "chunk_update", k)}
                }}> (by_chunk)
            unchunked_shape = Concat <axis = 0> (zero, minus_one, channels)
            padded_update = Reshape (updates, unchunked_shape)
            flat_update = Slice (padded_update, zero, count, one)
    """
