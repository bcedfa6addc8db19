"""`vsr-build vae-forms`: the VAE whole, in strips and in tiles, side by side: time, memory, picture.

Each form encodes a picture, and decodes what the whole encoder made of it: each half in a process of its own, one after
another.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vsr_trt.recipes.alternatives import child
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Manifest, Stage
from vsr_trt.runtime.bundle.options import Options, check_threads
from vsr_trt.runtime.bundle.symbols import dimension, evaluate
from vsr_trt.runtime.cli.values import parse_size
from vsr_trt.runtime.devices.actions import Buffers
from vsr_trt.runtime.errors import DeviceError, InputError
from vsr_trt.runtime.machine.memory import peak_bytes, resident_bytes
from vsr_trt.runtime.onnxruntime.cpu import CpuNetworks
from vsr_trt.runtime.schedule import tiling
from vsr_trt.runtime.schedule.build import tile_grid
from vsr_trt.runtime.schedule.forms import IN_STRIPS, WHOLE
from vsr_trt.runtime.schedule.shapes import frame_shapes, whole_sizes

FORMS = ("whole", "strips", "tiles")
_SCALING = 0.18215  # of Stable Diffusion's latents; the decoder takes them divided by it
_RUNS = 1
_MOST_RUNS = 1000


@dataclass(frozen=True)
class Found:
    """What was measured of one half of the VAE in one form.

    Attributes:
        network: the half.
        seconds: of each run, the first one included: there is no warm-up but loading.
        scratch: bytes beyond those of the loaded networks, at most.
        estimated: the same as the bundle estimates it; None where it does not.
        decibels: PSNR of the result from the whole's, its range the whole's own; infinity for the same bits.
        border: mean difference of the two numbers next to a border of strips or tiles, in units of that elsewhere;
            None for the whole.
    """

    network: str
    seconds: tuple[float, ...]
    scratch: int
    estimated: int | None
    decibels: float
    border: float | None


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds `vae-forms` to the command line's grammar."""
    command = commands.add_parser(
        "vae-forms",
        help="the VAE whole, in strips and in tiles, side by side: time, memory, picture",
        description="Encodes a picture and decodes it again on the CPU: whole, in strips that share the statistics of "
        "the whole picture, and in tiles with statistics of their own; each half in a process of its own, in one run. "
        "PSNR is from the whole; borders: how steep the result is across those of strips or tiles, compared with "
        "elsewhere.",
    )
    add = command.add_argument
    add("bundle", type=Path, metavar="BUNDLE")
    add(
        "--size",
        action="append",
        default=[],
        metavar="WxH",
        help="of the picture (default: 1024x640, 1920x1080)",
    )
    add(
        "--tile",
        type=int,
        default=96,
        metavar="N",
        help="side of the tiles (default: %(default)s)",
    )
    add("--runs", type=int, default=_RUNS, metavar="N", help="of each half (default: %(default)s)")
    add("--threads", type=int, metavar="N", help="of the CPU (default: all cores)")
    add("--json", action="store_true", help="print the figures as JSON on standard output")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit code."""
    bundle = Bundle.open(options.bundle)
    if not 1 <= options.runs <= _MOST_RUNS:
        raise InputError(f"--runs is {options.runs}; expected 1 to {_MOST_RUNS}.")
    check_threads(options.threads)
    _tiled(options.tile).check(bundle.manifest)
    texts = [part for text in options.size or ["1024x640,1920x1080"] for part in text.split(",")]
    sizes = [parse_size(text, bundle.manifest) for text in texts]
    for width, height in sizes:
        frame_shapes(
            bundle.manifest, width, height, Options()
        )  # refuses what is larger than the networks take
    console = Console(stderr=True)
    report: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for width, height in sizes:
        name = f"{width}x{height}"
        report[name] = {form: [] for form in FORMS}
        with tempfile.TemporaryDirectory(prefix="vsr-trt-") as folder:
            for stage in _halves(bundle.manifest):
                for form in FORMS:
                    with console.status(f"{name}: {stage.name}, {form}…") as status:
                        found = _in_a_process(options, name, stage.name, form, Path(folder), status.update)
                    report[name][form].append(found)
        _show(console, name, report[name])
    if options.json:
        print(json.dumps(report, indent=1))  # noqa: T201
    return 0


def _halves(manifest: Manifest) -> list[Stage]:
    """The encoder's stage, and the decoder's."""
    return [stage for stage in manifest.stages if stage.tiling == "vae"]


def _in_a_process(
    options: argparse.Namespace, size: str, half: str, form: str, folder: Path, hear: Callable[[str], None]
) -> dict[str, Any]:
    command = [
        *(sys.executable, "-m", "vsr_trt.recipes.vae_forms", str(options.bundle.resolve()), size, half, form),
        *(str(folder), str(options.tile), str(options.runs), str(options.threads or 0)),
    ]
    ended = child.run(command, {}, hear)
    if ended.code:
        raise DeviceError(f"{size}, {half}, {form}: {ended.reason}")
    return json.loads(ended.output)


def measure(
    bundle: Bundle,
    size: str,
    half: str,
    form: str,
    folder: Path,
    tile: int = 96,
    runs: int = _RUNS,
    threads: int | None = None,
) -> Found:
    """Measures one half in one form.

    Args:
        bundle: that has it.
        size: of the restored picture.
        half: name of its stage.
        form: one of `FORMS`.
        folder: where the whole's results are put; the others are compared with them, and the second half takes
            the first one's.
        tile: side of tiles.
        runs: how often.
        threads: of the CPU; None for all cores.
    """
    manifest = bundle.manifest
    sizes = whole_sizes(manifest, *parse_size(size, manifest))
    encoder, decoder = _halves(manifest)
    stage = encoder if half == encoder.name else decoder
    if stage is encoder:
        data = _picture(manifest, stage, sizes)
    else:
        data = np.load(folder / f"{encoder.name}.npy") / np.float32(_SCALING)
    device = CpuNetworks(bundle, threads)
    device.load(stage.network, form == "strips")
    base, seconds = resident_bytes(), []
    for _ in range(runs):
        started = time.perf_counter()
        result = _through(device, manifest, stage, data, sizes, form, tile)
        seconds.append(time.perf_counter() - started)
    scratch = (peak_bytes() or base) - base
    device.close()
    if form == "whole":
        np.save(folder / f"{stage.name}.npy", result)
    return Found(
        stage.network,
        tuple(seconds),
        scratch,
        _estimate(manifest, stage, sizes, form, tile),
        decibels(result, np.load(folder / f"{stage.name}.npy")),
        _border(manifest, stage, result, sizes, form, tile),
    )


def decibels(result: np.ndarray, whole: np.ndarray) -> float:
    """PSNR, the peak being the whole's range."""
    error = float(np.mean((result.astype(np.float64) - whole) ** 2))
    return math.inf if error == 0 else 10 * math.log10(float(np.ptp(whole)) ** 2 / error)


def _picture(manifest: Manifest, stage: Stage, sizes: dict[str, int]) -> np.ndarray:
    """Gradients, edges and noise, rougher to the right, (n,c,h,w) in [-1,1]: statistics differ from place to place."""
    (tensor,) = manifest.networks[stage.network].inputs
    _, channels, height, width = (
        factor * (sizes[symbol] if symbol else 1) for factor, symbol in map(dimension, tensor.shape)
    )
    rng = np.random.default_rng(0)
    across = np.linspace(0, 1, width, dtype=np.float32)
    rough = rng.standard_normal((channels, height, width), dtype=np.float32) * (0.02 + 0.3 * across**2)
    checks = ((np.arange(height)[:, None] // 48 + np.arange(width) // 32) % 2).astype(np.float32)
    smooth = np.linspace(-0.7, 0.5, height, dtype=np.float32)[:, None] + 0.3 * checks * across
    return np.clip(smooth + rough, -1, 1)[None]


def _through(
    device: CpuNetworks,
    manifest: Manifest,
    stage: Stage,
    data: np.ndarray,
    sizes: dict[str, int],
    form: str,
    tile: int,
) -> np.ndarray:
    network = manifest.networks[stage.network]
    (source,), (target,) = network.inputs, network.outputs

    def one(part: np.ndarray) -> np.ndarray:
        outputs: Buffers = device.run(stage.network, {source.name: np.ascontiguousarray(part)})
        return outputs[target.name]

    grid = tile_grid(manifest, "vae", sizes, _tiled(tile)) if form == "tiles" else None
    if grid is None:
        return one(data)
    before, after = dimension(source.shape[-1])[0], dimension(target.shape[-1])[0]
    weights = tiling.window(grid.window, grid.height * after, grid.width * after, grid.overlap * after)
    blend = tiling.Blend(sizes["h"] * after, sizes["w"] * after)
    for top in grid.tops:
        for left in grid.lefts:
            place = tiling.Tile(top, left, grid.height, grid.width)
            blend.add(place, one(place.cut(data, before)), weights, after)
    return blend.result()


def _tiled(tile: int) -> Options:
    return Options(tiles={"vae": tile}, statistics="tile")


def _estimate(manifest: Manifest, stage: Stage, sizes: dict[str, int], form: str, tile: int) -> int | None:
    network = manifest.networks[stage.network]
    graph = IN_STRIPS if form == "strips" and IN_STRIPS in network.graphs else WHOLE
    if graph not in network.scratch:
        return None
    grid = tile_grid(manifest, "vae", sizes, _tiled(tile)) if form == "tiles" else None
    shape = sizes | ({"h": grid.height, "w": grid.width} if grid else {})
    return int(evaluate(network.scratch[graph], shape))


def _border(
    manifest: Manifest, stage: Stage, result: np.ndarray, sizes: dict[str, int], form: str, tile: int
) -> float | None:
    """How much steeper the result is across borders than elsewhere, rows and columns alike."""
    network = manifest.networks[stage.network]
    factor = dimension(network.outputs[0].shape[-1])[0]
    if form == "strips" and network.strips > 1:
        rows = [i * sizes["h"] * factor // network.strips for i in range(1, network.strips)]
        return steepness(result, rows, [])
    grid = tile_grid(manifest, "vae", sizes, _tiled(tile)) if form == "tiles" else None
    if grid is None:
        return None
    ends = [
        sorted({start * factor for start in starts[1:]} | {(start + side) * factor for start in starts[:-1]})
        for starts, side in ((grid.tops, grid.height), (grid.lefts, grid.width))
    ]
    return steepness(result, *ends)


def steepness(picture: np.ndarray, rows: Sequence[int], columns: Sequence[int]) -> float:
    """Mean difference of neighbours across those rows and columns, in units of that of all others.

    Args:
        picture: (..., h, w).
        rows, columns: that begin behind a border.
    """
    across: list[np.ndarray] = []
    others: list[np.ndarray] = []
    for axis, places in ((-2, rows), (-1, columns)):
        if not len(places):
            continue
        steps = np.abs(np.diff(picture, axis=axis))
        at = np.asarray(places) - 1
        across.append(np.take(steps, at, axis=axis).ravel())
        others.append(np.delete(steps, at, axis=axis).ravel())
    elsewhere = float(np.concatenate(others).mean())
    return float(np.concatenate(across).mean()) / elsewhere if elsewhere else 1.0


def _show(console: Console, size: str, forms: dict[str, list[dict[str, Any]]]) -> None:
    table = Table(title=f"{size}: the VAE's halves on this CPU", title_justify="left")
    for column in ("half", "form", "seconds", "works in", "estimated", "PSNR", "borders"):
        table.add_column(column, justify="left" if column in ("half", "form") else "right", no_wrap=True)
    for half in range(len(forms["whole"])):
        for form, found in forms.items():
            row = found[half]
            estimated = "-" if row["estimated"] is None else f"{row['estimated'] / 1e9:.2f} GB"
            error = "same bits" if row["decibels"] == math.inf else f"{row['decibels']:.1f} dB"
            table.add_row(
                escape(row["network"]) if form == "whole" else "",
                form,
                f"{sorted(row['seconds'])[len(row['seconds']) // 2]:.1f}",
                f"{row['scratch'] / 1e9:.2f} GB",
                estimated,
                "-" if form == "whole" else error,
                "-" if row["border"] is None else f"{row['border']:.2f}",
            )
        table.add_section()
    console.print(table)


def main(arguments: Sequence[str]) -> int:
    """Entry of a process of its own: prints what it found as JSON."""
    path, size, half, form, folder, tile, runs, threads = arguments
    bundle = Bundle.open(path)
    found = measure(bundle, size, half, form, Path(folder), int(tile), int(runs), int(threads) or None)
    print(json.dumps(dataclasses.asdict(found)))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
