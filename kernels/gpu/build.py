"""Compiles the kernels ahead of time: PTX, cubin and launch metadata for a target, without a GPU."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vsr_trt.kernels.errors import KernelError
from vsr_trt.kernels.gpu import ptx
from vsr_trt.kernels.gpu.launch import ATTENTION, BLENDING, DType, Launch, arguments
from vsr_trt.kernels.gpu.store import Compiled, Parts, Store, kept
from vsr_trt.kernels.gpu.targets import Target, find

# 16 queries x 64 keys over 4 warps: 8 pairs a thread, whose 40 partial sums leave room in the registers for 3
# blocks on an SM, and 256 blocks for a 64x64 latent, enough for the largest cards. Twice the keys spill.
QUERIES = 16
KEYS = 64
WARPS = 4
# Top-k reads no sums while it searches, but the same tile keeps its scores the same.

# 4 pixels a thread, so that several reads are under way; a row of 1920 wastes 6 % of its last block.
PIXELS = 512

_SOURCES = {ATTENTION: "gated_topk/triton_kernel.py", BLENDING: "blend.py"}  # in the folder of the kernels
_OWN_ASSEMBLERS = (
    "TRITON_PTXAS_PATH",
    "TRITON_PTXAS_BLACKWELL_PATH",
)  # in place of those that Triton brings along


def is_available() -> bool:
    """Whether Triton is installed, which compiles the kernels (for Linux only)."""
    return find_spec("triton") is not None


def fingerprint(target: str, dtype: DType = "fp32", top_k: bool = False) -> str:
    """A hash of all that decides what `compile_kernel` makes: sources, compiler, arguments. Compiles nothing.

    Raises:
        KernelError: Triton is not installed.
    """
    _need_triton()
    state = hashlib.sha256(f"{importlib.metadata.version('triton')} {target} {dtype} {top_k}".encode())
    state.update(_sources(ATTENTION).encode())
    return state.hexdigest()


def _sources(kernel: str) -> str:
    """A hash of the kernel's source, and of the modules that compile it."""
    folder = Path(__file__).parent
    state = hashlib.sha256()
    for source in (folder.parent / _SOURCES[kernel], *sorted(folder.glob("*.py"))):
        state.update(source.read_bytes())
    return state.hexdigest()


def _parts(kernel: str, target: str, dtype: DType, top_k: bool) -> Parts:
    """All that decides what is made, by name."""
    own = {name: os.environ[name] for name in _OWN_ASSEMBLERS if name in os.environ}
    return {
        "network": kernel,  # what the cache calls the first column
        "backend": "triton",
        "version": importlib.metadata.version("triton"),
        "target": target,
        "precision": dtype,
        "flags": ["top_k"] if top_k else [],
        "sources": _sources(kernel),
        **own,
    }


def compile_kernel(
    target: str, dtype: DType = "fp32", top_k: bool = False, store: Store | None = None
) -> Compiled:
    """Compiles the attention's kernel; takes about a second.

    Args:
        target: a name of `targets.TARGETS`.
        dtype: of the latents.
        top_k: keep the k best scores of a query only.
        store: where it may be already, and is kept; None to compile it in any case.

    Raises:
        KernelError: unknown target or dtype, Triton is not installed, or what it made cannot be used.
    """
    chosen = find(target)
    if dtype not in ("fp32", "fp16"):
        raise KernelError(f"latents of {dtype} are not supported; expected fp32 or fp16.")
    _need_triton()

    def make() -> Compiled:
        from vsr_trt.kernels.gated_topk.triton_kernel import gated_topk_attention

        constants, tile = (
            {"TOP_K": top_k, "BLOCK_P": QUERIES, "BLOCK_Q": KEYS},
            {"queries": QUERIES, "keys": KEYS},
        )
        return _compile(gated_topk_attention, chosen, constants, tile, dtype, top_k)

    return _made(store, ATTENTION, chosen, dtype, top_k, make)


def compile_blending(target: str, store: Store | None = None) -> Compiled:
    """Compiles the kernel that blends tiles into a picture.

    Args:
        target: a name of `targets.TARGETS`.
        store: as for `compile_kernel`.

    Raises:
        KernelError: as `compile_kernel`.
    """
    chosen = find(target)
    _need_triton()

    def make() -> Compiled:
        from vsr_trt.kernels.blend import blend_tiles

        return _compile(blend_tiles, chosen, {"BLOCK": PIXELS}, {"pixels": PIXELS})

    return _made(store, BLENDING, chosen, "fp32", False, make)


def _made(
    store: Store | None, kernel: str, target: Target, dtype: DType, top_k: bool, make: Callable[[], Compiled]
) -> Compiled:
    if store is None:
        return make()
    return kept(store, _parts(kernel, target.name, dtype, top_k), make)


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


def compile_all(targets: Iterable[str], dtypes: Iterable[DType], top_k: bool) -> Iterable[Compiled]:
    """Compiles the attention's kernel for each target and type of latents, one after another."""
    chosen = list(dtypes)
    for target in targets:
        for dtype in chosen:
            yield compile_kernel(target, dtype, top_k)
