"""What a host in another language needs next to the steps: sizes, graphs, and where numbers come from.

It is written into a stored schedule (`runtime.schedule.file`), so that no rule of this package has to be programmed
again: which form of a graph a size takes, which file a constant is read from, what tiles are weighted with.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from vsr_trt.runtime.bundle.manifest import Manifest, Network
from vsr_trt.runtime.bundle.options import Options, options_in
from vsr_trt.runtime.schedule import tiling
from vsr_trt.runtime.schedule.build import ZEROS, numbered
from vsr_trt.runtime.schedule.canvas import FrameShape
from vsr_trt.runtime.schedule.forms import IN_STRIPS, WHOLE, strips_by_size
from vsr_trt.runtime.schedule.graph import Schedule
from vsr_trt.runtime.schedule.parts import Part


@dataclass(frozen=True)
class Picture:
    """What becomes of a frame before the networks and after them. Sizes are height and width, in pixels.

    Attributes:
        frame: of the clip's frames.
        inner: what a frame is resized to first, by Pillow's bicubic (`runtime.media.resample`); most often `frame`.
        given: of what the networks are given: `inner`, or a canvas that it is put onto.
        corner: row and column of the canvas at which its upper left pixel stands.
        border: value of the canvas around it, 0 to 255.
        scale: factor of the sides of the result. The result of `inner` is cut out of the canvas, and resized to
            `frame` times this where the frame was resized.
    """

    frame: tuple[int, int]
    inner: tuple[int, int]
    given: tuple[int, int]
    corner: tuple[int, int]
    border: int
    scale: int


@dataclass(frozen=True)
class Graphs:
    """A network's graphs, as paths in the bundle.

    Attributes:
        cpu: for ONNX Runtime's CPU provider, in the form that this size takes.
        provider: for any other provider.
    """

    cpu: str
    provider: str


@dataclass(frozen=True)
class Source:
    """Where the numbers of a constant or of noise come from.

    Attributes:
        kind: `zeros`; the numbers of a .npy `file`; the value of an `option` in each place; or `noise`.
        name: of the file in the bundle, of the option, or what the noise is for.
        row: of the file's first axis; of noise, the step of the loop.
        seed: of noise: the option that it is drawn by.
    """

    kind: Literal["zeros", "file", "option", "noise"]
    name: str | None = None
    row: int | None = None
    seed: str | None = None


@dataclass(frozen=True)
class Weights:
    """What tiles of a size are multiplied with before they are added up.

    Attributes:
        window, height, width, overlap: of the tiles, in numbers of the operand: of a `Grid`, times the step's factor.
        down, across: their products, rounded to FP32, are the weights (height, width).
    """

    window: Literal["gaussian", "ramp"]
    height: int
    width: int
    overlap: int
    down: tuple[float, ...]
    across: tuple[float, ...]


@dataclass(frozen=True)
class Host:
    """All of it.

    Attributes:
        picture: a frame's sizes.
        choices: options of the family that decided about steps or files -> their values. Others, such as a seed, may
            have any value when the schedule is executed.
        networks: network -> graphs, of those that the steps run.
        inputs: constant, or noise that is taken in -> where it comes from.
        weights: of all blended tiles.
    """

    picture: Picture
    choices: dict[str, str | int | float]
    networks: dict[str, Graphs]
    inputs: dict[str, Source]
    weights: tuple[Weights, ...]


def host(manifest: Manifest, shape: FrameShape, options: Options, schedule: Schedule) -> Host:
    """What a host needs to execute a schedule.

    Args:
        manifest: of the bundle.
        shape: of the clip's frames.
        options: the user's, checked.
        schedule: built with them.
    """
    in_strips = strips_by_size(manifest, *shape.given, options)
    networks = dict.fromkeys(step.network for step in schedule.steps if step.network is not None)
    constants = [name for name, buffer in schedule.buffers.items() if buffer.kind == "constant"]
    noise = [name for name in schedule.takes if numbered(name)[0] in manifest.inputs]
    inputs = {name: _source(manifest, options, name) for name in (*constants, *noise)}
    return Host(
        Picture(
            shape.frame, shape.inner, shape.given, shape.corner, manifest.canvas.border or 0, manifest.scale
        ),
        {name: options.value(manifest, name) for name in deciding(manifest)},
        {name: _graphs(manifest, manifest.networks[name], in_strips) for name in networks},
        {name: source for name, source in inputs.items() if source is not None},
        _weights(schedule),
    )


def deciding(manifest: Manifest) -> list[str]:
    """The options that decide which steps there are, which networks they run, or which files are read."""
    used = {stage.option for stage in manifest.stages}
    used |= {loop.steps for loop in manifest.loops.values() if isinstance(loop.steps, str)}
    used |= {chunks.frames for chunks in manifest.chunks.values() if isinstance(chunks.frames, str)}
    files = [given.name or "" for given in manifest.inputs.values() if given.source == "file"]
    used |= {option for file in files for option in options_in(file)}
    return [name for name in manifest.options if name in used]


def file_name(manifest: Manifest, shape: FrameShape, slots: int, options: Options, part: Part) -> str:
    """Name of the file of a schedule, by which hosts find it.

    `1280x720-s1.json`: size of the restored picture, slots. Then each deciding option that is not at its default, in
    the manifest's order, as in `-color=none`; characters other than letters, digits, points, minus and underscore are
    written as underscores. Of a phase its name and the frames of its windows follow: `-sample-32f`.
    """
    height, width = shape.result
    chosen = {name: options.value(manifest, name) for name in deciding(manifest)}
    others = [f"-{name}={value}" for name, value in chosen.items() if value != manifest.options[name].default]
    phase = "" if part.phase is None else f"-{part.phase}-{part.frames}f"
    ending = re.sub(r"[^A-Za-z0-9._=-]", "_", "".join(others) + phase)
    return f"{width}x{height}-s{slots}{ending}.json"


def _source(manifest: Manifest, options: Options, name: str) -> Source | None:
    if name.startswith(ZEROS):
        return Source("zeros")
    base, row = (name, None) if name in manifest.inputs else numbered(name)
    given = manifest.inputs[base]
    if given.source == "frame":
        return None
    named = options.file(manifest, given) if given.source == "file" else given.name
    return Source(given.source, named, row, given.seed)


def _graphs(manifest: Manifest, network: Network, in_strips: bool) -> Graphs:
    form = IN_STRIPS if in_strips and IN_STRIPS in network.graphs else WHOLE
    native = network.graphs["native"]
    return Graphs(network.graphs.get(form, native), network.graph("fp16", manifest.precision) or native)


def _weights(schedule: Schedule) -> tuple[Weights, ...]:
    found: dict[tuple[str, int, int, int], Weights] = {}
    for step in schedule.steps:
        if step.action == "blend" and step.grid is not None:
            grid = step.grid
            sides = grid.height * step.factor, grid.width * step.factor, grid.overlap * step.factor
            down, across = (tuple(side.tolist()) for side in tiling.window_sides(grid.window, *sides))
            found.setdefault((grid.window, *sides), Weights(grid.window, *sides, down, across))
    return tuple(found.values())
