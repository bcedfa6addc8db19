"""What is published of each family, by its name. Imports nothing heavy: it is read for `--help`."""

from __future__ import annotations

import argparse
from pathlib import Path

from vsr_trt.export.families.dloral import published as dloral
from vsr_trt.export.families.star import published as star
from vsr_trt.export.published import Part, Wanted

FAMILIES: dict[str, Wanted] = {"dloral": dloral.WANTED, "star": star.WANTED}


def parts() -> dict[str, tuple[Part, list[str]]]:
    """What bundles are made from besides a checkpoint: flag -> its part, and the families that need it."""
    found: dict[str, tuple[Part, list[str]]] = {}
    for name, wanted in FAMILIES.items():
        for part in wanted.parts:
            if part.flag:
                found.setdefault(part.flag, (part, []))[1].append(name)
    return found


def add_weights(command: argparse.ArgumentParser, what_for: str = "") -> None:
    """Adds the options that name the weights a bundle was made from, beginning their help with `what_for`."""
    for flag, (part, families) in parts().items():
        about = f"of the family {' and '.join(families)}: {part.about}"
        command.add_argument(f"--{flag}", type=Path, metavar="DIR", help=f"{what_for}{about}")
    command.add_argument("--checkpoint", type=Path, metavar="FILE", help=f"{what_for}the checkpoint")


def given_parts(options: argparse.Namespace) -> dict[str, Path]:
    """The directories that were named, by their parts."""
    named = {flag: getattr(options, flag.replace("-", "_")) for flag in parts()}
    return {flag: path for flag, path in named.items() if path is not None}


def flags_of(family: str) -> list[str]:
    """The options that name a family's weights, the checkpoint last."""
    return [*(f"--{flag}" for flag, (_, families) in parts().items() if family in families), "--checkpoint"]


def weights_of(family: str) -> str:
    """The same for a command to copy: `--sd DIR --checkpoint FILE`."""
    *folders, checkpoint = flags_of(family)
    return " ".join([*(f"{flag} DIR" for flag in folders), f"{checkpoint} FILE"])
