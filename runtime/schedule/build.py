"""From a bundle's manifest and the size of a clip to its schedule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from vsr_trt.runtime.bundle.manifest import PREVIOUS, Loop, Manifest, Stage, Tensor
from vsr_trt.runtime.bundle.options import Options, tile_range
from vsr_trt.runtime.bundle.symbols import dimension
from vsr_trt.runtime.schedule.canvas import FrameShape
from vsr_trt.runtime.schedule.graph import Buffer, Grid, Lane, Schedule, Step
from vsr_trt.runtime.schedule.tiling import tiles_of

RECEIVE, UPLOAD, DOWNLOAD, DELIVER = "receive", "upload", "download", "deliver"  # lanes, and their only steps
FRAME, RESULT = "staged frame", "staged result"
SCRATCH = "scratch"
ZEROS = "zeros of "  # begins the name of what a buffer that lives as long as the clip is at its beginning

Sizes = dict[str, int]
"""Values of the symbolic sizes of a network."""


def frame_sizes(manifest: Manifest, height: int, width: int) -> Sizes:
    """The symbolic sizes of frames (height, width, 3) that the networks are given: their own, and latents."""
    latents = FrameShape.of(manifest, height, width).latents
    sizes = {"n": 1, "f": manifest.window.frames}
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
) -> Schedule:
    """The schedule for frames (height, width, 3) that the networks are given: see `FrameShape.given`.

    Args:
        manifest: of the bundle.
        height, width: of those frames.
        options: what the user chose; checked already.
        slots: windows in flight.
        batches: network -> how many tiles it takes at once; one where it is not named.
    """
    draft = _Draft(manifest, frame_sizes(manifest, height, width), options, slots, batches or {})
    draft.transfer_in()
    for loop, stages in groupby(manifest.stages, key=lambda stage: stage.loop):
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
    sizes: Sizes
    options: Options
    slots: int
    batches: Mapping[str, int]
    buffers: dict[str, Buffer] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    _now: dict[str, str] = field(default_factory=dict)  # name in the manifest -> where it is at this point
    _index: int | None = None  # of the step, in a loop

    def transfer_in(self) -> None:
        """The frame's way to the device, and the buffers that are there from the start."""
        rows = {f"{name}[i]": loop for loop in self.manifest.loops.values() for name in loop.rows}
        for tensor, buffer in self._operands("inputs"):
            if buffer in self.manifest.inputs:
                given = self.manifest.inputs[buffer].source
                self._declare(buffer, tensor, self.sizes, "slot" if given == "frame" else "constant")
            elif buffer in rows:
                for index in range(rows[buffer].steps):
                    name = f"{buffer.removesuffix('[i]')}[{index}]"
                    self._declare(name, tensor, self.sizes, "constant")
        frame = next(name for name, given in self.manifest.inputs.items() if given.source == "frame")
        self.buffers[FRAME] = replace(self.buffers[frame], name=FRAME, kind="staging")
        self._add(Step(RECEIVE, "receive", RECEIVE, {}, {"frame": FRAME}, RECEIVE))
        self._add(Step(UPLOAD, "upload", UPLOAD, {"source": FRAME}, {"target": frame}, UPLOAD))

    def transfer_out(self) -> None:
        """The result's way back."""
        result = self._now.get(self.manifest.output, self.manifest.output)
        self.buffers[RESULT] = replace(self.buffers[result], name=RESULT, kind="staging")
        self._add(Step(DOWNLOAD, "download", DOWNLOAD, {"source": result}, {"target": RESULT}, DOWNLOAD))
        self._add(Step(DELIVER, "deliver", DELIVER, {"result": RESULT}, {}, DELIVER))

    def repeat(self, loop: Loop, body: Sequence[Stage]) -> None:
        """The body of a loop, step after step. What it writes alternates between two buffers."""
        for index in range(loop.steps):
            for read, written in loop.carries.items():
                if index:
                    self._now[read] = self._now[written]
            self._index = index
            self._now |= {f"{name}[i]": f"{name}[{index}]" for name in loop.rows}
            self.run(body)
        self._index = None
        for read in loop.carries:  # behind the loop it is again what it was before
            self._now.pop(read, None)

    def run(self, stages: Sequence[Stage]) -> None:
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
                    local[buffer] = f"{stage.name}.{tensor.name}"
                    self._declare(local[buffer], tensor, sizes, "slot")
                    self._cut(stage, buffer, local[buffer], grid, dimension(tensor.shape[-1])[0])
            for tensor in network.outputs:
                if tensor.name in whole["writes"]:
                    buffer = whole["writes"][tensor.name]
                    local[buffer] = f"{stage.name}.{tensor.name}"
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
            self._now |= {name: f"{name}@{self._index % 2}" for name in stage.writes.values()}
        return self._written(stage)

    def _written(self, stage: Stage) -> dict[str, str]:
        return {operand: self._now.get(buffer, buffer) for operand, buffer in stage.writes.items()}

    def _numbered(self, name: str) -> str:
        return name if self._index is None else f"{name}@{self._index}"

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
            {name: Lane(name, name in host) for name in lanes}, self.buffers, steps, self.slots, FRAME, RESULT
        )

    def _operands(self, side: str) -> Iterable[tuple[Tensor, str]]:
        for stage in self.manifest.stages:
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
        name = self._numbered(f"blend {target}" if self._index is None else f"blend {source}")
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
