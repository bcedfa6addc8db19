"""The command `vsr-build gpu-acceptance`."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from vsr_trt.recipes import SCRIPT
from vsr_trt.recipes.acceptance.library import Library, library_for
from vsr_trt.recipes.acceptance.run import PAGE, REPORT, accept
from vsr_trt.recipes.acceptance.steps import SIZES, Task, tasks
from vsr_trt.recipes.demo import crop_clip, real_clip
from vsr_trt.runtime.cli.values import output_folder
from vsr_trt.runtime.errors import DeviceError, InputError, OutputError
from vsr_trt.runtime.machine import gpu
from vsr_trt.runtime.machine.gpu import Gpu

_FRAMES = 4
_ANY = Gpu("NVIDIA GeForce RTX 4090", "sm_89", 24 << 30, "13.0")  # whose commands a dry run prints
_EXAMPLES = f"""\
what comes back: OUT/{REPORT} and OUT/{PAGE}, written after every step. There is nothing personal in them: please
  attach both to an issue. It takes two to four hours, and 25 GB of disk while it runs.

examples:
  vsr-build gpu-acceptance                     # compiles with what the GPU in this machine needs
  vsr-build gpu-acceptance --extra             # prints the extra to install for it: rtx or gpu
  vsr-build gpu-acceptance --dry-run           # prints the commands, and checks that each is understood
"""


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
    if options.dry_run:
        return dry_run(library_for(gpu.detect() or _ANY, asked), options.out, console)
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
    return gpu_acceptance(SCRIPT, options.out, library, console)


def gpu_acceptance(build_script: Path, out: Path, library: Library, console: Console) -> int:
    """Full-size networks with random weights, through everything that a GPU is needed for.

    Args:
        build_script: path of build.py.
        out: folder, about 25 GB; an earlier run's report in it is replaced.
        library: what compiles, and for what.
        console: where to show what is done.

    Returns:
        0 where all passed, else 9.
    """
    from vsr_trt.recipes.synthetic.random import write_model  # torch takes seconds, which help need not

    weights = out / "weights"
    try:
        make_room(out)
        console.rule("random weights of full size, in the published layouts")
        with console.status("writing…"):
            model = write_model(weights, overwrite=True)
        clips = {size: out / f"input-{size}" for size in SIZES}
        for size, folder in clips.items():
            width, height = map(int, size.split("x"))
            crop_clip(real_clip(), folder, _FRAMES, width // 4, height // 4)
        sources = {"sd": model.sd, "checkpoint": model.checkpoint}
        return accept(tasks(build_script, out, library, sources, clips), out, console)
    finally:
        for folder in (weights, out / "bundle", out / "kernel-cache"):
            shutil.rmtree(folder, ignore_errors=True)


def dry_run(library: Library, out: Path, console: Console) -> int:
    """Prints the commands; each is passed to the parser of its program.

    Raises:
        InputError: a command that is not understood.
    """
    clips = {size: out / f"input-{size}" for size in SIZES}
    model = {"sd": out / "weights" / "sd", "checkpoint": out / "weights" / "model.pkl"}
    steps = tasks(SCRIPT, out, library, model, clips)
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
