"""The machine code in a cubin: which instructions its loops run."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from vsr_trt.kernels.errors import KernelError

_LABEL = re.compile(r"^\s*(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)([^;]*);")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")


@dataclass(frozen=True)
class Loop:
    """A loop: how often each instruction stands in it; `own` leaves out those of loops inside it."""

    start: int
    end: int
    own: Counter[str]
    innermost: bool

    @property
    def instructions(self) -> int:
        """How many `own` has."""
        return self.own.total()


def disassemble(cubin: bytes) -> list[tuple[str, str]]:
    """The code as (mnemonic, label it stands at or branches to, or ""), in order; labels as ("", label).

    Raises:
        KernelError: Triton's nvdisasm refuses the binary.
    """
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [Path(knobs.nvidia.ptxas.path).with_name("nvdisasm"), "-c", file.name],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise KernelError(f"nvdisasm refuses the kernel: {done.stderr.strip()}")
    code = []
    for line in done.stdout.splitlines():
        if label := _LABEL.match(line):
            code.append(("", label[1]))
        elif found := _INSTRUCTION.match(line):
            goal = _TARGET.search(found[2])
            code.append((found[1], goal[1] if goal else ""))
    return code


def loops(code: list[tuple[str, str]]) -> list[Loop]:
    """The loops of the code, outer ones before those inside them."""
    places = {label: index for index, (name, label) in enumerate(code) if not name}
    spans = sorted(
        {
            (places[goal], index)
            for index, (name, goal) in enumerate(code)
            if name == "BRA" and goal in places and places[goal] < index - 1
        },
        key=lambda span: (span[0], -span[1]),
    )
    found = []
    for start, end in spans:
        inside = [span for span in spans if span != (start, end) and start <= span[0] and span[1] <= end]
        own = Counter(
            name
            for index, (name, _) in enumerate(code[start : end + 1], start)
            if name and not any(first <= index <= last for first, last in inside)
        )
        found.append(Loop(start, end, own, not inside))
    return found
