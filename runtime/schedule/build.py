"""From a bundle's manifest and the size of a clip to its schedule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby

from vsr_trt.runtime import families
from vsr_trt.runtime.bundle.manifest import PREVIOUS, Manifest, Stage, Tensor, dimension
from vsr_trt.runtime.bundle.options import Options, tile_range
from vsr_trt.runtime.schedule import tiling
from vsr_trt.runtime.schedule.graph import Buffer, Grid, Lane, Schedule, Step

RECEIVE, UPLOAD, DOWNLOAD, DELIVER = "receive", "upload", "download", "deliver"  # lanes, and their only steps
FRAME, RESULT = "staged frame", "staged result"
SCRATCH = "scratch"

Sizes = dict[str, int]
"""Values of the symbolic sizes of a network."""


def frame_sizes(manifest: Manifest, height: int, width: int) -> Sizes:
    """The symbolic sizes of a whole frame (height, width) of the clip: its own, and latents, padding included."""
    unit = manifest.frame_multiple

    def latents(side: int) -> int:
        return -(-side * manifest.scale // unit) * unit // manifest.latent_scale

    return {"n": 1, "lr_h": height, "lr_w": width, "h": latents(height), "w": latents(width)}


def tile_grid(manifest: Manifest, kind: str, sizes: Sizes, options: Options) -> Grid | None:
    """How the stages of a tiling are cut at a frame's sizes; None where they are not."""
    vae = kind == "vae"
    if vae and options.vae_statistics == "shared":
        return None  # whole; strips, where they are needed, are inside of the networks
    tile, overlap = (options.vae_tile, options.vae_overlap) if vae else (options.tile, options.overlap)
    tiles = tiling.plan(
        sizes["h"], sizes["w"], tile, overlap, square=not vae, longest=tile_range(manifest, kind)[1]
    )
    if len(tiles) == 1:
        return None
    tops, lefts = (tuple(sorted({getattr(t, side) for t in tiles})) for side in ("top", "left"))
    return Grid(tops, lefts, tiles[0].height, tiles[0].width, overlap, "ramp" if vae else "gaussian")


def build(
    manifest: Manifest,
    height: int,
    width: int,
    options: Options,
    slots: int = 1,
    batches: Mapping[str, int] | None = None,
) -> Schedule:
    """The schedule for frames (height, width, 3) of a clip.

    Args:
        manifest: of the bundle.
        height, width: of the clip's frames, at least the manifest's `minimum_side`.
        options: what the user chose; checked already.
        slots: frames in flight.
        batches: network -> how many tiles it takes at once; one where it is not named.
    """
    draft = _Draft(manifest, frame_sizes(manifest, height, width), options, slots, batches or {})
    draft.transfer_in()
    for tiled, stages in groupby(manifest.stages, key=lambda stage: stage.tiling):
        grid = tile_grid(manifest, tiled, draft.sizes, options) if tiled else None
        if grid is None:
            for stage in stages:
                draft.whole(stage)
        elif tiled == "latent":
            draft.tiles(list(stages), grid)
        else:
            for stage in stages:  # the VAE's halves are cut each on their own
                draft.tiles([stage], grid)
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

    def transfer_in(self) -> None:
        """The frame's way to the device, and the buffers that are there from the start."""
        for name, file in self.manifest.inputs.items():
            for tensor, buffer in self._operands("inputs"):
                if buffer == name:
                    self._declare(name, tensor, self.sizes, "constant" if file else "slot")
        frame = next(name for name, file in self.manifest.inputs.items() if file is None)
        self.buffers[FRAME] = replace(self.buffers[frame], name=FRAME, kind="staging")
        self._add(Step(RECEIVE, "receive", RECEIVE, {}, {"frame": FRAME}, RECEIVE))
        self._add(Step(UPLOAD, "upload", UPLOAD, {"source": FRAME}, {"target": frame}, UPLOAD))

    def transfer_out(self) -> None:
        """The result's way back."""
        result = self.manifest.output
        self.buffers[RESULT] = replace(self.buffers[result], name=RESULT, kind="staging")
        self._add(Step(DOWNLOAD, "download", DOWNLOAD, {"source": result}, {"target": RESULT}, DOWNLOAD))
        self._add(Step(DELIVER, "deliver", DELIVER, {"result": RESULT}, {}, DELIVER))

    def whole(self, stage: Stage) -> None:
        """A stage on the whole frame."""
        for tensor in self.manifest.networks[stage.network].outputs:
            if tensor.name in stage.writes:
                self._declare(stage.writes[tensor.name], tensor, self.sizes, "slot")
        self._network(stage, stage.name, stage.reads, stage.writes, None)

    def tiles(self, stages: list[Stage], grid: Grid) -> None:
        """Stages on tiles: what they read from outside is cut, what the last one writes is blended."""
        sizes = self.sizes | {"n": grid.tiles, "h": grid.height, "w": grid.width}
        local: dict[str, str] = {}  # buffer -> its tiles
        for stage in stages:
            network = self.manifest.networks[stage.network]
            for tensor in network.inputs:
                buffer = stage.reads[tensor.name]
                if _covers(tensor) and buffer not in local:
                    local[buffer] = f"{stage.name}.{tensor.name}"
                    self._declare(local[buffer], tensor, sizes, "slot")
                    self._cut(stage, buffer, local[buffer], grid, dimension(tensor.shape[-1])[0])
            for tensor in network.outputs:
                if tensor.name in stage.writes:
                    buffer = stage.writes[tensor.name]
                    local[buffer] = f"{stage.name}.{tensor.name}"
                    self._declare(local[buffer], tensor, sizes, "slot")
            reads, writes = (
                {operand: local.get(buffer, buffer) for operand, buffer in side.items()}
                for side in (stage.reads, stage.writes)
            )
            for first, last in _parts(
                grid.tiles, self.batches.get(self.options.network(self.manifest, stage), 1)
            ):
                self._network(stage, f"{stage.name}[{first}]", reads, writes, (first, last))
        last_stage = stages[-1]
        for tensor in self.manifest.networks[last_stage.network].outputs:
            if tensor.name in last_stage.writes:
                buffer = last_stage.writes[tensor.name]
                self._declare(buffer, tensor, self.sizes, "slot")
                self._blend(last_stage, local[buffer], buffer, grid, dimension(tensor.shape[-1])[0])

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
                families.lane(self.manifest.family, stage.name),
                dict(reads),
                dict(writes),
                stage.name,
                network=self.options.network(self.manifest, stage),
                part=part,
            )
        )

    def _cut(self, stage: Stage, source: str, target: str, grid: Grid, factor: int) -> None:
        lane = families.lane(self.manifest.family, stage.name)
        reads, writes = {"picture": source}, {"tiles": target}
        self._add(Step(f"cut {target}", "cut", lane, reads, writes, stage.name, grid=grid, factor=factor))

    def _blend(self, stage: Stage, source: str, target: str, grid: Grid, factor: int) -> None:
        lane = families.lane(self.manifest.family, stage.name)
        reads, writes = {"tiles": source}, {"picture": target}
        self._add(Step(f"blend {target}", "blend", lane, reads, writes, stage.name, grid=grid, factor=factor))

    def _carry(self) -> None:
        """What is read of the frame before lies in a buffer of its own: copied there after its last reader.

        A frame without predecessor is its own: the copy is then made before the first reader, too.
        """
        names = {buffer for step in self.steps for buffer in step.reads.values() if buffer.endswith(PREVIOUS)}
        for name in sorted(names):
            source = name.removesuffix(PREVIOUS)
            self.buffers[name] = replace(self.buffers[source], name=name, kind="state")
            readers = [i for i, step in enumerate(self.steps) if name in step.reads.values()]
            first, last = self.steps[readers[0]], self.steps[readers[-1]]
            reads, writes = {"source": source}, {"target": name}
            keep = Step(f"keep {source}", "copy", last.lane, reads, writes, f"keep {source}")
            begin = replace(keep, name=f"begin {source}", lane=first.lane, first=True)
            self.steps.insert(readers[-1] + 1, keep)
            self.steps.insert(readers[0], begin)

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
