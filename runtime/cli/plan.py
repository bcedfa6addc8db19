"""The command `plan` of the runtime's command line."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from vsr_trt.runtime.bench.compare import median_stages
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Manifest
from vsr_trt.runtime.bundle.options import Options, Settings
from vsr_trt.runtime.cli import choices
from vsr_trt.runtime.cli.terminal import printable
from vsr_trt.runtime.cli.values import parse_memory, parse_size
from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.machine import gpu
from vsr_trt.runtime.media.staging import Staging
from vsr_trt.runtime.plan import plan as planning
from vsr_trt.runtime.plan import roofline
from vsr_trt.runtime.plan import show as plan_show
from vsr_trt.runtime.plan.plan import Plan, PlanRequest
from vsr_trt.runtime.schedule.drawing import draw
from vsr_trt.runtime.schedule.events import hazards
from vsr_trt.runtime.schedule.forms import Available

_EPILOG = """\
examples:
  vsr plan --bundle BUNDLE --size 1280x720
  vsr plan --bundle BUNDLE --size 1920x1080 --target sm_89 --memory 16GB --slots 3
  vsr plan --bundle BUNDLE --size 1280x720 --slots 2 --draw schedule.svg
  vsr plan --bundle BUNDLE --size 1280x720 --roofline RTX4090 H100

exit codes: 0 it fits, 2 option refused, 3 drawing not writable, 4 bundle damaged, 7 not enough memory
"""


def add_command(commands: argparse._SubParsersAction, manifest: Manifest | None = None) -> None:
    """Adds `plan` to the runtime's commands."""
    command = commands.add_parser(
        "plan",
        help="what will be done to a frame, in which order, in how much memory",
        description="Shows the schedule of a clip and its memory, and refuses what does not fit; loads nothing.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("--bundle", type=Path, required=True, help="directory made by vsr-build bundle")
    add("--size", required=True, metavar="WxH", help="of the restored picture, e.g. 1280x720")
    add("--slots", type=int, default=1, metavar="S", help="frames in flight, as for restore (default: 1)")
    choices.add_tiles(command)
    choices.add_frames(command)
    add(
        "--target",
        metavar="T",
        help="GPUs whose engines are meant, e.g. sm_89, or portable (default: the GPU in the machine; without one, the "
        "CPU)",
    )
    add(
        "--memory",
        metavar="M",
        help="take what fits, and refuse what does not, e.g. 16GB or 16GiB (default: the GPU's, if there is one; on "
        "the CPU what is free, and nothing is refused)",
    )
    add("--draw", type=Path, metavar="F.svg", help="draw the schedule")
    add("--overwrite", action="store_true", help="replace F.svg if it exists")
    add("--json", action="store_true", help="print schedule and memory as JSON on standard output")
    add(
        "--roofline",
        nargs="+",
        default=[],
        metavar="GPU",
        help="also model how long a frame takes, at this size and at the usual ones, e.g. RTX4090 H100, this-machine, "
        "or all (see docs/roofline.md)",
    )
    add(
        "--measured",
        type=Path,
        metavar="F.json",
        help="next to the model, the stages as `bench --json F.json` measured them on that GPU at this size",
    )
    choices.add_family(command, manifest)


def run(options: argparse.Namespace) -> int:
    """Runs the command.

    Returns:
        0.

    Raises:
        VsrError: what is refused, not enough memory among it.
    """
    console = Console(stderr=options.json)
    bundle = Bundle.open(options.bundle)
    limit = None if options.memory is None else parse_memory(options.memory)
    here = gpu.detect()
    plan = planning.make(bundle, _request(options, bundle, here, limit))
    available = limit if limit is not None or here is None else here.memory
    if available is not None:
        whose = "--memory allows" if limit is not None else f"{here} has"
        planning.refuse_what_does_not_fit(bundle, plan, available, whose)
    for each in plan.phases or (plan,):
        if found := hazards(each.schedule, each.events):  # proven, so never; a mistake in this program
            raise AssertionError(f"the derived events are not enough: {found[0]}")
    if options.measured is not None and not options.roofline:
        raise InputError("--measured stands next to a model; name the machine's with --roofline.")
    predictions = _predictions(options, bundle, plan) if options.roofline else ()
    if options.draw is not None:
        _draw(options.draw, options.overwrite, bundle, plan)
    if options.json:
        values = planning.as_json(plan) | {"bundle": str(bundle.path), "available": available}
        if predictions:
            values["roofline"] = roofline.as_json(predictions)
        print(json.dumps(values, indent=1))  # noqa: T201
        return 0
    plan_show.show(console, plan, available)
    if predictions:
        roofline.show(console, predictions)
    if options.draw is not None:
        console.print(f"[bold]{escape(printable(str(options.draw)))}[/] shows the schedule", highlight=False)
    return 0


def _predictions(
    options: argparse.Namespace, bundle: Bundle, plan: planning.Plan
) -> tuple[roofline.Prediction, ...]:
    """The model at the plan's size, and at the usual ones with the tiles of the plan."""
    machines = roofline.find(",".join(options.roofline))
    size = plan.request.width, plan.request.height
    if options.measured is None:
        return roofline.predict_all(
            bundle.manifest,
            machines,
            list(dict.fromkeys([size, *roofline.SIZES])),
            plan.options,
            frames=options.frames,
        )
    if len(machines) != 1:
        raise InputError("--measured is of one machine; name that one with --roofline.")
    measured = median_stages(options.measured, *size)
    found = roofline.predict(
        bundle.manifest, machines[0], *size, plan.options, measured=measured, frames=options.frames
    )
    return (found,)


def _request(
    options: argparse.Namespace, bundle: Bundle, here: gpu.Gpu | None, limit: int | None
) -> PlanRequest:
    width, height = parse_size(options.size, bundle.manifest)
    target = options.target or (here.capability if here is not None else None)
    return PlanRequest(
        width=width,
        height=height,
        slots=options.slots,
        target=target,
        frames=options.frames,
        options=Options.of(bundle.manifest, Settings(**choices.settings(options))),
        available=Available.of(limit)
        if target is None
        else Available(here.memory if limit is None and here is not None else limit, limit is not None),
    )


def _draw(path: Path, overwrite: bool, bundle: Bundle, plan: Plan) -> None:
    if path.suffix.lower() != ".svg":
        raise InputError(f"--draw {path}: drawings are SVG; give a name that ends in .svg.")
    title = f"{bundle.manifest.family}, {plan.size}, {plan_show.slots(plan.request.slots)}"
    with contextlib.ExitStack() as stack:
        staging = Staging(path, overwrite=overwrite)
        stack.callback(staging.discard)
        staging.write(draw(plan.schedule, plan.events, title))
