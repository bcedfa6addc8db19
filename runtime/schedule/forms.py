"""How pictures go through the VAE: whole, in strips, or in tiles; and why, before anything is loaded.

Whole and in strips are the same picture: strips share the statistics of all of it, so that they change the memory,
the time, and the last bit here and there. Tiles have statistics of their own, and are another picture: only who asks
gets them.

On the CPU the size alone decides between whole and strips, so that the same clip gives the same bytes on every machine;
memory decides only where the size's own form would not fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Manifest
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.bundle.symbols import evaluate
from vsr_trt.runtime.errors import DeviceError
from vsr_trt.runtime.machine.memory import RESERVE, free_bytes, resident_bytes
from vsr_trt.runtime.schedule import memory
from vsr_trt.runtime.schedule.build import build, frame_sizes, tile_grid
from vsr_trt.runtime.schedule.memory import amount
from vsr_trt.runtime.schedule.parts import Part, clip_parts, spans

WHOLE, IN_STRIPS = "cpu", "cpu_strips"
"""Forms of a network's graphs on the CPU."""
OWN = 450_000_000
"""Bytes of Python, of the libraries, and of what networks work in that are none on whole pictures."""
_OLD = "the bundle was built before there were strips; build it again to have them"


@dataclass(frozen=True)
class Form:
    """How a picture goes through the VAE.

    Attributes:
        name: `whole`; `strips`, the same picture in less memory; `tiles`, another picture.
        why: it was taken.
        memory: bytes that the process takes at most, estimated; None where that is not known.
    """

    name: Literal["whole", "strips", "tiles"]
    why: str
    memory: int | None = None


@dataclass(frozen=True)
class Available:
    """Memory that may be used.

    Attributes:
        bytes: None where nobody tells.
        limit: whether somebody set it: then nothing is begun that would take more.
    """

    bytes: int | None
    limit: bool

    @staticmethod
    def of(limit: int | None) -> Available:
        """What was allowed; else what is free, what this process has already, and less a reserve."""
        if limit is not None:
            return Available(limit, True)
        free = free_bytes()
        return Available(None if free is None else free - RESERVE + resident_bytes(), False)

    def __str__(self) -> str:
        return f"{'--memory allows' if self.limit else 'free are'} {amount(self.bytes or 0)}"


def choose_form(
    bundle: Bundle,
    height: int,
    width: int,
    options: Options,
    available: Available,
    slots: int = 1,
    part: Part | None = None,
) -> Form:
    """How frames (height, width, 3) go through the VAE on the CPU.

    Args:
        bundle: of the family.
        height, width: of the frames.
        options: the user's.
        available: memory.
        slots: windows under way at once.
        part: of the family that needs memory now; None for the one that needs most.

    Raises:
        DeviceError: neither whole nor in strips does it fit into a limit.
    """
    manifest = bundle.manifest
    sizes = frame_sizes(manifest, height, width)
    latents = f"{sizes['h']}x{sizes['w']} latents"
    exact = [name for name, tiling in manifest.tilings.items() if tiling.exact and manifest.tiled(name)]
    if not exact:
        return _alone(bundle, height, width, options, available, slots, part)
    side = options.tile(manifest, exact[0])
    if options.statistics == "tile":
        grid = tile_grid(manifest, exact[0], sizes, options)
        if grid is not None:
            found = estimate(bundle, height, width, options, slots, in_strips=False, part=part)
            if available.limit and _exceeds(found, available):
                raise DeviceError(
                    f"{width * manifest.scale}x{height * manifest.scale} takes about {amount(found or 0)} in tiles of "
                    f"{side} latents, and {available}. Allow more, take smaller tiles, or restore a "
                    "smaller picture."
                )
            return Form("tiles", f"--vae-statistics tile, and {latents} are more than {side}x{side}", found)
    small = sizes["h"] * sizes["w"] <= side**2
    has_strips = any(IN_STRIPS in network.graphs for network in manifest.networks.values())
    needs = {
        in_strips: estimate(bundle, height, width, options, slots, in_strips=in_strips, part=part)
        for in_strips in (False, True)
    }
    in_strips = strips_by_size(manifest, height, width, options)
    why = f"{latents} are {'no ' if small else ''}more than {side}x{side}"
    if not small and not has_strips:
        why = _OLD
    if small and has_strips and _exceeds(needs[False], available):
        in_strips = True
        why = f"whole it would take about {amount(needs[False] or 0)}, and {available}"
    need = needs[in_strips]
    if available.limit and need is not None and _exceeds(need, available):
        raise DeviceError(
            f"{width * manifest.scale}x{height * manifest.scale} takes about {amount(need)}"
            f"{' in strips' if in_strips else ''}, and {available}. Allow more, restore a smaller picture, or have the "
            "VAE work in tiles with statistics of their own, which gives another picture: --vae-statistics tile "
            f"--tile {exact[0]}=64"
        )
    return Form("strips" if in_strips else "whole", why, need)


def strips_by_size(manifest: Manifest, height: int, width: int, options: Options) -> bool:
    """Whether frames (height, width, 3) that the networks are given go through the VAE in strips on the CPU, as far as
    their size decides."""
    exact = [name for name, tiling in manifest.tilings.items() if tiling.exact and manifest.tiled(name)]
    if not exact or not any(IN_STRIPS in network.graphs for network in manifest.networks.values()):
        return False
    sizes = frame_sizes(manifest, height, width)
    if tile_grid(manifest, exact[0], sizes, options) is not None:
        return False  # in tiles, which somebody asked for
    return sizes["h"] * sizes["w"] > options.tile(manifest, exact[0]) ** 2


def estimate(
    bundle: Bundle,
    height: int,
    width: int,
    options: Options,
    slots: int,
    *,
    in_strips: bool,
    part: Part | None = None,
    frames: int = 1,
) -> int | None:
    """Bytes that a process takes at most to restore frames (height, width, 3) on the CPU.

    Weights, the schedule's buffers, what the hungriest network on pictures works in, and a fixed sum for the rest;
    `vsr-build vae-forms` prints it next to what was measured. None for a bundle that does not tell.

    Args:
        bundle: whose networks and files those are.
        height, width: of a frame.
        options: what was chosen.
        slots: windows in flight.
        in_strips: whether pictures go through the VAE in strips.
        part: of the family's phases; None for the hungriest.
        frames: of the clip, where no part is given.
    """
    manifest = bundle.manifest
    needs = [
        _estimate(bundle, height, width, options, slots, found, in_strips)
        for found in (clip_parts(manifest, frames) if part is None else (part,))
    ]
    known = [need for need in needs if need is not None]
    if len(known) < len(needs):
        return None
    return OWN + weights_on_cpu(manifest, options.networks(manifest)) + max(known)


def _estimate(
    bundle: Bundle, height: int, width: int, options: Options, slots: int, part: Part, in_strips: bool
) -> int | None:
    """Bytes that a part's buffers take, and the hungriest of its networks on pictures."""
    manifest = bundle.manifest
    scratch = {}
    for stage in part.stages:
        network = manifest.networks[options.network(manifest, stage)]
        form = IN_STRIPS if in_strips and IN_STRIPS in network.graphs else WHOLE
        if form in network.scratch:
            frames = [part.frames]
            if stage.chunks is not None:
                frames = [span.frames for span in spans(manifest, stage.chunks, part.frames, options)]
            sizes = frame_sizes(manifest, height, width, max(frames), options)
            grid = tile_grid(manifest, stage.tiling, sizes, options) if stage.tiling else None
            if grid is not None:
                sizes |= {"h": grid.height, "w": grid.width}
            scratch[stage.name] = int(evaluate(network.scratch[form], sizes))
    if not scratch:
        return None
    buffers = memory.add_up(build(manifest, height, width, options, slots, part=part), {}, {})
    return buffers.device + buffers.pinned + max(scratch.values())


def weights(manifest: Manifest, networks: Iterable[str]) -> int:
    """Bytes of the weights that networks have in files of their own, in the bundle's precision."""
    return _weights(manifest, networks, "native")


def weights_on_cpu(manifest: Manifest, networks: Iterable[str]) -> int:
    """Bytes of the weights of the CPU's forms.

    What such a form has in a file of its own is kept in FP16, half as large as in the native form's file.
    """
    return _weights(manifest, networks, "native") - _weights(manifest, networks, WHOLE)


def _weights(manifest: Manifest, networks: Iterable[str], form: str) -> int:
    """Bytes of the files of a form's weights."""
    graphs = (manifest.networks[network].graphs.get(form, "") for network in networks)
    return sum(manifest.files[name].bytes for graph in graphs if (name := f"{graph}.data") in manifest.files)


def as_json(form: Form) -> Mapping[str, object]:
    """Returns the values of a report."""
    return {"form": form.name, "why": form.why, "estimated_memory": form.memory}


def _alone(
    bundle: Bundle,
    height: int,
    width: int,
    options: Options,
    available: Available,
    slots: int,
    part: Part | None,
) -> Form:
    """Returns the only form of a family without exact tilings."""
    need = estimate(bundle, height, width, options, slots, in_strips=False, part=part)
    if available.limit and need is not None and _exceeds(need, available):
        raise DeviceError(
            f"{width * bundle.manifest.scale}x{height * bundle.manifest.scale} takes about {amount(need)}, and "
            f"{available}. Allow more, or restore a smaller picture."
        )
    return Form("whole", "the family has no other way", need)


def _exceeds(need: int | None, available: Available) -> bool:
    return need is not None and available.bytes is not None and need > available.bytes
