"""Steps of a schedule done on numpy arrays: what every device that is no GPU executes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from vsr_trt.runtime.schedule import tiling
from vsr_trt.runtime.schedule.graph import Grid, Port, Step

Buffers = dict[str, np.ndarray]


class Networks(Protocol):
    """What runs a bundle's networks on arrays."""

    name: str

    def load(self, network: str) -> None:
        """Loads a network, once."""

    def run(self, network: str, inputs: Buffers) -> Buffers:
        """Runs a loaded network; returns its outputs by name."""

    def close(self) -> None:
        """Releases everything."""


def perform(step: Step, buffers: Mapping[str, np.ndarray], networks: Networks) -> None:
    """Does one step; the results are in `buffers` afterwards.

    Args:
        step: any but receive and deliver, which are the caller's.
        buffers: of the frame's slot, and those that all slots share.
        networks: run the step's network.
    """
    if step.action == "network":
        _network(step, buffers, networks)
    elif step.action == "cut":
        _cut(step, buffers)
    elif step.action == "blend":
        _blend(step, buffers)
    elif step.action == "frames":
        _frames(step, buffers)
    else:
        np.copyto(buffers[step.writes["target"]], buffers[step.reads["source"]])


def _network(step: Step, buffers: Mapping[str, np.ndarray], networks: Networks) -> None:
    assert step.network is not None
    inputs = {operand: _part(step, buffers[buffer]) for operand, buffer in step.reads.items()}
    outputs = networks.run(step.network, inputs)
    for operand, buffer in step.writes.items():
        np.copyto(_part(step, buffers[buffer]), outputs[operand])


def _part(step: Step, array: np.ndarray) -> np.ndarray:
    """The pictures that the step takes; operands that are no pictures, the prompt, it takes whole."""
    if step.part is None or array.ndim < 4:
        return array
    return array[slice(*step.part)]


def _cut(step: Step, buffers: Mapping[str, np.ndarray]) -> None:
    assert step.grid is not None
    picture, tiles = buffers[step.reads["picture"]], buffers[step.writes["tiles"]]
    for index, tile in enumerate(_tiles(step.grid)):
        tiles[index] = tile.cut(picture[0], step.factor)


def _blend(step: Step, buffers: Mapping[str, np.ndarray]) -> None:
    grid, factor = step.grid, step.factor
    assert grid is not None
    tiles, picture = buffers[step.reads["tiles"]], buffers[step.writes["picture"]]
    weights = tiling.window(grid.window, grid.height * factor, grid.width * factor, grid.overlap * factor)
    blend = tiling.Blend(*picture.shape[-2:])
    for values, tile in zip(tiles, _tiles(grid), strict=True):
        blend.add(tile, values[None], weights, factor)
    np.copyto(picture, blend.result())


def _frames(step: Step, buffers: Mapping[str, np.ndarray]) -> None:
    span = step.span
    assert span is not None
    source, target = buffers[step.reads["source"]], buffers[step.writes["target"]]
    rows = source[(slice(None),) * span.axis + (slice(span.source, span.source + span.count),)]
    if target.ndim < source.ndim:
        target = target[None]  # a row alone
    target[(slice(None),) * span.axis + (slice(span.target, span.target + span.count),)] = rows


def put_row(ports: Mapping[str, Port], buffers: Mapping[str, np.ndarray], row: Any, index: int) -> None:
    """Puts a frame into staging buffers, as the index-th of its window.

    Args:
        ports: what comes in.
        buffers: by name.
        row: the frame; by name where several buffers come in.
        index: in the window.
    """
    for name, port in ports.items():
        place = (slice(None),) * port.axis + (index,)
        buffers[port.buffer][place] = row[name] if len(ports) > 1 else row


def row_of(
    ports: Mapping[str, Port],
    buffers: Mapping[str, np.ndarray],
    index: int,
    copy: Callable[[np.ndarray], np.ndarray] = np.copy,
) -> Any:
    """A copy of the index-th frame in staging buffers; by name where several buffers go out.

    Args:
        ports: what goes out.
        buffers: by name.
        index: in the window.
        copy: copies an array.
    """
    rows = {
        name: copy(buffers[port.buffer][(slice(None),) * port.axis + (index,)])
        for name, port in ports.items()
    }
    return rows if len(rows) > 1 else next(iter(rows.values()))


def _tiles(grid: Grid) -> list[tiling.Tile]:
    return [tiling.Tile(top, left, grid.height, grid.width) for top in grid.tops for left in grid.lefts]
