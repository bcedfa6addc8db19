"""How long the attention's kernel should take on a card it never ran on, from its instructions.

The model, for every target alike:

* A scheduler starts one warp instruction a cycle. FP32 adds, multiplies and multiply-adds of a warp occupy its
  FP32 lanes for 32 / (lanes of the SM / 4) cycles, paired ones twice as long; minima, compares, selects and integer
  instructions occupy its 16 other lanes for 2. The three go on side by side: a loop takes as long as the one that
  takes longest.
* A block's 4 warps run on the 4 schedulers of an SM. Blocks are dealt out evenly, so an SM runs
  ceil(blocks / SMs) of them, and the launch ends with the SM that has most.
* A head costs ceil(positions / keys of a tile) turns of the inner loop, and the instructions around it once.
* With top-k, a head costs up to 31 turns of the search before it; that is the figure given, an upper bound.
* The memory moves the latents once, at its full bandwidth. It never binds.

Left out: waiting for the keys (they come from L1 and L2), launch overhead, clocks below boost. A figure of this
model is a lower bound that was computed. Nothing here was measured.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from vsr_trt.kernels.gpu.build import Compiled
from vsr_trt.kernels.gpu.launch import CHANNELS, Launch
from vsr_trt.kernels.gpu.sass import Loop, disassemble, loops
from vsr_trt.kernels.gpu.targets import REGISTERS, SCHEDULERS, Target, find

HEADS = 9  # of the published module
SEARCH_TURNS = 31  # bisections between 0 and the bits behind infinity
# A pair of positions and a head: 4 multiply-adds, a maximum, 4 multiply-adds, an addition.
FLOP_PER_PAIR = 18

# Operations of a thread in one instruction; Blackwell's paired ones do two, in twice the time.
_FP32 = {"FFMA": 1, "FADD": 1, "FMUL": 1, "FFMA2": 2, "FADD2": 2, "FMUL2": 2}
_ELSEWHERE = ("LDG", "LDS", "STS", "STG", "BRA", "BAR", "S2R", "S2UR", "SHFL", "LDC", "EXIT", "NOP", "DEPBAR")
_UNIFORM = "U"  # the uniform datapath's instructions: a warp's, not a thread's


@dataclass(frozen=True)
class Prediction:
    """What the model says of a launch.

    Attributes:
        height, width: of the latent.
        seconds: of the launch.
        bound: what the inner loop waits for: `issue`, `fp32` or `other lanes`.
        intensity: FP32 operations for a byte from or to the card's memory.
    """

    height: int
    width: int
    seconds: float
    bound: str
    intensity: float


@dataclass(frozen=True)
class Row:
    """One line of the report.

    Attributes:
        launch: registers, spills and shared memory are in it.
        card: whose figures the predictions use.
        blocks, occupancy: that an SM holds, and the share of its warps that these are.
        loop: instructions of the inner loop by kind, and `pairs` of positions that a turn of it covers a thread.
        pairs: see `loop`.
        predictions: by size.
    """

    launch: Launch
    card: str
    blocks: int
    occupancy: float
    loop: Counter[str]
    pairs: int
    predictions: tuple[Prediction, ...]


def analyse(compiled: Compiled, sizes: tuple[tuple[int, int], ...], heads: int = HEADS) -> Row:
    """What is known of a compiled kernel without running it.

    Args:
        compiled: the kernel.
        sizes: latents, (height, width).
        heads: of the attention.

    Raises:
        KernelError: the binary cannot be taken apart.
    """
    launch = compiled.launch
    target = find(launch.target)
    found = loops(disassemble(compiled.cubin))
    inner = max((loop for loop in found if loop.innermost), key=lambda loop: _fp32_operations(loop.own))
    return Row(
        launch=launch,
        card=target.card,
        blocks=resident_blocks(launch, target),
        occupancy=occupancy(launch),
        loop=inner.own,
        pairs=launch.tile["queries"] * launch.tile["keys"] // launch.threads,
        predictions=tuple(_predict(launch, target, found, inner, size, heads) for size in sizes),
    )


def resident_blocks(launch: Launch, target: Target) -> int:
    """Blocks that an SM holds at once: registers go by 256 a warp, shared memory by KB, 1 KB of it is the system's."""
    warps = launch.threads // 32
    registers = -(-launch.registers * 32 // 256) * 256 * warps
    shared = -(-launch.shared_memory // 1024) * 1024 + 1024
    return min(REGISTERS // registers, target.warps // warps, target.blocks, target.shared_memory // shared)


def occupancy(launch: Launch) -> float:
    """The share of an SM's warps that the blocks are which it holds at once."""
    target = find(launch.target)
    return resident_blocks(launch, target) * launch.threads / 32 / target.warps


def _predict(
    launch: Launch, target: Target, found: list[Loop], inner: Loop, size: tuple[int, int], heads: int
) -> Prediction:
    height, width = size
    positions = height * width
    turns = -(-positions // launch.tile["keys"])
    cycles, bound = _cycles(inner.own, target)
    others = sum(_cycles(loop.own, target)[0] for loop in found if not loop.innermost)
    head = turns * cycles + others
    if launch.top_k:
        searching = [loop for loop in found if loop.innermost and loop is not inner]
        head += SEARCH_TURNS * turns * sum(_cycles(loop.own, target)[0] for loop in searching)
    blocks, _, _ = launch.blocks(pictures=1, positions=positions)
    busiest = -(-blocks // target.multiprocessors)
    warps_per_scheduler = launch.threads / 32 / SCHEDULERS
    computing = busiest * warps_per_scheduler * heads * head / target.clock
    latent = CHANNELS * positions * (4 if launch.dtype == "fp32" else 2)
    moving = 3 * latent / target.bandwidth
    return Prediction(
        height,
        width,
        max(computing, moving),
        bound if computing >= moving else "memory",
        FLOP_PER_PAIR * heads * positions**2 / (3 * latent),
    )


def _fp32_operations(instructions: Counter[str]) -> int:
    return sum(_FP32.get(name, 0) * count for name, count in instructions.items())


def _cycles(instructions: Counter[str], target: Target) -> tuple[float, str]:
    """Cycles of a scheduler for one warp, and what they are spent on."""
    others = sum(
        count
        for name, count in instructions.items()
        if name not in _FP32 and name not in _ELSEWHERE and not name.startswith(_UNIFORM)
    )
    costs = {
        "issue": float(instructions.total()),
        "fp32": _fp32_operations(instructions) * 32 / (target.fp32_lanes / SCHEDULERS),
        "other lanes": others * 2.0,
    }
    bound = max(costs, key=lambda name: costs[name])
    return costs[bound], bound
