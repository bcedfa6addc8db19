"""From a bundle's manifest and the size of a clip to its schedule."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from vsr_trt.runtime.bundle.manifest import PREVIOUS, ROW, Loop, Manifest, Stage, Tensor
from vsr_trt.runtime.bundle.options import Options, tile_range
from vsr_trt.runtime.bundle.symbols import dimension
from vsr_trt.runtime.schedule.canvas import FrameShape
from vsr_trt.runtime.schedule.graph import Buffer, FrameSpan, Grid, Lane, Port, Schedule, Step
from vsr_trt.runtime.schedule.parts import Part, Span, only, spans
from vsr_trt.runtime.schedule.tiling import tiles_of

RECEIVE, UPLOAD, DOWNLOAD, DELIVER = "receive", "upload", "download", "deliver"  # lanes, and their only steps
RESULT = "staged result"
SCRATCH = "scratch"
ZEROS = "zeros of "  # begins the name of what a buffer that lives as long as the clip is at its beginning

Sizes = dict[str, int]
"""Values of the symbolic sizes of a network."""

_NUMBERED = re.compile(r"(.+)\[(\d+)\]")


def numbered(name: str) -> tuple[str, int | None]:
    """Takes the name of a step's row apart: `table[3]` -> table, 3; any other name has None."""
    match = _NUMBERED.fullmatch(name)
    return (name, None) if match is None else (match[1], int(match[2]))


def frame_sizes(
    manifest: Manifest, height: int, width: int, frames: int | None = None, options: Options | None = None
) -> Sizes:
    """The symbolic sizes of frames (height, width, 3) that the networks are given: their own, and latents.

    Args:
        manifest: of the bundle.
        height, width: of those frames.
        frames: of a window; None for the manifest's.
        options: which say how many steps a loop has; None for the defaults.
    """
    latents = FrameShape.of(manifest, height, width).latents
    sizes = {"n": 1, "f": manifest.window.size if frames is None else frames}
    for loop in manifest.loops.values():
        sizes["s"] = (options or Options()).steps(manifest, loop)
    return sizes | {"lr_h": height, "lr_w": width, "h": latents[0], "w": latents[1]}


def tile_grid(manifest: Manifest, tiling: str, sizes: Sizes, options: Options) -> Grid | None:
    """How the stages of a tiling are cut at a frame's sizes; None where they are not."""
    if not options.cuts(manifest, tiling):
        return None  # whole; strips, where they are needed, are inside of the networks
    record, overlap = manifest.tilings[tiling], options.overlap(manifest, tiling)
    tiles = tiles_of(
        *(sizes["h"], sizes["w"], options.tile(manifest, tiling), overlap),
        square=record.square,
        longest=tile_range(manifest, tiling)[1],
    )
    if len(tiles) == 1:
        return None
    tops, lefts = (tuple(sorted({getattr(t, side) for t in tiles})) for side in ("top", "left"))
    return Grid(tops, lefts, tiles[0].height, tiles[0].width, overlap, record.window)


def build(
    manifest: Manifest,
    height: int,
    width: int,
    options: Options,
    slots: int = 1,
    batches: Mapping[str, int] | None = None,
    part: Part | None = None,
) -> Schedule:
    """The schedule for frames (height, width, 3) that the networks are given: see `FrameShape.given`.

    Args:
        manifest: of the bundle.
        height, width: of those frames.
        options: what the user chose; checked already.
        slots: windows in flight.
        batches: network -> how many tiles it takes at once; one where it is not named.
        part: of the manifest, with its number of frames; None for a family without phases.

    Raises:
        ValueError: no part was named, and the family has several.
    """
    part = only(manifest) if part is None else part
    sizes = frame_sizes(manifest, height, width, part.frames, options)
    draft = _Draft(manifest, part, sizes, options, slots, batches or {})
    draft.transfer_in()
    for loop, stages in groupby(part.stages, key=lambda stage: stage.loop):
        body = list(stages)
        if loop is None:
            draft.run(body)
        else:
            draft.repeat(manifest.loops[loop], body)
    draft.transfer_out()
    return draft.finish()


@dataclass
class _Draft:
    manifest: Manifest
    part: Part
    sizes: Sizes
    options: Options
    slots: int
    batches: Mapping[str, int]
    buffers: dict[str, Buffer] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    _now: dict[str, str] = field(default_factory=dict)  # name in the manifest -> where it is at this point
    _index: int | None = None  # of the step, in a loop
    _chunk: int | None = None  # the chunk's number
    _length: str = ""  # ends names of what chunks of a length share
    _takes: dict[str, Port] = field(default_factory=dict)
    _gives: dict[str, Port] = field(default_factory=dict)

    def transfer_in(self) -> None:
        """The frame's way to the device, and the buffers that are there from the start."""
        rows = self.manifest.rows
        at_once = list[str]()  # what is uploaded here, and not in each step of a loop
        for tensor, buffer in self._operands("inputs"):
            name = buffer.removesuffix(ROW)
            steps = self._steps(self.manifest.loops[rows[buffer]]) if buffer in rows else 0
            each = [f"{name}[{index}]" for index in range(steps)]
            if buffer in self.part.takes:
                self._declare(buffer, tensor, self.sizes, "slot")
                for taken in each or [buffer]:
                    self._takes.setdefault(taken, self._port(f"staged {taken}", buffer, tensor))
                at_once += [] if each or buffer in at_once else [buffer]
            elif buffer in self.manifest.inputs:
                self._declare(buffer, tensor, self.sizes, "constant")
            elif buffer in rows and name in self.manifest.inputs:
                for row in each:
                    self._declare(row, tensor, self.sizes, "constant")
            elif buffer in rows:
                self._declare(buffer, tensor, self.sizes, "slot")
        order = {name: place for place, name in enumerate(self.part.takes)}
        self._takes = dict(sorted(self._takes.items(), key=lambda item: order.get(item[0], len(order))))
        staged = {name: port.buffer for name, port in self._takes.items()}
        self._add(Step(RECEIVE, "receive", RECEIVE, {}, staged, RECEIVE))
        for name in at_once:
            step = UPLOAD if len(staged) == 1 else f"{UPLOAD} {name}"
            self._upload(step, name, name)

    def _upload(self, step: str, taken: str, target: str) -> None:
        reads, writes = {"source": self._takes[taken].buffer}, {"target": target}
        self._add(Step(step, "upload", UPLOAD, reads, writes, UPLOAD))

    def _steps(self, loop: Loop) -> int:
        return self.options.steps(self.manifest, loop)

    def transfer_out(self) -> None:
        """The result's way back."""
        tensors = {buffer: tensor for tensor, buffer in self._operands("outputs")}
        for given in self.part.gives:
            source = self._now.get(given, given)
            name = RESULT if self.part.last else f"staged {given} out"
            self._gives[given] = self._port(name, source, tensors[given])
            step = DOWNLOAD if len(self.part.gives) == 1 else f"{DOWNLOAD} {given}"
            self._add(Step(step, "download", DOWNLOAD, {"source": source}, {"target": name}, DOWNLOAD))
        reads = {"result" if self.part.last else name: port.buffer for name, port in self._gives.items()}
        self._add(Step(DELIVER, "deliver", DELIVER, reads, {}, DELIVER))

    def _port(self, name: str, buffer: str, tensor: Tensor) -> Port:
        """A staging buffer for what a buffer holds."""
        self.buffers[name] = replace(self.buffers[buffer], name=name, kind="staging")
        return Port(name, _frame_axis(tensor) or 0)

    def repeat(self, loop: Loop, body: Sequence[Stage]) -> None:
        """The body of a loop, step after step. What it writes alternates between two buffers."""
        for index in range(self._steps(loop)):
            for read, written in loop.carries.items():
                if index:
                    self._now[read] = self._now[written]
            self._index = index
            for name in loop.rows:
                self._row(name, index, body)
            self.run(body, loop)
        self._index = None
        for read in loop.carries:  # behind the loop it is again what it was before
            self._now.pop(read, None)

    def _row(self, name: str, index: int, body: Sequence[Stage]) -> None:
        """What the body reads as `name[i]` in a step: a constant's row, new noise, or a row of what was made."""
        row = f"{name}{ROW}"
        if row in self.part.takes:
            self._upload(f"{UPLOAD} {name}[{index}]", f"{name}[{index}]", row)
        elif name in self.manifest.inputs:
            self._now[row] = f"{name}[{index}]"
        elif readers := [stage for stage in body if row in stage.reads.values()]:
            self._frames(
                readers[0], f"row of {name}", self._now.get(name, name), row, FrameSpan(0, index, 0, 1)
            )

    def run(self, stages: Sequence[Stage], loop: Loop | None = None) -> None:
        """Stages once, those with chunks chunk by chunk where the window is longer than those."""
        for chunks, group in groupby(stages, key=lambda stage: stage.chunks):
            found = list(group)
            cut = () if chunks is None else spans(self.manifest, chunks, self.sizes["f"], self.options)
            if len(cut) > 1:
                self.chunks(found, cut, loop)
            else:
                self.on_canvas(found)

    def chunks(self, stages: Sequence[Stage], cut: Sequence[Span], loop: Loop | None) -> None:
        """Stages chunk after chunk. Chunks of the same length share the memory that they work in.

        What they read from outside is cut where it has frames; what is read outside, or in the next step of the
        loop, is put together again.
        """
        outside, sizes = dict(self._now), self.sizes
        needed = self._needed(stages, loop)
        joined: dict[str, str] = {}  # buffer of the manifest -> where all of its frames are
        for number, span in enumerate(cut):
            self._chunk, self._length = number, f" x{span.frames}"
            self._now, self.sizes = dict(outside), sizes | {"f": span.frames}
            made, taken = set[str](), dict[str, str]()
            for stage in stages:
                for tensor in self.manifest.networks[stage.network].inputs:
                    if stage.reads[tensor.name] not in made:
                        self._take_frames(stage, tensor, span, taken)
                made |= set(stage.writes.values())
            self._now |= taken
            self.on_canvas(stages)
            for stage in stages:
                for tensor in self.manifest.networks[stage.network].outputs:
                    buffer = stage.writes.get(tensor.name)
                    if buffer in needed:
                        assert buffer is not None
                        joined[buffer] = self._give_frames(stage, tensor, buffer, span, sizes)
        self._chunk, self._length, self.sizes = None, "", sizes
        self._now = outside | joined

    def _needed(self, stages: Sequence[Stage], loop: Loop | None) -> set[str]:
        """What others read of what stages write."""
        read = {buffer for s in self.part.stages if s not in stages for buffer in s.reads.values()}
        carried = set(loop.carries.values()) if loop is not None else set()
        previous = {b for s in self.part.stages for b in s.reads.values() if b.endswith(PREVIOUS)}
        written = {buffer for stage in stages for buffer in stage.writes.values()}
        wanted = read | carried | {name.removesuffix(PREVIOUS) for name in previous} | set(self.part.gives)
        return written & wanted

    def _take_frames(self, stage: Stage, tensor: Tensor, span: Span, taken: dict[str, str]) -> None:
        """A chunk's frames of what it reads from outside."""
        buffer, axis = stage.reads[tensor.name], _frame_axis(tensor)
        if axis is None or buffer in taken:
            return
        source = self._now.get(buffer, buffer)
        taken[buffer] = f"{source}{self._length}"
        if list(taken.values()).count(taken[buffer]) > 1:
            return  # under another name, too
        self._declare(taken[buffer], tensor, self.sizes, "slot")
        self._frames(
            stage, f"take {source}", source, taken[buffer], FrameSpan(axis, span.start, 0, span.frames)
        )

    def _give_frames(self, stage: Stage, tensor: Tensor, buffer: str, span: Span, whole: Sizes) -> str:
        """A chunk's own results, in their place among all."""
        axis, source = _frame_axis(tensor), self._now.get(buffer, buffer)
        assert axis is not None
        target = source.removesuffix(self._length)
        self._declare(target, tensor, whole, "slot")
        own = FrameSpan(axis, span.first - span.start, span.first, span.last - span.first)
        self._frames(stage, f"give {target}", source, target, own)
        return target

    def _frames(self, stage: Stage, name: str, source: str, target: str, span: FrameSpan) -> None:
        reads, writes = {"source": source}, {"target": target}
        self._add(Step(self._numbered(name), "frames", stage.lane, reads, writes, stage.name, span=span))

    def on_canvas(self, stages: Sequence[Stage]) -> None:
        """Stages once, cut into tiles where their frame is larger than those."""
        for tiled, group in groupby(stages, key=lambda stage: stage.tiling):
            grid = tile_grid(self.manifest, tiled, self.sizes, self.options) if tiled else None
            if tiled is None or grid is None:
                for stage in group:
                    self.whole(stage)
            elif self.manifest.tilings[tiled].together:
                self.tiles(list(group), grid)
            else:
                for stage in group:
                    self.tiles([stage], grid)

    def whole(self, stage: Stage) -> None:
        """A stage on the whole frame."""
        reads = self._reads(stage)
        writes = self._writes(stage)
        for tensor in self.manifest.networks[stage.network].outputs:
            if tensor.name in writes:
                self._declare(writes[tensor.name], tensor, self.sizes, "slot")
        self._network(stage, self._numbered(stage.name), reads, writes, None)

    def tiles(self, stages: list[Stage], grid: Grid) -> None:
        """Stages on tiles: what they read from outside is cut, what the last one writes is blended."""
        sizes = self.sizes | {"n": grid.tiles, "h": grid.height, "w": grid.width}
        local: dict[str, str] = {}  # buffer -> its tiles
        for stage in stages:
            network = self.manifest.networks[stage.network]
            whole = {"reads": self._reads(stage), "writes": self._writes(stage)}
            for tensor in network.inputs:
                buffer = whole["reads"][tensor.name]
                if _covers(tensor) and buffer not in local:
                    local[buffer] = f"{stage.name}.{tensor.name}{self._length}"
                    self._declare(local[buffer], tensor, sizes, "slot")
                    self._cut(stage, buffer, local[buffer], grid, dimension(tensor.shape[-1])[0])
            for tensor in network.outputs:
                if tensor.name in whole["writes"]:
                    buffer = whole["writes"][tensor.name]
                    local[buffer] = f"{stage.name}.{tensor.name}{self._length}"
                    self._declare(local[buffer], tensor, sizes, "slot")
            reads, writes = (
                {operand: local.get(buffer, buffer) for operand, buffer in side.items()}
                for side in whole.values()
            )
            for first, last in _parts(
                grid.tiles, self.batches.get(self.options.network(self.manifest, stage), 1)
            ):
                self._network(stage, self._numbered(f"{stage.name}[{first}]"), reads, writes, (first, last))
        last_stage, last_writes = stages[-1], self._written(stages[-1])
        for tensor in self.manifest.networks[last_stage.network].outputs:
            if tensor.name in last_writes:
                buffer = last_writes[tensor.name]
                self._declare(buffer, tensor, self.sizes, "slot")
                self._blend(last_stage, local[buffer], buffer, grid, dimension(tensor.shape[-1])[0])

    # -- names: a loop's body runs several times, and what it writes has two places ---------------------------

    def _reads(self, stage: Stage) -> dict[str, str]:
        return {operand: self._now.get(buffer, buffer) for operand, buffer in stage.reads.items()}

    def _writes(self, stage: Stage) -> dict[str, str]:
        """Where a stage's results go now, which is where they are read from here on."""
        if self._index is not None:
            self._now |= {name: f"{name}@{self._index % 2}{self._length}" for name in stage.writes.values()}
        elif self._length:
            self._now |= {name: f"{name}{self._length}" for name in stage.writes.values()}
        return self._written(stage)

    def _written(self, stage: Stage) -> dict[str, str]:
        return {operand: self._now.get(buffer, buffer) for operand, buffer in stage.writes.items()}

    def _numbered(self, name: str) -> str:
        """Tells a step of a loop, and a chunk, from the others."""
        number = "" if self._chunk is None else f"#{self._chunk}"
        return f"{name}{number}" if self._index is None else f"{name}{number}@{self._index}"

    def finish(self) -> Schedule:
        """The schedule, with what passes from frame to frame and the memory that networks work in."""
        self._carry()
        lanes = dict.fromkeys(step.lane for step in self.steps)
        host = (RECEIVE, DELIVER)
        steps = tuple(self._with_workspace(step) for step in self.steps)
        for step in steps:
            if step.workspace is not None:
                self.buffers[step.workspace] = Buffer(step.workspace, (0,), "uint8", "scratch")
        return Schedule(
            {name: Lane(name, name in host) for name in lanes},
            self.buffers,
            steps,
            self.slots,
            self._takes,
            self._gives,
            self.part.last,
        )

    def _operands(self, side: str) -> Iterable[tuple[Tensor, str]]:
        for stage in self.part.stages:
            names = stage.reads if side == "inputs" else stage.writes
            for tensor in getattr(self.manifest.networks[stage.network], side):
                if tensor.name in names:
                    yield tensor, names[tensor.name]

    def _declare(self, name: str, tensor: Tensor, sizes: Sizes, kind: str) -> None:
        parts = (dimension(size) for size in tensor.shape)
        shape = tuple(factor * (sizes[symbol] if symbol else 1) for factor, symbol in parts)
        self.buffers[name] = Buffer(name, shape, tensor.dtype, kind)  # type: ignore[arg-type]

    def _add(self, step: Step) -> None:
        self.steps.append(step)

    def _network(
        self,
        stage: Stage,
        name: str,
        reads: Mapping[str, str],
        writes: Mapping[str, str],
        part: tuple[int, int] | None,
    ) -> None:
        self._add(
            Step(
                name,
                "network",
                stage.lane,
                dict(reads),
                dict(writes),
                stage.name,
                network=self.options.network(self.manifest, stage),
                part=part,
            )
        )

    def _cut(self, stage: Stage, source: str, target: str, grid: Grid, factor: int) -> None:
        reads, writes = {"picture": source}, {"tiles": target}
        name = self._numbered(f"cut {target}")
        self._add(Step(name, "cut", stage.lane, reads, writes, stage.name, grid=grid, factor=factor))

    def _blend(self, stage: Stage, source: str, target: str, grid: Grid, factor: int) -> None:
        reads, writes = {"tiles": source}, {"picture": target}
        plain = self._index is None and self._chunk is None
        name = self._numbered(f"blend {target}" if plain else f"blend {source}")
        self._add(Step(name, "blend", stage.lane, reads, writes, stage.name, grid=grid, factor=factor))

    def _carry(self) -> None:
        """What is read of the window before lies in a buffer of its own: copied there after its last reader.

        A window without predecessor is its own: the copy is then made before the first reader, too. What lives as
        long as the clip is zeros then.
        """
        names = {buffer for step in self.steps for buffer in step.reads.values() if buffer.endswith(PREVIOUS)}
        for name in sorted(names):
            source = self._now.get(name.removesuffix(PREVIOUS), name.removesuffix(PREVIOUS))
            initial = source
            self.buffers[name] = replace(self.buffers[source], name=name, kind="state")
            users = [i for i, step in enumerate(self.steps) if name in step.reads.values()]
            first = self.steps[users[0]]
            if name.removesuffix(PREVIOUS) in self.manifest.clip:
                initial = f"{ZEROS}{source}"
                self.buffers[initial] = replace(self.buffers[source], name=initial, kind="constant")
                users += [i for i, step in enumerate(self.steps) if source in step.writes.values()]
            last = self.steps[max(users)]
            writes = {"target": name}
            keep = Step(f"keep {source}", "copy", last.lane, {"source": source}, writes, f"keep {source}")
            reads = {"source": initial}
            begin = replace(keep, name=f"begin {source}", lane=first.lane, reads=reads, first=True)
            self.steps.insert(max(users) + 1, keep)
            self.steps.insert(users[0], begin)

    def _with_workspace(self, step: Step) -> Step:
        """Networks of one lane never overlap, and with one slot no two do: they may share their scratch."""
        if step.action != "network":
            return step
        return replace(step, workspace=SCRATCH if self.slots == 1 else f"{SCRATCH} of {step.lane}")


def _covers(tensor: Tensor) -> bool:
    """Whether a tensor covers the picture, as far as it is cut."""
    return dimension(tensor.shape[-1])[1] == "w"


def _parts(count: int, batch: int) -> list[tuple[int, int]]:
    """0 to `count` in parts of `batch`; the last one is moved back, so that all have the same size."""
    batch = min(batch, count)
    starts = [*range(0, count - batch, batch), count - batch]
    return [(start, start + batch) for start in starts]


def _frame_axis(tensor: Tensor) -> int | None:
    """The axis along which a tensor's frames are counted; None where it has none."""
    found = [axis for axis, size in enumerate(tensor.shape) if dimension(size)[1] == "f"]
    return found[0] if found else None
