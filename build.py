#!/usr/bin/env python
"""The build side's command line: from weights to a bundle. Run `vsr-build --help`."""

from __future__ import annotations

import sys

from vsr_trt.runtime.machine import shell

if __name__ == "__main__":
    shell.begin()  # the imports below take a while, in which Ctrl-C is to be understood already

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from vsr_trt.engines import cli as engine_commands
from vsr_trt.engines import schedules
from vsr_trt.engines.accuracy import cli as accuracy_commands
from vsr_trt.recipes import vae_forms
from vsr_trt.recipes.alternatives import cli as alternative_commands
from vsr_trt.runtime.bundle.errors import InputError
from vsr_trt.runtime.cli import terminal
from vsr_trt.runtime.cli.values import output_folder
from vsr_trt.runtime.machine.memory import peak_bytes

if TYPE_CHECKING:
    from vsr_trt.export.bundle import BundleRequest
    from vsr_trt.export.network import Exported
    from vsr_trt.recipes.alternatives.ways import Way
    from vsr_trt.runtime.bundle.manifest import Manifest
    from vsr_trt.runtime.devices.actions import Networks

_MOST_FRAMES = 1000  # of a demonstration
_MOST_POSITIONS = 2**31 - 1  # that an attention may look at
_EXAMPLES = """\
examples:
  vsr-build bundle --sd stable-diffusion-2-1-base --checkpoint model.pkl --out BUNDLE
  vsr-build bundle --sd SD --checkpoint model.pkl --out BUNDLE --precision fp16 --stage consistency
  vsr-build bundle --sd SD --checkpoint model.pkl --out BUNDLE --adapter default_encoder_quality=0.5
  vsr-build calibrate BUNDLE --clip clip.mp4
  vsr-build verify BUNDLE
  vsr-build engines BUNDLE --target sm_86,sm_89 --size 1920x1080
  vsr-build demo
  vsr-build alternatives BUNDLE --clip clip.mp4 --sd SD --checkpoint model.pkl

exit codes: 0 done, 2 option refused, 3 output not writable, 4 bundle refused, 5 weights refused, 6 export
failed, 7 a network failed while running, 9 verification failed, 10 engine cannot be built, 129 terminal lost, 130
interrupted (Ctrl-C, SIGTERM), 141 nobody read the output to its end (the work is done)
"""


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="vsr-build",
        description="Turns a DLoRAL checkpoint into a bundle that `vsr` restores video with.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_bundle(commands)
    accuracy_commands.add_commands(commands)
    engine_commands.add_commands(commands)
    alternative_commands.add_commands(commands)
    schedules.add_command(commands)
    vae_forms.add_command(commands)
    demo = commands.add_parser("demo", help="the whole way on a real clip, with a tiny model set by hand")
    demo.add_argument(
        "--out", type=output_folder, default=Path("demo-out"), help="folder (default: demo-out)"
    )
    demo.add_argument("--frames", type=int, default=3, help="frames to restore (default: 3)")
    full = commands.add_parser(
        "full-size", help="build and run full-size networks with random weights, and measure them"
    )
    full.add_argument(
        "--out", type=output_folder, default=Path("full-size-out"), help="folder (default: full-size-out)"
    )
    full.add_argument("--frames", type=int, default=5, help="frames to restore (default: 5)")
    full.add_argument("--precision", choices=("fp32", "fp16"), default="fp32")
    full.add_argument(
        "--torch-frames",
        type=int,
        default=4,
        help="frames of the comparison with torch and ONNX Runtime; 0 for none in torch (default: 4)",
    )
    full.add_argument("--keep", action="store_true", help="keep weights and bundle (15 GB) afterwards")
    accept = commands.add_parser(
        "gpu-acceptance",
        help="on a machine with a GPU: build, verify and measure full-size engines, and write one report",
        description="Full-size networks with random weights: engines for the GPU in this machine, the tests that "
        "need one, verification, and benchmarks at three sizes. Goes on where a step fails, and exits with 9 then. "
        "Needs 25 GB of disk while it runs.",
    )
    accept.add_argument(
        "--out", type=output_folder, default=Path("gpu-acceptance-out"), help="folder (default: %(default)s)"
    )
    accept.add_argument(
        "--backend",
        choices=("tensorrt-rtx", "tensorrt"),
        default="tensorrt-rtx",
        help="(default: %(default)s)",
    )
    return top


def _add_bundle(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "bundle",
        help="make a bundle from weights",
        description="Merges the LoRA adapters, exports every network to ONNX, compares each with torch at two "
        "sizes, and writes a bundle. The directory appears whole or not at all.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("--sd", type=Path, required=True, metavar="DIR", help="Stable Diffusion 2.1 in diffusers' layout")
    add(
        "--checkpoint", type=Path, required=True, metavar="FILE", help="DLoRAL's model.pkl, or a .safetensors"
    )
    add("--out", type=output_folder, required=True, metavar="BUNDLE", help="the bundle's directory")
    add(
        "--stage",
        choices=("both", "consistency"),
        default="both",
        help="all six adapters, or the three trained for consistency (default: both)",
    )
    add(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=W",
        help="weight of one adapter, e.g. default_encoder_quality=0.5; may be given several times",
    )
    add("--prompt", metavar="TEXT", help="text that conditions the restoration (default: a neutral one)")
    add("--top-k", type=int, metavar="K", help="positions the cross-frame attention retrieves (default: all)")
    add("--precision", choices=("fp32", "fp16"), default="fp32", help="of the heavy networks (default: fp32)")
    add(
        "--kernels",
        action=argparse.BooleanOptionalAction,
        help="compile the GPU kernels for every target (default: where Triton is installed)",
    )
    add("--overwrite", action="store_true", help="replace BUNDLE if it exists")
    add("--json", action="store_true", help="print the table as JSON on standard output")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    options = parser().parse_args(arguments)
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "bundle": _bundle,
        "calibrate": _calibrate,
        "verify": _verify,
        "demo": _demo,
        "full-size": _full_size,
        "gpu-acceptance": _gpu_acceptance,
        "time": _time,
        "alternatives": _alternatives,
        "schedule": schedules.run,
        "vae-forms": vae_forms.run,
    }
    commands |= dict.fromkeys(("engines", "cache", "diff", "doctor"), engine_commands.run)
    as_json = getattr(options, "json", False) in (True, "-")  # alternatives names a file
    with terminal.errors(as_json=as_json) as outcome:
        outcome.code = commands[options.command](options)
    return outcome.code


def _bundle(options: argparse.Namespace) -> int:
    from vsr_trt.export import bundle

    if options.top_k is not None and not 1 <= options.top_k <= _MOST_POSITIONS:
        raise InputError(
            f"--top-k is {options.top_k}; expected 1 to {_MOST_POSITIONS}, or no --top-k for all positions."
        )
    request = bundle.BundleRequest(
        sd=options.sd,
        checkpoint=options.checkpoint,
        out=options.out,
        stage=options.stage,
        adapters=_adapters(options.adapter),
        prompt=bundle.DEFAULT_PROMPT if options.prompt is None else options.prompt,
        top_k=options.top_k,
        precision=options.precision,
        kernels=options.kernels,
        overwrite=options.overwrite,
    )
    manifest, exported, seconds = build_bundle(request, Console(stderr=True))
    if options.json:
        print(json.dumps(_as_json(options.out, manifest, exported, seconds), indent=1))  # noqa: T201
    return 0


def _adapters(pairs: Sequence[str]) -> dict[str, float]:
    weights = {}
    for pair in pairs:
        name, equals, weight = pair.partition("=")
        try:
            weights[name] = float(weight)
        except ValueError:
            equals = ""
        if not equals or weights[name] != weights[name] or abs(weights[name]) == float("inf"):
            raise InputError(f"--adapter {pair}: expected NAME=W, e.g. default_encoder_quality=0.5.")
    return weights


def build_bundle(request: BundleRequest, console: Console) -> tuple[Manifest, list[Exported], float]:
    """Makes a bundle, with progress and a table on the console; tells the seconds that it took."""
    from rich.table import Table

    from vsr_trt.engines.graphs.cpu import lower
    from vsr_trt.export import bundle

    started = time.perf_counter()
    exported: list[Exported] = []
    current = ["", 0, 0]
    with console.status("reading the weights…") as status:

        def network(name: str, index: int, count: int) -> None:
            current[:] = [name, index + 1, count]
            phase("load")

        def phase(name: str) -> None:
            elapsed = time.perf_counter() - started
            status.update(f"{current[1]}/{current[2]} {current[0]}: {name} [dim]({elapsed:.0f} s)")

        def done(result: Exported) -> None:
            exported.append(result)
            console.print(f"  {result.name}: {result.seconds:.1f} s", highlight=False)

        def note(text: str) -> None:
            console.print(f"[yellow]note:[/] {escape(text)}", highlight=False)

        manifest = bundle.build(request, lower, bundle.Progress(network, phase, done, note))
    table = Table(title=escape(terminal.printable(str(request.out))), title_justify="left")
    for column in ("network", "nodes", "parameters", "bytes", "error", "seconds"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for result in exported:
        record = result.record
        table.add_row(
            result.name,
            str(record.nodes),
            f"{record.parameters:,}",
            f"{result.bytes:,}",
            f"{result.worst:.1e}",
            f"{result.seconds:.1f}",
        )
    console.print(table)
    peak = peak_bytes()
    memory = f", {peak / 1e9:.1f} GB of memory at most" if peak else ""
    total = sum(entry.bytes for entry in manifest.files.values())
    seconds = time.perf_counter() - started
    console.print(
        f"[bold]{escape(str(request.out))}[/]: {total / 1e9:.2f} GB in {seconds:.0f} s{memory}. "
        "Error: the largest difference from torch, in units of the largest value (u8 outputs: in levels).",
        highlight=False,
        soft_wrap=True,
    )
    return manifest, exported, seconds


def _as_json(
    out: Path, manifest: Manifest, exported: Sequence[Exported], seconds: float
) -> dict[str, object]:
    return {
        "bundle": str(out),
        "seconds": seconds,
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "peak_memory": peak_bytes(),
        "merged_sha256": manifest.provenance.merged_sha256 if manifest.provenance else None,
        "stripped_prefixes": manifest.provenance.stripped_prefixes if manifest.provenance else {},
        "networks": [
            {
                "name": result.name,
                "nodes": result.record.nodes,
                "parameters": result.record.parameters,
                "bytes": result.bytes,
                "worst_error": result.worst,
                "seconds": result.seconds,
            }
            for result in exported
        ],
    }


def _calibrate(options: argparse.Namespace) -> int:
    from vsr_trt.engines.graphs import half

    return accuracy_commands.calibrate(options, half.write)


def _verify(options: argparse.Namespace) -> int:
    def open_torch(manifest: Manifest, sd: Path, checkpoint: Path) -> Networks:
        from vsr_trt.export import torch_device

        return torch_device.open_device(manifest, sd, checkpoint)

    return accuracy_commands.verify(options, open_torch)


def _demo(options: argparse.Namespace) -> int:
    from vsr_trt.recipes import demo as showcase

    if not 1 <= options.frames <= _MOST_FRAMES:
        raise InputError(f"--frames is {options.frames}; expected 1 to {_MOST_FRAMES}.")
    return showcase.demo(Path(__file__), options.out, options.frames, Console())


def _gpu_acceptance(options: argparse.Namespace) -> int:
    from vsr_trt.recipes.acceptance import gpu_acceptance

    backend = options.backend.replace("-", "_")
    return gpu_acceptance(Path(__file__), options.out, backend, Console(stderr=True))


def _full_size(options: argparse.Namespace) -> int:
    from vsr_trt.recipes import demo as showcase

    if not 2 <= options.frames <= _MOST_FRAMES:
        raise InputError(
            f"--frames is {options.frames}; expected 2 to {_MOST_FRAMES}, for the first is warm-up."
        )
    if options.torch_frames != 0 and not 2 <= options.torch_frames <= _MOST_FRAMES:
        raise InputError(
            f"--torch-frames is {options.torch_frames}; expected 0, or 2 to {_MOST_FRAMES}, for the first is warm-up."
        )
    return showcase.full_size(
        Path(__file__),
        options.out,
        options.frames,
        options.torch_frames,
        options.precision,
        options.keep,
        Console(),
    )


def _time(options: argparse.Namespace) -> int:
    def open_torch(options: argparse.Namespace, height: int, width: int) -> Way:
        import torch

        from vsr_trt.export.bundle import DEFAULT_PROMPT
        from vsr_trt.export.eager import Compiled, Eager
        from vsr_trt.export.families.dloral.family import MINIMUM_SIDE
        from vsr_trt.recipes.alternatives import COMPILED
        from vsr_trt.recipes.alternatives.ways import refuse_small

        refuse_small(options.way, MINIMUM_SIDE, height, width)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        model = Compiled if options.way == COMPILED else Eager
        return model(options.sd, options.checkpoint, DEFAULT_PROMPT)

    return alternative_commands.time_way(options, open_torch)


def _alternatives(options: argparse.Namespace) -> int:
    return alternative_commands.alternatives(options, Path(__file__))


if __name__ == "__main__":
    sys.exit(shell.end(main))
