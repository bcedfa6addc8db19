"""A bundle's own GPU kernels: the cubin for this GPU, launched as its metadata say (kernels/gpu/launch.schema.json)."""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.engine_check import capability_number
from vsr_trt.runtime.bundle.errors import BundleError, EngineError
from vsr_trt.runtime.cuda.driver import Driver, Owned

ATTENTION, BLENDING = "gated_topk_attention", "blend_tiles"
_SCHEMA_VERSION = 1
_PARTS = re.compile(r"ceil\((\w+) / (\d+)\)")


@dataclass(frozen=True)
class Metadata:
    """How a kernel is launched.

    Attributes:
        kernel: name of its entry.
        grid: blocks in x, y, z: `1`, the name of a size, or `ceil(name / number)`.
        threads: of a block.
        shared_memory: dynamic, of a block, in bytes.
        arguments: name and type (`pointer` or `int32`), in order.
        cubin: file in the bundle.
    """

    kernel: str
    grid: tuple[str, str, str]
    threads: int
    shared_memory: int
    arguments: tuple[tuple[str, str], ...]
    cubin: str


def find(bundle: Bundle, kernel: str, capability: str, dtype: str = "fp32", top_k: bool = False) -> Metadata:
    """The metadata of a kernel for a GPU.

    Args:
        bundle: that brings it.
        kernel: `ATTENTION` or `BLENDING`.
        capability: of the GPU, e.g. `sm_89`.
        dtype: of its operands.
        top_k: the attention that keeps the k best scores.

    Raises:
        EngineError: the bundle has none for this GPU.
        BundleError: the metadata cannot be read.
    """
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for name in bundle.manifest.kernels:
        content = _read(bundle, name)
        if (content["kernel"], content["dtype"], content["top_k"]) == (kernel, dtype, top_k):
            found[content["target"]] = name, content
    # machine code runs on GPUs of the same generation, its own minor version or a later one
    fitting = [target for target in found if _serves(target, capability)]
    if not fitting:
        raise EngineError(
            f"the bundle has no kernel {kernel} for {capability}"
            f"{', only for ' + ', '.join(sorted(found)) if found else ''}. "
            "Build the bundle again with: vsr-build bundle ... --kernels"
        )
    name, content = found[max(fitting, key=capability_number)]
    x, y, z = content["grid"]
    cubin = str(PurePosixPath(name).parent / content["files"]["cubin"]["name"])
    if cubin not in bundle.manifest.files:
        raise BundleError(f"{bundle.path}: {name} names {cubin}, which is no file of the bundle.")
    arguments = tuple((argument["name"], argument["type"]) for argument in content["arguments"])
    return Metadata(
        kernel, (x, y, z), int(content["threads"]), int(content["shared_memory"]), arguments, cubin
    )


def _read(bundle: Bundle, name: str) -> dict[str, Any]:
    try:
        content = json.loads(bundle.file(name).read_text(encoding="utf-8"))
        version = content["schema_version"]
        missing = {
            "kernel",
            "dtype",
            "top_k",
            "target",
            "grid",
            "threads",
            "shared_memory",
            "files",
            "arguments",
        }
        missing -= set(content)
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


class Kernel:
    """A loaded kernel.

    Args:
        driver, owned: load it and keep it.
        bundle: that it lies in.
        metadata: how it is launched.
    """

    def __init__(self, driver: Driver, owned: Owned, bundle: Bundle, metadata: Metadata) -> None:
        self._driver, self._metadata = driver, metadata
        self._function = owned.function(bundle.file(metadata.cubin).read_bytes(), metadata.kernel)
        if metadata.shared_memory > 48 * 1024:  # more than a kernel gets without asking
            attribute = driver.module.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            driver.call("cuFuncSetAttribute", self._function, attribute, metadata.shared_memory)

    def launch(self, stream: Any, values: Mapping[str, int], **sizes: int) -> None:
        """Puts a launch on a stream.

        Args:
            stream: that it runs on.
            values: of all arguments by name, addresses as numbers.
            sizes: that the grid names and no argument has, e.g. pictures.
        """
        kinds = {"pointer": ctypes.c_void_p, "int32": ctypes.c_int32}
        passed = tuple(values[name] for name, _ in self._metadata.arguments)
        types = tuple(kinds[kind] for _, kind in self._metadata.arguments)
        x, y, z = (_blocks(text, {**values, **sizes}) for text in self._metadata.grid)
        self._driver.call(
            "cuLaunchKernel",
            self._function,
            *(x, y, z),
            *(self._metadata.threads, 1, 1),
            self._metadata.shared_memory,
            stream,
            (passed, types),
            0,
        )


def _blocks(text: str, sizes: Mapping[str, int]) -> int:
    found = _PARTS.fullmatch(text)
    if found:
        return -(-sizes[found[1]] // int(found[2]))
    return int(text) if text.isdigit() else sizes[text]
