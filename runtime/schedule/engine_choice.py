"""Which engines restore a picture of some size, by their profiles, before anything is loaded.

Engines decide how a frame is cut: a static one takes tiles of one shape. Of all tile sizes that the bundle's
networks accept, those are left for which every stage has an engine; the best of them is taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.engine_check import OLDEST_PORTABLE, capability_number
from vsr_trt.runtime.bundle.launches import serves
from vsr_trt.runtime.bundle.manifest import STRIP, STRIPS, Engine, Manifest, Network, Profile
from vsr_trt.runtime.bundle.options import Options, tile_range
from vsr_trt.runtime.bundle.symbols import dimension
from vsr_trt.runtime.errors import BundleError, EngineError
from vsr_trt.runtime.schedule.forms import Form
from vsr_trt.runtime.schedule.memory import amount
from vsr_trt.runtime.schedule.parts import Part
from vsr_trt.runtime.schedule.shapes import StageShape, frame_shapes, whole_sizes

PORTABLE = "portable"


@dataclass(frozen=True)
class EngineChoice:
    """What restores a picture.

    Attributes:
        options: the user's, with tiles that engines take.
        engines: network -> its engine, for every network that a stage runs and no kernel computes.
        batches: network -> how many tiles its engine, or its kernel, takes at once.
        form: how pictures go through the VAE, and why.
        kernels: networks without an engine that the bundle's own kernels compute.
    """

    options: Options
    engines: dict[str, Engine]
    batches: dict[str, int]
    form: Form | None = None
    kernels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Needs:
    """GPU memory of a choice's engines, as their builds' reports tell it.

    Attributes:
        scratch: network -> bytes that it works in.
        weights: network -> bytes of its weights.
        untold: networks whose report lacks one or the other.
    """

    scratch: dict[str, int]
    weights: dict[str, int]
    untold: tuple[str, ...] = ()


def built_for(engines: Iterable[Engine], target: str) -> list[Engine]:
    """Those with weights that are for a compute capability (`sm_89`), or named `portable`."""
    return [engine for engine in engines if STRIP not in engine.flags and _is_for(engine, target)]


def _is_for(engine: Engine, target: str) -> bool:
    if engine.target == target:
        return True
    if engine.backend == "tensorrt" and engine.target == PORTABLE:
        return capability_number(target) >= OLDEST_PORTABLE
    return target in engine.targets


def choose_engines(
    bundle: Bundle,
    engines: Sequence[Engine],
    target: str,
    size: tuple[int, int],
    options: Options,
    memory: int | None = None,
    part: Part | None = None,
) -> EngineChoice:
    """The engines for a restored picture, and the tiles that they take.

    Of tiles, the usual size is best, because a larger tile sees more and gives another picture; of those of an exact
    tiling, if it is asked for tiles, the one with the fewest tiles. Of several engines for one
    shape the best is FP16, static, for many tiles at once, for this very target, and the first. Where there is none, a
    kernel of the bundle does. Whole pictures are preferred to strips, unless they do not fit.

    Args:
        bundle: that they are in.
        engines: of one library, that run on the GPU: see `built_for` and `engine_check.why_not`.
        target: that they are for; goes into messages.
        size: width and height of the restored picture.
        options: what the user chose; tiles that are not among it are chosen here. Under shared statistics, the tile of
            an exact tiling is the largest picture that is to go through in one piece.
        memory: bytes of the GPU that may be used, None for no limit.
        part: whose stages are meant; None for all.

    Raises:
        InputError: a size or option that the bundle cannot serve.
        EngineError: engines are missing; the message has the command that builds them.
    """
    manifest, asked = bundle.manifest, options
    for name, record in manifest.tilings.items():
        if not manifest.tiled(name) or not options.cuts(manifest, name):
            continue
        given, usual = asked.tiles.get(name), usual_tile(manifest, name)
        served = []
        for side in _sides(manifest, name, options) if given is None else (given,):
            tried = options.with_tile(name, side)
            needed = [
                s for s in frame_shapes(manifest, *size, tried, part) if _tiling(manifest, s.stage) == name
            ]
            if all(
                _engine(manifest, engines, target, [shape]) is not None or _by_kernel(bundle, shape, target)
                for shape in needed
            ):
                runs = sum(shape.runs for shape in needed)
                rank = (runs, side != usual) if record.exact else (side != usual, runs)
                served.append(((*rank, side), tried))
        options = (
            min(served, key=lambda found: found[0])[1] if served else options.with_tile(name, given or usual)
        )
    wide = whole_sizes(manifest, *size)
    limits = {name: side for name, side in asked.tiles.items() if not asked.cuts(manifest, name)}
    exceeded = [name for name, side in limits.items() if wide["h"] * wide["w"] > side**2]
    why = f"--tile {exceeded[0]}={limits[exceeded[0]]}" if exceeded else "the bundle has engines for it"
    choice = _all(bundle, engines, target, size, options, bool(exceeded), asked, part)
    if not exceeded and memory is not None:
        need = device_bytes(bundle, choice)
        if need > memory:
            lean = _all(bundle, engines, target, size, options, True, asked, part)
            if device_bytes(bundle, lean) < need:
                choice = lean
                why = f"whole, engines need {amount(need)}, and there are {amount(memory)}"
    return replace(choice, form=_form(options, choice, why))


def _all(
    bundle: Bundle,
    engines: Sequence[Engine],
    target: str,
    size: tuple[int, int],
    options: Options,
    in_strips: bool,
    asked: Options,
    part: Part | None,
) -> EngineChoice:
    """An engine for every stage.

    Raises:
        EngineError: engines are missing.
    """
    manifest = bundle.manifest
    found: dict[str, Engine] = {}
    batches: dict[str, int] = {}
    missing, kernels = [], []
    shapes: dict[str, list[StageShape]] = {}
    for shape in frame_shapes(manifest, *size, options, part):
        shapes.setdefault(shape.network, []).append(shape)
    for network, own in shapes.items():
        engine = _engine(manifest, engines, target, own, in_strips)
        runs = min(shape.runs for shape in own)
        if engine is not None:
            found[network] = engine
            batches[network] = _batch(manifest.networks[network], engine, runs)
        elif _by_kernel(bundle, own[0], target):
            kernels.append(network)
            batches[network] = runs
        else:
            missing += own
    if missing:
        raise EngineError(_missing(bundle, missing, engines, target, size, asked))
    return EngineChoice(options, found, batches, kernels=tuple(kernels))


def device_bytes(bundle: Bundle, choice: EngineChoice) -> int:
    """What engines need at least: all weights, and what the hungriest works in."""
    found = needs(bundle, choice.engines)
    return sum(found.weights.values()) + max(found.scratch.values(), default=0)


def _form(options: Options, choice: EngineChoice, why: str) -> Form:
    if options.statistics == "tile":
        return Form("tiles", "--vae-statistics tile")
    in_strips = any(STRIPS in engine.flags for engine in choice.engines.values())
    return Form("strips" if in_strips else "whole", why)


def usual_tile(manifest: Manifest, kind: str) -> int:
    """The tile, in latents, that engines are built for where nobody says otherwise."""
    low, high = tile_range(manifest, kind)
    record = manifest.tilings[kind]
    return min(max(low, record.engine_side or record.side), high)


def needs(bundle: Bundle, engines: Mapping[str, Engine]) -> Needs:
    """What engines need, by network, from their reports.

    Raises:
        BundleError: a report cannot be read.
    """
    told = Needs({}, {})
    untold = []
    for network, engine in engines.items():
        try:
            report = json.loads(bundle.file(engine.report).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BundleError(
                f"{bundle.path}: {engine.report} cannot be read: {error}. Build the engine again: vsr-build "
                f"engines {bundle.path} --network {network} --force"
            ) from error
        figures = report if isinstance(report, dict) else {}
        for name, values in (("activations", told.scratch), ("weights", told.weights)):
            if isinstance(figures.get(name), int):
                values[network] = figures[name]
            elif network not in untold:
                untold.append(network)
    return replace(told, untold=tuple(untold))


def build_command(
    bundle: Bundle,
    target: str,
    size: tuple[int, int],
    options: Options | None = None,
    backend: str | None = None,
) -> str:
    """The command that builds the engines for a size."""
    parts = [f"vsr-build engines {bundle.path}"]
    if backend is not None:
        parts.append(f"--backend {backend.replace('_', '-')}")
    parts.append(f"--target {target} --size {size[0]}x{size[1]}")
    if options is not None:
        parts += [f"--tile {name}={side}" for name, side in options.tiles.items()]
        if options.statistics != "shared":
            parts.append(f"--vae-statistics {options.statistics}")
    return " ".join(parts)


def _sides(manifest: Manifest, kind: str, options: Options) -> list[int]:
    """All that the networks accept, and whose half is no less than the overlap."""
    low, high = tile_range(manifest, kind)
    record = manifest.tilings[kind]
    least = 0 if record.exact else 2 * options.overlaps.get(kind, record.overlap)
    return [side for side in range(low, high + 1, manifest.tile_unit) if side >= least]


def _tiling(manifest: Manifest, stage: str) -> str | None:
    return next(found.tiling for found in manifest.stages if found.name == stage)


def _engine(
    manifest: Manifest,
    engines: Sequence[Engine],
    target: str,
    shapes: Sequence[StageShape],
    in_strips: bool = False,
) -> Engine | None:
    """The best of those that take all the shapes, which are of one network."""
    name, runs = shapes[0].network, min(shape.runs for shape in shapes)
    network = manifest.networks[name]

    def rank(engine: Engine) -> tuple[bool, bool, bool, int, bool]:
        return (
            (STRIPS in engine.flags) != in_strips,
            engine.precision != "fp16",
            _is_dynamic(engine),
            -_batch(network, engine, runs),
            engine.target != target,
        )

    own = (engine for engine in engines if engine.network == name)
    fitting = (engine for engine in own if all(_takes(network, engine, shape) for shape in shapes))
    return min(fitting, key=rank, default=None)


def _by_kernel(bundle: Bundle, shape: StageShape, target: str) -> bool:
    """Whether a kernel of the bundle computes the network on that target; it takes any shape."""
    kernel = bundle.manifest.networks[shape.network].kernel
    return kernel is not None and serves(bundle, kernel.launch, target)


def _takes(network: Network, engine: Engine, shape: StageShape) -> bool:
    """Whether every input that the engine has may be of that shape, with as many tiles as it takes at once."""
    sizes = shape.sizes | {"n": _batch(network, engine, shape.runs)}
    for tensor in network.inputs:
        profile = engine.profiles.get(tensor.name)
        if profile is None:
            continue
        parts = (dimension(size) for size in tensor.shape)
        wanted = tuple(factor * (sizes[symbol] if symbol else 1) for factor, symbol in parts)
        if len(wanted) != len(profile.min) or not all(
            low <= size <= high for low, size, high in zip(profile.min, wanted, profile.max, strict=True)
        ):
            return False
    return True


def _batch(network: Network, engine: Engine, runs: int) -> int:
    """How many of `runs` tiles the engine takes at once."""
    most = [
        profile.max[place]
        for tensor in network.inputs
        for place, size in enumerate(tensor.shape)
        if dimension(size)[1] == "n"
        for profile in _profile(engine, tensor.name)
        if place < len(profile.max)
    ]
    return min([runs, *most])


def _profile(engine: Engine, tensor: str) -> list[Profile]:
    return [engine.profiles[tensor]] if tensor in engine.profiles else []


def _is_dynamic(engine: Engine) -> bool:
    """In more than its batch, which costs nothing."""
    return any(profile.min[1:] != profile.max[1:] for profile in engine.profiles.values())


def _missing(
    bundle: Bundle,
    missing: Sequence[StageShape],
    engines: Sequence[Engine],
    target: str,
    size: tuple[int, int],
    asked: Options,
) -> str:
    backend = next((engine.backend for engine in engines if engine.backend != "tensorrt_rtx"), None)
    command = build_command(bundle, target, size, asked, backend)
    if not engines:
        return f"{bundle.path} has no engines for {target}. Build them with: {command}"
    wanted = ", ".join(
        f"{s.network} ({_described(bundle.manifest.networks[s.network], s.sizes)})" for s in missing
    )
    return f"{bundle.path} has no engine for {target} of {wanted}. Build what is missing with: {command}"


def _described(network: Network, sizes: Mapping[str, int]) -> str:
    symbols = {dimension(size)[1] for tensor in network.inputs for size in tensor.shape}
    if "h" in symbols:
        return f"{sizes['h']}x{sizes['w']} latents"
    return f"{sizes['lr_h']}x{sizes['lr_w']} pixels" if "lr_h" in symbols else "any shape"
