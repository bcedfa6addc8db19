"""`vsr-build schedule`: schedules as files in a bundle, for hosts in other languages."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from vsr_trt.engines import additions
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.options import Options, Settings, check_slots
from vsr_trt.runtime.cli import choices
from vsr_trt.runtime.cli.values import parse_size
from vsr_trt.runtime.errors import DeviceError
from vsr_trt.runtime.schedule import file, hosting
from vsr_trt.runtime.schedule.build import build
from vsr_trt.runtime.schedule.canvas import FrameShape
from vsr_trt.runtime.schedule.events import derive
from vsr_trt.runtime.schedule.memory import amount
from vsr_trt.runtime.schedule.parts import Part, clip_frames, parts
from vsr_trt.runtime.schedule.shapes import frame_shapes

FOLDER = "schedules"


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds the command's grammar."""
    command = commands.add_parser(
        "schedule",
        help="write the schedule of a size into a bundle, for hosts in other languages",
        description="Writes schedules/WxH-sS.json into BUNDLE: steps, lanes, events, where buffers are stored. A "
        "host that executes it gets the bytes that this runtime gets. docs/schedule.md explains the file.",
    )
    add = command.add_argument
    add("bundle", type=Path, metavar="BUNDLE")
    add(
        "--size",
        action="append",
        required=True,
        metavar="WxH",
        help="of the restored picture; may be repeated",
    )
    add("--slots", type=int, default=1, metavar="S", help="frames in flight (default: 1)")
    choices.add_tiles(command)
    choices.add_frames(command)
    add("--batch", type=int, default=1, metavar="B", help="tiles that a network takes at once (default: 1)")
    choices.add_family(command, None)
    add("--json", action="store_true", help="print what was written as JSON on standard output")


def run(arguments: argparse.Namespace) -> int:
    """Executes the command; its exit code."""
    console = Console(stderr=True)
    bundle = Bundle.open(arguments.bundle)
    check_slots(arguments.slots)
    clip = clip_frames(bundle.manifest, arguments.frames)
    options = Options.of(bundle.manifest, Settings(**choices.settings(arguments)))
    written: list[dict[str, Any]] = []
    with additions.staging(bundle.path) as folder:
        (folder / FOLDER).mkdir()
        for text in arguments.size:
            width, height = parse_size(text, bundle.manifest)
            for part in parts(bundle.manifest, clip):
                frame_shapes(bundle.manifest, width, height, options, part)  # refuses what cannot be
                shape = FrameShape.of_result(bundle.manifest, width, height)
                batches = dict.fromkeys(bundle.manifest.networks, arguments.batch)
                slots = 1 if part.window.frames is None else arguments.slots
                for each in _lengths(part, clip):
                    started = time.perf_counter()
                    schedule = build(bundle.manifest, *shape.given, options, slots, batches, each)
                    events = derive(schedule)
                    name = f"{FOLDER}/{hosting.file_name(bundle.manifest, shape, slots, options, each)}"
                    host = hosting.host(bundle.manifest, shape, options, schedule)
                    file.write(folder / name, schedule, events, host)
                    if file.read(folder / name) != (schedule, events):
                        raise DeviceError(
                            f"{name} would not hold the schedule that it was made of; please report it."
                        )
                    seconds = time.perf_counter() - started  # reading it proved it
                    written.append(
                        {
                            "file": name,
                            "steps": len(schedule.steps),
                            "events": len(events),
                            "blocks": file.layout(schedule)[1],
                            "seconds": seconds,
                        }
                    )
        additions.sync(folder)
        additions.commit(bundle.path, folder, lambda manifest: manifest, lambda manifest: manifest)
    for item in written:
        console.print(
            f"{arguments.bundle / str(item['file'])}: {item['steps']} steps, {item['events']} events, "
            f"{amount(item['blocks']['slot'])} a slot, {amount(item['blocks']['shared'])} shared; "
            f"scheduled, written and proven in {item['seconds']:.2f} s",
            highlight=False,
            soft_wrap=True,
        )
    if arguments.json:
        print(json.dumps({"bundle": str(arguments.bundle), "schedules": written}, indent=1))  # noqa: T201
    return 0


def _lengths(part: Part, frames: int) -> list[Part]:
    """The part for each length that its windows have in a clip."""
    rest = frames % part.frames if part.window.last == "short" else 0
    whole = [part] if rest == 0 or frames > part.frames else []
    return whole + ([part.of(rest)] if rest else [])
