"""The tables of docs/operator.md, from launch metadata: `python -m vsr_trt.kernels table`."""

from __future__ import annotations

from collections.abc import Sequence

from vsr_trt.kernels.gpu.launch import ATTENTION, BLENDING, Argument, Launch, arguments, first_cuda

_C_TYPES = {"fp32": "float", "fp16": "__half", "int32": "int"}


def markdown(attentions: Sequence[Launch]) -> str:
    """The attention's arguments, and what each target needs, as two Markdown tables.

    Args:
        attentions: FP32 kernels, one for each target.
    """
    lines = [*_arguments(ATTENTION), ""]
    lines += ["| target | PTX | driver for CUDA | grid | block |", "|---|---|---|---|---|"]
    for launch in attentions:
        major, minor = first_cuda(launch.ptx_version)
        lines.append(
            f"| {launch.target} | {launch.ptx_version} | {major}.{minor} | ({', '.join(launch.grid)}) | "
            f"({launch.threads}, 1, 1) |"
        )
    return "\n".join(lines)


def blending_markdown() -> str:
    """The arguments of the kernel that blends tiles, as a Markdown table."""
    return "\n".join(_arguments(BLENDING))


def _arguments(kernel: str) -> list[str]:
    rows = (_row(number, argument) for number, argument in enumerate(arguments(kernel)))
    return ["| argument | type | shape | |", "|---|---|---|---|", *rows]


def _row(number: int, argument: Argument) -> str:
    if argument.element is None:
        return f"| {number} `{argument.name}` | `int` | | |"
    const = "const " if argument.access == "read" else ""
    half = " (`__half` in the FP16 kernel)" if argument.name in ("current", "previous", "fused") else ""
    shape = ", ".join(map(str, argument.shape or ()))
    kind = f"{const}{_C_TYPES[argument.element]}*"
    return f"| {number} `{argument.name}` | `{kind}`{half} | ({shape}) | {argument.access} |"
