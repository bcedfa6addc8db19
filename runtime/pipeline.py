"""One frame's way through the stages that a bundle's manifest lists.

Nothing here knows the model family: the stages, the buffers that they read and write, what crosses
from one frame to the next and what may be cut into tiles all come from the manifest.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np

from runtime import tiling
from runtime.errors import InputError
from runtime.manifest import PREVIOUS, Manifest, Stage, Tensor, dimension

Buffers = dict[str, np.ndarray]
Clock = dict[str, float]


class Device(Protocol):
    """What runs a bundle's networks."""

    name: str

    def load(self, network: str) -> None:
        """Loads a network, once."""

    def run(self, network: str, inputs: Buffers) -> Buffers:
        """Runs a loaded network; returns its outputs by name."""

    def close(self) -> None:
        """Releases everything."""


@dataclass(frozen=True)
class Options:
    """What a user may choose.

    Attributes:
        choices: option -> value, for the stages that have variants (e.g. color: adain).
        tile: side of a latent tile for the stages between the VAE's halves, a multiple of 8.
        overlap: of neighbouring latent tiles.
        vae_tile: side of a tile for the VAE, in latents (8 pixels of the result), a multiple of 8.
        vae_overlap: of neighbouring VAE tiles, in latents.
    """

    choices: dict[str, str]
    tile: int = 96
    overlap: int = 32
    vae_tile: int = 96
    vae_overlap: int = 16

    def check(self, manifest: Manifest) -> None:
        """Refuses values that the bundle cannot serve.

        Raises:
            InputError: naming the option, what it may be, and what was given.
        """
        for name, value in self.choices.items():
            stages = [stage for stage in manifest.stages if stage.option == name]
            if not stages:
                raise InputError(f"this bundle has no option --{name}.")
            if value not in stages[0].variants:
                raise InputError(f"--{name} is {value!r}; expected one of {', '.join(stages[0].variants)}.")
        unit = manifest.frame_multiple // manifest.latent_scale
        for kind, option, size in (("latent", "--tile", self.tile), ("vae", "--vae-tile", self.vae_tile)):
            low, high = tile_range(manifest, kind)
            if size % unit or not low <= size <= high:
                raise InputError(f"{option} is {size}; expected a multiple of {unit} from {low} to {high}.")
        if not 0 <= self.overlap <= self.tile // 2:
            raise InputError(f"--overlap is {self.overlap}; expected 0 to half the tile, {self.tile // 2}.")
        if not 0 <= self.vae_overlap <= self.vae_tile // 2:
            raise InputError(f"the VAE's overlap is {self.vae_overlap}; expected 0 to {self.vae_tile // 2}.")


def tile_range(manifest: Manifest, kind: str) -> tuple[int, int]:
    """The sizes that all networks of that tiling accept."""
    bounds = [
        manifest.networks[stage.network].bounds[side]
        for stage in manifest.stages
        if stage.tiling == kind
        for side in ("h", "w")
    ]
    return max(bound.min for bound in bounds), min(bound.max for bound in bounds)


class Pipeline:
    """Takes frames through the stages, one after another.

    Args:
        manifest: of the bundle.
        device: runs the networks.
        options: checked here.
        constants: buffers that never change, e.g. the prompt's embedding.
    """

    def __init__(self, manifest: Manifest, device: Device, options: Options, constants: Buffers) -> None:
        options.check(manifest)
        self._manifest, self._device, self._options, self._constants = manifest, device, options, constants
        self._networks = {stage.name: self._network(stage) for stage in manifest.stages}
        self._carried = {
            buffer.removesuffix(PREVIOUS)
            for stage in manifest.stages
            for buffer in stage.reads.values()
            if buffer.endswith(PREVIOUS)
        }
        self._previous: Buffers = {}
        for network in self._networks.values():
            device.load(network)

    def reset(self) -> None:
        """Forgets the previous frame: the next one is its own predecessor."""
        self._previous = {}

    def run(self, frame: np.ndarray) -> tuple[np.ndarray, Clock]:
        """Takes one frame (H,W,3) u8 through all stages.

        Returns:
            The result (4H,4W,3) u8, and the seconds spent in each stage.
        """
        buffers: Buffers = {"frame": frame[None], **self._constants}
        clock: Clock = defaultdict(float)
        for tiled, stages in groupby(self._manifest.stages, key=lambda stage: stage.tiling):
            if tiled is None:
                for stage in stages:
                    buffers |= self._run(stage, buffers, clock)
            elif tiled == "latent":
                self._run_tiles(list(stages), buffers, clock)
            else:
                for stage in stages:  # the VAE's halves are cut each on their own
                    self._run_tiles([stage], buffers, clock)
        self._previous = {name: buffers[name] for name in self._carried}
        return buffers[self._manifest.output][0], dict(clock)

    def _network(self, stage: Stage) -> str:
        if stage.option is None:
            return stage.network
        default = self._manifest.option_defaults[stage.option]
        return stage.variants[self._options.choices.get(stage.option, default)]

    def _run(self, stage: Stage, buffers: Buffers, clock: Clock) -> Buffers:
        started = time.perf_counter()
        inputs = {name: self._read(buffer, buffers) for name, buffer in stage.reads.items()}
        outputs = self._device.run(self._networks[stage.name], inputs)
        clock[stage.name] += time.perf_counter() - started
        return {buffer: outputs[name] for name, buffer in stage.writes.items()}

    def _read(self, buffer: str, buffers: Buffers) -> np.ndarray:
        if not buffer.endswith(PREVIOUS) or buffer in buffers:
            return buffers[buffer]
        name = buffer.removesuffix(PREVIOUS)
        return self._previous.get(name, buffers[name])

    def _run_tiles(self, stages: list[Stage], buffers: Buffers, clock: Clock) -> None:
        """Takes each tile through all `stages` and blends what the last one writes."""
        factors = {buffer: factor for stage in stages for buffer, factor in self._spatial(stage, "inputs")}
        outside = [buffer for buffer in factors if not self._written_by(stages, buffer)]
        height, width = self._latent_size(outside[0], factors, buffers)
        vae = stages[0].tiling == "vae"
        options = self._options
        tile, overlap = (options.vae_tile, options.vae_overlap) if vae else (options.tile, options.overlap)
        longest = tile_range(self._manifest, "vae" if vae else "latent")[1]
        tiles = tiling.plan(height, width, tile, overlap, square=not vae, longest=longest)
        if len(tiles) == 1:
            for stage in stages:
                buffers |= self._run(stage, buffers, clock)
            return
        kind: tiling.Window = "ramp" if vae else "gaussian"
        results = list(self._spatial(stages[-1], "outputs"))
        blends = {name: tiling.Blend(height * factor, width * factor) for name, factor in results}
        size = tiles[0].height, tiles[0].width  # of every tile
        windows = {
            name: tiling.window(kind, size[0] * factor, size[1] * factor, overlap * factor)
            for name, factor in results
        }
        for piece in tiles:
            local = dict(buffers)
            for name in outside:
                cut = piece.cut(self._read(name, buffers), factors[name])
                local[name] = np.ascontiguousarray(cut)
            for stage in stages:
                local |= self._run(stage, local, clock)
            for name, factor in results:
                blends[name].add(piece, local[name], windows[name], factor)
        buffers |= {name: blend.result() for name, blend in blends.items()}

    def _latent_size(self, buffer: str, factors: dict[str, int], buffers: Buffers) -> tuple[int, int]:
        height, width = self._read(buffer, buffers).shape[-2:]
        return height // factors[buffer], width // factors[buffer]

    @staticmethod
    def _written_by(stages: list[Stage], buffer: str) -> bool:
        return any(buffer in stage.writes.values() for stage in stages)

    def _spatial(self, stage: Stage, side: str) -> Iterator[tuple[str, int]]:
        """Buffers of a stage that cover the picture, and how many of their pixels make a latent."""
        network = self._manifest.networks[stage.network]
        tensors: tuple[Tensor, ...] = getattr(network, side)
        names = stage.reads if side == "inputs" else stage.writes
        for tensor in tensors:
            factor, symbol = dimension(tensor.shape[-1])
            if symbol == "w" and tensor.name in names:
                yield names[tensor.name], factor
