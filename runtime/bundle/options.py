"""What a user may choose for a clip, and what a bundle can serve of it."""

from __future__ import annotations

import contextlib
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from vsr_trt.runtime.bundle.manifest import Input, Loop, Manifest, Option, Stage
from vsr_trt.runtime.bundle.records import MisfitError
from vsr_trt.runtime.errors import InputError

Statistics = Literal["shared", "tile"]
"""Whose mean and deviation normalisations use where a picture does not go through them in one piece."""
Value = str | int | float
"""Value of an option of a family."""

_MOST_SLOTS = 64
_MOST_THREADS = 1024


def check_slots(slots: int) -> None:
    """Refuses a number of windows in flight that cannot be meant.

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


ANY = ""
"""Names, among tiles that a user gives, the bundle's first tiling that is not exact."""


@dataclass(frozen=True)
class Settings:
    """How clips are restored: the same record for the Restorer, for jobs, benchmarks and plans.

    Attributes:
        backend: `auto` takes the best that is installed and that the bundle serves; see `runtime.backends.BACKENDS`.
        choices: option of the family -> value, e.g. {"color": "none"}; text is read as the option's type has it.
        tiles: tiling -> side of its tiles in latents (8 pixels of the result); `ANY` for the first that is not exact.
            None given: the default, or on a GPU what the bundle's engines take.
        overlaps: tiling -> latents that neighbouring tiles share; likewise.
        statistics: see `Options`.
        memory: bytes that may be used, of the host or of the GPU; None for what is free.
        threads: of the CPU; None for all cores that the process may use.
        slots: windows in flight. With one, `push` returns the frame's own result; with more, stages of several frames
            run at the same time, and results come later and take more memory.
        engine_cache: where GPU backends keep what they compile; None for the user's cache folder.
        check: compare every file's SHA-256 with the manifest before use.
        prompt: text that conditions the restoration, in place of the bundle's; see `runtime.restore.prompts`. It makes
            no difference to a plan.
        negative_prompt: text that it is led away from, likewise.
    """

    backend: str = "auto"
    choices: Mapping[str, Value] = field(default_factory=dict)
    tiles: Mapping[str, int] = field(default_factory=dict)
    overlaps: Mapping[str, int] = field(default_factory=dict)
    statistics: Statistics = "shared"
    memory: int | None = None
    threads: int | None = None
    slots: int = 1
    engine_cache: str | Path | None = None
    check: bool = False
    prompt: str | None = None
    negative_prompt: str | None = None


@dataclass(frozen=True)
class Options:
    """What a user may choose.

    Attributes:
        choices: option of the family -> value; its default where none is given.
        tiles: tiling -> side of its tiles in latents; the bundle's where none is given.
        overlaps: tiling -> latents that neighbouring tiles share; likewise.
        statistics: what becomes of large pictures under an exact tiling (see `manifest.Tiling`). `shared`: they go in
            strips that share the statistics of the whole picture, and the result is the same. `tile`: in tiles that
            each have their own, and so a tone of their own: another picture, in the least memory.
    """

    choices: Mapping[str, Value] = field(default_factory=dict)
    tiles: Mapping[str, int] = field(default_factory=dict)
    overlaps: Mapping[str, int] = field(default_factory=dict)
    statistics: Statistics = "shared"

    @staticmethod
    def of(manifest: Manifest, settings: Settings) -> Options:
        """The options among settings, checked; text is read as the option's type has it.

        Raises:
            InputError: naming the option, what it may be, and what was given.
        """
        choices = {
            name: read_option(manifest, name, value) if isinstance(value, str) else value
            for name, value in settings.choices.items()
        }
        cut = [name for name, tiling in manifest.tilings.items() if not tiling.exact]
        tiles, overlaps = (
            {(cut[0] if cut else name) if name == ANY else name: side for name, side in given.items()}
            for given in (settings.tiles, settings.overlaps)
        )
        options = Options(choices, tiles, overlaps, settings.statistics)
        options.check(manifest)
        return options

    def tile(self, manifest: Manifest, tiling: str) -> int:
        """The side of a tiling's tiles, in latents."""
        return self.tiles.get(tiling, manifest.tilings[tiling].side)

    def overlap(self, manifest: Manifest, tiling: str) -> int:
        """What neighbouring tiles of a tiling share, in latents; of small tiles less than usual."""
        record = manifest.tilings[tiling]
        usual = min(record.overlap, self.tile(manifest, tiling) // record.share)
        return self.overlaps.get(tiling, usual)

    def with_tile(self, tiling: str, side: int) -> Options:
        """With another tile of that tiling."""
        return replace(self, tiles={**self.tiles, tiling: side})

    def cuts(self, manifest: Manifest, tiling: str) -> bool:
        """Whether large pictures are cut into tiles under that tiling."""
        return self.statistics == "tile" or not manifest.tilings[tiling].exact

    def value(self, manifest: Manifest, option: str) -> Value:
        """What was chosen of an option, or its default."""
        return self.choices.get(option, manifest.options[option].default)

    def steps(self, manifest: Manifest, loop: Loop) -> int:
        """How often a loop's body runs."""
        return loop.steps if isinstance(loop.steps, int) else int(self.value(manifest, loop.steps))

    def file(self, manifest: Manifest, given: Input) -> str:
        """The file that an input comes from, with what was chosen in its name."""
        assert given.name is not None
        return given.name.format_map({name: self.value(manifest, name) for name in manifest.options})

    def network(self, manifest: Manifest, stage: Stage) -> str:
        """The network that a stage runs: the user's choice among its variants, or the default."""
        if stage.option is None:
            return stage.network
        return stage.variants[str(self.value(manifest, stage.option))]

    def networks(self, manifest: Manifest) -> list[str]:
        """The networks that the stages run, each once."""
        return list(dict.fromkeys(self.network(manifest, stage) for stage in manifest.stages))

    def check(self, manifest: Manifest) -> None:
        """Refuses values that the bundle cannot serve.

        Raises:
            InputError: naming the option, what it may be, and what was given.
        """
        if self.statistics not in ("shared", "tile"):
            raise InputError(f"--vae-statistics is {self.statistics!r}; expected shared or tile.")
        for name, value in self.choices.items():
            if name not in manifest.options:
                known = ", ".join(manifest.options) or "none"
                raise InputError(f"this bundle has no option {name!r}; it has {known}.")
            check_option(name, manifest.options[name], value)
        for given in manifest.inputs.values():
            chosen = given.source == "file" and options_in(given.name or "")
            if chosen and self.file(manifest, given) not in manifest.files:
                raise InputError(_without_file(manifest, given, self))
        for tiling in dict.fromkeys((*self.tiles, *self.overlaps)):
            if tiling not in manifest.tilings:
                known = ", ".join(manifest.tilings) or "none"
                raise InputError(f"this bundle has no tiling {tiling!r}; it has {known}.")
        for tiling in manifest.tilings:
            if manifest.tiled(tiling):
                self._check_tiling(manifest, tiling)

    def _check_tiling(self, manifest: Manifest, tiling: str) -> None:
        low, high = tile_range(manifest, tiling)
        side, unit = self.tile(manifest, tiling), manifest.tile_unit
        if side % unit or not low <= side <= high:
            raise InputError(f"--tile {tiling}={side}: expected a multiple of {unit} from {low} to {high}.")
        if not 0 <= self.overlap(manifest, tiling) <= side // 2:
            raise InputError(
                f"--overlap {tiling}={self.overlap(manifest, tiling)}: expected 0 to half the tile, {side // 2}."
            )


def options_in(file: str) -> list[str]:
    """The options that stand in braces in a file's name, in order.

    Raises:
        MisfitError: what stands in braces is no name, or a brace is alone.
    """
    try:
        parsed = list(string.Formatter().parse(file))
    except ValueError as error:
        raise MisfitError(f"the file name {file!r}: {error}") from error
    names = [name for _, name, _, _ in parsed if name is not None]
    if any(not name.isidentifier() or form or how for _, name, form, how in parsed if name is not None):
        raise MisfitError(f"the file name {file!r}: expected names of options in braces")
    return names


def _without_file(manifest: Manifest, given: Input, options: Options) -> str:
    """A sentence about choices that a bundle has no file for, with those that it has one for."""
    assert given.name is not None
    names = options_in(given.name)
    pattern = "".join(
        re.escape(text) + (f"(?P<{name}>[^/]+?)" if name is not None else "")
        for text, name, _, _ in string.Formatter().parse(given.name)
    )
    found: dict[str, list[str]] = {}
    for file in manifest.files:
        if (match := re.fullmatch(pattern, file)) is not None:
            first = ", ".join(f"{name}={match[name]}" for name in names[:-1])
            found.setdefault(first, []).append(match[names[-1]])
    chosen = ", ".join(f"{name}={options.value(manifest, name)}" for name in names)
    those = "; ".join(
        f"{first}{' with ' if first else ''}{names[-1]}={_ranges(values)}" for first, values in found.items()
    )
    return f"{chosen}: this bundle was not built for that; it was for {those or 'nothing'}."


def _ranges(values: list[str]) -> str:
    """Values in a few words: 1 to 100, or all of them."""
    if all(value.isdecimal() for value in values):
        numbers = sorted(map(int, values))
        if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
            return f"{numbers[0]} to {numbers[-1]}"
        values = [str(number) for number in numbers]
    return " or ".join(values)


def check_option(name: str, option: Option, value: Value) -> None:
    """Refuses a value that an option cannot have.

    Raises:
        InputError: naming the option, what it may be, and what was given.
    """
    if option.type == "choice":
        if value not in option.choices:
            raise InputError(f"{name} is {value!r}; expected one of {', '.join(option.choices)}.")
        return
    whole = option.type == "integer"
    kind = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise InputError(f"{name} is {value!r}; expected {kind}.")
    low, high = (option.least, option.most)
    if not (low is None or value >= low) or not (high is None or value <= high):
        limits = " ".join(
            f"{word} {limit:g}" for word, limit in (("from", low), ("to", high)) if limit is not None
        )
        raise InputError(f"{name} is {value}; expected {kind} {limits}.")


def read_option(manifest: Manifest, name: str, text: str) -> Value:
    """The value of an option as it was typed.

    Raises:
        InputError: there is no such option, or it cannot have that value.
    """
    if name not in manifest.options:
        raise InputError(
            f"this bundle has no option {name!r}; it has {', '.join(manifest.options) or 'none'}."
        )
    option = manifest.options[name]
    value: Value = text
    if option.type != "choice":
        with contextlib.suppress(ValueError):  # is refused as it was typed
            value = int(text) if option.type == "integer" else float(text)
        if value != value or value in (float("inf"), -float("inf")):
            value = text
    check_option(name, option, value)
    return value


def tile_range(manifest: Manifest, tiling: str) -> tuple[int, int]:
    """The sizes that all networks of that tiling accept."""
    bounds = [
        manifest.networks[stage.network].bounds[side]
        for stage in manifest.tiled(tiling)
        for side in ("h", "w")
    ]
    return max(bound.min for bound in bounds), min(bound.max for bound in bounds)
