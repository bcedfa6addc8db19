"""A bundle's own GPU kernels: which one a GPU runs, and how their metadata say that they are launched.

kernels/gpu/launch.schema.json is the schema of such metadata.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.engine_check import capability_number
from vsr_trt.runtime.errors import BundleError, EngineError

BLENDING = "blend_tiles"
_SCHEMA_VERSION = 1
_NEEDED = {"kernel", "target", "grid", "threads", "shared_memory", "files", "arguments"}


@dataclass(frozen=True)
class Argument:
    """One argument of a kernel: a `pointer`, with the shape of what it points to, or an `int32`.

    Shapes are of numbers and names; a name is one of the kernel's integers, or a size that only its grid has.
    """

    name: str
    type: str
    shape: tuple[int | str, ...] = ()


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched.

    Attributes:
        kernel: name of its entry.
        grid: blocks in x, y, z: `1`, the name of a size, or `ceil(name / number)`.
        threads: of a block.
        shared_memory: dynamic, of a block, in bytes.
        arguments: in order.
        cubin: file in the bundle; None where there is none for this GPU, and the driver compiles the PTX.
        ptx: file in the bundle, which drivers of this GPU and of later ones compile.
    """

    kernel: str
    grid: tuple[str, str, str]
    threads: int
    shared_memory: int
    arguments: tuple[Argument, ...]
    cubin: str | None
    ptx: str


def find(bundle: Bundle, files: Sequence[str], capability: str) -> Launch:
    """The metadata of a kernel for a GPU.

    Args:
        bundle: that brings it.
        files: launch metadata of the kernel, one file a target.
        capability: of the GPU, e.g. `sm_89`.

    Raises:
        EngineError: the bundle has none for this GPU.
        BundleError: the metadata cannot be read.
    """
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for name in files:
        content = _read(bundle, name)
        found[content["target"]] = name, content
    # machine code runs on GPUs of the same generation, its own minor version or a later one; PTX on all later ones
    fitting = [target for target in found if _serves(target, capability)]
    older = [target for target in found if capability_number(target) <= capability_number(capability)]
    if not older:
        called = next((f" {content['kernel']}" for _, content in found.values()), "")
        raise EngineError(
            f"the bundle has no kernel{called} for {capability}"
            f"{', only for ' + ', '.join(sorted(found)) if found else ''}. "
            "Build the bundle again with: vsr-build bundle ... --kernels"
        )
    name, content = found[max(fitting or older, key=capability_number)]
    x, y, z = content["grid"]
    files_of = {
        kind: str(PurePosixPath(name).parent / content["files"][kind]["name"]) for kind in ("cubin", "ptx")
    }
    for file in files_of.values():
        if file not in bundle.manifest.files:
            raise BundleError(f"{bundle.path}: {name} names {file}, which is no file of the bundle.")
    arguments = tuple(
        Argument(argument["name"], argument["type"], tuple(argument.get("shape", ())))
        for argument in content["arguments"]
    )
    return Launch(
        content["kernel"],
        (x, y, z),
        int(content["threads"]),
        int(content["shared_memory"]),
        arguments,
        files_of["cubin"] if fitting else None,
        files_of["ptx"],
    )


def blending(bundle: Bundle) -> list[str]:
    """Launch metadata of the kernel that makes a picture of tiles, for all targets."""
    return [name for name in bundle.manifest.kernels if _read(bundle, name)["kernel"] == BLENDING]


def serves(bundle: Bundle, files: Sequence[str], target: str) -> bool:
    """Whether the bundle has a kernel for a compute capability; for `portable`, for any GPU."""
    if not target.startswith("sm_"):
        return bool(files)
    try:
        find(bundle, files, target)
    except EngineError:
        return False
    return True


def _read(bundle: Bundle, name: str) -> dict[str, Any]:
    try:
        content = json.loads(bundle.file(name).read_text(encoding="utf-8"))
        version = content["schema_version"]
        missing = _NEEDED - set(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{bundle.path}: {name} cannot be read: {error}. Build the bundle again."
        ) from error
    if version != _SCHEMA_VERSION or missing:
        raise BundleError(
            f"{bundle.path}: {name} has schema version {version} and lacks {sorted(missing) or 'nothing'}; expected "
            f"version {_SCHEMA_VERSION}. Build the bundle again."
        )
    return content


def _serves(target: str, capability: str) -> bool:
    built, here = capability_number(target), capability_number(capability)
    return built // 10 == here // 10 and built <= here
