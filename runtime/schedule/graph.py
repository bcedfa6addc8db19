"""A schedule as data: what happens to a frame, in which buffers, on which lanes.

A schedule is written for one frame and holds for all: frame n's steps use the buffers of slot n modulo the
number of slots, and `state` buffers pass from one frame to the next. What must wait for what follows from the
buffers alone; see `runtime.schedule.events`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Kind = Literal["slot", "state", "constant", "scratch", "staging"]
"""Kind of a buffer: see `Buffer`."""

Action = Literal["receive", "upload", "network", "cut", "blend", "copy", "frames", "download", "deliver"]
"""What a step does:

- receive: the host puts a frame into a staging buffer; deliver: it takes a result out of one.
- upload, download: a copy between a staging buffer and a buffer of the device.
- network: runs a network on whole buffers, or on a part of their batch (see `Step.part`).
- cut: gathers the tiles of a picture into a batch; blend: makes a picture of the batch again.
- copy: one buffer into another of the same size; frames: some frames of one into another (see `Step.span`).
"""


@dataclass(frozen=True)
class Lane:
    """A queue whose steps run in order: a CUDA stream, a thread, or the host's own order of doing things.

    Attributes:
        name: unique.
        host: whether the host itself does the steps, and no stream.
    """

    name: str
    host: bool = False


@dataclass(frozen=True)
class Buffer:
    """A piece of memory.

    Attributes:
        name: unique.
        shape, dtype: as numpy understands them; an opaque one is bytes.
        kind: `slot`, one for each slot; `state`, a single one that passes from frame to frame; `constant`,
            a single one that no step writes; `scratch`, a single one whose content means nothing between steps;
            `staging`, one for each slot, in memory of the host that a device reaches.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: Kind = "slot"

    @property
    def bytes(self) -> int:
        """Bytes of one copy."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def each_slot(self) -> bool:
        """Whether every slot has one of its own."""
        return self.kind in ("slot", "staging")


@dataclass(frozen=True)
class Grid:
    """How a picture is cut: where tiles begin, and their size, in latents.

    Attributes:
        tops, lefts: of the rows and columns of tiles; tile t is at row t // len(lefts).
        height, width: of every tile.
        overlap: that the window is made for.
        window: `gaussian` or `ramp`, see `runtime.schedule.tiling.window`.
    """

    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    height: int
    width: int
    overlap: int
    window: Literal["gaussian", "ramp"]

    @property
    def tiles(self) -> int:
        """How many."""
        return len(self.tops) * len(self.lefts)


@dataclass(frozen=True)
class FrameSpan:
    """Frames that are copied from buffer to buffer.

    Attributes:
        axis: of both buffers, along which frames are counted. The target of a single row may lack it, if it is 0.
        source, target: the first one, in the one and in the other.
        count: how many.
    """

    axis: int
    source: int
    target: int
    count: int


@dataclass(frozen=True)
class Port:
    """A staging buffer through which something comes in or goes out with each window.

    Attributes:
        buffer: its name.
        axis: of the buffer, along which a window's frames are counted.
    """

    buffer: str
    axis: int = 0


@dataclass(frozen=True)
class Step:
    """One thing done to a frame.

    Attributes:
        name: unique.
        action: what is done.
        lane: on which lane; steps of a lane run in the order of the schedule.
        reads, writes: the network's or action's names for its operands -> buffers.
        stage: of the manifest, for whoever adds up times; the step's name for those that are of none.
        network: that is run, for the action `network`.
        part: first and last + 1 of the pictures in the batch that a network takes; None for all.
        grid: for cut and blend.
        span: for frames.
        factor: numbers of the operand for one latent each way, for cut and blend.
        workspace: the scratch buffer that the step works in, None for none. A device may size it.
        first: done only where a frame has no predecessor.
    """

    name: str
    action: Action
    lane: str
    reads: Mapping[str, str]
    writes: Mapping[str, str]
    stage: str
    network: str | None = None
    part: tuple[int, int] | None = None
    grid: Grid | None = None
    factor: int = 1
    workspace: str | None = None
    first: bool = False
    span: FrameSpan | None = None

    @property
    def is_partial(self) -> bool:
        """Whether it writes a part of its buffers, and leaves the rest as it is."""
        return self.part is not None or self.span is not None

    def accesses(self) -> Iterator[tuple[str, bool]]:
        """The buffers that the step touches, and whether it writes them."""
        for buffer in dict.fromkeys(self.reads.values()):
            yield buffer, False
        for buffer in dict.fromkeys(self.writes.values()):
            yield buffer, True
        if self.workspace is not None:
            yield self.workspace, True


@dataclass(frozen=True)
class Schedule:
    """Everything that happens to a frame, in an order in which the host may ask for it.

    Attributes:
        lanes: by name.
        buffers: by name.
        steps: in order; a step comes after all that it needs of the same frame.
        slots: how many frames may be under way at once.
        takes, gives: what comes in with a window and what goes out, by the manifest's names.
        last: whether what goes out are the restored frames, and not what another phase goes on with.
    """

    lanes: dict[str, Lane]
    buffers: dict[str, Buffer]
    steps: tuple[Step, ...]
    slots: int
    takes: dict[str, Port]
    gives: dict[str, Port]
    last: bool = True
    index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", {step.name: i for i, step in enumerate(self.steps)})
        self._check()

    def step(self, name: str) -> Step:
        """Returns the step of that name."""
        return self.steps[self.index[name]]

    @property
    def device_steps(self) -> tuple[Step, ...]:
        """Those that are not the host's own, in order."""
        return tuple(step for step in self.steps if not self.lanes[step.lane].host)

    @property
    def device_lanes(self) -> tuple[str, ...]:
        """Lanes of those steps, in the order in which they are first used."""
        return tuple(dict.fromkeys(step.lane for step in self.device_steps))

    @property
    def frame(self) -> str:
        """The staging buffer of what comes in, of the first if there are several."""
        return next(iter(self.takes.values())).buffer

    @property
    def result(self) -> str:
        """The staging buffer of what goes out, of the first if there are several."""
        return next(iter(self.gives.values())).buffer

    @property
    def incoming(self) -> frozenset[str]:
        """The staging buffers that `receive` fills."""
        return frozenset(port.buffer for port in self.takes.values())

    def copies(self, buffer: str) -> int:
        """How many of a buffer there are."""
        return self.slots if self.buffers[buffer].each_slot else 1

    def period(self, buffer: str) -> int:
        """After how many frames the same memory is used again."""
        return self.copies(buffer)

    def _check(self) -> None:
        """Names are unique and refer to something; constants stay constant.

        Raises:
            ValueError: a mistake of whoever built the schedule.
        """
        if len(self.index) != len(self.steps):
            raise ValueError("two steps have the same name")
        if self.slots < 1:
            raise ValueError(f"{self.slots} slots")
        if not self.takes or not self.gives:
            raise ValueError("nothing comes in, or nothing goes out")
        for port in (*self.takes.values(), *self.gives.values()):
            if port.buffer not in self.buffers or self.buffers[port.buffer].kind != "staging":
                raise ValueError("the staging buffers of frame and result are not among the buffers")
            if not 0 <= port.axis < len(self.buffers[port.buffer].shape):
                raise ValueError(f"{port.buffer} has no axis {port.axis}")
        for step in self.steps:
            if step.lane not in self.lanes:
                raise ValueError(f"{step.name} is on the unknown lane {step.lane!r}")
            for buffer, written in step.accesses():
                if buffer not in self.buffers:
                    raise ValueError(f"{step.name} uses the unknown buffer {buffer!r}")
                if written and self.buffers[buffer].kind == "constant":
                    raise ValueError(f"{step.name} writes the constant {buffer}")
