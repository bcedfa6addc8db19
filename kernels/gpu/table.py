"""The tables of docs/operator.md, from launch metadata: `python -m kernels table`."""

from __future__ import annotations

from collections.abc import Sequence

from kernels.gpu.launch import Launch, arguments, first_cuda

_C_TYPES = {"fp32": "float", "fp16": "__half"}


def markdown(launches: Sequence[Launch]) -> str:
    """Arguments, and what each target needs, as two Markdown tables.

    Args:
        launches: FP32 kernels, one for each target.
    """
    lines = ["| argument | type | shape | |", "|---|---|---|---|"]
    for number, argument in enumerate(arguments("fp32")):
        if argument.type == "int32":
            lines.append(f"| {number} `{argument.name}` | `int` | | |")
            continue
        element = _C_TYPES[argument.element or "fp32"]
        const = "const " if argument.access == "read" else ""
        half = " (`__half` in the FP16 kernel)" if argument.name in ("current", "previous", "fused") else ""
        shape = ", ".join(map(str, argument.shape or ()))
        lines.append(
            f"| {number} `{argument.name}` | `{const}{element}*`{half} | ({shape}) | {argument.access} |"
        )
    lines += ["", "| target | PTX | driver for CUDA | grid | block |", "|---|---|---|---|---|"]
    for launch in launches:
        major, minor = first_cuda(launch.ptx_version)
        lines.append(
            f"| {launch.target} | {launch.ptx_version} | {major}.{minor} | (ceil(positions / {launch.queries}), "
            f"pictures, 1) | ({launch.threads}, 1, 1) |"
        )
    return "\n".join(lines)
