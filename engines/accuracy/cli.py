"""The commands `vsr-build calibrate` and `vsr-build verify`.

These may use the exporters: they stand above both sides.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vsr_trt.export.families.published import add_weights, flags_of, given_parts
from vsr_trt.runtime.bundle.directory import Bundle, refuse_hub_cache
from vsr_trt.runtime.cli.values import output_folder
from vsr_trt.runtime.errors import InputError, VerificationError

if TYPE_CHECKING:
    from vsr_trt.engines.accuracy.calibration import Calibrated

_THRESHOLDS = "docs/precision.md says what is compared, and has the thresholds. Exit code 9: one was passed."


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Adds both commands' grammar."""
    _add_calibrate(commands)
    _add_verify(commands)


def _add_calibrate(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "calibrate",
        help="add FP16 graphs to an FP32 bundle, measured on a clip",
        description="Runs the FP32 networks on real frames, measures every tensor, and adds FP16 graphs in which "
        "nodes with numbers near the end of FP16's range stay in FP32.",
    )
    add = command.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="an FP32 bundle")
    add(
        "--clip",
        type=Path,
        required=True,
        metavar="VIDEO",
        help="a video or a folder of pictures like those that will be restored",
    )
    add("--frames", type=int, default=4, metavar="N", help="frames to measure on (default: 4)")
    add("--start", type=float, default=0.0, metavar="T", help="seconds of the video to skip (default: 0)")
    add(
        "--limit",
        type=float,
        default=0.25,
        metavar="SHARE",
        help="share of FP16's range, 65504, above which a node stays in FP32 (default: 0.25)",
    )
    add("--overwrite", action="store_true", help="replace an earlier calibration")
    add("--json", action="store_true", help="print the table as JSON on standard output")


def _add_verify(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "verify",
        help="compare FP16, FP32 and torch, network by network and as a whole",
        description="Runs every network of a bundle, and the whole chain, in FP16 and FP32 on real frames, and in "
        "torch where weights are given. Writes verify.json and verify.png.",
        epilog=_THRESHOLDS,
    )
    add = command.add_argument
    add(
        "bundle",
        type=Path,
        metavar="BUNDLE",
        help="a calibrated FP32 bundle, or any with the weights that it was made from",
    )
    add(
        "--clip",
        type=Path,
        metavar="VIDEO",
        help="a video or a folder of pictures (default: the calibration's)",
    )
    add("--frames", type=int, default=4, metavar="N", help="frames to compare (default: 4)")
    add_weights(command, "to compare with torch: what the bundle was made from; ")
    add("--report", type=output_folder, metavar="FOLDER", help="where to write (default: BUNDLE-verify)")
    add("--overwrite", action="store_true", help="replace an earlier report in that folder")
    add("--json", action="store_true", help="print the report as JSON on standard output")


def calibrate(options: argparse.Namespace) -> int:
    """Runs `calibrate`; returns the exit code."""
    from vsr_trt.engines.accuracy import calibrate as work
    from vsr_trt.engines.accuracy.calibration import network_json
    from vsr_trt.engines.accuracy.recording import check_frames, read_clip

    console = Console(stderr=True)
    check_frames(options.frames)
    work.check(options.bundle, options.limit, options.overwrite)
    clip = read_clip(options.clip, options.frames, options.start)
    request = work.CalibrationRequest(options.bundle, clip, options.limit, options.overwrite)
    with console.status("reading the bundle…") as status:
        done = work.calibrate(request, lambda text: status.update(f"{escape(text)}…"))
    _print_calibrated(console, options.bundle, done, clip.count)
    if options.json:
        networks = {entry.network: network_json(entry) for entry in done}
        report = {"bundle": str(options.bundle), "frames": len(clip.frames), "networks": networks}
        print(json.dumps(report, indent=1, allow_nan=False))  # noqa: T201
    return 0


def _print_calibrated(console: Console, bundle: Path, done: Sequence[Calibrated], frames: str) -> None:
    from vsr_trt.engines.accuracy.calibration import FILE

    table = Table(title=escape(str(bundle)), title_justify="left")
    for column in ("network", "nodes FP16", "FP32", "largest tensor", "max|x|", "share", "error"):
        table.add_column(column, justify="left" if column in ("network", "largest tensor") else "right")
    for entry in done:
        largest = entry.largest
        table.add_row(
            entry.network,
            str(entry.halves),
            str(len(entry.kept)),
            escape(largest.tensor),
            f"{largest.largest:.4g}",
            f"{largest.share:.2%}",
            f"{entry.error.max:.1e}",
        )
    console.print(table)
    console.print(
        f"{frames}. Share: of FP16's range. Error: the largest difference from FP32, in units of the largest "
        f"value. {escape(FILE)} in the bundle has every tensor, and why a node stays in FP32.",
        highlight=False,
        soft_wrap=True,
    )


def verify(options: argparse.Namespace) -> int:
    """Runs `verify`; returns the exit code.

    Raises:
        VerificationError: a threshold was passed; tables and files are there all the same.
    """
    from vsr_trt.engines.accuracy import gate, report
    from vsr_trt.engines.accuracy import verify as work
    from vsr_trt.engines.accuracy.recording import check_frames, read_clip

    console = Console(stderr=True)
    check_frames(options.frames)
    bundle, parts = Bundle.open(options.bundle), given_parts(options)
    if (options.checkpoint is None) != (not parts):
        raise InputError(
            f"{' and '.join(flags_of(bundle.manifest.family))} belong together; give all or none."
        )
    refuse_hub_cache(bundle.path, "through whose links verify cannot read the weights")
    folder = options.report or bundle.path.absolute().with_name(f"{bundle.path.absolute().name}-verify")
    report.refuse_folder(folder, options.overwrite)
    work.forms(bundle, torch=bool(parts))
    clip = (
        work.calibration_clip(bundle, options.frames)
        if options.clip is None
        else read_clip(options.clip, options.frames)
    )
    with console.status("reading the weights…") as status:
        torch = None
        if parts:
            from vsr_trt.export import torch_device

            torch = torch_device.open_networks(bundle.manifest, options.checkpoint, parts)
        found = work.verify(bundle, clip, torch, lambda text: status.update(f"{escape(text)}…"))
        status.update("writing the report…")
        report.write(found, folder)
    report.print_report(console, found)
    console.print(
        f"[bold]{escape(str(folder))}[/]: {report.JSON}, {report.PNG}", highlight=False, soft_wrap=True
    )
    try:
        gate.check(found.failures)
    except VerificationError as error:
        if not options.json:
            raise
        # one JSON document on standard output, the refusal in it
        refusal = {"error": str(error), "kind": type(error).__name__, "exit_code": error.exit_code}
        print(json.dumps(report.as_json(found) | refusal, indent=1, allow_nan=False))  # noqa: T201
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return error.exit_code
    if options.json:
        print(json.dumps(report.as_json(found), indent=1, allow_nan=False))  # noqa: T201
    return 0
