"""The command `vsr-build gpu-acceptance`."""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from vsr_trt.recipes import SCRIPT
from vsr_trt.recipes.acceptance.library import Library, library_for
from vsr_trt.recipes.acceptance.run import PAGE, REPORT, accept
from vsr_trt.recipes.acceptance.steps import SIZES, Extent, Setting, Task, tasks
from vsr_trt.recipes.demo import crop_clip, real_clip
from vsr_trt.runtime import doctor
from vsr_trt.runtime.cli.values import output_folder
from vsr_trt.runtime.errors import DeviceError, InputError, OutputError
from vsr_trt.runtime.machine import gpu
from vsr_trt.runtime.machine.gpu import Gpu

_FRAMES = 4
_WHOLE = Extent()
_ANY = Gpu("NVIDIA GeForce RTX 4090", "sm_89", 24 << 30, "13.0")  # whose commands a dry run prints
_EXAMPLES = f"""\
what comes back: OUT/{REPORT} and OUT/{PAGE}, written after every step. There is nothing personal in them: please
  attach both to an issue. It takes two to four hours, and 25 GB of disk while it runs.

examples:
  vsr-build gpu-acceptance                     # compiles with what the GPU in this machine needs
  vsr-build gpu-acceptance --extra             # prints the extra to install for it: rtx or gpu
  vsr-build gpu-acceptance --dry-run           # prints the commands, and checks that each is understood
  vsr-build gpu-acceptance --sizes 512x512 --soak 60 --seconds 3       # the same steps in less time
  vsr-build gpu-acceptance --sd SD --checkpoint model.pkl              # weights of your own; they are only read
"""
STAND_IN = "VSR_TRT_STAND_IN"
"""Variable that whoever stands in for a GPU sets: what does. The report says so, and that its figures are no GPU's."""
_MOST_SECONDS = 24 * 3600
_LARGEST = (640 * 4, 272 * 4)  # of the restored picture: the clip's frames, four times as wide and high


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds `gpu-acceptance` to the build side's commands."""
    command = commands.add_parser(
        "gpu-acceptance",
        help="on a machine with a GPU: build, verify and measure full-size engines, and write one report",
        description="Full-size networks with random weights: engines for the GPU in this machine, the tests that "
        "need one, verification, and benchmarks at three sizes. Goes on where a step fails, and exits with 9 then.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("--out", type=output_folder, default=Path("gpu-acceptance-out"), help="folder (default: %(default)s)")
    add(
        "--backend",
        choices=("auto", "tensorrt-rtx", "tensorrt"),
        default="auto",
        help="what compiles (default: TensorRT-RTX for the GPUs that it knows, TensorRT for others)",
    )
    add(
        "--sd",
        type=Path,
        metavar="DIR",
        help="Stable Diffusion 2.1 of your own, with --checkpoint (default: random weights of full size)",
    )
    add("--checkpoint", type=Path, metavar="FILE", help="DLoRAL's model.pkl, with --sd")
    add(
        "--sizes",
        default=",".join(SIZES),
        metavar="WxH,...",
        help="of the restored picture, the smallest first; the middle one is measured most (default: %(default)s)",
    )
    add(
        "--soak",
        type=float,
        default=_WHOLE.soak,
        metavar="T",
        help="seconds without a break (default: %(default)g)",
    )
    add(
        "--seconds",
        type=float,
        default=_WHOLE.seconds,
        metavar="T",
        help="for each mode of every other benchmark, at least (default: %(default)g)",
    )
    add(
        "--latents",
        default="",
        metavar="HxW,...",
        help=f"of the benchmark of the attention's forms (default: {','.join(_WHOLE.latents)})",
    )
    add("--extra", action="store_true", help="print the extra to install for this GPU, and do no more")
    add(
        "--dry-run",
        action="store_true",
        help="print the commands, check that each is understood, and run none",
    )


def run(options: argparse.Namespace) -> int:
    """Runs `gpu-acceptance`; returns its exit code."""
    console = Console(stderr=True)
    asked = options.backend.replace("-", "_")
    extent, model = _extent(options), _model(options)
    if options.dry_run:
        return dry_run(library_for(gpu.detect() or _ANY, asked), options.out, console, extent, model)
    found = gpu.detect()
    if found is None:
        raise DeviceError(
            f"acceptance needs an NVIDIA GPU: {gpu.why_none()}. Without one, `make test` and `make full-size` test "
            "everything that can be tested."
        )
    library = library_for(found, asked)
    if options.extra:
        print(library.extra)  # noqa: T201
        return 0
    return gpu_acceptance(SCRIPT, options.out, library, console, extent, model)


def _extent(options: argparse.Namespace) -> Extent:
    sizes, latents = options.sizes.split(","), [text for text in options.latents.split(",") if text]
    for size in sizes:
        sides = _sides(size)
        if sides is None or any(
            side % 4 or not 0 < side <= most for side, most in zip(sides, _LARGEST, strict=True)
        ):
            raise InputError(
                f"--sizes {options.sizes}: expected WIDTHxHEIGHT of the restored picture, multiples of 4, at most "
                f"{'x'.join(map(str, _LARGEST))}, e.g. 512x512,1280x720."
            )
    if len(set(sizes)) != len(sizes):
        raise InputError(f"--sizes {options.sizes}: each size once.")
    if any(_sides(size) is None for size in latents):
        raise InputError(f"--latents {options.latents}: expected HEIGHTxWIDTH, e.g. 64x64.")
    for name in ("soak", "seconds"):
        if not 0 < getattr(options, name) <= _MOST_SECONDS:
            raise InputError(f"--{name}: expected a number above 0, {_MOST_SECONDS} at most.")
    return Extent(tuple(sizes), options.soak, options.seconds, tuple(latents) or _WHOLE.latents)


def _sides(size: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", size)
    return (int(match[1]), int(match[2])) if match else None


def _model(options: argparse.Namespace) -> dict[str, Path] | None:
    """Weights of the user's own, or None."""
    given = {"sd": options.sd, "checkpoint": options.checkpoint}
    if not any(given.values()):
        return None
    for name, path in given.items():
        if path is None:
            raise InputError("--sd and --checkpoint are given together, or neither.")
        if not path.exists():
            raise InputError(f"--{name} {path}: there is no such file or folder.")
    return given


def gpu_acceptance(
    build_script: Path,
    out: Path,
    library: Library,
    console: Console,
    extent: Extent = _WHOLE,
    model: Mapping[str, Path] | None = None,
) -> int:
    """Networks through everything that a GPU is needed for.

    Args:
        build_script: path of build.py.
        out: folder, about 25 GB; an earlier run's report in it is replaced.
        library: what compiles, and for what.
        console: where to show what is done.
        extent: how much is measured.
        model: `sd` and `checkpoint`, which are only read; None for random weights of full size.

    Returns:
        0 where all passed, else 9.
    """
    weights = out / "weights"
    found = gpu.detect()
    about = {
        "device": asdict(found) if found is not None else None,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": doctor.own_version(),
        "library": asdict(library),
        "extent": asdict(extent),
        "weights": "random, of full size" if model is None else "given",
        "stand_in": os.environ.get(STAND_IN),
    }
    try:
        make_room(out)
        clips = _clips(out, extent)
        for size, folder in clips.items():
            width, height = map(int, size.split("x"))
            crop_clip(real_clip(), folder, _FRAMES, width // 4, height // 4)
        if model is None:
            from vsr_trt.recipes.synthetic.random import (
                write_model,
            )  # torch takes seconds, which help need not

            console.rule("random weights of full size, in the published layouts")
            with console.status("writing…"):
                written = write_model(weights, overwrite=True)
            model = {"sd": written.sd, "checkpoint": written.checkpoint}
        steps = tasks(Setting(build_script, out, library, model, clips, extent))
        return accept(steps, out, console, about=about, given=list(model.values()))
    finally:
        for folder in (weights, out / "bundle", out / "kernel-cache"):
            shutil.rmtree(folder, ignore_errors=True)


def _clips(out: Path, extent: Extent) -> dict[str, Path]:
    return {size: out / f"input-{size}" for size in extent.sizes}


def dry_run(
    library: Library,
    out: Path,
    console: Console,
    extent: Extent = _WHOLE,
    model: Mapping[str, Path] | None = None,
) -> int:
    """Prints the commands; each is passed to the parser of its program.

    Raises:
        InputError: a command that is not understood.
    """
    model = model or {"sd": out / "weights" / "sd", "checkpoint": out / "weights" / "model.pkl"}
    steps = tasks(Setting(SCRIPT, out, library, model, _clips(out, extent), extent))
    for step in steps:
        check_command(step)
        words = " ".join([*step.program, "python", *step.arguments])
        console.print(f"{step.name}: [dim]{escape(words)}[/]", highlight=False, soft_wrap=True)
    console.print(f"{len(steps)} commands, all understood; none was run", highlight=False)
    return 0


def check_command(step: Task) -> None:
    """Parses a step's command as its program would.

    Raises:
        InputError: it is not understood, or of a program that is not known.
    """
    first, *rest = step.arguments
    try:
        if not rest and Path(first).is_file():
            compile(Path(first).read_text(encoding="utf-8"), first, "exec")
        elif first == str(SCRIPT):
            from vsr_trt import build

            build.parser().parse_args(rest)
        elif rest[0] == "vsr_trt.runtime":
            from vsr_trt.runtime.cli import main as cli

            cli.parser().parse_args(rest[1:])
        elif rest[0] == "vsr_trt.kernels":
            from vsr_trt.kernels import __main__ as kernels

            kernels.parser().parse_args(rest[1:])
        elif rest[0] == "pytest":
            _check_tests(rest[1:])
        else:
            raise InputError(f"{step.name}: {rest[0]} is no program of this project.")
    except SystemExit as error:  # of argparse, which has said why
        raise InputError(
            f"the command of {step.name} is not understood: {' '.join(step.arguments)}"
        ) from error


def _check_tests(arguments: Sequence[str]) -> None:
    for word in arguments:
        path = SCRIPT.parent / word
        if not word.startswith("-") and not path.exists():
            raise InputError(f"there are no tests in {path}; run this in a checkout of the repository.")


def make_room(out: Path) -> None:
    """An empty folder; what an earlier run left there goes.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"the folder {out} cannot be made: {error.strerror or error}.") from error
