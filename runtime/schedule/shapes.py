"""What each stage of a frame runs on: how many tiles, and their symbolic sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vsr_trt.runtime.bundle.manifest import Manifest
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.schedule.build import frame_sizes, tile_grid
from vsr_trt.runtime.schedule.canvas import FrameShape
from vsr_trt.runtime.schedule.parts import Part, parts, spans


@dataclass(frozen=True)
class StageShape:
    """The runs of a stage for one window, or for all windows of a clip that have the same sizes.

    Attributes:
        stage: its name.
        network: that it runs with the user's choices.
        runs: how often the network runs: once for the whole frame, or once for each tile.
        sizes: the network's symbolic sizes in each of them; n is 1.
        steps: how often these runs are made: in each step of a loop, for each chunk of that length, in each window.
    """

    stage: str
    network: str
    runs: int
    sizes: dict[str, int]
    steps: int = 1


def whole_sizes(
    manifest: Manifest, width: int, height: int, frames: int | None = None, options: Options | None = None
) -> dict[str, int]:
    """The symbolic sizes of a whole restored picture (width, height), in windows of so many frames."""
    return frame_sizes(manifest, *FrameShape.of_result(manifest, width, height).given, frames, options)


def frame_shapes(
    manifest: Manifest, width: int, height: int, options: Options, part: Part | None = None
) -> tuple[StageShape, ...]:
    """What each stage runs on for a restored picture (width, height), in order.

    A stage that takes its window in chunks of two lengths has two shapes.

    Args:
        manifest: of the bundle.
        width, height: of the picture.
        options: the user's.
        part: whose stages are meant; None for all, in windows of the manifest's.

    Raises:
        InputError: sizes or options that the bundle cannot serve.
    """
    options.check(manifest)
    scale = manifest.scale
    if width < 1 or height < 1 or width % scale or height % scale:
        raise InputError(
            f"{width}x{height}: the restored picture is {scale} times the clip, so both sides are multiples of "
            f"{scale}, e.g. 1280x720."
        )
    shapes = []
    for found in parts(manifest) if part is None else (part,):
        for stage in found.stages:
            steps = options.steps(manifest, manifest.loops[stage.loop]) if stage.loop else 1
            lengths = [found.frames]
            if stage.chunks is not None:
                lengths = [span.frames for span in spans(manifest, stage.chunks, found.frames, options)]
            for frames in dict.fromkeys(lengths):
                whole = whole_sizes(manifest, width, height, frames, options)
                grid = tile_grid(manifest, stage.tiling, whole, options) if stage.tiling else None
                name = options.network(manifest, stage)
                bounds = manifest.networks[name].bounds
                sizes = whole | ({"h": grid.height, "w": grid.width} if grid else {})
                sizes = {symbol: size for symbol, size in sizes.items() if symbol in bounds}
                for symbol, size in sizes.items():
                    if size > bounds[symbol].max:
                        raise InputError(
                            f"{width}x{height}: {symbol} of {name} would be {size}; this bundle's networks end at "
                            f"{bounds[symbol].max}."
                        )
                tiles = grid.tiles if grid else 1
                shapes.append(StageShape(stage.name, name, tiles, sizes, steps * lengths.count(frames)))
    return tuple(shapes)


def clip_shapes(
    manifest: Manifest, width: int, height: int, options: Options, frames: int
) -> tuple[StageShape, ...]:
    """What each stage runs on for a whole clip that goes through phases, in order.

    A family without phases has them for one window, as `frame_shapes`: its clips are windows of one kind.

    Args:
        manifest, width, height, options: as for `frame_shapes`.
        frames: of the clip.

    Raises:
        InputError: sizes or options that the bundle cannot serve.
    """
    if not manifest.phases:
        return frame_shapes(manifest, width, height, options)
    shapes = []
    for part in parts(manifest, frames):
        for length, windows in _windows(part, frames).items():
            shapes += [
                replace(shape, steps=shape.steps * windows)
                for shape in frame_shapes(manifest, width, height, options, part.of(length))
            ]
    return tuple(shapes)


def _windows(part: Part, frames: int) -> dict[int, int]:
    """Frames of a window -> how many such windows a clip goes through."""
    size, overlap = part.frames, part.window.overlap
    if part.window.last == "full":
        return {size: max(1, -(-(frames - overlap) // (size - overlap)))}
    lengths = {size: frames // size, frames % size: 1}
    return {length: windows for length, windows in lengths.items() if length and windows}
