"""The roofline: a network takes as long as its arithmetic or its memory traffic, whichever is longer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vsr_trt.runtime.bundle.manifest import Manifest, Network
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.bundle.symbols import evaluate
from vsr_trt.runtime.errors import BundleError, InputError
from vsr_trt.runtime.plan.roofline.machines import Machine
from vsr_trt.runtime.schedule.parts import usual_clip
from vsr_trt.runtime.schedule.shapes import StageShape, clip_shapes

NOTE = "model, not measured"
SIZES = ((512, 512), (1280, 720), (1920, 1080))
"""Restored pictures that are predicted where nobody names one."""

Precision = Literal["fp32", "fp16"]
_BYTES: dict[str, int] = {"fp32": 4, "fp16": 2}


@dataclass(frozen=True)
class StageTime:
    """What the model says of a stage, for one frame; of a clip that goes through phases, a frame's share.

    Attributes:
        shape: network, runs and their sizes; of the whole clip.
        precision: that the network is taken to run in.
        flop: floating point operations, two for a multiply-add.
        bytes: to and from memory; each run reads the weights again.
        compute: seconds that the operations take at the machine's peak.
        memory: seconds that the bytes take at its bandwidth.
        measured: seconds that the stage took where it was measured, None where it was not.
    """

    shape: StageShape
    precision: Precision
    flop: float
    bytes: float
    compute: float
    memory: float
    measured: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of the stage."""
        return max(self.compute, self.memory)

    @property
    def bound(self) -> Literal["compute", "memory"]:
        """What it waits for."""
        return "compute" if self.compute >= self.memory else "memory"


@dataclass(frozen=True)
class Prediction:
    """A frame on a machine: the stages, one after another.

    Attributes:
        machine: whose rates these are.
        width, height: of the restored picture.
        stages: in order.
        frames: of the clip that a frame's share was taken of; None for a family whose frames all take the same.
    """

    machine: Machine
    width: int
    height: int
    stages: tuple[StageTime, ...]
    frames: int | None = None

    @property
    def seconds(self) -> float:
        """Seconds of the frame."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def fps(self) -> float:
        """Frames a second."""
        return 1 / self.seconds

    @property
    def measured(self) -> float | None:
        """Seconds of a frame, None unless every stage was measured."""
        known = [stage.measured for stage in self.stages if stage.measured is not None]
        return sum(known) if len(known) == len(self.stages) else None


def predict(
    manifest: Manifest,
    machine: Machine,
    width: int,
    height: int,
    options: Options | None = None,
    precision: Precision | None = None,
    measured: Mapping[str, float] | None = None,
    frames: int | None = None,
) -> Prediction:
    """What the model says of a frame.

    Args:
        manifest: of the bundle.
        machine: see `machines.find`.
        width, height: of the restored picture.
        options: tiles and colours, None for the defaults.
        precision: of the networks that have the choice; None for FP16 where the machine has a rate for it and the
            bundle a graph.
        measured: seconds of each stage, as measured on that machine; stages that it lacks stay without.
        frames: of the clip, where it goes through phases; None for as many as look at each other.

    Raises:
        InputError: a size, option or precision that cannot be.
        BundleError: the bundle was built without counts.
    """
    if precision == "fp16" and machine.fp16 is None:
        raise InputError(f"{machine.name} has no FP16 rate; take fp32.")
    clip = _clip(manifest, options, frames)
    shapes = _counted(manifest, width, height, options, clip)
    runs = (_time(manifest, machine, shape, precision, clip) for shape in shapes)
    stages: dict[str, StageTime] = {}
    for time in runs:  # a clip's last window, and its last chunk, may be shorter
        name = time.shape.stage
        stages[name] = _joined(stages[name], time) if name in stages else time
    seconds = measured or {}
    times = tuple(dataclasses.replace(time, measured=seconds.get(name)) for name, time in stages.items())
    return Prediction(machine, width, height, times, clip if manifest.phases else None)


def operations(
    manifest: Manifest, width: int, height: int, options: Options | None = None, frames: int | None = None
) -> float:
    """Floating point operations of a frame as the manifest counts them, two for a multiply-add.

    `frames` as for `predict`.

    Raises:
        InputError: a size or option that cannot be.
        BundleError: the bundle was built without counts.
    """
    clip = _clip(manifest, options, frames)
    shapes = _counted(manifest, width, height, options, clip)
    return sum(_operations(manifest, shape) for shape in shapes) / clip


def _clip(manifest: Manifest, options: Options | None, frames: int | None) -> int:
    return frames if frames is not None and manifest.phases else usual_clip(manifest, options or Options())


def _counted(
    manifest: Manifest, width: int, height: int, options: Options | None, clip: int
) -> tuple[StageShape, ...]:
    """The stages of a frame, or of a clip, all of which have their work counted."""
    shapes = clip_shapes(manifest, width, height, options or Options(), clip)
    if uncounted := sorted({s.network for s in shapes if manifest.networks[s.network].work is None}):
        raise BundleError(
            f"the bundle does not say what {', '.join(uncounted)} takes: it was built before that was counted, or "
            "the build could not count it and said so. Build it again with vsr-build bundle."
        )
    return shapes


def _operations(manifest: Manifest, shape: StageShape) -> float:
    work = manifest.networks[shape.network].work
    assert work is not None
    return 2 * shape.steps * shape.runs * evaluate(work.multiply_adds, shape.sizes)


def predict_all(
    manifest: Manifest,
    machines: Sequence[Machine],
    sizes: Sequence[tuple[int, int]] = SIZES,
    options: Options | None = None,
    precision: Precision | None = None,
    frames: int | None = None,
) -> tuple[Prediction, ...]:
    """`predict` for each machine and (width, height), the sizes of a machine together."""
    return tuple(
        predict(manifest, machine, *size, options, precision, frames=frames)
        for machine in machines
        for size in sizes
    )


def _time(
    manifest: Manifest,
    machine: Machine,
    shape: StageShape,
    precision: Precision | None,
    clip: int,
) -> StageTime:
    network = manifest.networks[shape.network]
    work = network.work
    assert work is not None
    chosen = _precision(manifest, network, machine, precision)
    rate = machine.fp16 if chosen == "fp16" else machine.fp32
    assert rate is not None
    numbers = work.weights + evaluate(work.activations, shape.sizes)
    each = numbers * _BYTES[chosen] + evaluate(work.integer_bytes, shape.sizes)
    moved, flop = shape.steps * shape.runs * each / clip, _operations(manifest, shape) / clip
    return StageTime(shape, chosen, flop, moved, flop / rate, moved / machine.bandwidth)


def _joined(one: StageTime, more: StageTime) -> StageTime:
    """A stage whose runs are of two sizes, shown as the first ones."""
    sums = {name: getattr(one, name) + getattr(more, name) for name in ("flop", "bytes", "compute", "memory")}
    return dataclasses.replace(one, **sums)


def _precision(manifest: Manifest, network: Network, machine: Machine, asked: Precision | None) -> Precision:
    if network.always_fp32 is not None or machine.fp16 is None:
        return "fp32"
    if asked is not None:
        return asked
    return "fp16" if network.graph("fp16", manifest.precision) is not None else "fp32"


def as_json(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The predictions for programs; it says itself that they are none of a measurement."""
    machines = {prediction.machine.name: prediction.machine for prediction in predictions}
    return {
        "kind": NOTE,
        "machines": {name: dataclasses.asdict(machine) for name, machine in machines.items()},
        "predictions": [
            {
                "kind": NOTE,
                "machine": prediction.machine.name,
                "size": f"{prediction.width}x{prediction.height}",
                "seconds": prediction.seconds,
                "fps": prediction.fps,
                "clip_frames": prediction.frames,
                "measured_seconds": prediction.measured,
                "stages": [_stage_json(stage) for stage in prediction.stages],
            }
            for prediction in predictions
        ],
    }


def _stage_json(stage: StageTime) -> dict[str, Any]:
    return {
        **dataclasses.asdict(stage.shape),
        "precision": stage.precision,
        "flop": stage.flop,
        "bytes": stage.bytes,
        "compute_seconds": stage.compute,
        "memory_seconds": stage.memory,
        "seconds": stage.seconds,
        "bound": stage.bound,
        "measured_seconds": stage.measured,
    }
