"""How a host launches a compiled kernel: what its launch metadata say, as JSON, and what it refuses.

The JSON lies next to the cubin in a bundle (`launch.schema.json` is its schema), so that a host in any
language can launch the kernel without this package. There are two kernels: the attention, and the blending of tiles.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vsr_trt.kernels.errors import KernelError

DType = Literal["fp32", "fp16"]
Element = Literal["fp32", "fp16", "int32"]
SCHEMA_VERSION = 1
CHANNELS = 4

ATTENTION = "gated_topk_attention"
BLENDING = "blend_tiles"
# Blocks in x, y and z: 1, a size, or a size in parts of what a block takes of it, rounded up.
_GRIDS = {
    ATTENTION: ("ceil(positions / queries)", "pictures", "1"),
    BLENDING: ("ceil(width / pixels)", "height", "channels"),
}
_TILES = {ATTENTION: ("queries", "keys"), BLENDING: ("pixels",)}
_PARTS = re.compile(r"ceil\((\w+) / (\w+)\)")

# The last PTX version that a driver for this CUDA version takes (PTX ISA, "Release Notes").
_CUDA_TO_PTX = {(12, minor): 80 + minor - (minor >= 6) for minor in range(10)} | {
    (13, minor): 90 + minor for minor in range(10)
}


@dataclass(frozen=True)
class Argument:
    """One argument of a kernel, in the order in which it is passed.

    Attributes:
        name: as in the kernel.
        type: `pointer` (64 bits, device memory, C-contiguous) or `int32`.
        element: of a pointer: `fp32`, `fp16` or `int32`.
        shape: of a pointer: numbers, names of the kernel's integers, or `pictures`.
        access: of a pointer: `read` or `write`.
    """

    name: str
    type: Literal["pointer", "int32"]
    element: Element | None = None
    shape: tuple[int | str, ...] | None = None
    access: Literal["read", "write"] | None = None


def _pointer(
    name: str, element: Element, *shape: int | str, access: Literal["read", "write"] = "read"
) -> Argument:
    return Argument(name, "pointer", element, shape, access)


def arguments(kernel: str, dtype: DType = "fp32") -> tuple[Argument, ...]:
    """A kernel's arguments: `ATTENTION`'s for latents of a type, or `BLENDING`'s."""
    if kernel == BLENDING:
        sizes = ("rows", "columns", "channels", "tile_height", "tile_width", "height", "width")
        return (
            _pointer("tiles", "fp32", *sizes[:5]),
            _pointer("tops", "int32", "rows"),
            _pointer("lefts", "int32", "columns"),
            _pointer("row_window", "fp32", "tile_height"),
            _pointer("column_window", "fp32", "tile_width"),
            _pointer("out", "fp32", "channels", "height", "width", access="write"),
            *(Argument(name, "int32") for name in sizes),
        )
    latent = ("pictures", CHANNELS, "positions")
    return (
        _pointer("current", dtype, *latent),
        _pointer("previous", dtype, *latent),
        _pointer("M", "fp32", "heads", CHANNELS + 1, CHANNELS + 1),
        _pointer("P", "fp32", "heads", CHANNELS, CHANNELS + 1),
        _pointer("bias", "fp32", CHANNELS),
        Argument("heads", "int32"),
        Argument("positions", "int32"),
        Argument("k", "int32"),
        _pointer("fused", dtype, *latent, access="write"),
    )


@dataclass(frozen=True)
class Launch:
    """The launch metadata of one compiled kernel.

    Attributes:
        kernel: which one, `ATTENTION` or `BLENDING`; also the entry's name in PTX and cubin.
        target: whose GPUs the cubin runs on.
        dtype: of the latents, or of the tiles.
        top_k: whether it keeps the k best scores of a query; without, k is passed and not read. The attention's.
        ptx_version: that the PTX is written in, e.g. `8.0`.
        tile: what a block takes at once: `queries` and `keys`, or `pixels` of a row. The JSON has them one by one.
        threads: of a block.
        shared_memory: dynamic, of a block, in bytes.
        registers: of a thread.
        spilled: bytes of a thread that did not fit its registers.
        triton, ptxas: versions of what compiled it.
        files: `ptx` and `cubin` -> {name, sha256}, next to the JSON.
    """

    kernel: str
    target: str
    dtype: DType
    top_k: bool
    ptx_version: str
    tile: Mapping[str, int]
    threads: int
    shared_memory: int
    registers: int
    spilled: int
    triton: str
    ptxas: str
    files: Mapping[str, Mapping[str, str]]

    @property
    def name(self) -> str:
        """Name of the files, without suffix."""
        variant = f"{self.dtype}-top_k" if self.top_k else self.dtype
        return f"{self.kernel}.{variant}.{self.target}"

    @property
    def grid(self) -> tuple[str, str, str]:
        """Blocks in x, y and z as the metadata say it: `1`, a size, or `ceil(size / number)`."""

        def numbered(text: str) -> str:
            found = _PARTS.fullmatch(text)
            return f"ceil({found[1]} / {self.tile[found[2]]})" if found else text

        x, y, z = map(numbered, _GRIDS[self.kernel])
        return x, y, z

    def blocks(self, **sizes: int) -> tuple[int, int, int]:
        """Blocks of a launch, for the sizes that `grid` names, e.g. the attention's pictures and positions."""

        def count(text: str) -> int:
            found = _PARTS.fullmatch(text)
            if found:
                return -(-sizes[found[1]] // int(found[2]))
            return 1 if text == "1" else sizes[text]

        x, y, z = map(count, self.grid)
        return x, y, z

    def check(
        self,
        current: Sequence[int],
        previous: Sequence[int],
        M: Sequence[int],
        P: Sequence[int],
        bias: Sequence[int],
        k: int | None = None,
    ) -> None:
        """Refuses shapes and k that the attention's kernel would misread.

        Raises:
            KernelError: says which, and what was expected.
        """
        check_shapes(current, previous, M, P, bias)
        positions = current[2] * current[3]
        if self.top_k != (k is not None):
            other = "keeps the k best scores and needs k" if self.top_k else "takes all positions and no k"
            raise KernelError(f"the kernel {self.name} {other}; got k = {k}.")
        if k is not None and not 1 <= k <= positions:
            raise KernelError(f"k = {k} is not between 1 and the number of positions, {positions}.")

    def check_driver(self, cuda: tuple[int, int]) -> None:
        """Refuses PTX that the driver is too old for.

        Args:
            cuda: the CUDA version that the driver supports, as `cuDriverGetVersion` tells it.

        Raises:
            KernelError: the driver's PTX is older.
        """
        known = _CUDA_TO_PTX.get(cuda)
        if known is None:
            known = 0 if cuda < (12, 0) else 1000  # older than all we list, or newer
        if _as_number(self.ptx_version) > known:
            major, minor = first_cuda(self.ptx_version)
            raise KernelError(
                f"the kernel {self.name} is PTX {self.ptx_version}, newer than this driver, which supports "
                f"CUDA {cuda[0]}.{cuda[1]}. Install a driver for CUDA {major}.{minor} or later."
            )

    def to_json(self) -> str:
        """The metadata as they lie in a bundle."""
        content = {
            "schema_version": SCHEMA_VERSION,
            **{name: value for name, value in asdict(self).items() if name != "tile"},
            **self.tile,
            "grid": self.grid,
            "block": [self.threads, 1, 1],
            "arguments": [
                {key: value for key, value in asdict(argument).items() if value is not None}
                for argument in arguments(self.kernel, self.dtype)
            ],
        }
        return json.dumps(content, indent=1) + "\n"

    @staticmethod
    def from_json(text: str, where: str = "launch metadata") -> Launch:
        """Reads what `to_json` wrote.

        Raises:
            KernelError: it is no such JSON, or of another schema version.
        """
        try:
            content: Any = json.loads(text)
            if content["schema_version"] != SCHEMA_VERSION:
                raise KernelError(
                    f"{where} has schema version {content['schema_version']}, expected {SCHEMA_VERSION}; "
                    "compile the kernel again with this version."
                )
            if content["kernel"] not in _TILES:
                raise KernelError(f"{where} is of {content['kernel']!r}, expected {' or '.join(_TILES)}.")
            tile = {name: content[name] for name in _TILES[content["kernel"]]}
            own = {name: content[name] for name in Launch.__dataclass_fields__ if name != "tile"}
            return Launch(**own, tile=tile)
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, KernelError):
                raise
            raise KernelError(f"{where} is no launch metadata ({error!r}).") from error


def first_cuda(ptx_version: str) -> tuple[int, int]:
    """The first CUDA version, from 12.0, whose driver takes PTX of a version such as `8.0`."""
    return min(version for version, ptx in _CUDA_TO_PTX.items() if ptx >= _as_number(ptx_version))


def _as_number(ptx_version: str) -> int:
    major, minor = map(int, ptx_version.split("."))
    return major * 10 + minor


def check_shapes(
    current: Sequence[int], previous: Sequence[int], M: Sequence[int], P: Sequence[int], bias: Sequence[int]
) -> None:
    """Refuses shapes that do not fit each other, or a latent without 4 channels.

    Raises:
        KernelError: says which, and what was expected.
    """
    current, previous, M, P, bias = (tuple(shape) for shape in (current, previous, M, P, bias))
    if len(current) != 4 or current[1] != CHANNELS or 0 in current:
        raise KernelError(f"the current latent is {current}, expected (N,{CHANNELS},h,w), none of them 0.")
    if previous != current:
        raise KernelError(f"the previous latent is {previous}, expected {current} as the current one.")
    heads = M[0] if M else 0
    for name, shape, expected in (
        ("M", M, (heads, CHANNELS + 1, CHANNELS + 1)),
        ("P", P, (heads, CHANNELS, CHANNELS + 1)),
        ("bias", bias, (CHANNELS,)),
    ):
        if shape != expected or heads < 1:
            raise KernelError(f"{name} is {shape}, expected {expected} for a latent of {CHANNELS} channels.")


def read(path: Path) -> Launch:
    """The launch metadata in a file.

    Raises:
        KernelError: it cannot be read or is no launch metadata.
    """
    try:
        return Launch.from_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise KernelError(f"{path} cannot be read: {error}") from error
