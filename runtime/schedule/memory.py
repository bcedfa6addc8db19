"""How much memory a schedule takes, and where, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vsr_trt.runtime.schedule.graph import Schedule

ALIGNMENT = 512
"""Bytes: what TensorRT asks for of the memory that its contexts work in, on some GPUs. Buffers begin at multiples."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes.

    Attributes:
        slot: of one slot's buffers.
        slots: how many of those there are.
        shared: of what passes between frames, and of constants.
        scratch: that networks work in, by buffer; lanes that never overlap share one.
        weights: of the networks, by network.
        pinned: staging memory of the host, of all slots.
    """

    slot: int
    slots: int
    shared: int
    scratch: Mapping[str, int]
    weights: Mapping[str, int]
    pinned: int

    @property
    def device(self) -> int:
        """All that the device needs."""
        return self.slot * self.slots + self.shared + sum(self.scratch.values()) + sum(self.weights.values())


def add_up(schedule: Schedule, scratch: Mapping[str, int], weights: Mapping[str, int]) -> MemoryPlan:
    """Adds up a schedule's buffers.

    Args:
        schedule: whose buffers they are.
        scratch: network -> bytes that it works in; what is not named needs none of ours.
        weights: network -> bytes of its weights on the device.
    """
    totals = dict.fromkeys(("slot", "state", "constant", "staging"), 0)
    for buffer in schedule.buffers.values():
        if buffer.kind != "scratch":
            totals[buffer.kind] += buffer.bytes
    networks = {step.network for step in schedule.steps if step.network}
    return MemoryPlan(
        totals["slot"],
        schedule.slots,
        totals["state"] + totals["constant"],
        _scratch_sizes(schedule, scratch),
        {name: size for name, size in weights.items() if name in networks},
        totals["staging"] * schedule.slots,
    )


def handed_on(schedule: Schedule, frames: int) -> int:
    """Bytes a frame of what a phase's schedule, for windows of so many frames, hands on to later ones."""
    return sum(schedule.buffers[port.buffer].bytes // frames for port in schedule.gives.values())


def arrange(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Offsets of buffers one after another, and the bytes of all."""
    offsets, end = {}, 0
    for name, size in sizes.items():
        offsets[name] = end
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, end


def amount(size: int) -> str:
    """Writes a number of bytes for people: three digits, in GB, MB or kB."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            value = size / unit
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {name}"
    return f"{size} bytes"


def _scratch_sizes(schedule: Schedule, scratch: Mapping[str, int]) -> dict[str, int]:
    """Bytes of each scratch buffer: as much as the network that needs most of those that share it."""
    sizes: dict[str, int] = {}
    for step in schedule.steps:
        if step.workspace is not None and step.network is not None:
            need = scratch.get(step.network, 0)
            sizes[step.workspace] = max(sizes.get(step.workspace, 0), need)
    return sizes


def slot_arrays(
    schedule: Schedule, constants: Mapping[str, np.ndarray], filling: int = 0
) -> list[dict[str, np.ndarray]]:
    """The buffers as arrays, for each slot by name; slots share those of which there is one.

    Args:
        schedule: whose buffers they are; scratch has no array.
        constants: arrays of its constants.
        filling: every byte of what was not written yet.

    Raises:
        MemoryError: there is not enough.
    """
    shared: dict[str, np.ndarray] = {}
    slots: list[dict[str, np.ndarray]] = [{} for _ in range(schedule.slots)]
    for name, buffer in schedule.buffers.items():
        if buffer.kind == "scratch":
            continue
        if buffer.kind == "constant":
            shared[name] = constants[name]
        elif buffer.each_slot:
            for slot in slots:
                slot[name] = _filled(buffer.shape, buffer.dtype, filling)
        else:
            shared[name] = _filled(buffer.shape, buffer.dtype, filling)
    return [slot | shared for slot in slots]


def _filled(shape: tuple[int, ...], dtype: str, filling: int) -> np.ndarray:
    array = np.empty(shape, dtype)
    array.reshape(-1).view(np.uint8)[...] = filling
    return array
