"""The GPUs that the kernel is compiled for, and what is known about a card of each kind.

Figures: NVIDIA's CUDA C++ Programming Guide, "Compute Capabilities" (what an SM holds and issues), and the
data sheets of the cards (SMs, boost clock, memory bandwidth).
"""

from __future__ import annotations

from dataclasses import dataclass

from vsr_trt.kernels.errors import KernelError


@dataclass(frozen=True)
class Target:
    """A compute capability and a card that has it.

    Attributes:
        name: as compilers call it.
        capability: major and minor number in one, 89 for 8.9.
        ptx: the oldest PTX version that knows the target and that Triton writes, so that old drivers take it.
        card: whose figures the others are.
        multiprocessors: SMs of the card.
        clock: boost, in hertz.
        fp32_lanes: FP32 multiply-adds that an SM starts a cycle.
        warps, blocks: that may be resident on an SM.
        shared_memory: of an SM, in bytes.
        bandwidth: of the memory, in bytes a second.
    """

    name: str
    capability: int
    ptx: int
    card: str
    multiprocessors: int
    clock: float
    fp32_lanes: int
    warps: int
    blocks: int
    shared_memory: int
    bandwidth: float


_KB, _GB = 1024, 1e9
TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("sm_75", 75, 80, "Tesla T4", 40, 1.590e9, 64, 32, 16, 64 * _KB, 320 * _GB),
        Target("sm_80", 80, 80, "A100 SXM 40 GB", 108, 1.410e9, 64, 64, 32, 164 * _KB, 1555 * _GB),
        Target("sm_86", 86, 80, "GeForce RTX 3090", 82, 1.695e9, 128, 48, 16, 100 * _KB, 936 * _GB),
        Target("sm_89", 89, 80, "GeForce RTX 4090", 128, 2.520e9, 128, 48, 24, 100 * _KB, 1008 * _GB),
        Target("sm_90", 90, 80, "H100 SXM", 132, 1.980e9, 128, 64, 32, 228 * _KB, 3350 * _GB),
        Target("sm_100", 100, 86, "B200", 148, 1.965e9, 128, 64, 32, 228 * _KB, 8000 * _GB),
        Target("sm_120", 120, 87, "GeForce RTX 5090", 170, 2.407e9, 128, 48, 24, 100 * _KB, 1792 * _GB),
    )
}
REGISTERS = 65536  # 32-bit, of an SM of any target
SCHEDULERS = 4  # of an SM of any target; each starts one warp instruction a cycle


def find(name: str) -> Target:
    """The target called `name`.

    Raises:
        KernelError: the kernel is not compiled for it.
    """
    if name not in TARGETS:
        raise KernelError(f"there is no target {name!r}; the kernel is compiled for {', '.join(TARGETS)}.")
    return TARGETS[name]
