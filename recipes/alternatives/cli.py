"""The commands `vsr-build time` and `vsr-build alternatives`.

These may use the exporters: they stand above both sides.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from vsr_trt.export.families.published import add_weights, flags_of, given_parts
from vsr_trt.recipes import SCRIPT
from vsr_trt.recipes.alternatives import COMPILED, IN_TORCH, LEAST, PLAIN, RUNTIME, TORCH, WAYS
from vsr_trt.runtime.bundle.manifest import Manifest
from vsr_trt.runtime.bundle.options import check_threads
from vsr_trt.runtime.cli.choices import chosen
from vsr_trt.runtime.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from vsr_trt.recipes.alternatives.comparison import ComparisonRequest
    from vsr_trt.recipes.alternatives.ways import Open, Way
    from vsr_trt.runtime.devices.actions import Networks
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
  The first frame is warm-up. A family that takes clips at once restores the same one --clips times, the first of which
  is warm-up; a frame's time is its share. torch then runs the modules that were exported, one network after another.
  Memory is the peak of the whole process, with Python and its libraries. Loading is from the first import of the
  library until a frame may come. Everything runs on the CPU.
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
  vsr-build alternatives STAR --clip clip.mp4 --ways runtime,onnxruntime
  vsr-build alternatives STAR --network denoiser --at f=4,h=66,w=64 --ways runtime,onnxruntime
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
        "--bundle",
        type=Path,
        metavar="BUNDLE",
        help=f"for {RUNTIME} and {PLAIN}, for --network, and for families that take clips at once: made by "
        "vsr-build bundle",
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
    add("--clip", type=Path, metavar="INPUT", help="a video or a folder of pictures")
    add_weights(command, f"for {_IN_TORCH}: what the bundle was made from; ")
    add(
        "--frames",
        type=int,
        default=4,
        metavar="N",
        help="of the clip; one by one, the first is warm-up (default: 4)",
    )
    add(
        "--clips",
        type=int,
        default=LEAST,
        metavar="N",
        help=f"how often a clip is restored at once, or a network run; the first is warm-up (default: {LEAST})",
    )
    add("--network", metavar="NAME", help="time this network alone, on random numbers, in place of a clip")
    add("--at", metavar="SIZES", help="of --network, e.g. f=4,h=66,w=64: frames, height and width in latents")
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="choose something of a family that takes clips at once, e.g. steps=4",
    )
    add("--threads", type=int, metavar="T", help="of the CPU (default: as each library decides)")


def time_way(options: argparse.Namespace) -> int:
    """Runs `time`; returns the exit code.

    Raises:
        VsrError: what the way refuses.
    """
    from vsr_trt.recipes.alternatives import ways
    from vsr_trt.runtime.bundle.reading import read_manifest
    from vsr_trt.runtime.media import open_source

    _check_numbers(options)
    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(f"{options.way}: {text}", highlight=False, soft_wrap=True)

    if options.network is not None:
        _refuse_set(options)
        _need(options, "bundle", "at")
        opening = functools.partial(_open_network, options)
        report = ways.measure_network(options.way, opening, options.clips, say)
    else:
        _need(options, "clip")
        manifest = None if options.bundle is None else read_manifest(options.bundle)
        clips = options.clips if manifest is not None and manifest.phases else None
        if clips is None:
            _refuse_for_frames(options)
        with open_source(options.clip, frames=options.frames) as source:
            if clips is None:
                ways.refuse_short(source, options.clip)
            report = ways.measure(options.way, _opening(options, clips), source, options.clip, say, clips)
    print(json.dumps(report, indent=1, allow_nan=False))  # noqa: T201
    return 0


def _opening(options: argparse.Namespace, clips: int | None) -> Open:
    """What makes a way ready for clips; `clips` of a family that takes them at once."""
    from vsr_trt.recipes.alternatives import ways

    if clips is not None:
        return lambda height, width: _open_whole_clips(options)
    if options.way in IN_TORCH:
        _need(options, "sd", "checkpoint")
        return functools.partial(_open_torch, options)
    _need(options, "bundle")
    opened = ways.Runtime if options.way == RUNTIME else ways.Plain
    return functools.partial(opened, options.bundle, options.threads)


def _open_whole_clips(options: argparse.Namespace) -> Way:
    from vsr_trt.recipes.alternatives import ways

    networks = None if options.way == RUNTIME else _networks(options)
    return ways.WholeClips(
        options.bundle, chosen(options.set), options.threads, networks, _versions(options.way)
    )


def _open_network(options: argparse.Namespace) -> Way:
    from vsr_trt.recipes.alternatives import ways
    from vsr_trt.recipes.alternatives.comparison import read_sizes
    from vsr_trt.runtime.bundle.directory import Bundle

    networks, sizes = _networks(options), read_sizes(options.at)
    bundle, versions = Bundle.open(options.bundle), _versions(options.way)
    return ways.OneNetwork(bundle, options.network, sizes, networks, options.threads, versions)


def _versions(way: str) -> dict[str, str]:
    """Of the library that runs networks in a way."""
    library = importlib.import_module("torch" if way in IN_TORCH else "onnxruntime")
    return {library.__name__: library.__version__}


def _networks(options: argparse.Namespace) -> Networks:
    """What runs a bundle's networks in a way."""
    from vsr_trt.recipes.alternatives import ways
    from vsr_trt.runtime.bundle.directory import Bundle
    from vsr_trt.runtime.onnxruntime.cpu import CpuNetworks

    bundle = Bundle.open(options.bundle)
    if options.way not in IN_TORCH:
        made = CpuNetworks if options.way == RUNTIME else ways.Native
        return made(bundle, options.threads)
    import torch

    from vsr_trt.export.families.registry import reopen
    from vsr_trt.export.torch_device import TorchNetworks

    _need(options, *(flag[2:] for flag in flags_of(bundle.manifest.family)))
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    model = reopen(bundle.manifest, options.checkpoint, given_parts(options))
    return TorchNetworks(bundle.manifest, model, compiled=options.way == COMPILED)


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
    from vsr_trt.runtime.bundle.directory import Bundle

    _check_numbers(options)
    if (options.clip is None) == (options.network is None):
        raise InputError("give --clip INPUT, or --network NAME with --at SIZES.")
    if options.network is not None and options.at is None:
        raise InputError(f"--network {options.network} needs --at SIZES, e.g. f=4,h=66,w=64.")
    manifest = Bundle.open(options.bundle).manifest
    order = comparison.ComparisonRequest(
        script=SCRIPT,
        bundle=options.bundle,
        clip=options.clip,
        frames=options.frames,
        clips=options.clips,
        ways=_ways(options.ways),
        weights=_weights(options),
        threads=options.threads,
        choices=chosen(options.set),
        network=options.network,
        sizes=options.at,
        with_bundle=bool(manifest.phases) or options.network is not None,
    )
    _refuse_early(options, order, manifest)
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


def _weights(options: argparse.Namespace) -> tuple[str, ...]:
    """The weights that were named, as options of a command."""
    named = {**given_parts(options), "checkpoint": options.checkpoint}
    return tuple(
        text for flag, path in named.items() if path is not None for text in (f"--{flag}", str(path))
    )


def _check_numbers(options: argparse.Namespace) -> None:
    if options.frames < 1:
        raise InputError(f"--frames is {options.frames}; expected 1 or more.")
    if options.clips < LEAST:
        raise InputError(f"--clips is {options.clips}; expected {LEAST} or more, for the first is warm-up.")
    check_threads(options.threads)


def _refuse_for_frames(options: argparse.Namespace) -> None:
    """Refuses what a family that takes frames one by one has no use for."""
    _refuse_set(options)
    if options.clips != LEAST:
        raise InputError("--clips is for families that take clips at once, and for --network; leave it out.")
    if options.frames < LEAST:
        raise InputError(f"--frames is {options.frames}; expected {LEAST} or more, for the first is warm-up.")


def _refuse_set(options: argparse.Namespace) -> None:
    if options.set:
        raise InputError("--set is for clips of families that take them at once; leave it out.")


def _need(options: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(options, name.replace("-", "_")) is None:
            raise InputError(f"{options.way} needs --{name}.")


def _refuse_early(options: argparse.Namespace, order: ComparisonRequest, manifest: Manifest) -> None:
    """What a way would refuse after others had run for minutes."""
    from vsr_trt.recipes.alternatives import ways
    from vsr_trt.recipes.alternatives.comparison import read_sizes
    from vsr_trt.runtime.bundle.options import Options, Settings
    from vsr_trt.runtime.media import open_source

    if order.clip is not None and not manifest.phases:
        _refuse_for_frames(options)
    if order.network is not None:
        _refuse_set(options)
    in_torch = [way for way in order.ways if way in IN_TORCH]
    parts = given_parts(options)
    wanted = flags_of(manifest.family)
    missing = [flag for flag in wanted[:-1] if flag[2:] not in parts]
    if in_torch and (missing or options.checkpoint is None):
        raise InputError(
            f"{' and '.join(in_torch)} need {' and '.join(wanted)}; or leave them out with --ways."
        )
    Options.of(manifest, Settings(choices=order.choices))
    if order.network is not None and order.sizes is not None:
        ways.random_inputs(manifest, order.network, read_sizes(order.sizes))
    elif order.clip is not None:
        with open_source(order.clip, frames=order.frames) as source:
            if not manifest.phases:
                ways.refuse_short(source, order.clip)
            for way in order.ways if not manifest.phases else ():
                if way != RUNTIME:
                    ways.refuse_small(way, min(manifest.canvas.least), source.info.height, source.info.width)
    if in_torch:
        _refuse_other_weights(manifest, options.checkpoint, parts)


def _refuse_other_weights(manifest: Manifest, checkpoint: Path, parts: Mapping[str, Path]) -> None:
    """Compares the sizes of the weights alone: they are gigabytes, and others of that size take the same time."""
    from vsr_trt.export.families.registry import place_of

    provenance = manifest.provenance
    if provenance is None:
        raise InputError("the bundle does not say which weights it was made from.")
    files = {checkpoint: provenance.checkpoint} | {
        place_of(manifest, source.name, parts): source for source in provenance.base_model
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
