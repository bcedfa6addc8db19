"""The command `bench` of the runtime's command line."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import time
from pathlib import Path
from typing import cast

from rich.console import Console

from vsr_trt.runtime.bench import bench, show, trace
from vsr_trt.runtime.bench.compare import Earlier, compare
from vsr_trt.runtime.bench.measure import Seconds
from vsr_trt.runtime.bench.plan import LEAST_FRAMES, LEAST_SLOW_FRAMES, MODES, SLOW_FRAME, Plan
from vsr_trt.runtime.bench.statistics import FEW
from vsr_trt.runtime.bundle.manifest import Manifest
from vsr_trt.runtime.bundle.options import Settings
from vsr_trt.runtime.bundle.reading import read_manifest
from vsr_trt.runtime.cli import choices
from vsr_trt.runtime.cli.values import parse_memory, parse_size
from vsr_trt.runtime.errors import InputError, OutputError
from vsr_trt.runtime.media.staging import Staging
from vsr_trt.runtime.restore.restorer import Restorer

REGRESSION = 11  # the exit code
_STDOUT = "-"

_EPILOG = f"""\
how it is measured:
  latency: a frame is pushed when the former one was returned; from the call of push until its result is there. 1 slot.
  throughput: frames are pushed without waiting. The clock runs from one result to another with every slot in use; the
    time in which the slots fill and empty is not counted.
  Each mode runs for --seconds and {LEAST_FRAMES} frames at least; {LEAST_SLOW_FRAMES} frames where one takes more
  than {SLOW_FRAME:g} s. Then it runs again with an observer, for a quarter of the time: stages, enqueue, H2D, compute,
  D2H and the trace come from that pass alone, because observing takes time itself.
  A percentile is a nearest rank, as in trtexec: of n times, number ceil(p * n / 100) in ascending order.

comparing:
  The change of the latency's median and of the frames a second, with a 95 % interval from resampling both runs. It is
  better or worse where the interval leaves 0 out. Exit code {REGRESSION} says that the whole interval is worse than
  --max-regression. The interval knows what varies within the two runs only, not what varies from run to run. Under
  {FEW} frames it is the whole range of the times measured.

examples:
  vsr bench --bundle BUNDLE --size 1280x720 --json before.json
  vsr bench --bundle BUNDLE --size 1280x720 --compare before.json --max-regression 3
  vsr bench --bundle BUNDLE --size 640x360 --mode throughput --slots 3 --trace trace.json
"""


def add_command(commands: argparse._SubParsersAction, manifest: Manifest | None = None) -> None:
    """Adds `bench` to the runtime's commands."""
    command = commands.add_parser(
        "bench",
        help="measure latency, frames a second and where the time goes",
        description="Measures how fast a bundle restores here, with frames made for it. Tables go to standard error.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("--bundle", type=Path, required=True, help="directory made by vsr-build bundle")
    add("--size", required=True, metavar="WxH", help="of the restored picture, e.g. 1280x720")
    choices.add_backend(command)
    add("--mode", choices=("latency", "throughput", "both"), default="both", help="(default: both)")
    add(
        "--slots",
        type=int,
        metavar="S",
        help="frames under way at once, for throughput (default: Restorer's)",
    )
    add("--seconds", type=float, default=10.0, metavar="T", help="for each mode, at least (default: 10)")
    add(
        "--warmup",
        type=float,
        default=0.2,
        metavar="T",
        help="seconds before each pass that do not count, at least one frame and until results come (default: 0.2)",
    )
    add("--threads", type=int, metavar="N", help="of the CPU (default: all cores)")
    choices.add_tiles(command)
    choices.add_frames(command)
    add("--memory", metavar="M", help="as for restore")
    add("--engine-cache", type=Path, metavar="DIR", help="as for restore")
    add("--json", metavar="F", help="write the report here, every frame's time included; - prints it")
    add("--trace", type=Path, metavar="F", help="write a trace for chrome://tracing or ui.perfetto.dev")
    add("--overwrite", action="store_true", help="replace F if it exists")
    add("--compare", type=Path, metavar="F", help="compare with a report that --json wrote")
    add(
        "--max-regression",
        type=float,
        default=5.0,
        metavar="P",
        help=f"percent that may be lost before --compare ends with exit code {REGRESSION} (default: 5)",
    )
    choices.add_family(command, manifest)


def run(
    options: argparse.Namespace, factory: bench.Factory | None = None, clock: Seconds = time.perf_counter
) -> int:
    """Runs the command.

    Args:
        options: as `add_command` defines them.
        factory: makes Restorers; another one for tests.
        clock: seconds; another one for tests.

    Returns:
        0, or 11 for a regression.

    Raises:
        VsrError: what is refused, before anything is measured.
    """
    plan = _plan(options)
    earlier = None
    if options.compare is not None:
        earlier = Earlier.read(options.compare)
        earlier.check_plan(plan)
    console = Console(stderr=True)
    with contextlib.ExitStack() as stack:
        outputs = _outputs(options, stack)
        with show.measuring(console, plan.seconds) as watcher:
            report = bench.run(
                plan,
                factory or cast(bench.Factory, Restorer),
                watcher,
                earlier.check_restorer if earlier else lambda mode, subject: None,
                clock,
            )
        if earlier is not None:
            report = dataclasses.replace(report, comparison=compare(earlier, report, options.max_regression))
        show.report(console, report)
        texts = {"json": report.to_json, "trace": lambda: trace.chrome(report.spans)}
        for name, staging in outputs.items():
            staging.write(texts[name]())
    if options.json == _STDOUT:
        print(report.to_json(), end="")  # noqa: T201
    return REGRESSION if report.comparison is not None and report.comparison.regression else 0


def _plan(options: argparse.Namespace) -> Plan:
    if not (math.isfinite(options.max_regression) and options.max_regression >= 0):
        raise InputError(f"--max-regression is {options.max_regression:g}; expected percent, 0 or more.")
    width, height = parse_size(options.size, read_manifest(options.bundle))
    given = Settings(
        backend=options.backend,
        memory=None if options.memory is None else parse_memory(options.memory),
        threads=options.threads,
        engine_cache=options.engine_cache,
        **choices.settings(options),
    )
    plan = Plan(
        bundle=options.bundle,
        width=width,
        height=height,
        modes=tuple(mode for mode in MODES if options.mode in (mode, "both")),
        slots=options.slots,
        seconds=options.seconds,
        warmup=options.warmup,
        given=given,
        frames=options.frames,
    )
    plan.check()
    return plan


def _outputs(options: argparse.Namespace, stack: contextlib.ExitStack) -> dict[str, Staging]:
    """Hidden files next to the outputs: what cannot be written is refused now, not after the measurement."""
    if str(options.trace) == _STDOUT:
        raise InputError("--trace -: a trace is a file; give a name such as trace.json.")
    paths = {"json": None if options.json in (None, _STDOUT) else Path(options.json), "trace": options.trace}
    wanted = {name: path for name, path in paths.items() if path is not None}
    if len({path.absolute() for path in wanted.values()}) < len(wanted):
        raise OutputError(
            f"--json and --trace are the same file, {options.trace}; choose another name for one."
        )
    outputs = {}
    for name, path in wanted.items():
        outputs[name] = Staging(path, overwrite=options.overwrite)
        stack.callback(outputs[name].discard)
    return outputs
