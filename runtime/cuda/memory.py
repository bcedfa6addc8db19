"""Where a schedule's buffers lie on the device: one allocation a slot, one for what slots share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vsr_trt.runtime.cuda.driver import Owned
from vsr_trt.runtime.schedule.graph import Schedule
from vsr_trt.runtime.schedule.memory import ALIGNMENT, arrange


@dataclass(frozen=True)
class Addresses:
    """Addresses of the buffers.

    Attributes:
        slots: buffer -> address, for each slot; shared ones are in all of them.
        scratch: scratch buffer -> its address and size.
        bytes: allocated in all.
    """

    slots: tuple[Mapping[str, int], ...]
    scratch: Mapping[str, tuple[int, int]]
    bytes: int


def allocate(schedule: Schedule, scratch: Mapping[str, int], owned: Owned) -> Addresses:
    """Allocates all buffers of a schedule but the staging ones.

    Args:
        schedule: whose buffers they are.
        scratch: scratch buffer -> bytes.
        owned: what gives them back.

    Raises:
        CudaError: not enough memory.
    """
    each = {name: b.bytes for name, b in schedule.buffers.items() if b.kind == "slot"}
    shared = {name: b.bytes for name, b in schedule.buffers.items() if b.kind in ("state", "constant")}
    # at least one byte of each, which CUDA insists on
    (offsets, size), (common_offsets, common_size) = (
        (places, max(end, ALIGNMENT)) for places, end in map(arrange, (each, shared | dict(scratch)))
    )
    common = owned.memory(common_size)
    at = {name: common + offset for name, offset in common_offsets.items()}
    slots = []
    for _ in range(schedule.slots):
        base = owned.memory(size)
        own = {name: base + offset for name, offset in offsets.items()}
        slots.append(own | {name: at[name] for name in shared})
    return Addresses(
        tuple(slots),
        {name: (at[name], need) for name, need in scratch.items()},
        common_size + size * schedule.slots,
    )
