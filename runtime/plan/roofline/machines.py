"""Peak rates of machines: published ones of GPUs, and this machine's, measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.machine.processor import available_cores

THIS_MACHINE = "this-machine"
ALL = "all"
_SECONDS = 1.0  # that each of the two measurements takes
_SIDES = (512, 1024, 2048)  # of the matrices
_COPIED = 1 << 28  # bytes: larger than caches


@dataclass(frozen=True)
class Machine:
    """What a machine can do at most.

    Attributes:
        name: as users write it.
        card: which one of that name the figures are of.
        fp16: operations a second (a multiply-add is two) of FP16 products whose sums are FP32, on dense matrices,
            by the tensor cores; None where there is no such unit.
        fp32: the same for FP32, without tensor cores.
        bandwidth: of the memory, bytes a second.
        source: where the figures are published.
        measured: whether they were measured, here and now, instead.
    """

    name: str
    card: str
    fp16: float | None
    fp32: float
    bandwidth: float
    source: str
    measured: bool = False


_T, _G = 1e12, 1e9
_ADA = "NVIDIA Ada GPU Architecture whitepaper, appendix A"
# FP16 is with FP32 sums, which GeForce cards do at half the rate of FP16 sums, and dense: data sheets
# often print twice that, for sparse matrices. The cards are those of kernels/gpu/targets.py where both have one.
MACHINES: dict[str, Machine] = {
    machine.name: machine
    for machine in (
        Machine(
            "T4", "Tesla T4", 65 * _T, 8.1 * _T, 320 * _G,
            "NVIDIA T4 data sheet; mixed precision FP16/FP32",
        ),
        Machine(
            "A100", "A100 SXM 80 GB", 312 * _T, 19.5 * _T, 2039 * _G,
            "NVIDIA A100 data sheet",
        ),
        Machine(
            "A100-40GB", "A100 SXM 40 GB", 312 * _T, 19.5 * _T, 1555 * _G,
            "NVIDIA A100 Tensor Core GPU Architecture whitepaper",
        ),
        Machine(
            "RTX3090", "GeForce RTX 3090", 71 * _T, 35.6 * _T, 936 * _G,
            "NVIDIA Ampere GA102 GPU Architecture whitepaper, appendix A",
        ),
        Machine(
            "RTX4070", "GeForce RTX 4070", 58.3 * _T, 29.15 * _T, 504 * _G,
            "computed as the Ada whitepaper does: 46 SMs x 512 (FP16), 256 (FP32) operations a cycle x 2.475 GHz "
            "boost; cores, clock and bandwidth from NVIDIA's product page",
        ),
        Machine("RTX4090", "GeForce RTX 4090", 165.2 * _T, 82.6 * _T, 1008 * _G, _ADA),
        Machine("L4", "L4", 121 * _T, 30.3 * _T, 300 * _G, "NVIDIA L4 data sheet; half of the sparse FP16 figure"),
        Machine("L40S", "L40S", 362.05 * _T, 91.6 * _T, 864 * _G, "NVIDIA L40S data sheet"),
        Machine(
            "H100", "H100 SXM", 989.4 * _T, 66.9 * _T, 3350 * _G,
            "NVIDIA H100 Tensor Core GPU Architecture whitepaper; bandwidth from the data sheet",
        ),
        Machine(
            "H200", "H200 SXM", 989.5 * _T, 67 * _T, 4800 * _G,
            "NVIDIA H200 data sheet; half of the sparse FP16 figure",
        ),
        Machine(
            "RTX5090", "GeForce RTX 5090", 209.5 * _T, 104.8 * _T, 1792 * _G,
            "NVIDIA RTX Blackwell GPU Architecture whitepaper",
        ),
    )
}  # fmt: skip


def find(names: str) -> tuple[Machine, ...]:
    """The machines that a user names, e.g. `rtx4090,H100`; `this-machine` is measured; `all` are the GPUs.

    Upper and lower case, spaces, dashes and underscores make no difference.

    Raises:
        InputError: there is none of that name.
    """
    known = {_plain(name): name for name in (*MACHINES, THIS_MACHINE, ALL)}
    found: dict[str, Machine] = {}
    for asked in names.split(","):
        name = known.get(_plain(asked))
        if name is None:
            raise InputError(
                f"there are no figures of {asked.strip()!r}; expected {', '.join(known.values())}."
            )
        if name == ALL:
            found |= MACHINES
        elif name in MACHINES:
            found[name] = MACHINES[name]
        elif name not in found:
            found[name] = measure_here()
    return tuple(found.values())


# As drivers call the cards that the figures are of; others of nearly the same name have other figures.
_CALLED = {
    "Tesla T4": "T4",
    "NVIDIA A100-SXM4-80GB": "A100",
    "NVIDIA A100-SXM4-40GB": "A100-40GB",
    "NVIDIA GeForce RTX 3090": "RTX3090",
    "NVIDIA GeForce RTX 4070": "RTX4070",
    "NVIDIA GeForce RTX 4090": "RTX4090",
    "NVIDIA L4": "L4",
    "NVIDIA L40S": "L40S",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H200": "H200",
    "NVIDIA GeForce RTX 5090": "RTX5090",
}


def called(gpu: str) -> str | None:
    """The machine of `MACHINES` that a driver calls so; None where there are no figures of it."""
    return _CALLED.get(gpu)


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character not in " -_")


def measure_here(seconds: float = _SECONDS) -> Machine:
    """This machine's processor: FP32 matrix products and copies in memory, the best of many of each.

    Args:
        seconds: how long each of the two is tried.
    """
    cores = available_cores()
    with ThreadPoolExecutor(cores) as pool:
        bandwidth = _best([_copy(pool, cores)], seconds)
    return Machine(
        THIS_MACHINE,
        f"this machine's processor, {cores} cores",
        None,
        matrix_rate(seconds),
        bandwidth,
        f"numpy's FP32 matrix products up to {_SIDES[-1]} a side, copies of {_COPIED >> 20} MB",
        measured=True,
    )


def matrix_rate(seconds: float = _SECONDS) -> float:
    """FP32 matrix products that numpy computes here, in operations a second: the best of many.

    Args:
        seconds: how long it is tried.
    """
    return _best([_product(side) for side in _SIDES], seconds)


Job = tuple[float, Callable[[], object]]
"""An amount of work, and what does it."""


def _best(jobs: Sequence[Job], seconds: float) -> float:
    """The highest rate that any of the jobs is done at; each is tried for its part of the time."""
    best = 0.0
    for amount, work in jobs:
        work()  # pages are touched, threads started
        end = time.perf_counter() + seconds / len(jobs)
        now = 0.0
        while now < end:
            started = time.perf_counter()
            work()
            now = time.perf_counter()
            best = max(best, amount / (now - started))
    return best


def _product(side: int) -> Job:
    matrix = np.full((side, side), 0.5, np.float32)
    return 2.0 * side**3, partial(np.matmul, matrix, matrix, out=np.empty_like(matrix))


def _copy(pool: ThreadPoolExecutor, threads: int) -> Job:
    """All threads at once, for one seldom fills the bandwidth. A byte that is copied is read and written."""
    source = np.ones(_COPIED // 4, np.float32)  # zeros would all be the same page of memory
    parts = [np.array_split(array, threads) for array in (np.empty_like(source), source)]
    return 2.0 * source.nbytes, lambda: list(pool.map(np.copyto, *parts))
