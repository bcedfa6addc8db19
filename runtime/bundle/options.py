"""What a user may choose for a clip, and what a bundle can serve of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from vsr_trt.runtime.bundle.errors import InputError
from vsr_trt.runtime.bundle.manifest import Manifest, Stage

Statistics = Literal["shared", "tile"]
"""Whose mean and deviation the VAE's normalisations use where a picture does not go through it in one piece."""


_MOST_SLOTS = 64
_MOST_THREADS = 1024


def check_slots(slots: int) -> None:
    """Refuses a number of frames in flight that cannot be meant.

    Raises:
        InputError: it is below 1, or above 64: the schedule has every slot's steps, and each takes memory.
    """
    if not 1 <= slots <= _MOST_SLOTS:
        raise InputError(f"--slots is {slots}; expected 1 to {_MOST_SLOTS}.")


def check_threads(threads: int | None) -> None:
    """Refuses a number of threads that cannot be meant.

    Raises:
        InputError: it is below 1, or above 1024: libraries start them all.
    """
    if threads is not None and not 1 <= threads <= _MOST_THREADS:
        raise InputError(f"--threads is {threads}; expected 1 to {_MOST_THREADS}.")


@dataclass(frozen=True)
class Options:
    """What a user may choose.

    Attributes:
        choices: option -> value, for the stages that have variants (e.g. color: adain).
        tile: side of a latent tile for the stages between the VAE's halves, a multiple of 8.
        overlap: of neighbouring latent tiles.
        vae_tile: in latents (8 pixels of the result), a multiple of 8: pictures of more than vae_tile * vae_tile do
            not go through the VAE in one piece.
        vae_overlap: of neighbouring VAE tiles, in latents.
        vae_statistics: `shared`: those pictures go in strips that share the statistics of the whole picture, and
            the result is the same. `tile`: in tiles that have each their own, and so a tone of its own: another
            picture, in the least memory.
    """

    choices: dict[str, str]
    tile: int = 96
    overlap: int = 32
    vae_tile: int = 96
    vae_overlap: int = 16
    vae_statistics: Statistics = "shared"

    @staticmethod
    def of(
        choices: dict[str, str],
        tile: int | None,
        overlap: int,
        vae_tile: int | None,
        vae_statistics: Statistics = "shared",
    ) -> Options:
        """With the default where a tile is None."""
        options = Options(choices, overlap=overlap, vae_statistics=vae_statistics)
        if tile is not None:
            options = options.with_tile("latent", tile)
        return options if vae_tile is None else options.with_tile("vae", vae_tile)

    def with_tile(self, kind: str, side: int) -> Options:
        """With another tile of that tiling, `latent` or `vae`; the VAE's overlap follows its tile."""
        if kind == "latent":
            return replace(self, tile=side)
        return replace(self, vae_tile=side, vae_overlap=min(Options.vae_overlap, side // 4))

    def network(self, manifest: Manifest, stage: Stage) -> str:
        """The network that a stage runs: the user's choice among its variants, or the default."""
        if stage.option is None:
            return stage.network
        return stage.variants[self.choices.get(stage.option, manifest.option_defaults[stage.option])]

    def networks(self, manifest: Manifest) -> list[str]:
        """The networks that the stages run, each once."""
        return list(dict.fromkeys(self.network(manifest, stage) for stage in manifest.stages))

    def check(self, manifest: Manifest) -> None:
        """Refuses values that the bundle cannot serve.

        Raises:
            InputError: naming the option, what it may be, and what was given.
        """
        if self.vae_statistics not in ("shared", "tile"):
            raise InputError(f"--vae-statistics is {self.vae_statistics!r}; expected shared or tile.")
        for name, value in self.choices.items():
            stages = [stage for stage in manifest.stages if stage.option == name]
            if not stages:
                raise InputError(f"this bundle has no option --{name}.")
            if value not in stages[0].variants:
                raise InputError(f"--{name} is {value!r}; expected one of {', '.join(stages[0].variants)}.")
        unit = manifest.frame_multiple // manifest.latent_scale
        for kind, option, size in (("latent", "--tile", self.tile), ("vae", "--vae-tile", self.vae_tile)):
            if not any(stage.tiling == kind for stage in manifest.stages):
                continue
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
