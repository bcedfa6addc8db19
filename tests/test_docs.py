"""What README and docs tell people to type is understood, and what they say of the tree is there."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.processes import ROOT
from helpers.stages import dloral_manifest

from vsr_trt import build
from vsr_trt.kernels import __main__ as kernels
from vsr_trt.runtime.cli import main as cli

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = {
    "vsr": lambda: cli.parser(dloral_manifest()),
    "vsr-build": build.parser,
    "python -m vsr_trt.kernels": kernels.parser,
}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
FILE = re.compile(r"`((?:runtime|engines|export|kernels|recipes|tests|docs)/[\w/.-]+\.(?:py|md|json|svg))`")


def blocks(language: str) -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for found, text in BLOCK.findall(page.read_text(encoding="utf-8")):
            if found == language:
                yield page, text


def commands() -> Iterator[tuple[str, str, list[str]]]:
    """(page, program, arguments) of every command in a block."""
    for language in ("", "sh", "bash", "console"):
        for page, text in blocks(language):
            for line in text.replace("\\\n", " ").splitlines():
                line = (
                    line.strip().removeprefix("$ ").replace(".venv/bin/", "").split("  #")[0].split(" # ")[0]
                )
                for program in PROGRAMS:
                    if line.startswith(f"{program} ") and "..." not in line and "…" not in line:
                        words = shlex.split(
                            line.removeprefix(program).split(" | ")[0].split(" && ")[0].split(" > ")[0]
                        )
                        yield page.name, program, words


@pytest.mark.parametrize(("page", "program", "arguments"), commands())
def test_commands_are_understood(page: str, program: str, arguments: list[str]) -> None:
    if "--help" in arguments:
        with pytest.raises(SystemExit, match=r"^0$"):
            PROGRAMS[program]().parse_args(arguments)
    else:
        PROGRAMS[program]().parse_args(arguments)  # SystemExit where it is refused


@pytest.mark.parametrize("program", PROGRAMS)
def test_commands_of_the_help_are_understood(program: str, capsys: pytest.CaptureFixture) -> None:
    told = re.findall(r"(?:^|  )(vsr|vsr-build) (.*)$", PROGRAMS[program]().epilog or "", re.MULTILINE)
    assert program.startswith("python") or len(told) >= 10
    for named, arguments in told:
        if arguments == "--help":
            continue
        PROGRAMS[named]().parse_args(shlex.split(arguments))  # SystemExit where it is refused


def test_there_are_commands() -> None:
    assert len(list(commands())) >= 25


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_is_python_and_its_imports_are_there(page: Path) -> None:
    for found, text in blocks("python"):
        if found != page:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vsr_trt"):
                names = ", ".join(alias.name for alias in node.names)
                exec(f"from {node.module} import {names}", {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in LINK.findall(text):
        if not link.startswith(("http", "mailto")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
    for file in FILE.findall(text):
        if "NAME" not in file and not file.startswith(
            ("kernels/gated_topk_attention.", "kernels/blend_tiles.")
        ):  # of a bundle
            assert (ROOT / file).exists(), f"{page.name} names {file}"
