"""Compiled kernels as files, and a place where they are kept: who compiles need not know which."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vsr_trt.kernels.errors import KernelError
from vsr_trt.kernels.gpu.launch import Launch, read

Parts = Mapping[str, Any]
"""All that decides what a kernel becomes, by name, as JSON values."""


@dataclass(frozen=True)
class Compiled:
    """A kernel for one target: its launch metadata, PTX and binary."""

    launch: Launch
    ptx: str
    cubin: bytes


class Store(Protocol):
    """Where compiled kernels are kept, by what made them."""

    def find(self, parts: Parts) -> Path | None:
        """The folder with the files that `write` wrote; None where they are not kept."""

    def add(self, parts: Parts, write: Callable[[Path], list[Path]]) -> None:
        """Keeps what `write` writes into the empty folder that it is passed, or does not: nothing depends on it."""


def kept(store: Store, parts: Parts, make: Callable[[], Compiled]) -> Compiled:
    """The kernel that those parts make: out of the store, or made and kept there."""
    folder = store.find(parts)
    if folder is not None and (found := load(folder)) is not None:
        return found
    made = make()
    store.add(parts, lambda into: write(made, into))
    return made


def write(compiled: Compiled, folder: Path) -> list[Path]:
    """Writes PTX, cubin and launch metadata into an existing folder; the metadata's path comes first."""
    launch = compiled.launch
    written = [folder / f"{launch.name}.json"]
    written[0].write_text(launch.to_json(), encoding="utf-8")
    for kind, content in (("ptx", compiled.ptx.encode()), ("cubin", compiled.cubin)):
        written.append(folder / launch.files[kind]["name"])
        written[-1].write_bytes(content)
    return written


def load(folder: Path) -> Compiled | None:
    """What `write` wrote there; None where it is not whole, or was changed."""
    for path in sorted(folder.glob("*.json")):
        try:
            launch = read(path)
            contents = {kind: (folder / file["name"]).read_bytes() for kind, file in launch.files.items()}
            hashes = {kind: hashlib.sha256(content).hexdigest() for kind, content in contents.items()}
            if hashes == {kind: file["sha256"] for kind, file in launch.files.items()}:
                return Compiled(launch, contents["ptx"].decode(), contents["cubin"])
        except (KernelError, OSError, KeyError, ValueError):
            continue  # the cache's own entry, or damaged: it is compiled again
    return None
