"""The command that makes a bundle from weights."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from vsr_trt.export.families.published import FAMILIES, parts
from vsr_trt.recipes.fetch.cli import directory
from vsr_trt.runtime.cli import terminal
from vsr_trt.runtime.cli.values import output_folder
from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.machine.memory import peak_bytes

if TYPE_CHECKING:
    from vsr_trt.export.network import Exported
    from vsr_trt.export.request import BundleRequest
    from vsr_trt.recipes.kernel_store import KernelStore
    from vsr_trt.runtime.bundle.manifest import Manifest

_MOST_POSITIONS = 2**31 - 1  # that an attention may look at
_EXAMPLES = """\
examples:
  vsr-build bundle --sd stable-diffusion-2-1-base --checkpoint model.pkl --out BUNDLE
  vsr-build bundle --sd SD --checkpoint model.pkl --out BUNDLE --precision fp16 --stage consistency
  vsr-build bundle --sd SD --checkpoint model.pkl --out BUNDLE --adapter default_encoder_quality=0.5
  vsr-build bundle --vae VAE --text-encoder CLIP --checkpoint light_deg.pt --out BUNDLE
"""


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds `bundle` to the build side's commands."""
    command = commands.add_parser(
        "bundle",
        help="make a bundle from weights",
        description="Exports every network of a checkpoint to ONNX, compares each with torch at two sizes, and writes "
        "a bundle. The family is recognised by the checkpoint. The directory appears whole or not at all.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    for flag, (part, families) in parts().items():
        add(
            f"--{flag}",
            type=Path,
            metavar="DIR",
            help=f"for {' and '.join(families)}: {part.about}; a directory, or a name on the hub, which is fetched, "
            f"such as {getattr(part.places[0], 'repository', '')}",
        )
    add(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="FILE",
        help="the trained weights as published, such as model.pkl or light_deg.pt, or a .safetensors",
    )
    add("--family", choices=tuple(FAMILIES), help="which one the checkpoint is of (default: as it looks)")
    add("--out", type=output_folder, required=True, metavar="BUNDLE", help="the bundle's directory")
    add(
        "--stage",
        choices=("both", "consistency"),
        default="both",
        help="for dloral: all six adapters, or the three trained for consistency (default: both)",
    )
    add(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=W",
        help="for dloral: weight of one adapter, e.g. default_encoder_quality=0.5; may be given several times",
    )
    add("--prompt", metavar="TEXT", help="text that conditions the restoration (default: a neutral one)")
    add(
        "--negative-prompt",
        metavar="TEXT",
        help="for star: text that it is led away from (default: the published one)",
    )
    add(
        "--canvas",
        metavar="WxH",
        help="for star: least size of the result that frames are worked on, e.g. 512x528; smaller than the published "
        "1280x720 it is faster for small pictures, and gives others",
    )
    add(
        "--top-k",
        type=int,
        metavar="K",
        help="for dloral: positions the cross-frame attention retrieves (default: all)",
    )
    add("--precision", choices=("fp32", "fp16"), default="fp32", help="of the heavy networks (default: fp32)")
    add(
        "--kernels",
        action=argparse.BooleanOptionalAction,
        help="compile the GPU kernels for every target (default: where Triton is installed)",
    )
    add(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="of compiled kernels (default: the platform's cache folder)",
    )
    add(
        "--no-cache",
        action="store_true",
        help="compile the kernels even where the cache has them, and keep none",
    )
    add(
        "--jobs",
        type=int,
        choices=(1, 2),
        metavar="N",
        help="networks that are exported at once, 1 or 2 (default: 2 where cores and memory allow)",
    )
    add(
        "--plain",
        action="store_true",
        help="write each graph without local functions, too, for readers that know none, such as OpenVINO's",
    )
    add("--overwrite", action="store_true", help="replace BUNDLE if it exists")
    add("--json", action="store_true", help="print the table as JSON on standard output")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit code."""
    from vsr_trt.export.request import BundleRequest

    if options.top_k is not None and not 1 <= options.top_k <= _MOST_POSITIONS:
        raise InputError(
            f"--top-k is {options.top_k}; expected 1 to {_MOST_POSITIONS}, or no --top-k for all positions."
        )
    given = {flag: (getattr(options, flag.replace("-", "_")), part) for flag, (part, _) in parts().items()}
    request = BundleRequest(
        checkpoint=options.checkpoint,
        out=options.out,
        parts={
            flag: directory(path, part, Console(stderr=True))
            for flag, (path, part) in given.items()
            if path is not None
        },
        family=options.family,
        stage=options.stage,
        adapters=_adapters(options.adapter),
        prompt=options.prompt,
        negative_prompt=options.negative_prompt,
        canvas=_canvas(options.canvas),
        top_k=options.top_k,
        precision=options.precision,
        kernels=options.kernels,
        kernel_store=_kernel_store(options),
        plain=options.plain,
        overwrite=options.overwrite,
        jobs=options.jobs,
    )
    manifest, exported, seconds = build_bundle(request, Console(stderr=True))
    if options.json:
        print(json.dumps(_as_json(options.out, manifest, exported, seconds), indent=1))  # noqa: T201
    return 0


def _kernel_store(options: argparse.Namespace) -> KernelStore | None:
    """Where kernels are kept; None where there are none to be made, or they shall be made again.

    Raises:
        InputError: a folder for a cache that is not to be used.
        OutputError: the folder that was named cannot be written.
    """
    if options.no_cache and options.cache_dir is not None:
        raise InputError("--cache-dir names a cache that --no-cache leaves alone; leave one of them out.")
    if options.no_cache or options.kernels is False:
        return None
    from vsr_trt.recipes.kernel_store import open_store

    return open_store(options.cache_dir)


def _canvas(text: str | None) -> tuple[int, int] | None:
    """Reads `--canvas`: height and width.

    Raises:
        InputError: no size.
    """
    if text is None:
        return None
    if (match := re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)) is None:
        raise InputError(f"--canvas {text}: expected WIDTHxHEIGHT of the restored picture, e.g. 512x528.")
    return int(match[2]), int(match[1])


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
    """Makes a bundle, with progress and a table on the console; returns the seconds that it took, too."""
    from rich.table import Table

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

        manifest = bundle.build(request, bundle.Progress(network, phase, done, note))
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
    phases: dict[str, float] = {}
    for result in exported:
        for name, seconds in result.phases.items():
            phases[name] = phases.get(name, 0.0) + seconds
    spent = ", ".join(
        f"{name} {phases[name]:.1f} s" for name in sorted(phases, key=lambda name: -phases[name])
    )
    console.print(f"seconds by phase: {spent}", highlight=False, soft_wrap=True)
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
                "phases": dict(result.phases),
            }
            for result in exported
        ],
    }
