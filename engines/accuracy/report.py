"""What `vsr-build verify` shows and writes: tables, `verify.json` and `verify.png`."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vsr_trt.engines.accuracy import gate
from vsr_trt.engines.accuracy.calibration import range_json
from vsr_trt.engines.accuracy.metrics import Difference
from vsr_trt.runtime.errors import OutputError
from vsr_trt.runtime.machine.files import write_whole
from vsr_trt.runtime.media.staging import write_failure

if TYPE_CHECKING:
    from vsr_trt.engines.accuracy.ranges import Range
    from vsr_trt.engines.accuracy.verify import VerifyReport

JSON, PNG = "verify.json", "verify.png"
_SHOWN = 10  # tensors on the console; the JSON has all


def refuse_folder(folder: Path, overwrite: bool) -> None:
    """Refuses before any work is done what could not be written at its end.

    Raises:
        OutputError: the folder holds an earlier report, or cannot be made.
    """
    if not folder.absolute().parent.is_dir():
        raise OutputError(
            f"the folder {folder.absolute().parent} does not exist; create it with: "
            f"mkdir -p {folder.absolute().parent}"
        )
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file, a folder was to be made; choose another --report.")
    taken = [name for name in (JSON, PNG) if (folder / name).exists()]
    if taken and not overwrite:
        raise OutputError(f"{folder / taken[0]} exists; choose another --report or add --overwrite.")


def as_json(report: VerifyReport) -> dict[str, Any]:
    """The report for programs. Numbers that JSON lacks (an infinite error or PSNR) are null."""
    return {
        "bundle": str(report.bundle),
        "clip": {
            "path": str(report.clip.path.absolute()),
            "start": report.clip.start,
            "frames": len(report.clip.frames),
            **dataclasses.asdict(report.clip.source),
        },
        "passed": not report.failures,
        "failures": list(report.failures),
        "thresholds": {name.lower(): value for name, value in vars(gate).items() if isinstance(value, float)},
        "torch": report.torch,
        "engines": report.engines,
        "chain": [
            {"what": entry.what, "psnr": [_finite(value) for value in entry.psnr]} for entry in report.chain
        ],
        "networks": {
            network.name: {
                "always_fp32": network.always_fp32,
                "differences": {what: _difference_json(found) for what, found in network.differences.items()},
                "first_not_finite": {
                    form: None if bad is None else range_json(bad) for form, bad in network.not_finite.items()
                },
                "engines": [
                    {
                        "file": engine.file,
                        "backend": engine.backend,
                        "precision": engine.precision,
                        **_difference_json(engine.difference),
                        "layers": dict(engine.layers),
                    }
                    for engine in network.engines
                ],
                "tensors": {
                    form: [range_json(entry) for entry in ranges] for form, ranges in network.ranges.items()
                },
            }
            for network in report.networks
        },
    }


def _difference_json(found: Difference) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in dataclasses.asdict(found).items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def write(report: VerifyReport, folder: Path) -> None:
    """Writes `verify.json` and `verify.png`, each whole or not at all.

    Raises:
        OutputError: they cannot be written.
    """
    from vsr_trt.engines.accuracy.chart import draw

    text = json.dumps(as_json(report), indent=1, allow_nan=False) + "\n"
    for name, data in ((JSON, text.encode()), (PNG, draw(report))):
        try:
            folder.mkdir(exist_ok=True)
            write_whole(folder / name, data)
        except OSError as error:
            raise write_failure(error, folder / name) from error


def print_report(console: Console, report: VerifyReport) -> None:
    """The tables on the console."""
    _print_differences(console, report)
    _print_ranges(console, report)
    for network in report.networks:
        for form, bad in network.not_finite.items():
            if bad is not None:
                console.print(
                    f"[bold red]not finite:[/] {network.name} in {form.upper()}, first in "
                    f"{escape(bad.tensor)} ({bad.op_type})",
                    highlight=False,
                )
    for entry in report.chain:
        values = ", ".join("the same" if math.isinf(value) else f"{value:.1f} dB" for value in entry.psnr)
        console.print(f"final frames, {_title(entry.what)}: {values}", highlight=False)
    console.print(f"torch: {escape(report.torch)}", highlight=False, soft_wrap=True)
    console.print(f"engines: {escape(report.engines)}", highlight=False, soft_wrap=True)
    if not report.failures:
        console.print("[green]every threshold was kept[/]")


def _print_differences(console: Console, report: VerifyReport) -> None:
    table = Table(title=escape(f"{report.bundle}, {report.clip.count}"), title_justify="left")
    table.add_column("network", no_wrap=True)
    table.add_column("compared", no_wrap=True)
    for column in ("max", "mean", "99.9 %", "cosine"):
        table.add_column(column, justify="right")
    for network in report.networks:
        rows = [(_title(what), found) for what, found in network.differences.items()]
        rows += [(escape(engine.file), engine.difference) for engine in network.engines]
        for index, (what, found) in enumerate(rows):
            table.add_row(
                "" if index else network.name,
                what,
                f"{found.max:.1e}",
                f"{found.mean:.1e}",
                f"{found.quantile:.1e}",
                f"{found.cosine:.6f}",
            )
        if not rows:
            table.add_row(network.name, "[dim]always FP32", *[""] * 4)
    console.print(table)
    console.print("Errors are in units of the reference's largest value.", highlight=False)


def _print_ranges(console: Console, report: VerifyReport) -> None:
    found: list[tuple[Range, str]] = []
    for network in report.networks:
        ranges = network.ranges.get("fp16") or network.ranges.get("fp32") or ()
        found += [(entry, network.name) for entry in ranges]
    found.sort(key=lambda pair: -pair[0].largest)
    table = Table(title="largest tensors, and their share of FP16's range", title_justify="left")
    for column in ("network", "tensor", "made by", "type"):
        table.add_column(column)
    table.add_column("max|x|", justify="right")
    table.add_column("share", justify="right")
    for entry, network_name in found[:_SHOWN]:
        kind = "FP16" if entry.half else "FP32"
        share = f"{entry.share:.2%}"
        table.add_row(network_name, escape(entry.tensor), entry.op_type, kind, f"{entry.largest:.4g}", share)
    console.print(table)


def _title(what: str) -> str:
    return what.replace("fp", "FP")
