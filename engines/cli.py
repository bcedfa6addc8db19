"""The commands of `vsr-build` about engines: engines, cache, diff, doctor."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from vsr_trt.engines.tensorrt.library import Backend
from vsr_trt.runtime.errors import InputError

if TYPE_CHECKING:
    from vsr_trt.runtime.bundle.manifest import Manifest

_BACKENDS: dict[str, Backend] = {
    "tensorrt-rtx": "tensorrt_rtx",
    "tensorrt": "tensorrt",
    "onnxruntime": "onnxruntime",
}
DEFAULT_SIZE = "1280x720"
_MOST_GIGABYTES = 1_000_000_000  # an exabyte
_MOST = {"batch": 1024, "jobs": 1024, "workspace": _MOST_GIGABYTES}
_EXAMPLES = """\
examples:
  vsr-build engines BUNDLE                                # RTX GPUs of every generation, 1280x720
  vsr-build engines BUNDLE --target sm_86,sm_89 --size 1280x720 --size 1920x1080
  vsr-build engines BUNDLE --target sm_89 --dynamic       # one engine a network for all sizes
  vsr-build engines BUNDLE --backend tensorrt             # for the GPU in this machine
  vsr-build engines BUNDLE --dry-run                      # what would be built, and why

--size is the size of the restored picture, four times the clip's. Engines are kept in a cache that all bundles
share, so what was built once is copied.
"""


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Adds the commands to the command line's grammar."""
    _add_engines(commands)
    _add_cache(commands)
    diff = commands.add_parser(
        "diff",
        help="compare the engines of two bundles",
        description="Compares the reports of engines that both bundles have: layers, bytes, memory, seconds, "
        "attentions. Exit code 0 whether they differ or not.",
    )
    diff.add_argument("before", type=Path, metavar="A")
    diff.add_argument("after", type=Path, metavar="B")
    diff.add_argument("--json", action="store_true", help="print the changes as JSON")
    doctor = commands.add_parser(
        "doctor",
        help="what can be built here, and which engines of a bundle run here",
        description="Names the compilers that are installed, the GPU, the targets that can be built for, and, of a "
        "bundle, each engine with the reason why it does not run here.",
    )
    doctor.add_argument("bundle", type=Path, nargs="?", metavar="BUNDLE")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")


def _add_engines(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "engines",
        help="compile a bundle's networks for GPUs",
        description="Compiles the networks of a bundle and adds the engines to it: for RTX GPUs of any generation, "
        "on a machine without one (tensorrt-rtx), for the GPU in the machine (tensorrt), or optimised graphs for this "
        "CPU (onnxruntime). What is valid is reused.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="made by vsr-build bundle")
    add(
        "--backend", choices=tuple(_BACKENDS), default="tensorrt-rtx", help="compiler (default: tensorrt-rtx)"
    )
    add(
        "--target",
        action="append",
        default=[],
        metavar="T",
        help="sm_75, sm_80, sm_86, sm_89, sm_120, sm_121, portable (one engine for all from sm_80 on) or this-gpu; "
        "several with commas (default: portable, with tensorrt this-gpu)",
    )
    add(
        "--size",
        action="append",
        default=[],
        metavar="WxH",
        help=f"size of the restored picture; several with commas (default: {DEFAULT_SIZE})",
    )
    add(
        "--tile",
        action="append",
        default=[],
        metavar="[TILING=]N",
        help="side of a tiling's tiles in latents; without a name of that between the VAE's halves (default: the "
        "bundle's, 96 as a rule)",
    )
    add(
        "--vae-tile",
        metavar="N",
        help="larger pictures than NxN latents go through the VAE in strips: the same picture in half the memory "
        "(default: all go whole, unless --memory says otherwise)",
    )
    add(
        "--vae-statistics",
        choices=("shared", "tile"),
        default="shared",
        help="tile: instead, the VAE's engines take tiles of NxN latents, each normalised by itself: ANOTHER PICTURE, "
        "whose tone steps from tile to tile (default: shared; N is 136 then)",
    )
    add(
        "--memory",
        metavar="M",
        help="of the GPU, e.g. 8GB: strips for what would not fit whole, as estimated",
    )
    add(
        "--batch",
        type=int,
        metavar="N",
        help="most tiles in one call, which takes memory: see `vsr plan` (default: 4, 8 for sm_90 and sm_100, and no "
        "more than the sizes have)",
    )
    add("--dynamic", action="store_true", help="one engine a network for all the sizes given")
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of a family that takes clips at once: how many frames go through together, e.g. window=16; the engines "
        "then serve no more, in less memory (default: the bundle's)",
    )
    add("--precision", choices=("fp16", "fp32"), help="of the graphs to compile (default: fp16)")
    add(
        "--network",
        action="append",
        default=[],
        metavar="NAME",
        help="only this one; may be given several times",
    )
    add(
        "--workspace",
        type=float,
        metavar="GB",
        help="refuse engines that need more scratch memory on the GPU",
    )
    add(
        "--strip",
        action="store_true",
        help="tensorrt: leave the weights out, to be refitted from the bundle's ONNX",
    )
    add("--compatible", action="store_true", help="tensorrt: engines that later versions run too")
    add(
        "--operator",
        choices=("inside", "kernel"),
        default="inside",
        help="who computes a network for which the bundle has a kernel of its own, as of the cross-frame attention: "
        "an engine like all others, or the kernel; engines of it that are there for these targets then go (default: "
        "inside)",
    )
    add(
        "--jobs",
        type=int,
        metavar="N",
        help="builds at once (default: as many as cores and memory allow; with tensorrt, which times on the GPU, one)",
    )
    add("--force", action="store_true", help="build even what is there")
    add("--dry-run", action="store_true", help="say what would be built and why; build nothing")
    _add_cache_dir(command)
    add(
        "--cache-limit",
        type=float,
        default=50.0,
        metavar="GB",
        help="the least recently used engines go above it (default: 50)",
    )
    add("--json", action="store_true", help="print the engines with their reports as JSON")


def _add_cache(commands: argparse._SubParsersAction) -> None:
    cache = commands.add_parser(
        "cache",
        help="list, prune or explain the cache of engines and GPU kernels",
        description="Engines and compiled GPU kernels are kept by what made them, and shared by all bundles.",
    )
    actions = cache.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the engines in the cache, the last used first")
    prune = actions.add_parser("prune", help="remove the least recently used engines")
    prune.add_argument(
        "--limit", type=float, required=True, metavar="GB", help="what may remain; 0 empties the cache"
    )
    explain = actions.add_parser("explain", help="what made an engine, or in what two differ")
    explain.add_argument("key", metavar="KEY", help="the beginning of its key, as `list` shows it")
    explain.add_argument("other", nargs="?", metavar="OTHER", help="another one, to compare with")
    for action in (listing, prune, explain):
        _add_cache_dir(action)
        action.add_argument("--json", action="store_true", help="print JSON")


def _add_cache_dir(command: argparse.ArgumentParser) -> None:
    command.add_argument("--cache-dir", type=Path, metavar="DIR", help="default: the platform's cache folder")


def run(options: argparse.Namespace) -> int:
    """Runs one of these commands; returns its exit code."""
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "engines": _engines,
        "cache": _cache,
        "diff": _diff,
        "doctor": _doctor,
    }
    return commands[options.command](options)


def _engines(options: argparse.Namespace) -> int:
    from vsr_trt.engines import plan
    from vsr_trt.engines.build import build_engines, forget_engines
    from vsr_trt.engines.display import Builds, print_engines, print_plan
    from vsr_trt.engines.onnxruntime import plan as onnxruntime_builds
    from vsr_trt.engines.tensorrt import shapes
    from vsr_trt.engines.tensorrt.library import load
    from vsr_trt.engines.tensorrt.targets import parse
    from vsr_trt.runtime.bundle.directory import Bundle, refuse_hub_cache
    from vsr_trt.runtime.bundle.manifest import COMPATIBLE, STRIP
    from vsr_trt.runtime.bundle.options import Options, Settings
    from vsr_trt.runtime.cli import choices
    from vsr_trt.runtime.cli.values import parse_memory

    _check_numbers(options)
    _jobs(options.jobs, _BACKENDS[options.backend])
    console = Console(stderr=True)
    bundle = Bundle.open(options.bundle)
    if not options.dry_run:
        refuse_hub_cache(bundle.path, "where no engine may be added")
    cache = _open_cache(options)
    backend = _BACKENDS[options.backend]
    flags = tuple(name for name, given in ((STRIP, options.strip), (COMPATIBLE, options.compatible)) if given)
    left: tuple[str, ...] = ()
    if backend == "onnxruntime":
        _refuse_onnxruntime(options, bundle.manifest.precision)
        items = onnxruntime_builds.list_graphs(
            bundle, plan.EngineRequest((), (), networks=tuple(options.network), force=options.force), cache
        )
    else:
        library = load(backend)
        sizes = [part for text in options.size for part in text.split(",")]
        if not sizes and not options.dynamic:
            sizes = [DEFAULT_SIZE]
        targets = tuple(parse(options.target, library))
        request = plan.EngineRequest(
            targets=targets,
            sizes=tuple(shapes.parse_size(text, bundle.manifest) for text in sizes),
            layout=shapes.Layout(
                Options.of(
                    bundle.manifest,
                    Settings(
                        tiles=choices.tiles(options),
                        statistics=options.vae_statistics,
                        choices=_frames_together(options.set, bundle.manifest),
                    ),
                ),
                None if options.memory is None else parse_memory(options.memory),
                options.batch,
                options.dynamic,
                shapes.usual_batch(name for target in targets for name in target.capabilities),
            ),
            precision=options.precision or "fp16",
            networks=tuple(options.network),
            flags=flags,
            workspace=None if options.workspace is None else int(options.workspace * 1e9),
            force=options.force,
            operator=options.operator,
        )
        plan.refuse_mixed(flags)
        left = plan.left_to_kernels(bundle, request)
        with console.status("reading the graphs…"):
            items = plan.list_engines(bundle, request, library, cache)
    if left:
        console.print(f"{', '.join(left)}: left to the bundle's kernel")
    if options.dry_run:
        print_plan(console, items)
        if options.json:
            _print_json([plan.as_json(item) for item in items])
        return 0
    jobs, memory = _jobs(options.jobs, backend), _memory()
    with Builds(console, items, cache, jobs, memory) as builds:
        built = build_engines(bundle, items, backend, cache, jobs, memory, builds.progress)
    if left:
        forget_engines(bundle, left, backend, {target.name for target in request.targets})
    print_engines(console, options.bundle, built, builds.seconds)
    if options.json:
        engines = [
            {"origin": b.origin, "file": b.engine.file, "key": b.item.key, "report": b.report} for b in built
        ]
        _print_json({"bundle": str(options.bundle), "seconds": builds.seconds, "engines": engines})
    return 0


def _jobs(asked: int | None, backend: str) -> int:
    """How many builds at once.

    Raises:
        InputError: several, of a library that measures on the GPU.
    """
    from vsr_trt.runtime.machine.processor import available_cores

    if backend != "tensorrt":
        return asked or available_cores()
    if asked is not None and asked > 1:
        raise InputError(
            f"--jobs {asked}: TensorRT times its tactics on the GPU, so that two builds at once would spoil each "
            "other's choice; leave --jobs out."
        )
    return 1


def _check_numbers(options: argparse.Namespace) -> None:
    for name, most in _MOST.items():
        value = getattr(options, name)
        if value is not None and not 0 < value <= most:  # not a number is refused, too
            raise InputError(
                f"--{name.replace('_', '-')} is {value}; expected a number above 0, {most} at most."
            )


def _frames_together(texts: Sequence[str], manifest: Manifest) -> dict[str, str]:
    """What --set was given.

    Raises:
        InputError: no NAME=VALUE, or an option that engines do not depend on.
    """
    from vsr_trt.runtime.cli.choices import chosen

    found = chosen(texts)
    known = [chunks.frames for chunks in manifest.chunks.values() if isinstance(chunks.frames, str)]
    for name in found:
        if name not in known:
            what = f"only {' and '.join(known)} does" if known else "nothing does"
            raise InputError(
                f"--set {name}: no engine of the family {manifest.family} depends on it ({what}); leave it out."
            )
    return found


def _bytes(option: str, gigabytes: float) -> int:
    if not 0 <= gigabytes <= _MOST_GIGABYTES:
        raise InputError(f"{option} is {gigabytes}; expected a number of GB from 0 to {_MOST_GIGABYTES}.")
    return int(gigabytes * 1e9)


def _refuse_onnxruntime(options: argparse.Namespace, precision: str) -> None:
    """An optimised graph takes every size on this CPU: what says otherwise would do nothing."""
    given = {
        "--target": options.target,
        "--size": options.size,
        "--vae-tile": options.vae_tile,
        "--vae-statistics": options.vae_statistics != "shared",
        "--memory": options.memory is not None,
        "--dynamic": options.dynamic,
        "--workspace": options.workspace,
        "--strip": options.strip,
        "--compatible": options.compatible,
        "--precision": options.precision and options.precision != precision,
        "--batch": options.batch is not None,
        "--tile": options.tile,
        "--set": options.set,
        "--operator": options.operator != "inside",
    }
    for name, value in given.items():
        if value:
            raise InputError(
                f"{name} has no meaning with --backend onnxruntime, whose graphs are for this CPU, of any size, in the "
                f"bundle's own precision ({precision}); leave it out."
            )


def _memory() -> int:
    """Bytes that builds may take: nine tenths of what is free now; where nobody tells, half of what there is."""
    from vsr_trt.runtime.machine.memory import free_bytes

    free = free_bytes()
    if free is not None:
        return free * 9 // 10
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 8_000_000_000


def _open_cache(options: argparse.Namespace) -> Any:
    from vsr_trt.engines.cache import DEFAULT_LIMIT, Cache

    limit = getattr(options, "cache_limit", None)  # only where engines are added
    return Cache(options.cache_dir, DEFAULT_LIMIT if limit is None else _bytes("--cache-limit", limit))


def _cache(options: argparse.Namespace) -> int:
    from vsr_trt.engines import cache as caches
    from vsr_trt.engines.display import print_entries, print_parts

    console = Console()
    cache = _open_cache(options)
    if options.action == "list":
        entries = cache.entries()
        _show(
            options,
            [caches.as_json(entry) for entry in entries],
            lambda: print_entries(console, cache, entries),
        )
    elif options.action == "prune":
        gone = cache.prune(_bytes("--limit", options.limit))
        freed = sum(entry.bytes for entry in gone)
        text = f"removed {len(gone)} engines, {freed / 1e9:.2f} GB, from {cache.folder}"
        _show(
            options,
            {"removed": [entry.key for entry in gone], "bytes": freed},
            lambda: console.print(escape(text)),
        )
    else:
        entry = caches.lookup(cache, options.key)
        if options.other is None:
            _show(options, caches.as_json(entry), lambda: print_parts(console, entry))
        else:
            found = caches.differences(entry.parts, caches.lookup(cache, options.other).parts)
            text = "\n".join(found) or "they do not differ"
            _show(options, found, lambda: console.print(escape(text), highlight=False))
    return 0


def _diff(options: argparse.Namespace) -> int:
    import dataclasses

    from vsr_trt.engines import report as report
    from vsr_trt.engines.display import print_changes

    before, after = report.read_all(options.before), report.read_all(options.after)
    changes = report.compare(before, after)
    lost, new = sorted(set(before) - set(after)), sorted(set(after) - set(before))
    data = {
        "changes": [dataclasses.asdict(change) for change in changes],
        "only_before": lost,
        "only_after": new,
    }
    _show(options, data, lambda: print_changes(Console(), changes, lost, new))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from vsr_trt.engines.display import print_findings
    from vsr_trt.engines.doctor import examine

    findings = examine(options.bundle)
    _show(options, findings.as_json(), lambda: print_findings(Console(), findings))
    return 0


def _show(
    options: argparse.Namespace, data: Sequence[Any] | dict[str, Any], human: Callable[[], None]
) -> None:
    if options.json:
        _print_json(data)
    else:
        human()


def _print_json(data: Sequence[Any] | dict[str, Any]) -> None:
    print(json.dumps(data, indent=1))  # noqa: T201
