"""PTX as text: Triton's hidden parameters removed, the result assembled.

Triton appends parameters of its own to every kernel (scratch memory and profiling). A plugin or a host passes
the declared arguments only, so hidden ones would be left unset: they are cut off, after making sure that
nothing reads them.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vsr_trt.kernels.errors import KernelError

_ENTRY = re.compile(r"(\.entry\s+(\w+)\(\n)(.*?)(\n\))", re.DOTALL)
_VERSION = re.compile(r"^\.version (\d+)\.(\d+)", re.MULTILINE)
_BLACKWELL = 100
_TARGET = re.compile(r"^\.target (sm_\d+)a?\b", re.MULTILINE)


@dataclass(frozen=True)
class Assembled:
    """What ptxas made: the binary, registers a thread, bytes spilled (stores and loads), ptxas' version."""

    cubin: bytes
    registers: int
    spilled: int
    ptxas: str


def parameters(ptx: str) -> list[str]:
    """The entry's parameters in order, as `.u32`, `.u64`, ...

    Raises:
        KernelError: there is not exactly one entry.
    """
    return [declaration.split()[1] for declaration in _declarations(_entry(ptx)[3])]


def declared_only(ptx: str, count: int) -> str:
    """The PTX with the first `count` parameters of its entry, for every GPU of the target.

    Raises:
        KernelError: there are fewer, or the body reads one that would go.
    """
    entry = _entry(ptx)
    declarations = _declarations(entry[3])
    if len(declarations) < count:
        raise KernelError(
            f"the kernel {entry[2]} has {len(declarations)} parameters, expected {count} or more"
        )
    for declaration in declarations[count:]:
        name = declaration.split()[-1]
        if re.search(rf"\b{name}\b", ptx[entry.end() :]):
            raise KernelError(
                f"the kernel {entry[2]} reads its hidden parameter {name}; it cannot be removed"
            )
    kept = ",\n".join(f"\t{declaration}" for declaration in declarations[:count])
    cut = ptx[: entry.start(3)] + kept + ptx[entry.end(3) :]
    # sm_90a and the like run on that one chip only; nothing in the kernel needs more than the plain target
    return _TARGET.sub(r".target \1", cut)


def version(ptx: str) -> tuple[int, int]:
    """The PTX version that the text is written in."""
    found = _VERSION.search(ptx)
    if found is None:
        raise KernelError("this is no PTX: it has no .version")
    return int(found[1]), int(found[2])


def target(ptx: str) -> str:
    """The target that the text is written for, without the `a` of an architecture's own features."""
    found = _TARGET.search(ptx)
    if found is None:
        raise KernelError("this is no PTX: it has no .target")
    return found[1]


def assemble(ptx: str) -> Assembled:
    """Runs a ptxas that Triton brings along: that of CUDA 12.9 up to sm_90, whose binaries drivers of CUDA 12 take.

    For Blackwell it is that of CUDA 13: 12.9 makes one multiply-add of a packed product and a packed sum, although both
    are to be rounded (`mul.rn.f32x2`, `add.rn.f32x2`; also with --fmad=false), which changes results. There the headers
    of what both make are alike.

    Raises:
        KernelError: ptxas refuses the text; the message is its own.
    """
    from triton import knobs

    arch = target(ptx)
    tool = knobs.nvidia.ptxas if int(arch[3:]) < _BLACKWELL else knobs.nvidia.ptxas_blackwell
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx, encoding="utf-8")
        done = subprocess.run(
            [tool.path, "-v", f"-arch={arch}", source, "-o", binary],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise KernelError(f"ptxas refuses the kernel for {arch}: {done.stderr.strip()}")
        cubin = binary.read_bytes()
    registers = re.search(r"Used (\d+) registers", done.stderr)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr)
    if registers is None or not spills:
        raise KernelError(f"ptxas did not say what the kernel uses: {done.stderr.strip()}")
    return Assembled(cubin, int(registers[1]), sum(map(int, spills)), str(tool.version))


def _entry(ptx: str) -> re.Match[str]:
    entries = list(_ENTRY.finditer(ptx))
    if len(entries) != 1:
        raise KernelError(f"expected PTX with one kernel, found {len(entries)}")
    return entries[0]


def _declarations(text: str) -> list[str]:
    return [line.strip().rstrip(",") for line in text.splitlines() if line.strip()]
