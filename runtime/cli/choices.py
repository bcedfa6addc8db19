"""Options that several commands share: what a user may choose of a bundle, and how large frames are cut."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vsr_trt.runtime.backends import BACKENDS
from vsr_trt.runtime.bundle.manifest import Manifest, Option
from vsr_trt.runtime.bundle.options import ANY
from vsr_trt.runtime.bundle.reading import read_manifest
from vsr_trt.runtime.errors import BundleError, InputError

_FAMILY = "family:"  # begins the name under which argparse keeps an option of the bundle's


def add_backend(command: argparse.ArgumentParser) -> None:
    """Adds --backend."""
    command.add_argument(
        "--backend",
        type=_backend_name,
        choices=BACKENDS,
        default="auto",
        help="what runs the networks (default: auto)",
    )


def add_frames(command: argparse.ArgumentParser) -> None:
    """Adds --frames."""
    command.add_argument(
        "--frames",
        type=int,
        metavar="N",
        help="of the clip; needed for a family that takes whole clips through phases, as `vsr doctor` says",
    )


def add_tiles(command: argparse.ArgumentParser) -> None:
    """Adds --tile, --overlap, --vae-tile and --vae-statistics."""
    add = command.add_argument
    add(
        "--tile",
        action="append",
        default=[],
        metavar="[TILING=]N",
        help="cut frames larger than N x N latents (a latent is 8 pixels of the result) into tiles of that side. A "
        "bundle may have several tilings, `vsr doctor` names them; without a name it is the one between the VAE's "
        "halves (default: the bundle's, 96 as a rule; with engines what they take)",
    )
    add(
        "--overlap",
        action="append",
        default=[],
        metavar="[TILING=]N",
        help="latents that neighbouring tiles share (default: the bundle's, 32 as a rule)",
    )
    add(
        "--vae-tile",
        metavar="N",
        help="larger pictures than NxN latents go through the VAE in strips, which is the same picture in less memory "
        "(default: 96; with engines only where whole does not fit); the same as --tile vae=N",
    )
    add(
        "--vae-statistics",
        choices=("shared", "tile"),
        default="shared",
        help="tile: instead of strips, tiles of NxN latents that are normalised each by itself: least memory, and "
        "ANOTHER PICTURE, whose tone steps from tile to tile (default: shared)",
    )


def add_family(command: argparse.ArgumentParser, manifest: Manifest | None) -> None:
    """Adds --set, and the options of an opened bundle under names of their own."""
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="choose something of the bundle's family; with --bundle BUNDLE before it, --help lists what there is",
    )
    if manifest is None or not manifest.options:
        return
    group = command.add_argument_group(f"options of this bundle ({manifest.family})")
    for name, option in manifest.options.items():
        flag = f"--{name.replace('_', '-')}"
        if flag in command._option_string_actions:
            continue  # --set reaches it
        group.add_argument(
            flag,
            dest=f"{_FAMILY}{name}",
            metavar=_values(option),
            help=f"{option.help} (default: {option.default})",
        )


def peek(arguments: Sequence[str]) -> Manifest | None:
    """The manifest of the bundle that a command line names, for its options; None where there is none to read."""
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--bundle":
            folder = value if equals else next(iter(arguments[index + 1 :]), "")
            try:
                return read_manifest(Path(folder)) if folder else None
            except BundleError:
                return None  # the command itself says why
    return None


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What was chosen, as fields of `runtime.bundle.options.Settings`.

    Raises:
        InputError: something that is no NAME=VALUE or no number.
    """
    return {
        "choices": _choices(options),
        "tiles": tiles(options),
        "overlaps": _numbers("--overlap", options.overlap),
        "statistics": options.vae_statistics,
    }


def tiles(options: argparse.Namespace) -> dict[str, int]:
    """Tiling -> side, of --tile and --vae-tile.

    Raises:
        InputError: something that is no number.
    """
    found = _numbers("--tile", options.tile)
    if options.vae_tile is not None:
        found["vae"] = _number("--vae-tile", str(options.vae_tile))
    return found


def chosen(texts: Sequence[str]) -> dict[str, str]:
    """What --set was given, by name.

    Raises:
        InputError: something that is no NAME=VALUE.
    """
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"--set {text}: expected NAME=VALUE.")
        found[name] = value
    return found


def _choices(options: argparse.Namespace) -> dict[str, str]:
    found = chosen(options.set)
    for name, value in vars(options).items():
        if name.startswith(_FAMILY) and value is not None:
            found[name.removeprefix(_FAMILY)] = value
    return found


def _numbers(option: str, texts: Sequence[str]) -> dict[str, int]:
    found = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        found[name if equals else ANY] = _number(f"{option} {name}{equals}".rstrip(), number)
    return found


def _number(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{option} is {text!r}; expected a whole number.") from None


def _values(option: Option) -> str:
    if option.type == "choice":
        return "|".join(option.choices)
    return "N" if option.type == "integer" else "X"


def _backend_name(text: str) -> str:
    """A backend as it was typed: `tensorrt-rtx`, as the build side has it, is `tensorrt_rtx`."""
    return text.replace("-", "_") if text == "tensorrt-rtx" else text
