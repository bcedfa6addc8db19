"""What restoring a clip of some size will do, and in how much memory: known before anything is loaded."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Engine, Tiling
from vsr_trt.runtime.bundle.options import Options, check_slots, tile_range
from vsr_trt.runtime.errors import DeviceError, EngineError, InputError
from vsr_trt.runtime.schedule import forms, memory
from vsr_trt.runtime.schedule.build import build
from vsr_trt.runtime.schedule.canvas import FrameShape
from vsr_trt.runtime.schedule.engine_choice import (
    PORTABLE,
    EngineChoice,
    Needs,
    build_command,
    built_for,
    choose_engines,
    needs,
    usual_tile,
)
from vsr_trt.runtime.schedule.events import Event, derive
from vsr_trt.runtime.schedule.forms import Available, Form
from vsr_trt.runtime.schedule.graph import Schedule, Step
from vsr_trt.runtime.schedule.memory import MemoryPlan, amount
from vsr_trt.runtime.schedule.parts import Part, clip_frames, clip_parts
from vsr_trt.runtime.schedule.shapes import frame_shapes


@dataclass(frozen=True)
class PlanRequest:
    """What is to be planned.

    Attributes:
        width, height: of the restored picture.
        slots: frames under way at once.
        target: whose engines are meant, `sm_89` or `portable`; None for the CPU.
        options: what the user chose.
        available: memory that may be used.
        frames: of the clip, which a family with phases takes through some of them at once.
    """

    width: int
    height: int
    slots: int
    target: str | None
    options: Options
    available: Available = field(default_factory=lambda: Available(None, False))
    frames: int | None = None


@dataclass(frozen=True)
class Plan:
    """What will be done.

    Attributes:
        request: that this is for.
        options: with the tiles that are taken.
        schedule, events: what is done, and what waits for what.
        engines: network -> engine; empty where there are none.
        needs: of the engines.
        form: how pictures go through the VAE.
        unknown: why scratch and weights are not known, None where they are.
        one, two: memory with so many slots.
        tilings: of the bundle.
        batches: network -> how many tiles it takes at once.
        part: what of the family this is.
        phases: a plan for each phase, in order; empty for a family without. This one is then that of the phase which
            needs most memory.
        kept: bytes of the host that a clip takes between phases.
    """

    request: PlanRequest
    options: Options
    schedule: Schedule
    events: tuple[Event, ...]
    engines: Mapping[str, Engine]
    needs: Needs
    form: Form
    unknown: str | None
    one: MemoryPlan
    two: MemoryPlan
    tilings: Mapping[str, Tiling]
    part: Part
    batches: Mapping[str, int]
    phases: tuple[Plan, ...] = ()
    kept: int = 0

    def cuts(self, tiling: str) -> bool:
        """Whether large frames are cut into tiles under a tiling."""
        return self.options.statistics == "tile" or not self.tilings[tiling].exact

    def batch_bytes(self, network: str) -> int:
        """What a network works in more because its engine takes several tiles at once, about: as much for each tile."""
        need = self.needs.scratch.get(network, 0)
        return need - need // max(1, self.batches.get(network, 1))

    @property
    def size(self) -> str:
        """Size of the restored picture, as on the command line."""
        return f"{self.request.width}x{self.request.height}"

    @property
    def memory(self) -> MemoryPlan:
        """All that is known of it."""
        return self.with_slots(self.request.slots)

    def with_slots(self, slots: int) -> MemoryPlan:
        """Returns the memory of so many slots. From two on, one more costs a slot's buffers and nothing else."""
        if slots == 1:
            return self.one
        return dataclasses.replace(self.two, slots=slots, pinned=self.two.pinned // 2 * slots)

    def largest_slots(self, available: int) -> int:
        """How many fit into so many bytes, 0 for none."""
        more = 2 + (available - self.two.device) // self.two.slot
        return more if more > 1 else int(self.one.device <= available)


def make(bundle: Bundle, request: PlanRequest) -> Plan:
    """Plans.

    Raises:
        InputError: a size, an option, a target or a number of slots or frames that cannot be.
        BundleError: a report of an engine cannot be read.
    """
    check_slots(request.slots)
    if request.target is not None and not re.fullmatch(rf"sm_\d{{2,3}}|{PORTABLE}", request.target):
        raise InputError(
            f"--target {request.target}: expected a compute capability, e.g. sm_89, or {PORTABLE}."
        )
    manifest = bundle.manifest
    frames = clip_frames(manifest, request.frames)
    plans = [_make(bundle, request, part) for part in clip_parts(manifest, frames)]
    if len(plans) == 1:
        return plans[0]
    largest = max(plans, key=lambda plan: plan.memory.device)
    row = sum(memory.handed_on(plan.schedule, plan.part.frames) for plan in plans[:-1])
    return dataclasses.replace(largest, phases=tuple(plans), kept=row * frames)


def _make(bundle: Bundle, request: PlanRequest, part: Part) -> Plan:
    manifest = bundle.manifest
    if part.window.frames is None:
        request = dataclasses.replace(request, slots=1)  # there is one window
    choice, unknown = _choose(bundle, request, part)
    frame_shapes(manifest, request.width, request.height, choice.options, part)  # refuses what cannot be
    found = needs(bundle, choice.engines)
    if found.untold:
        unknown = f"the reports of its engines of {', '.join(found.untold)} do not tell all of it"
    frame = FrameShape.of_result(manifest, request.width, request.height).given
    schedules = {
        slots: build(manifest, *frame, choice.options, slots, choice.batches, part)
        for slots in {1, 2, request.slots}
    }
    one, two = (memory.add_up(schedules[slots], found.scratch, found.weights) for slots in (1, 2))
    schedule = schedules[request.slots]
    form = choice.form
    if request.target is None:
        form = forms.choose_form(bundle, *frame, choice.options, request.available, request.slots, part)
    assert form is not None
    taken, events = choice.options, derive(schedule)
    tilings = manifest.tilings
    return Plan(
        request,
        taken,
        schedule,
        events,
        choice.engines,
        found,
        form,
        unknown,
        one,
        two,
        tilings,
        part,
        choice.batches,
    )


def _choose(bundle: Bundle, request: PlanRequest, part: Part) -> tuple[EngineChoice, str | None]:
    """The engines of one library that serve the request; without, the tiles that they would have, and why."""
    target, options = request.target, request.options
    form = (
        Form("tiles", "--vae-statistics tile")
        if options.statistics == "tile"
        else Form("whole", "the default")
    )
    if target is None:
        usual = {name: tiling.side for name, tiling in bundle.manifest.tilings.items()}
        reason = "ONNX Runtime keeps both on the CPU; the estimate below has them"
    else:
        usual = {name: usual_tile(bundle.manifest, name) for name in bundle.manifest.tilings}
        reason = ""
        engines, size = built_for(bundle.manifest.engines, target), (request.width, request.height)
        for backend in dict.fromkeys(engine.backend for engine in engines) or [None]:
            own = [engine for engine in engines if engine.backend == backend]
            try:
                memory = request.available.bytes
                return choose_engines(bundle, own, target, size, options, memory, part), None
            except EngineError as error:
                reason = reason or str(error)
    return EngineChoice(dataclasses.replace(options, tiles={**usual, **options.tiles}), {}, {}, form), reason


def refuse_what_does_not_fit(bundle: Bundle, plan: Plan, available: int, whose: str) -> None:
    """Compares what is known of the memory with what there is.

    Args:
        bundle: that was planned for.
        plan: for it.
        available: bytes.
        whose: they are, with a verb, e.g. `--memory allows`.

    Raises:
        DeviceError: it does not fit; the message says what would help.
    """
    need = plan.memory.device
    if need <= available:
        return
    least = "" if plan.unknown is None else "at least "
    slots = "1 slot" if plan.request.slots == 1 else f"{plan.request.slots} slots"
    told = f"{plan.size} with {slots} needs {least}{amount(need)} of device memory, and {whose} {amount(available)}."
    if fits := plan.largest_slots(available):
        less = amount(plan.with_slots(fits).device)
        raise DeviceError(f"{told} What fits at most: --slots {fits}, with {least}{less}.")
    one = "" if plan.request.slots == 1 else f" One slot needs {least}{amount(plan.one.device)}."
    raise DeviceError(f"{told}{one} {_what_helps(bundle, plan)}")


def _what_helps(bundle: Bundle, plan: Plan) -> str:
    """Where not even one slot fits."""
    request = plan.request
    smaller = f"Restore a smaller picture than {plan.size}"
    largest = max(plan.needs.scratch, key=lambda network: plan.needs.scratch[network], default=None)
    shapes = frame_shapes(bundle.manifest, request.width, request.height, plan.options, plan.part)
    shape = next((shape for shape in shapes if shape.network == largest), None)
    kind = next(
        (s.tiling for s in bundle.manifest.stages if shape is not None and s.name == shape.stage), None
    )
    if shape is None or kind is None or plan.needs.scratch[shape.network] < plan.one.slot:
        return f"{smaller}."
    tiled = plan.options.cuts(bundle.manifest, kind)
    if not tiled and (plan.form.name == "strips" or bundle.manifest.networks[shape.network].strips == 1):
        return f"{smaller}."
    low, _ = tile_range(bundle.manifest, kind)
    unit = bundle.manifest.tile_unit
    half = max(math.isqrt(shape.sizes["h"] * shape.sizes["w"] // 2) // unit * unit, low)  # of the area
    options = request.options.with_tile(kind, half)
    command = build_command(bundle, request.target or "", (request.width, request.height), options)
    how = "cut it into smaller tiles" if tiled else "have it in strips, which is the same picture"
    return (
        f"{smaller}; or {how}, because {shape.network} alone works in "
        f"{amount(plan.needs.scratch[shape.network])}: {command}"
    )


def as_json(plan: Plan) -> dict[str, Any]:
    """All of it as JSON values."""
    request, schedule, found = plan.request, plan.schedule, plan.memory
    phases = {"phases": [as_json(phase) for phase in plan.phases], "kept": plan.kept} if plan.phases else {}
    return {
        "phase": plan.part.phase,
        "frames": plan.part.frames,
        "size": plan.size,
        "slots": request.slots,
        "target": request.target,
        "options": dataclasses.asdict(plan.options),
        "vae": forms.as_json(plan.form),
        "lanes": [dataclasses.asdict(lane) for lane in schedule.lanes.values()],
        "buffers": [
            dataclasses.asdict(buffer) | {"bytes": buffer.bytes, "copies": schedule.copies(buffer.name)}
            for buffer in schedule.buffers.values()
            if buffer.kind != "scratch"
        ],
        "steps": [_step_json(step) for step in schedule.steps],
        "events": [dataclasses.asdict(event) for event in plan.events],
        "engines": {network: engine.file for network, engine in plan.engines.items()},
        "batches": {
            network: {"tiles": tiles, "bytes": plan.batch_bytes(network)}
            for network, tiles in plan.batches.items()
            if tiles > 1
        },
        "memory": {
            "slot": found.slot,
            "slots": found.slots,
            "shared": found.shared,
            "scratch": dict(found.scratch) if plan.unknown is None else None,
            "weights": dict(found.weights) if plan.unknown is None else None,
            "pinned": found.pinned,
            "device": found.device,
            "unknown": plan.unknown,
        },
        **phases,
    }


def _step_json(step: Step) -> dict[str, Any]:
    return dataclasses.asdict(step) | {"reads": dict(step.reads), "writes": dict(step.writes)}
