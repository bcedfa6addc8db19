"""The runtime's command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from vsr_trt.runtime import doctor
from vsr_trt.runtime.bundle.manifest import Manifest
from vsr_trt.runtime.bundle.options import Settings
from vsr_trt.runtime.bundle.schema import json_schema
from vsr_trt.runtime.cli import bench as bench_command
from vsr_trt.runtime.cli import choices, terminal
from vsr_trt.runtime.cli import plan as plan_command
from vsr_trt.runtime.cli.values import parse_fps, parse_memory, parse_segment
from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.media.codecs import is_video_name
from vsr_trt.runtime.restore.compare import side_by_side, side_by_side_video
from vsr_trt.runtime.restore.job import Job, TruncatedError, restore
from vsr_trt.runtime.self_test import run as self_test

_FIRST = """\
where to begin:
  does it work here?            vsr --self-test
  a clip of your own, restored  vsr restore holiday.mp4 -o holiday-4x.mp4 --bundle BUNDLE
  engines for a GPU             vsr-build engines BUNDLE --target sm_89 --size 1920x1080
  figures to trust              vsr bench --bundle BUNDLE --size 1280x720 --json today.json
  inside a product              vsr plan --bundle BUNDLE --size 1280x720
no bundle yet?                  vsr-build --help

"""
_EXAMPLES = """\
examples:
  vsr restore holiday.mp4 -o holiday-4x.mp4 --bundle BUNDLE
  vsr restore scans/ -o scans-4x/ --bundle BUNDLE
  vsr restore film.mkv -o test.mkv --bundle BUNDLE --start 90 --frames 25
  vsr compare holiday.mp4 holiday-4x.mp4 -o compare.png --frame 40 --crop 640
  vsr plan --bundle BUNDLE --size 1920x1080 --target sm_89 --memory 16GB
  vsr bench --bundle BUNDLE --size 1280x720 --slots 2 --json today.json --compare yesterday.json
  vsr doctor --bundle BUNDLE

exit codes: 0 done, 1 doctor or --self-test found a problem, 2 input or option refused, 3 output not writable,
4 bundle damaged, 7 device or memory, 8 input truncated (what was readable is kept), 10 no engine fits, 11 slower
than before, 129 terminal lost (finished frames are kept), 130 interrupted (Ctrl-C, SIGTERM: nothing is kept),
141 nobody read the output to its end (the work is done)
"""


def parser(manifest: Manifest | None = None) -> argparse.ArgumentParser:
    """The command line's grammar; with a bundle's manifest its options, too."""
    top = argparse.ArgumentParser(
        prog="vsr",
        description="Restores video with a bundle that `vsr-build` made: N frames in, N frames out, larger.",
        epilog=_FIRST + _EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"vsr {doctor.own_version()}")
    top.add_argument(
        "--self-test",
        action="store_true",
        help="whether this installation works: restores two frames with a tiny bundle that is carried along",
    )
    top.add_argument("--json", dest="self_test_json", action="store_true", help="of --self-test: print JSON")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    _add_restore(commands, manifest)
    _add_compare(commands)
    plan_command.add_command(commands, manifest)
    bench_command.add_command(commands, manifest)
    check = commands.add_parser(
        "doctor", help="what is installed, what a bundle holds, which backend `auto` takes and why"
    )
    check.add_argument("--bundle", type=Path, help="also read every byte of this bundle and check it")
    check.add_argument("--json", action="store_true", help="print the findings as JSON on standard output")
    commands.add_parser("schema", help="print the JSON schema of a bundle's manifest, bundle.json")
    return top


def _add_restore(commands: argparse._SubParsersAction, manifest: Manifest | None) -> None:
    command = commands.add_parser(
        "restore",
        help="restore a video or a folder of pictures",
        description="Restores INPUT into OUTPUT at 4 times the size. Sound, subtitles, chapters, metadata and "
        "timestamps of a video are kept; what the output's container cannot hold is named. OUTPUT appears "
        "whole or not at all.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("input", type=Path, metavar="INPUT", help="a video, a folder of pictures, or one picture")
    add(
        "-o",
        "--output",
        type=str,
        required=True,
        metavar="OUTPUT",
        help="a video (.mp4, .mkv, .mov, .webm), a folder (no suffix), or a .png for one picture",
    )
    add("--bundle", type=Path, help="directory made by vsr-build bundle; needed")
    choices.add_backend(command)
    choices.add_tiles(command)
    add(
        "--memory",
        metavar="M",
        help="how much may be used, e.g. 8GB: strips where whole takes more, and an error where strips do "
        "(default: what is free, less 0.5 GB, and no error)",
    )
    add("--start", type=float, default=0.0, metavar="T", help="skip T seconds (default: 0)")
    add("--frames", type=int, metavar="N", help="restore N frames at most (default: all)")
    add("--codec", help="h264, hevc, av1, vp9, ffv1 or prores (default: the container's)")
    add("--crf", type=int, help="quality of the output video: lower is better and larger")
    add(
        "--fps",
        metavar="F",
        help="of a video made of a folder of pictures, e.g. 29.97 or 30000/1001, which is exact (default: 25)",
    )
    add(
        "--noise",
        type=Path,
        metavar="FILE.npz",
        help="recorded noise, in place of what the bundle's family draws by its seed",
    )
    add(
        "--prompt",
        metavar="TEXT",
        help="text that conditions the restoration, in place of the bundle's (vsr doctor --bundle shows that)",
    )
    add("--negative-prompt", metavar="TEXT", help="text that it is led away from, in place of the bundle's")
    add(
        "--segment",
        metavar="N[,M]",
        help="of a bundle that takes whole clips through its steps: N frames at once, of which M are the next "
        "segment's, too (default of M: a quarter). Memory is that of a segment; the result is another one, with seams",
    )
    add("--threads", type=int, metavar="N", help="of the CPU (default: all cores)")
    add(
        "--slots",
        type=int,
        default=1,
        metavar="S",
        help="frames in flight: more keep a GPU busier and take more memory (default: 1)",
    )
    add(
        "--engine-cache",
        type=Path,
        metavar="DIR",
        help="where GPU backends keep what they compile (default: the user's cache folder)",
    )
    add("--check", action="store_true", help="compare every file of the bundle with its hash first")
    add("--overwrite", action="store_true", help="replace OUTPUT if it exists")
    add("--json", action="store_true", help="print the report as JSON on standard output")
    choices.add_family(command, manifest)


def _add_compare(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "compare", help="a picture or video to compare: the input, enlarged by bicubic, next to the result"
    )
    add = command.add_argument
    add("before", type=Path, metavar="INPUT", help="the clip that was restored")
    add("after", type=Path, metavar="RESULT", help="what was restored from it")
    add(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUTPUT",
        help="a .png for one picture, or a video (.mp4, .mkv, .mov, .webm) for all frames",
    )
    add("--frame", type=int, default=0, metavar="N", help="frame of RESULT, from 0 (default: 0)")
    add("--start", type=float, default=0.0, metavar="T", help="the --start that INPUT was restored with")
    add("--crop", type=int, metavar="N", help="show the middle N pixels each way (default: all)")
    add("--overwrite", action="store_true", help="replace OUTPUT if it exists")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    grammar = parser(choices.peek(given))
    options = grammar.parse_args(given)
    if options.self_test == (options.command is not None):
        grammar.error("expected either a COMMAND or --self-test; see vsr --help")
    if options.self_test_json and not options.self_test:
        grammar.error("--json before a COMMAND is of --self-test; put it behind the COMMAND")
    commands = {
        "restore": _restore,
        "compare": _compare,
        "plan": plan_command.run,
        "bench": bench_command.run,
        "doctor": _doctor,
        "schema": _schema,
    }
    as_json = options.self_test_json or getattr(options, "json", False) in (True, "-")  # bench names a file
    with terminal.errors(as_json=as_json) as outcome:
        outcome.code = _self_test(options) if options.self_test else commands[options.command](options)
    return outcome.code


def _restore(options: argparse.Namespace) -> int:
    fields = {field.name for field in dataclasses.fields(Job)}
    values = {name: value for name, value in vars(options).items() if name in fields}
    if options.bundle is None:
        raise InputError(
            "restoring needs a bundle: --bundle DIR. Make one with vsr-build bundle, from the weights that vsr-build "
            "fetch gets; or try the demonstration's, which make demo leaves: --bundle demo-out/bundle"
        )
    if options.fps is not None:
        values["fps"] = parse_fps(options.fps)
    if options.segment is not None:
        values["segment"] = parse_segment(options.segment)
    settings = Settings(
        backend=options.backend,
        memory=None if options.memory is None else parse_memory(options.memory),
        threads=options.threads,
        slots=options.slots,
        engine_cache=options.engine_cache,
        check=options.check,
        prompt=options.prompt,
        negative_prompt=options.negative_prompt,
        **choices.settings(options),
    )
    job = Job(**values, settings=settings)
    console = Console(stderr=True)
    notes: list[str] = []
    try:
        with terminal.restoring(console, options.input, notes) as watcher:
            report = restore(job, watcher)
    except TruncatedError as error:
        terminal.print_report(console, error.report, notes)
        raise
    if options.json:
        values = dataclasses.asdict(report) | {"fps": report.fps}
        print(json.dumps(values, indent=1))  # noqa: T201
    terminal.print_report(console, report, notes)
    return 0


def _compare(options: argparse.Namespace) -> int:
    if is_video_name(options.output):
        return _compare_all(options)
    width, height = side_by_side(
        options.before,
        options.after,
        options.output,
        index=options.frame,
        start=options.start,
        crop=options.crop,
        overwrite=options.overwrite,
    )
    name = escape(terminal.printable(str(options.output)))
    Console(stderr=True).print(f"{name}: {width}x{height}, bicubic | restored", highlight=False)
    return 0


def _compare_all(options: argparse.Namespace) -> int:
    """Every frame, as a video."""
    if options.frame:
        raise InputError("--frame is for one picture; a video has all frames of RESULT. Leave it out.")
    console = Console(stderr=True)
    with console.status("comparing…") as status:
        width, height, frames = side_by_side_video(
            options.before,
            options.after,
            options.output,
            start=options.start,
            crop=options.crop,
            overwrite=options.overwrite,
            done=lambda count: status.update(f"frame {count}"),
            note=lambda text: console.print(
                f"[yellow]note:[/] {escape(text)}", highlight=False, soft_wrap=True
            ),
        )
    name = escape(terminal.printable(str(options.output)))
    console.print(f"{name}: {width}x{height}, {frames} frames, bicubic | restored", highlight=False)
    return 0


def _self_test(options: argparse.Namespace) -> int:
    """A line a check, or JSON; 1 if one fails."""
    console = Console(stderr=options.self_test_json)
    found = []
    with console.status("restoring two frames…"):
        for check in self_test.run():
            found.append(check)
            verdict = "[green]ok    [/]" if check.passed else "[bold red]FAILED[/]"
            told = escape(terminal.printable(check.found))
            console.print(
                f"{verdict} {check.name}: {told} ({check.seconds:.1f} s)", highlight=False, soft_wrap=True
            )
    passed = all(check.passed for check in found)
    if options.self_test_json:
        version = doctor.own_version()
        report = {"version": version, "passed": passed, "checks": [dataclasses.asdict(one) for one in found]}
        print(json.dumps(report, indent=1))  # noqa: T201
    console.print("[green]this installation works[/]" if passed else "see what is installed: vsr doctor")
    return 0 if passed else 1


def _doctor(options: argparse.Namespace) -> int:
    console = Console(stderr=options.json)
    with console.status("looking…") as status:
        found = doctor.diagnose(options.bundle, lambda name: status.update(f"reading {name}"))
    if options.json:
        print(json.dumps(dataclasses.asdict(found), indent=1))  # noqa: T201
    else:
        terminal.print_diagnosis(console, found)
    return 1 if found.problems else 0


def _schema(options: argparse.Namespace) -> int:
    json.dump(json_schema(), sys.stdout, indent=1)
    sys.stdout.write("\n")
    return 0
