"""`python -m vsr_trt.kernels`: compile the GPU kernels, report on them, time the operator's forms."""

from __future__ import annotations

import sys

from vsr_trt.runtime.machine import shell

if __name__ == "__main__":
    shell.begin()  # the imports below take a while, in which Ctrl-C is to be understood already

import argparse
import json
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from vsr_trt.kernels.errors import KernelError
from vsr_trt.kernels.gpu.targets import TARGETS
from vsr_trt.runtime.machine.files import write_whole
from vsr_trt.runtime.machine.gpu import why_none

_EXAMPLES = """\
examples:
  python -m vsr_trt.kernels report
  python -m vsr_trt.kernels report --target sm_89 --dtype fp16 --top-k --json
  python -m vsr_trt.kernels compile --out cubins --target sm_86 --target sm_89
  python -m vsr_trt.kernels bench --size 64x64 --json bench.json

exit codes: 0 done, 1 failed, 2 option refused, 3 output not writable, 129 terminal lost, 130 interrupted (Ctrl-C,
SIGTERM), 141 nobody read the output to its end (the work is done)
"""
_SIZES = ("64x64", "96x96", "135x240")
_MOST_SECONDS = 3600
_MOST_SIDE = 4096  # 32768 pixels of the restored picture


class _OptionError(KernelError):
    """An option's value cannot be used."""

    exit_code = 2


class _OutputError(KernelError):
    """The output cannot be written."""

    exit_code = 3


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        prog="python -m vsr_trt.kernels",
        description="GatedTopKAttention: its GPU kernel and its other forms; and the kernel that blends tiles.",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    report = commands.add_parser(
        "report",
        help="registers, occupancy, instructions and predicted time for each target",
        description="Compiles the kernels for each target and takes the binaries apart. Times are predicted by the "
        "model that is printed, not measured; no GPU is needed.",
    )
    _add_variant(report)
    report.add_argument(
        "--size", action="append", metavar="HxW", help=f"of the latent (default: {', '.join(_SIZES)})"
    )
    report.add_argument("--json", action="store_true", help="print JSON on standard output instead")
    make = commands.add_parser(
        "compile", help="PTX, cubin and launch metadata of both kernels for each target, without a GPU"
    )
    _add_variant(make)
    make.add_argument("--out", type=Path, required=True, metavar="DIR", help="an existing or new folder")
    commands.add_parser("table", help="the tables of docs/operator.md, from the launch metadata")
    bench = commands.add_parser(
        "bench",
        help="time and memory of the operator's forms, side by side",
        description="Each form in a process of its own, after a warm-up. Without a GPU, those of the CPU; the "
        "memory of a TensorRT-RTX plan where that is installed.",
    )
    bench.add_argument("--size", action="append", metavar="HxW", help="of the latent (default: 64x64, 96x96)")
    bench.add_argument("--seconds", type=float, default=3.0, help="to time each form for (default: 3)")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write every run's time there")
    return top


def _add_variant(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--target",
        action="append",
        choices=tuple(TARGETS),
        metavar="SM",
        help=f"one of {', '.join(TARGETS)} (default: all)",
    )
    command.add_argument(
        "--dtype",
        choices=("fp32", "fp16"),
        default="fp32",
        help="of the attention's latents (default: fp32)",
    )
    command.add_argument("--top-k", action="store_true", help="the attention that keeps the k best scores")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    options = parser().parse_args(arguments)
    console = Console(stderr=True)
    with shell.working():
        try:
            {"report": _report, "compile": _compile, "bench": _bench, "table": _table}[options.command](
                options
            )
        except KernelError as error:
            console.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            return getattr(error, "exit_code", 1)
        except KeyboardInterrupt:
            with shell.closing():
                console.print("interrupted; nothing half-written was left behind.", highlight=False)
                return shell.code_of(shell.interrupted_by() or signal.SIGINT)
    return 0


def _sizes(given: Sequence[str] | None, default: Sequence[str]) -> tuple[tuple[int, int], ...]:
    sizes = []
    for text in given or default:
        height, cross, width = text.partition("x")
        pair: list[int] = [int(side) if re.fullmatch("[0-9]{1,6}", side) else 0 for side in (height, width)]
        if not cross or not all(0 < side <= _MOST_SIDE for side in pair):
            raise _OptionError(
                f"--size {text}: expected HEIGHTxWIDTH of the latent, each from 1 to {_MOST_SIDE}, e.g. 96x96."
            )
        sizes.append((pair[0], pair[1]))
    return tuple(sizes)


def _report(options: argparse.Namespace) -> None:
    from vsr_trt.kernels.gpu import roofline
    from vsr_trt.kernels.gpu.build import compile_all, compile_blending

    sizes = _sizes(options.size, _SIZES)
    err = Console(stderr=True)
    with err.status("compiling…"):
        rows = [
            roofline.analyse(compiled, sizes)
            for compiled in compile_all(options.target or TARGETS, [options.dtype], options.top_k)
        ]
        blending = [compile_blending(target).launch for target in options.target or TARGETS]
    occupancies = [roofline.occupancy(launch) for launch in blending]
    if options.json:
        others = [
            {"launch": json.loads(launch.to_json()), "occupancy": occupancy}
            for launch, occupancy in zip(blending, occupancies, strict=True)
        ]
        content = {"model": roofline.__doc__, "kernels": [_as_json(row) for row in rows], "blending": others}
        print(json.dumps(content, indent=1))
        return
    console = Console(highlight=False)
    variant = f"{options.dtype}{', top-k' if options.top_k else ''}"
    table = Table(
        title=f"gated_topk_attention, {variant}: milliseconds by size are predicted, never measured",
        title_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    columns = ["target", "regs", "shared", "spilled", "occup.", "loop", "FLOP/B"]
    for column in (*columns, *(f"{height}x{width}" for height, width in sizes)):
        table.add_column(column, justify="left" if column == "target" else "right", no_wrap=True)
    for row in rows:
        launch = row.launch
        table.add_row(
            launch.target,
            str(launch.registers),
            str(launch.shared_memory),
            str(launch.spilled),
            f"{row.occupancy:.0%}",
            str(row.loop.total()),
            f"{row.predictions[0].intensity:,.0f}",
            *(f"{prediction.seconds * 1e3:.2f}" for prediction in row.predictions),
        )
    console.print(table)
    for row in rows:
        console.print(f"{row.launch.target:8}as in {row.card}", markup=False)
    console.print(
        "\nregs: of a thread. shared, spilled: bytes, of a block and a thread. occup.: of an SM's warps. loop: "
        f"instructions of the inner loop, for {rows[0].pairs} pairs of positions a thread. FLOP/B: operations for "
        f"a byte of the card's memory, at {sizes[0][0]}x{sizes[0][1]}.\n",
        markup=False,
    )
    console.print(Markdown(roofline.__doc__ or ""))
    table = Table(
        title="\nblend_tiles, fp32: bound by the memory",
        title_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for column in ("target", "regs", "shared", "spilled", "occup."):
        table.add_column(column, justify="left" if column == "target" else "right", no_wrap=True)
    for launch, occupancy in zip(blending, occupancies, strict=True):
        numbers = map(str, (launch.registers, launch.shared_memory, launch.spilled))
        table.add_row(launch.target, *numbers, f"{occupancy:.0%}")
    console.print(table)


def _as_json(row: Any) -> dict[str, Any]:
    return {
        "launch": json.loads(row.launch.to_json()),
        "card": row.card,
        "blocks_per_multiprocessor": row.blocks,
        "occupancy": row.occupancy,
        "inner_loop": {"instructions": row.loop.total(), "pairs": row.pairs, "by_kind": dict(row.loop)},
        "predicted": [
            {
                "height": prediction.height,
                "width": prediction.width,
                "seconds": prediction.seconds,
                "bound": prediction.bound,
                "flop_per_byte": prediction.intensity,
            }
            for prediction in row.predictions
        ],
    }


def _compile(options: argparse.Namespace) -> None:
    from vsr_trt.kernels.gpu.build import compile_blending, compile_kernel
    from vsr_trt.kernels.gpu.store import write

    console, made = Console(), []
    _refuse_unwritable(options.out)
    for target in options.target or TARGETS:
        made += [compile_kernel(target, options.dtype, options.top_k), compile_blending(target)]
    try:
        with shell.shield():  # all files of it, or none
            options.out.mkdir(exist_ok=True)
            written = [path for compiled in made for path in write(compiled, options.out)]
    except OSError as error:
        raise _OutputError(f"{options.out} cannot be written: {error.strerror}.") from error
    for path in written:
        console.print(str(path), highlight=False, soft_wrap=True, markup=False)


def _refuse_unwritable(folder: Path) -> None:
    """Before minutes of work: whether it is a folder that can be written, or can become one."""
    existing = folder if folder.exists() else folder.parent
    if not existing.is_dir():
        raise _OutputError(f"{folder} cannot be written: {existing} is no folder.")
    if not os.access(existing, os.W_OK):
        raise _OutputError(f"{folder} cannot be written: {existing} is not writable.")


def _table(options: argparse.Namespace) -> None:
    from vsr_trt.kernels.gpu.build import compile_all
    from vsr_trt.kernels.gpu.table import blending_markdown, markdown

    print(markdown([compiled.launch for compiled in compile_all(TARGETS, ["fp32"], top_k=False)]))
    print(f"\n{blending_markdown()}")


def _bench(options: argparse.Namespace) -> None:
    from vsr_trt.kernels.gated_topk import benchmark

    sizes = _sizes(options.size, ("64x64", "96x96"))
    if not 0 < options.seconds <= _MOST_SECONDS:
        raise _OptionError(
            f"--seconds is {options.seconds:g}; expected a number above 0, {_MOST_SECONDS} at most."
        )
    if options.json is not None:
        if options.json.is_dir() or str(options.json) == "-":
            raise _OptionError(f"--json {options.json}: expected the name of a file.")
        _refuse_unwritable(options.json.parent)
    console, err = Console(), Console(stderr=True)
    with err.status("measuring…") as status:
        measured = benchmark.measure(sizes, options.seconds, lambda text: status.update(f"measuring {text}…"))
        status.update("building plans…")
        plans = benchmark.plan_memory(sizes)
    for height, width in sizes:
        rows = [row for row in measured if (row.height, row.width) == (height, width)]
        table = Table(
            title=f"{height}x{width} latents, 9 heads, FP32",
            title_justify="left",
            box=SIMPLE,
            padding=(0, 1, 0, 0),
        )
        for column in ("form", "median ms", "from", "to", "runs", "faster", "extra MB", "error"):
            table.add_column(column, justify="left" if column == "form" else "right", no_wrap=True)
        for row in rows:
            table.add_row(
                row.form,
                _milliseconds(row.median),
                _milliseconds(min(row.seconds)),
                _milliseconds(max(row.seconds)),
                str(len(row.seconds)),
                f"{rows[0].median / row.median:.1f}x",
                "unknown" if row.memory is None else f"{row.memory / 1e6:.0f}",
                f"{row.difference:.0e}",
            )
        console.print(table)
    console.print(
        "extra MB: the process's peak above what it held before the first run. error: the largest difference from "
        "the first form, relative. The ONNX function runs in ONNX Runtime.\n",
        highlight=False,
    )
    for (height, width), plan in zip(sizes, plans, strict=True):
        text = f"{plan / 1e6:.0f} MB" if isinstance(plan, int) else plan
        console.print(
            f"activation memory of a TensorRT-RTX plan, FP32, {height}x{width}: {text}", highlight=False
        )
    found = benchmark.machine()
    console.print(", ".join(f"{name} {value}" for name, value in found.items()), highlight=False)
    forms = {row.form for row in measured}
    for form in benchmark.GPU_FORMS:
        if form not in forms:
            console.print(f"{form}: not run, {why_none() or 'what it needs is not installed'}.")
    if options.json:
        content = {
            "machine": found,
            "measured": [vars(row) | {"median": row.median} for row in measured],
            "tensorrt_rtx_activation_bytes": {
                f"{height}x{width}": plan for (height, width), plan in zip(sizes, plans, strict=True)
            },
        }
        try:
            with shell.shield():
                write_whole(options.json, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            raise _OutputError(f"{options.json} cannot be written: {error.strerror}.") from error


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"


if __name__ == "__main__":
    sys.exit(shell.end(main))
