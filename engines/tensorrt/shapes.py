"""From sizes of pictures to the shapes that engines are built for.

Static by default: one engine a network and size, the fastest. Networks that work on tiles have the tile's
shape, so one engine serves every size that is cut into such tiles. Everything comes from the manifest: the
stages, what is tiled, and the bounds of the symbolic sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vsr_trt.runtime.bundle.manifest import Bound, Manifest, Network, Profile, Stage
from vsr_trt.runtime.bundle.options import Options, tile_range
from vsr_trt.runtime.bundle.symbols import dimension, evaluate
from vsr_trt.runtime.cli.values import parse_size as read_size
from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.schedule import forms, tiling
from vsr_trt.runtime.schedule.parts import chunk_sizes
from vsr_trt.runtime.schedule.shapes import whole_sizes

Range = tuple[int, int, int]
"""Least, best and largest value of a symbolic size."""


@dataclass(frozen=True)
class Size:
    """Width and height of the restored picture, in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


# What a dynamic engine is for, where no --size says otherwise.
USUAL = (Size(512, 512), Size(1280, 720), Size(1920, 1080), Size(3840, 2160))


_USUAL_CLIP = 32  # frames that engines for whole clips are made best for


BATCH = 4  # tiles in one call where nobody says otherwise
LARGE_BATCH = 8  # of GPUs with so many units that 4 leave some idle
_LARGE = frozenset({"sm_90", "sm_100", "sm_103"})


def usual_batch(targets: Iterable[str]) -> int:
    """How many tiles go through at once on GPUs of these compute capabilities."""
    names = set(targets)
    return LARGE_BATCH if names and names <= _LARGE else BATCH


@dataclass(frozen=True)
class Layout:
    """How pictures are cut, and how many tiles go through at once.

    Attributes:
        options: what the user chose. Under shared statistics, the tile of an exact tiling is the largest picture that
            goes through its networks in one piece; none given: any.
        memory: bytes of the GPU that may be used; None for no limit.
        batch: largest number of tiles in one call; None for as many as pay off, but not more than pictures have.
        dynamic: one engine a network for all the sizes given, instead of one for each.
        usual_batch: as many tiles as pay off on the GPUs that are meant, see `usual_batch`.
    """

    options: Options = field(default_factory=Options)
    memory: int | None = None
    batch: int | None = None
    dynamic: bool = False
    usual_batch: int = BATCH

    @property
    def most(self) -> int:
        """Largest number of tiles in one call, of pictures that have so many."""
        return self.usual_batch if self.batch is None else self.batch

    def cuts(self, manifest: Manifest, tiling: str | None) -> bool:
        """Whether the stages of a tiling work on tiles."""
        return tiling is not None and self.options.cuts(manifest, tiling)

    def side(self, manifest: Manifest, tiling: str) -> int:
        """Side of a tiling's tiles."""
        record = manifest.tilings[tiling]
        return self.options.tiles.get(tiling, record.engine_side or record.side)


def parse_size(text: str, manifest: Manifest) -> Size:
    """Reads `--size`, e.g. 1280x720.

    Raises:
        InputError: not a size, or none that this bundle restores to.
    """
    size = Size(*read_size(text, manifest))
    _check_bounds(size, manifest)
    return size


def _check_bounds(size: Size, manifest: Manifest) -> None:
    for stage in manifest.stages:
        for name, bound in manifest.networks[stage.network].bounds.items():
            if (
                stage.tiling is None
                and (value := whole_sizes(manifest, size.width, size.height).get(name))
                and value > bound.max
            ):
                raise InputError(
                    f"--size {size}: {name} of {stage.network} would be {value}; this bundle's networks end at "
                    f"{bound.max}."
                )


def networks(manifest: Manifest) -> tuple[str, ...]:
    """The networks that stages run, variants included, in order."""
    names = (name for stage in manifest.stages for name in (stage.network, *stage.variants.values()))
    return tuple(dict.fromkeys(names))


def profiles(
    manifest: Manifest, name: str, sizes: Sequence[Size], layout: Layout
) -> list[tuple[dict[str, Range], dict[str, Profile]]]:
    """The different shapes that a network needs, each as ranges of its symbolic sizes and as a profile.

    Raises:
        InputError: a tile or batch outside the network's bounds.
    """
    network = manifest.networks[name]
    stages = [s for s in manifest.stages if name in (s.network, *s.variants.values())]
    if not stages:
        raise InputError(f"no stage runs {name!r}; expected one of {', '.join(networks(manifest))}.")
    ranges = [_ranges(manifest, stages[0], size, layout) for size in sizes]
    if layout.dynamic:
        ranges = [_joined(manifest, stages[0], network, ranges, layout)]
    different: dict[tuple[tuple[str, Range], ...], dict[str, Range]] = {}
    for found in (_used(network, found) for found in ranges):
        key = tuple(sorted((symbol, size) for symbol, size in found.items() if symbol != "n"))
        same = different.setdefault(key, found)
        if "n" in found:  # one engine for all numbers of tiles of a shape
            different[key] = same | {"n": max(same["n"], found["n"], key=lambda size: size[2])}
    for found in different.values():
        _check(name, network.bounds, found)
    return [(found, _profile(network, found)) for found in different.values()]


def in_strips(manifest: Manifest, name: str, ranges: Mapping[str, Range], layout: Layout) -> bool:
    """Whether an engine for pictures of that size computes them in strips."""
    network = manifest.networks[name]
    if network.strips == 1 or layout.options.statistics == "tile":
        return False
    high, wide = ranges["h"][2], ranges["w"][2]
    stages = (stage for stage in manifest.stages if name in (stage.network, *stage.variants.values()))
    limits = [side for s in stages if s.tiling and (side := layout.options.tiles.get(s.tiling))]
    if limits:
        return high * wide > limits[0] ** 2
    if layout.memory is None or "cpu" not in network.scratch:
        return False
    # Compilers need half of what the CPU does, FP16 against FP32; next to it, all networks' weights in FP16.
    scratch = evaluate(network.scratch["cpu"], {"h": high, "w": wide}) / 2
    weights = forms.weights(manifest, networks(manifest)) // (2 if manifest.precision == "fp32" else 1)
    return scratch + weights > layout.memory


def _ranges(manifest: Manifest, stage: Stage, size: Size, layout: Layout) -> dict[str, Range]:
    whole = whole_sizes(manifest, size.width, size.height)
    batch = (1, 1, 1)
    if stage.tiling is not None and layout.cuts(manifest, stage.tiling):
        record, tile = manifest.tilings[stage.tiling], layout.side(manifest, stage.tiling)
        longest = tile_range(manifest, stage.tiling)[1]
        overlap = layout.options.with_tile(stage.tiling, tile).overlap(manifest, stage.tiling)
        pieces = tiling.tiles_of(whole["h"], whole["w"], tile, overlap, square=record.square, longest=longest)
        if not record.exact:
            count = layout.most
            if layout.batch is None and not layout.dynamic:
                bound = manifest.networks[stage.network].bounds.get("n")
                count = min(count, len(pieces), bound.max if bound is not None else 1)
            batch = (1, count, count)
        whole |= {"h": pieces[0].height, "w": pieces[0].width}
    frames = _frames(manifest, stage, layout.options)
    static = {name: (value, value, value) for name, value in whole.items()}
    return static | _steps(manifest, stage, whole) | {"n": batch, "f": frames}


def _steps(manifest: Manifest, stage: Stage, whole: Mapping[str, int]) -> dict[str, Range]:
    """Rows of a table of steps, where their number is the user's: one engine for all, which are small."""
    bound = manifest.networks[stage.network].bounds.get("s")
    if bound is None or all(isinstance(loop.steps, int) for loop in manifest.loops.values()):
        return {}
    return {"s": (bound.min, whole["s"], bound.max)}


def _frames(manifest: Manifest, stage: Stage, options: Options) -> Range:
    """Frames that a stage takes at once: its window's, a chunk's, or as many as clips have."""
    window = manifest.phases[stage.phase] if stage.phase is not None else manifest.window
    bound = manifest.networks[stage.network].bounds.get("f")
    if stage.chunks is not None:
        usual, longest = chunk_sizes(manifest, stage.chunks, options)
        return 1, min(usual, window.frames or usual), min(longest, window.frames or longest)
    if window.frames is None:
        return (1, 1, 1) if bound is None else (bound.min, min(_USUAL_CLIP, bound.max), bound.max)
    return (1 if window.last == "short" else window.frames), window.frames, window.frames


def _joined(
    manifest: Manifest, stage: Stage, network: Network, ranges: Sequence[dict[str, Range]], layout: Layout
) -> dict[str, Range]:
    """From the bounds' least to the largest of the sizes, at its best at the first of them."""
    largest = list(ranges) or [_ranges(manifest, stage, size, layout) for size in USUAL]
    tile = None
    if stage.tiling is not None and layout.cuts(manifest, stage.tiling):
        tile = layout.side(manifest, stage.tiling)
    joined = {"n": largest[0]["n"]}
    for name in ("f", "lr_h", "lr_w", "h", "w"):
        if name not in network.bounds:
            continue
        high = max(found[name][2] for found in largest)
        if tile is not None:
            high = max(high, min(tile, network.bounds[name].max))
        joined[name] = (network.bounds[name].min, largest[0][name][1], high)
    return joined


def _used(network: Network, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Those that the network's inputs have."""
    symbols = {dimension(size)[1] for tensor in network.inputs for size in tensor.shape}
    return {name: found for name, found in ranges.items() if name in symbols}


def _check(name: str, bounds: Mapping[str, Bound], ranges: Mapping[str, Range]) -> None:
    for symbol, (low, _, high) in ranges.items():
        bound = bounds[symbol]
        if not bound.has(low) or not bound.has(high):
            hint = {"n": "--batch", "h": "--size or --tile", "w": "--size or --tile"}.get(symbol, "--size")
            asked = f"{low}" if low == high else f"{low} to {high}"
            raise InputError(
                f"{name} would be built for {symbol} = {asked}; it takes {bound}. Change {hint}."
            )


def _profile(network: Network, ranges: Mapping[str, Range]) -> dict[str, Profile]:
    def shape(sizes: Iterable[int | str], which: int) -> tuple[int, ...]:
        parts = (dimension(size) for size in sizes)
        return tuple(factor * ranges[symbol][which] if symbol else factor for factor, symbol in parts)

    return {t.name: Profile(*(shape(t.shape, which) for which in range(3))) for t in network.inputs}


def describe(ranges: Mapping[str, Range]) -> str:
    """Names ranges for files and tables, e.g. `n1-96x96`, `n1..4-32..96x32..96`, `n1-lr270x480-136x240`."""
    parts = []
    for name, found in ranges.items():
        pair = f"{name[:-1]}w"
        if name.endswith("h") and pair in ranges:
            parts.append(f"{name[:-1].rstrip('_')}{_between(found)}x{_between(ranges[pair])}")
        elif not (name.endswith("w") and f"{name[:-1]}h" in ranges):
            parts.append(f"{name}{_between(found)}")
    return "-".join(parts)


def _between(found: Range) -> str:
    low, _, high = found
    return str(low) if low == high else f"{low}..{high}"
