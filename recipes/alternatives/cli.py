"""The commands `vsr-build time` and `vsr-build alternatives`.

These may use the exporters: they stand above both sides.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from vsr_trt.recipes import SCRIPT
from vsr_trt.recipes.alternatives import COMPILED, IN_TORCH, LEAST, PLAIN, RUNTIME, TORCH, WAYS
from vsr_trt.runtime.bundle.manifest import Manifest
from vsr_trt.runtime.bundle.options import check_threads
from vsr_trt.runtime.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from vsr_trt.recipes.alternatives.ways import Open, Way
    from vsr_trt.runtime.media.staging import Staging

_STDOUT = "-"
_IN_TORCH = " and ".join(IN_TORCH)

_WAYS = f"""\
the ways, and how kind the comparison is to each:
  {RUNTIME}        this runtime, as `vsr restore` runs it with its defaults: graphs rewritten for the
                 CPU, each frame encoded once. What it keeps between frames, and the prompt's embedding in the
                 bundle, are what it was made for; nothing is left out for it.
  {PLAIN}    the bundle's native graphs in ONNX Runtime sessions with default options, one network after another,
                 one frame after another. Kinder than the published loop: each frame is encoded once, the text
                 encoder never runs, LoRA adapters and timestep are folded into the weights, the attention is our
                 function. Its group normalisation loses digits on flat pictures: results differ in some levels.
  {TORCH}          torch modules in the order of the published code: both frames of a window are encoded each time,
                 the attention is dense, the text encoder runs for every frame. Kinder than the published code: the
                 adapters are merged, and nothing describes the first frame. Always FP32.
  {COMPILED}  the same, with every module through torch.compile (inductor, static shapes). It compiles while the
                 first frame is restored, again every time; that is reported apart: no frame's time has it. Needs a C++
                 compiler, whose own memory is not counted; what torch takes while compiling is.

how it is measured:
  Frames are timed one by one, from the array that goes in to the array that comes out; reading the clip is not timed.
  The first frame is warm-up. Memory is the peak of the whole process, with Python and its libraries. Loading is from
  the first import of the library until a frame may come. Everything runs on the CPU.
"""

_ORDER = """\
  Each way is a process of its own, one after another, never two at once. After each, the machine's FP32 matrix products
  are measured (numpy, a second): where they differ, the machine's speed changed in between. "ours is faster" compares
  medians; "between" is the whole range of the times measured, where there are fewer than 10, else a 95 % interval.
  A way that cannot run here, for want of a compiler or of memory, is shown as not run, with the reason. If the
  runtime fails, so does the command.
"""

_EXAMPLES = """\
examples:
  vsr-build alternatives BUNDLE --clip clip.mp4 --sd SD --checkpoint model.pkl
  vsr-build alternatives BUNDLE --clip frames/ --ways runtime,onnxruntime --frames 10 --json report.json
"""


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Adds both commands' grammar."""
    time = commands.add_parser(
        "time",
        help="time one way to run the model, in this process",
        description="Restores frames in one way and prints seconds, memory and versions as JSON. Writes no pictures.",
        epilog=_WAYS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    time.add_argument("way", choices=WAYS, metavar="WAY", help=", ".join(WAYS))
    _add_shared(time)
    time.add_argument(
        "--bundle", type=Path, metavar="BUNDLE", help=f"for {RUNTIME} and {PLAIN}: made by vsr-build bundle"
    )
    time.set_defaults(json=True)
    both = commands.add_parser(
        "alternatives",
        help="time the runtime next to the same networks in ONNX Runtime, torch and torch.compile",
        description="Restores the same frames in several ways on the CPU, and compares time and memory in a table on "
        "standard error.",
        epilog=_WAYS + _ORDER + "\n" + _EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    both.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory made by vsr-build bundle")
    _add_shared(both)
    add = both.add_argument
    add(
        "--ways", default=",".join(WAYS), metavar="W,...", help="which, in which order (default: %(default)s)"
    )
    add("--json", metavar="FILE", help="write the report here, every frame's time included; - prints it")
    add("--overwrite", action="store_true", help="replace FILE if it exists")


def _add_shared(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--clip", type=Path, required=True, metavar="INPUT", help="a video or a folder of pictures")
    add("--sd", type=Path, metavar="DIR", help=f"for {_IN_TORCH}: Stable Diffusion 2.1 in diffusers' layout")
    add(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help=f"for {_IN_TORCH}: DLoRAL's model.pkl, or a .safetensors",
    )
    add("--frames", type=int, default=4, metavar="N", help="the first is warm-up (default: 4)")
    add("--threads", type=int, metavar="T", help="of the CPU (default: as each library decides)")


def time_way(options: argparse.Namespace) -> int:
    """Runs `time`; returns the exit code.

    Raises:
        VsrError: what the way refuses.
    """
    from vsr_trt.recipes.alternatives import ways
    from vsr_trt.runtime.media import open_source

    _check_numbers(options)
    opening: Open
    if options.way in IN_TORCH:
        _need(options, "sd", "checkpoint")
        opening = functools.partial(_open_torch, options)
    else:
        _need(options, "bundle")
        opened = ways.Runtime if options.way == RUNTIME else ways.Plain
        opening = functools.partial(opened, options.bundle, options.threads)
    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(f"{options.way}: {text}", highlight=False, soft_wrap=True)

    with open_source(options.clip, frames=options.frames) as source:
        ways.refuse_short(source, options.clip)
        report = ways.measure(options.way, opening, source, options.clip, say)
    print(json.dumps(report, indent=1, allow_nan=False))  # noqa: T201
    return 0


def _open_torch(options: argparse.Namespace, height: int, width: int) -> Way:
    """The model in torch, for frames of that size."""
    import torch

    from vsr_trt.export.eager import Compiled, Eager
    from vsr_trt.export.families.dloral.bundle import DEFAULT_PROMPT
    from vsr_trt.export.families.dloral.family import MINIMUM_SIDE
    from vsr_trt.recipes.alternatives.ways import refuse_small

    refuse_small(options.way, MINIMUM_SIDE, height, width)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    model = Compiled if options.way == COMPILED else Eager
    return model(options.sd, options.checkpoint, DEFAULT_PROMPT)


def alternatives(options: argparse.Namespace) -> int:
    """Runs `alternatives`; returns the exit code.

    Raises:
        VsrError: the runtime failed, or something that was given is refused.
    """
    from vsr_trt.recipes.alternatives import comparison, show

    order = comparison.ComparisonRequest(
        script=SCRIPT,
        bundle=options.bundle,
        clip=options.clip,
        frames=options.frames,
        ways=_ways(options.ways),
        sd=options.sd,
        checkpoint=options.checkpoint,
        threads=options.threads,
    )
    _check_numbers(options)
    _refuse_early(options, order)
    console = Console(stderr=True)
    with contextlib.ExitStack() as stack:
        staging = _output(options, stack)
        with show.comparing(console, len(order.ways)) as watcher:
            report = comparison.compare(order, watcher)
        show.show(console, report)
        text = json.dumps(report, indent=1, allow_nan=False) + "\n"
        if staging is not None:
            staging.write(text)
    if options.json == _STDOUT:
        print(text, end="")  # noqa: T201
    return 0


def _ways(text: str) -> tuple[str, ...]:
    ways = tuple(dict.fromkeys(way.strip() for way in text.split(",")))
    for way in ways:
        if way not in WAYS:
            raise InputError(f"--ways: there is no way {way!r}; expected some of {', '.join(WAYS)}.")
    return ways


def _check_numbers(options: argparse.Namespace) -> None:
    if options.frames < LEAST:
        raise InputError(f"--frames is {options.frames}; expected {LEAST} or more, for the first is warm-up.")
    check_threads(options.threads)


def _need(options: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(options, name) is None:
            raise InputError(f"{options.way} needs --{name}.")


def _refuse_early(options: argparse.Namespace, order: Any) -> None:
    """What a way would refuse after others had run for minutes."""
    from vsr_trt.recipes.alternatives import ways
    from vsr_trt.runtime.bundle.directory import Bundle
    from vsr_trt.runtime.media import open_source

    manifest = Bundle.open(order.bundle).manifest
    in_torch = [way for way in order.ways if way in IN_TORCH]
    if in_torch and None in (order.sd, order.checkpoint):
        raise InputError(
            f"{' and '.join(in_torch)} need --sd and --checkpoint; or leave them out with --ways."
        )
    with open_source(order.clip, frames=order.frames) as source:
        ways.refuse_short(source, order.clip)
        for way in order.ways:
            if way != RUNTIME:
                ways.refuse_small(way, min(manifest.canvas.least), source.info.height, source.info.width)
    if in_torch:
        _refuse_other_weights(manifest, order.sd, order.checkpoint)


def _refuse_other_weights(manifest: Manifest, sd: Path, checkpoint: Path) -> None:
    """Compares the sizes of the weights alone: they are gigabytes, and others of that size take the same time."""
    provenance = manifest.provenance
    if provenance is None:
        raise InputError("the bundle does not say which weights it was made from.")
    files = {checkpoint: provenance.checkpoint} | {
        sd / source.name: source for source in provenance.base_model
    }
    for path, source in files.items():
        try:
            size = path.stat().st_size
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read ({error.strerror}); expected {source.name}, which the bundle was made from."
            ) from error
        if size != source.bytes:
            raise CheckpointError(
                f"{path} has {size} bytes, but the bundle was made from {source.name} with {source.bytes}. Give the "
                "weights that it was made from, so that every way runs the same networks."
            )


def _output(options: argparse.Namespace, stack: contextlib.ExitStack) -> Staging | None:
    """A hidden file next to the report's: what cannot be written is refused now, not after the measurement."""
    from vsr_trt.runtime.media.staging import Staging

    if options.json in (None, _STDOUT):
        return None
    staging = Staging(Path(options.json), overwrite=options.overwrite)
    stack.callback(staging.discard)
    return staging
