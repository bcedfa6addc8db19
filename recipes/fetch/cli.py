"""`vsr-build fetch`: published weights, from wherever they are still published."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vsr_trt.export.families.published import FAMILIES
from vsr_trt.export.published import Hub, Part
from vsr_trt.runtime.cli.terminal import printable
from vsr_trt.runtime.errors import InputError, OutputError

_EPILOG = """\
examples:
  vsr-build fetch dloral --list                  # what is needed, how large, from where, under which licence
  vsr-build fetch dloral --to weights
  vsr-build fetch dloral --checkpoint paper --yes
  vsr-build fetch star --checkpoint heavy --to weights

What has arrived is kept: after a cut, the same command goes on. Hashes are compared where they are published; of other
files they are recorded in DIR/fetched.json the first time, and compared from then on.

exit codes: 0 done, 2 nothing was fetched, 3 the disk is too small or cannot be written
"""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
ENDPOINT = "HF_ENDPOINT"  # of huggingface_hub: another address of the hub, such as a company's mirror


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds `fetch` to the build side's commands."""
    command = commands.add_parser(
        "fetch",
        help="download the published weights of a family",
        description="Downloads what a family's bundle is made from, after saying what it is, how large, from where and "
        "under which licence.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("family", choices=tuple(FAMILIES), help="whose weights")
    add(
        "--to",
        type=Path,
        default=Path("weights"),
        metavar="DIR",
        help="folder, made if needed (default: weights)",
    )
    add(
        "--checkpoint",
        metavar="NAME",
        help="; ".join(f"{name}: {' or '.join(family.choices)}" for name, family in FAMILIES.items())
        + " (default: the first)",
    )
    add("--list", action="store_true", help="only say what would be fetched")
    add("--yes", action="store_true", help="agree to the licences without being asked")
    add("--json", action="store_true", help="print the files as JSON on standard output")


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit code."""
    from vsr_trt.recipes.fetch import download

    console = Console(stderr=True)
    family = FAMILIES[options.family]
    name = options.checkpoint or next(iter(family.choices))
    if name not in family.choices:
        raise InputError(
            f"--checkpoint {name}: there is no such checkpoint of {options.family}; expected one of "
            f"{', '.join(family.choices)}."
        )
    parts = [*family.parts, family.choices[name]]
    _show(console, parts)
    if options.list:
        return 0
    if not options.yes:
        _ask(console)
    make_folder(options.to)
    download.check_disk(parts, options.to)
    files: dict[str, list[str]] = {}
    for part in parts:
        console.print(f"[bold]{escape(part.name)}[/]", highlight=False)
        found = download.fetch(part, options.to, lambda text: _note(console, text), os.environ.get(ENDPOINT))
        files[part.name] = [str(path) for path in found]
    checkpoint = files[parts[-1].name][0]
    command = family.next.format(to=options.to, checkpoint=checkpoint)
    console.print(
        f"all there, in [bold]{escape(printable(str(options.to)))}[/]. Next:\n  {escape(command)}",
        highlight=False,
    )
    if options.json:
        print(json.dumps({"to": str(options.to), "files": files, "next": command}, indent=1))  # noqa: T201
    return 0


def make_folder(path: Path) -> None:
    """Makes a folder.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {path} cannot be made: {error.strerror or error}.") from error


def directory(given: Path, part: Part, console: Console) -> Path:
    """The directory that a flag names: a directory, or a repository of the hub, of which the part is fetched.

    Raises:
        InputError: it is neither, or cannot be fetched.
    """
    from vsr_trt.recipes.fetch import download

    text = given.as_posix()
    if given.exists() or _HUB_ID.fullmatch(text) is None:
        return given
    from platformdirs import user_cache_path

    folder = user_cache_path("vsr-trt") / "weights" / text.replace("/", "--")
    make_folder(folder)
    console.print(
        f"{escape(text)} is no directory here; taking it for a repository of the hub, and fetching what is needed of "
        f"it into {escape(str(folder))}",
        highlight=False,
        soft_wrap=True,
    )
    there = dataclasses.replace(part, name=part.flag, about=text, licence="its authors'", places=(Hub(text),))
    there = dataclasses.replace(there, about_bytes=None)
    download.fetch(there, folder, lambda said: _note(console, said), os.environ.get(ENDPOINT))
    return folder / part.flag


def _note(console: Console, text: str) -> None:
    console.print(f"[yellow]note:[/] {escape(text)}", highlight=False, soft_wrap=True)


def _show(console: Console, parts: list[Part]) -> None:
    table = Table(title="to fetch", title_justify="left")
    for column in ("what", "size", "from", "licence"):
        table.add_column(column, overflow="fold")
    for part in parts:
        size = "not known" if part.about_bytes is None else f"about {part.about_bytes / 1e9:.1f} GB"
        places = "\nor ".join(map(str, part.places))
        table.add_row(*map(escape, (f"{part.name}: {part.about}", size, places, part.licence)))
    console.print(table)


def _ask(console: Console) -> None:
    """Asks whether the licences are agreed to.

    Raises:
        InputError: they are not, or nobody can be asked.
    """
    if not sys.stdin.isatty():
        raise InputError("nobody can be asked whether the licences are agreed to; say so with --yes.")
    console.print("Do you agree to these licences? [y/N] ", end="")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise InputError("nothing was fetched: the licences were not agreed to.")
