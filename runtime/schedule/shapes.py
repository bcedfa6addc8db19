"""What each stage of a frame runs on: how many tiles, and their symbolic sizes."""

from __future__ import annotations

from dataclasses import dataclass

from vsr_trt.runtime.bundle.manifest import Manifest
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.schedule.build import frame_sizes, tile_grid
from vsr_trt.runtime.schedule.canvas import FrameShape


@dataclass(frozen=True)
class StageShape:
    """The runs of a stage for one frame.

    Attributes:
        stage: its name.
        network: that it runs with the user's choices.
        runs: how often the network runs: once for the whole frame, or once for each tile.
        sizes: the network's symbolic sizes in each of them; n is 1.
        steps: of the loop that the stage is part of, each of which has these runs.
    """

    stage: str
    network: str
    runs: int
    sizes: dict[str, int]
    steps: int = 1


def whole_sizes(manifest: Manifest, width: int, height: int) -> dict[str, int]:
    """The symbolic sizes of a whole restored picture (width, height)."""
    return frame_sizes(manifest, *FrameShape.of_result(manifest, width, height).given)


def frame_shapes(manifest: Manifest, width: int, height: int, options: Options) -> tuple[StageShape, ...]:
    """What each stage runs on for a restored picture (width, height), in order.

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
    whole = whole_sizes(manifest, width, height)
    shapes = []
    for stage in manifest.stages:
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
        steps = manifest.loops[stage.loop].steps if stage.loop else 1
        shapes.append(StageShape(stage.name, name, grid.tiles if grid else 1, sizes, steps))
    return tuple(shapes)
