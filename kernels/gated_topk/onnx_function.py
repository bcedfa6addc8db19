"""GatedTopKAttention as an ONNX local function of standard operators, on the folded form.

The dense form needs all scores at once: 9 x 9216 x 9216 numbers at 96x96, 3 GB in FP32. Both forms
here work through the queries in chunks, so that memory is bounded by the chunk:

* `scan`: a Scan over chunks of a fixed number of queries, any size. For ONNX Runtime.
* `unrolled`: a fixed number of chunks, written out, for compilers: TensorRT-RTX does not parse Scan. The products
  are written as multiply-adds and sums, which it fuses into one kernel a chunk that keeps no score in memory
  (0.6 MB of scratch at 96x96, where matrix products take 200), which are FP32 whatever the tensor cores do, and which
  Turing has too: TensorRT-RTX has no FP32 matrix product for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from vsr_trt.kernels.errors import KernelError

if TYPE_CHECKING:
    import onnx

    from vsr_trt.kernels.gated_topk.fold import FoldedAttention

DType = Literal["fp32", "fp16"]
DOMAIN = "vsr_trt"
# One operator for each type of latents, because a TensorRT plugin has one kernel. The constants are FP32
# always, and so is the arithmetic.
OPERATORS: dict[DType, str] = {"fp32": "GatedTopKAttention", "fp16": "GatedTopKAttentionFP16"}
OPERATOR = OPERATORS["fp32"]
OPSET = 23
# What a call says next to k. TensorRT's parser takes the plugin of that namespace and version where one is
# registered, compiled ahead of time, and the function's body everywhere else. (Without the namespace it would
# take the body always.)
PLUGIN_ATTRIBUTES: dict[str, str | int] = {"plugin_namespace": DOMAIN, "plugin_version": "1", "aot": 1}


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
    def scan(queries: int = 16) -> Chunking:
        """Chunks of `queries` positions. Of 8 to 64 on a CPU, 16 took the least time, and little memory:
        at 96x96 their scores are 5 MB in FP32, which its caches hold."""
        return Chunking("scan", queries)

    @staticmethod
    def for_compilers(k: int | None) -> Chunking:
        """What compilers get: few chunks where they keep no scores, more with k, where they do: 16 hold those of a
        96x96 tile at 191 MB in FP32."""
        return Chunking.unrolled(4 if k is None else 16)

    @staticmethod
    def unrolled(chunks: int) -> Chunking:
        """`chunks` equal parts. The last one takes what is left, so there must be at least chunks * (chunks - 1)
        positions: 16x16 for 16 chunks, a quarter of the smallest tile.
        """
        return Chunking("unrolled", chunks)


def attention_function(
    chunking: Chunking, k: int | None = None, dtype: DType = "fp32", channels: int = 4
) -> onnx.FunctionProto:
    """Writes the function's body.

    Inputs of the function: current (N,C,h,w), previous (N,C,h,w), M (heads,C+1,C+1), P (heads,C,C+1),
    bias (C); output: fused (N,C,h,w). The latents and the output are of `dtype`, the rest FP32.

    Args:
        chunking: how the queries are divided.
        k: positions retrieved for a query, None for all; a k above the number of positions
            means all of them. Scores that tie with the k-th are all kept.
        dtype: of the latents.
        channels: C, which the unrolled form is written for.

    Raises:
        KernelError: k or the chunk below 1.
    """
    import onnx.parser

    if k is not None and k < 1:
        raise KernelError(f"k must be at least 1, not {k}")
    if chunking.size < 1:
        raise KernelError(f"a chunk must have at least 1 element, not {chunking.size}")
    attributes = ", ".join(["k", *PLUGIN_ATTRIBUTES])
    cast = "Cast <to = 1>" if dtype == "fp16" else "Identity"
    scan = chunking.form == "scan"
    body = _PREPARE + (_scan(chunking.size, k) if scan else _unrolled(chunking.size, k, channels + 1))
    text = f"""
        <domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
        {OPERATORS[dtype]} <{attributes}> (current, previous, M, P, bias) => (fused) {{
            z = {cast} (current)
            z_previous = {cast} (previous)
            {body}
            update = Transpose <perm = [0, 2, 1]> (flat_update)
            update_2d = Reshape (update, latent_shape)
            channel_axes = Constant <value_ints = [1, 2]> ()
            bias_3d = Unsqueeze (bias, channel_axes)
            residual = Add (z, bias_3d)
            fused_fp32 = Add (residual, update_2d)
            fused = CastLike (fused_fp32, current)
        }}"""
    return onnx.parser.parse_function(text)


# z' = [z, 1] of both latents: rows (N, hw, C+1) for the queries, columns (N, C+1, hw) for the keys.
# M and P are laid side by side over the heads, so that each chunk takes four plain matrix products.
_PREPARE = """
            latent_shape = Shape (current)
            flat_shape = Constant <value_ints = [0, 0, -1]> ()
            z_columns = Reshape (z, flat_shape)
            previous_columns = Reshape (z_previous, flat_shape)
            zero = Constant <value_ints = [0]> ()
            one = Constant <value_ints = [1]> ()
            two = Constant <value_ints = [2]> ()
            three = Constant <value_ints = [3]> ()
            batch = Shape <start = 0, end = 1> (previous_columns)
            positions = Shape <start = 2, end = 3> (previous_columns)
            ones_shape = Concat <axis = 0> (batch, one, positions)
            ones = ConstantOfShape <value = float[1] {1.0}> (ones_shape)
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


def _gate(k: int | None, tag: str = "") -> str:
    """scores -> gated: those above zero; with k only those that are not below the k-th."""
    if k is None:
        return f"gated{tag} = Relu (scores{tag})"
    return f"""wanted{tag} = Constant <value_ints = [{k}]> ()
            positions_shape{tag} = Shape <start = 2, end = 3> (key_columns)
            k_{tag} = Min (wanted{tag}, positions_shape{tag})
            best{tag}, best_at{tag} = TopK <axis = -1> (scores{tag}, k_{tag})
            last_axis{tag} = Constant <value_ints = [-1]> ()
            kth{tag} = ReduceMin <keepdims = 1> (best{tag}, last_axis{tag})
            kept{tag} = GreaterOrEqual (scores{tag}, kth{tag})
            positive{tag} = Relu (scores{tag})
            none{tag} = Sub (kth{tag}, kth{tag})
            gated{tag} = Where (kept{tag}, positive{tag}, none{tag})"""


def _product_chunk(queries: str, out: str, k: int | None) -> str:
    """One chunk: (N, c, C+1) queries -> (N, c, C) update. Heads lie next to the queries as rows."""
    return f"""
            mixed = MatMul ({queries}, M_flat)
            mixed_rows = Reshape (mixed, per_head_shape)
            scores = MatMul (mixed_rows, key_columns)
            {_gate(k)}
            retrieved = MatMul (gated, keys)
            joined = Reshape (retrieved, joined_shape)
            {out} = MatMul (joined, P_flat)
    """


def _sum_chunk(queries: str, out: str, k: int | None, tag: str, width: int) -> str:
    """The same chunk, its products as `width` multiply-adds and sums over an axis."""

    def names(what: str) -> list[str]:
        return [f"{what}{i}{tag}" for i in range(width)]

    def dot(left: list[str], right: list[str], what: str) -> str:
        pairs = enumerate(zip(left, right, strict=True))
        lines = [f"{what}_p{i}{tag} = Mul ({a}, {b})" for i, (a, b) in pairs]
        total = f"{what}_p0{tag}"
        for i in range(1, width):
            name = f"{what}{tag}" if i == width - 1 else f"{what}_s{i}{tag}"
            lines.append(f"{name} = Add ({total}, {what}_p{i}{tag})")
            total = name
        return "\n            ".join(lines)

    rows = [f"M_row{i}" for i in range(width)]
    keys = [f"key{i}" for i in range(width)]
    retrieved = "\n            ".join(
        f"weighted{i}{tag} = Mul (gated{tag}, {key})\n"
        f"            sum{i}{tag} = ReduceSum <keepdims = 1> (weighted{i}{tag}, minus_one)"
        for i, key in enumerate(keys)
    )
    return f"""
            {", ".join(names("query"))} = Split <axis = 2, num_outputs = {width}> ({queries})
            {dot(names("query"), rows, "mixed")}
            mixed_rows{tag} = Reshape (mixed{tag}, per_head_shape)
            {", ".join(names("mixed_row"))} = Split <axis = 2, num_outputs = {width}> (mixed_rows{tag})
            {dot(names("mixed_row"), keys, "scores")}
            {_gate(k, tag)}
            {retrieved}
            retrieved{tag} = Concat <axis = -1> ({", ".join(names("sum"))})
            joined{tag} = Reshape (retrieved{tag}, joined_shape)
            joined_columns{tag} = Unsqueeze (joined{tag}, minus_one)
            projected{tag} = Mul (joined_columns{tag}, P_flat)
            {out} = ReduceSum <keepdims = 0> (projected{tag}, two)
    """


def _unrolled(chunks: int, k: int | None, width: int) -> str:
    parts = [f"queries_{i}" for i in range(chunks)]
    results = [f"update_{i}" for i in range(chunks)]
    body = f"""
            {", ".join(f"M_row{i}" for i in range(width))} = Split <axis = 0, num_outputs = {width}> (M_flat)
            {", ".join(f"key{i}" for i in range(width))} = Split <axis = 1, num_outputs = {width}> (key_columns)
            {", ".join(parts)} = Split <axis = 1, num_outputs = {chunks}> (queries)
    """
    for i in range(chunks):
        queries = parts[i]
        if k is not None and i:  # only then are there scores in memory
            queries = f"ordered_{i}"
            body += ordered_after(results[i - 1], parts[i], queries, f"_{i}")
        body += _sum_chunk(queries, results[i], k, f"_{i}", width)
    return f"{body}\n            flat_update = Concat <axis = 1> ({', '.join(results)})"


def ordered_after(update: str, queries: str, out: str, tag: str) -> str:
    """Nodes that make `out`: `queries` (N,c,C), unchanged, but only when `update` (N,c,C) is done.

    A compiler is free to compute all chunks' scores before it uses the first, and TensorRT-RTX does. This adds 0
    times whether any number of `update` is positive, which no NaN gets through. `tag` ends the names of the values
    in between.
    """
    return f"""
            update_axes{tag} = Constant <value_ints = [1, 2]> ()
            nothing_fp32{tag} = Constant <value = float[1] {{0.0}}> ()
            nothing{tag} = CastLike (nothing_fp32{tag}, {queries})
            largest{tag} = ReduceMax <keepdims = 1> ({update}, update_axes{tag})
            is_positive{tag} = Greater (largest{tag}, nothing{tag})
            flag{tag} = CastLike (is_positive{tag}, {queries})
            zeros{tag} = Mul (flag{tag}, nothing{tag})
            {out} = Add ({queries}, zeros{tag})
    """


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
                    {_product_chunk("chunk_queries", "chunk_update", k)}
                }}> (by_chunk)
            unchunked_shape = Concat <axis = 0> (zero, minus_one, channels)
            padded_update = Reshape (updates, unchunked_shape)
            flat_update = Slice (padded_update, zero, count, one)
    """


def attention_model(
    folded: FoldedAttention, chunking: Chunking, k: int | None = None, dtype: DType = "fp32"
) -> onnx.ModelProto:
    """A model of this operator alone: current, previous (N,C,h,w) -> fused; the constants are inside.

    Args:
        folded: the constants; they are rounded to FP32.
        chunking, k, dtype: as for `attention_function`.
    """
    from onnx import TensorProto, helper, numpy_helper

    latent = ("N", folded.P.shape[1], "h", "w")
    kind = TensorProto.FLOAT16 if dtype == "fp16" else TensorProto.FLOAT
    single = folded.astype(np.float32)
    inputs = ["current", "previous", "M", "P", "bias"]
    call = helper.make_node(OPERATORS[dtype], inputs, ["fused"], domain=DOMAIN, k=k or 0, **PLUGIN_ATTRIBUTES)
    graph = helper.make_graph(
        [call],
        "attention",
        [helper.make_tensor_value_info(name, kind, latent) for name in ("current", "previous")],
        [helper.make_tensor_value_info("fused", kind, latent)],
        [numpy_helper.from_array(getattr(single, name), name) for name in ("M", "P", "bias")],
    )
    return helper.make_model(
        graph,
        functions=[attention_function(chunking, k, dtype, folded.P.shape[1])],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        ir_version=10,
    )
