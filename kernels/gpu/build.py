"""Compiles the kernels ahead of time: PTX, cubin and launch metadata for a target, without a GPU."""

from __future__ import annotations

import hashlib
import importlib.metadata
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vsr_trt.kernels.errors import KernelError
from vsr_trt.kernels.gpu import ptx
from vsr_trt.kernels.gpu.launch import DType, Launch, arguments
from vsr_trt.kernels.gpu.targets import Target, find

# 16 queries x 64 keys over 4 warps: 8 pairs a thread, whose 40 partial sums leave room in the registers for 3
# blocks on an SM, and 256 blocks for a 64x64 latent, enough for the largest cards. Twice the keys spill.
QUERIES = 16
KEYS = 64
WARPS = 4
# Top-k reads no sums while it searches, but the same tile keeps its scores the same.

# 4 pixels a thread, so that several reads are under way; a row of 1920 wastes 6 % of its last block.
PIXELS = 512


@dataclass(frozen=True)
class Compiled:
    """A kernel for one target: its launch metadata, PTX and binary."""

    launch: Launch
    ptx: str
    cubin: bytes


def is_available() -> bool:
    """Whether Triton is installed, which compiles the kernels (for Linux only)."""
    return find_spec("triton") is not None


def fingerprint(target: str, dtype: DType = "fp32", top_k: bool = False) -> str:
    """A hash of all that decides what `compile_kernel` makes: sources, compiler, arguments. Compiles nothing.

    Raises:
        KernelError: Triton is not installed.
    """
    _need_triton()
    folder = Path(__file__).parent
    sources = (folder.parent / "gated_topk" / "triton_kernel.py", *sorted(folder.glob("*.py")))
    state = hashlib.sha256(f"{importlib.metadata.version('triton')} {target} {dtype} {top_k}".encode())
    for source in sources:
        state.update(source.read_bytes())
    return state.hexdigest()


def compile_kernel(target: str, dtype: DType = "fp32", top_k: bool = False) -> Compiled:
    """Compiles the attention's kernel; takes about a second.

    Args:
        target: a name of `targets.TARGETS`.
        dtype: of the latents.
        top_k: keep the k best scores of a query only.

    Raises:
        KernelError: unknown target or dtype, Triton is not installed, or what it made cannot be used.
    """
    chosen = find(target)
    if dtype not in ("fp32", "fp16"):
        raise KernelError(f"latents of {dtype} are not supported; expected fp32 or fp16.")
    _need_triton()
    from vsr_trt.kernels.gated_topk.triton_kernel import gated_topk_attention

    constants = {"TOP_K": top_k, "BLOCK_P": QUERIES, "BLOCK_Q": KEYS}
    return _compile(gated_topk_attention, chosen, constants, {"queries": QUERIES, "keys": KEYS}, dtype, top_k)


def compile_blending(target: str) -> Compiled:
    """Compiles the kernel that blends tiles into a picture.

    Raises:
        KernelError: as `compile_kernel`.
    """
    chosen = find(target)
    _need_triton()
    from vsr_trt.kernels.blend import blend_tiles

    return _compile(blend_tiles, chosen, {"BLOCK": PIXELS}, {"pixels": PIXELS})


def _need_triton() -> None:
    if not is_available():
        raise KernelError(
            "Triton is not installed, which compiles the kernel. Install it with: pip install 'vsr-trt[build]' "
            "(on Linux; it exists for no other system)."
        )


def _compile(
    function: Any,
    chosen: Target,
    constants: Mapping[str, int],
    tile: Mapping[str, int],
    dtype: DType = "fp32",
    top_k: bool = False,
) -> Compiled:
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if not hasattr(function, "src"):
        raise KernelError(
            "TRITON_INTERPRET is set: Triton interprets the kernel and cannot compile it. Unset it."
        )
    declared = arguments(function.__name__, dtype)
    types = {"int32": "i32"}  # as Triton calls them, where it has a name of its own
    signature = {
        argument.name: f"*{types.get(argument.element, argument.element)}" if argument.element else "i32"
        for argument in declared
    }
    source = ASTSource(function, signature | dict.fromkeys(constants, "constexpr"), dict(constants))
    with knobs.compilation.scope(), knobs.cache.scope(), tempfile.TemporaryDirectory() as temporary:
        knobs.compilation.disable_line_info = True  # else the PTX names files of this machine
        if not Path(knobs.cache.dir).is_absolute():  # no home: else a folder ~ in the working directory
            knobs.cache.dir = temporary
        try:
            made = triton.compile(
                source,
                target=GPUTarget("cuda", chosen.capability, 32),
                # sums are multiply-adds where the kernel says so, and nowhere else
                options={"num_warps": WARPS, "ptx_version": chosen.ptx, "enable_fp_fusion": False},
            )
        except OSError as error:
            raise KernelError(
                f"Triton cannot keep what it compiles in {knobs.cache.dir} ({error.strerror or error}); name another "
                "folder in the variable TRITON_CACHE_DIR."
            ) from error
    text = ptx.declared_only(made.asm["ptx"], len(declared))
    assembled = ptx.assemble(text)
    launch = Launch(
        kernel=made.metadata.name,
        target=chosen.name,
        dtype=dtype,
        top_k=top_k,
        ptx_version=".".join(map(str, ptx.version(text))),
        tile=tile,
        threads=32 * made.metadata.num_warps,
        shared_memory=made.metadata.shared,
        registers=assembled.registers,
        spilled=assembled.spilled,
        triton=triton.__version__,
        ptxas=assembled.ptxas,
        files={},
    )
    contents = {"ptx": text.encode(), "cubin": assembled.cubin}
    files = {
        kind: {"name": f"{launch.name}.{kind}", "sha256": hashlib.sha256(content).hexdigest()}
        for kind, content in contents.items()
    }
    return Compiled(replace(launch, files=files), text, assembled.cubin)


def write(compiled: Compiled, folder: Path) -> list[Path]:
    """Writes PTX, cubin and launch metadata into an existing folder; the metadata's path comes first."""
    launch = compiled.launch
    written = [folder / f"{launch.name}.json"]
    written[0].write_text(launch.to_json(), encoding="utf-8")
    for kind, content in (("ptx", compiled.ptx.encode()), ("cubin", compiled.cubin)):
        written.append(folder / launch.files[kind]["name"])
        written[-1].write_bytes(content)
    return written


def compile_all(targets: Iterable[str], dtypes: Iterable[DType], top_k: bool) -> Iterable[Compiled]:
    """Compiles the attention's kernel for each target and type of latents, one after another."""
    chosen = list(dtypes)
    for target in targets:
        for dtype in chosen:
            yield compile_kernel(target, dtype, top_k)
