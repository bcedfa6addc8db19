"""STAR at its published size, with random weights: exported, compiled, and an evaluation compared on the CPU.

The same commands that a user would type, each a process of its own. A run of a clip would take an hour on a CPU, so
what is run is one evaluation of the denoiser, which a clip takes 14 times and in which nearly all of its time goes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from vsr_trt.recipes import counts
from vsr_trt.recipes import full_size as full_size_parts
from vsr_trt.runtime.machine.files import write_whole

Run = Callable[..., Any]
"""Runs Python with arguments; with `capture=True` it returns what was printed as JSON."""

_CANVAS = (
    "128x144"  # smaller than published: frames to calibrate on are small, and engines are made for any size
)
_FRAME = (32, 36)  # width and height of a frame that fills it
_EVALUATION = "f=4,h=66,w=64"  # 4 frames of 512x528
_WAYS = "runtime,onnxruntime,torch"
# 90x160 latents, as 1280x720 has on the published canvas, which is never exceeded there
_SIZE, _TARGETS, _WINDOWS = "1276x716", ("sm_89", "sm_120"), (16, 32)


def full_size(
    build_script: Path,
    out: Path,
    clip: Callable[[Path, int, int], None],
    keep: bool,
    run: Run,
    console: Console,
) -> int:
    """Builds, compares, calibrates and compiles.

    Args:
        build_script: path of build.py.
        out: folder for everything that is made, about 30 GB.
        clip: writes a frame of a real clip into a folder, so wide and so high.
        keep: leave weights and bundle there afterwards; the report stays anyway.
        run: runs a command.
        console: where to show what is done.

    Returns:
        The exit code.
    """
    from vsr_trt.recipes.synthetic.star import write_model  # torch takes seconds, which help need not

    weights, bundle, frames, cache = (out / name for name in ("weights", "bundle", "input", "cache"))
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"machine": run(["-m", "vsr_trt.runtime", "doctor", "--json"], capture=True)}
    try:
        model = full_size_parts.write_weights(
            console, lambda progress: write_model(weights, progress=progress, overwrite=True)
        )
        clip(frames, *_FRAME)
        parts = ["--vae", model.vae, "--text-encoder", model.text_encoder, "--checkpoint", model.checkpoint]
        console.rule("2. vsr-build bundle")
        made = ["--canvas", _CANVAS, "--out", bundle, "--overwrite", "--json"]
        report["build"] = run([build_script, "bundle", *parts, *made], capture=True)
        stale = not counts.is_current(bundle)
        console.rule("3. vsr-build alternatives: one evaluation")
        compared = ["--network", "denoiser", "--at", _EVALUATION, "--ways", _WAYS, *parts, "--json", "-"]
        report["alternatives"] = run([build_script, "alternatives", bundle, *compared], capture=True)
        report["engines"] = _engines(build_script, bundle, frames, cache, run, console)
    finally:
        write_whole(out / "report.json", json.dumps(report, indent=1) + "\n")
        if not keep:
            for folder in (weights, bundle, cache):
                shutil.rmtree(folder, ignore_errors=True)
    _show(report, console)
    console.print(f"report: {escape(str(out / 'report.json'))}")
    if stale:
        full_size_parts.say_stale(console)
    return int(stale)


def _engines(
    build_script: Path, bundle: Path, frames: Path, cache: Path, run: Run, console: Console
) -> list[dict[str, Any]]:
    """Every network compiled by TensorRT-RTX, which needs no GPU, for each target and number of frames."""
    if not full_size_parts.has_compiler(console):
        return []
    console.rule("4. vsr-build calibrate")
    run([build_script, "calibrate", bundle, "--clip", frames, "--frames", 1, "--overwrite"])
    found = []
    for target, window in _cases():
        console.rule(f"5. vsr-build engines, {target}, {window} frames together")
        what = ["--target", target, "--size", _SIZE, "--set", f"window={window}"]
        made = run([build_script, "engines", bundle, *what, "--cache-dir", cache, "--json"], capture=True)
        found.append({"target": target, "window": window, **made})
        with contextlib.suppress(OSError):  # gigabytes each
            shutil.rmtree(cache)
    return found


def _cases() -> Sequence[tuple[str, int]]:
    """Both numbers of frames on the first target, the larger one on the others."""
    first, *others = _TARGETS
    return [*((first, window) for window in _WINDOWS), *((target, max(_WINDOWS)) for target in others)]


def _show(report: dict[str, Any], console: Console) -> None:
    built = report["build"]
    console.print(
        f"build {built['seconds']:.0f} s and {built['peak_memory'] / 1e9:.1f} GB of memory; bundle "
        f"{built['bytes'] / 1e9:.1f} GB",
        highlight=False,
    )
    for made in report["engines"]:
        what = f"{made['target']}, {_SIZE}, {made['window']} frames together"
        console.print(full_size_parts.engines_line(made, what), highlight=False)
