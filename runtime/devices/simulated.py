"""A device that only looks like one: it executes a schedule in hostile orders, and notices every race.

A step of it takes time: it begins, other lanes go on, it ends. What it reads must be the same at its end as at
its beginning, what it writes belongs to it alone. Memory that holds nothing of use holds poison, so that a step
which reads too early changes the result. With it one can see, without a GPU, that a schedule gives the same bytes
in whatever order lanes and events allow, and what an application meets when something fails.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.devices.actions import Buffers, Networks, perform, put_row, row_of
from vsr_trt.runtime.devices.protocol import Arrangement, StepError, Ticket
from vsr_trt.runtime.devices.timeline import Observer, Span
from vsr_trt.runtime.errors import DeviceError
from vsr_trt.runtime.schedule.events import Event, waits_of
from vsr_trt.runtime.schedule.graph import Schedule, Step
from vsr_trt.runtime.schedule.memory import slot_arrays
from vsr_trt.runtime.schedule.parts import Part

POISON = 0xA5


class RaceError(AssertionError):
    """Two steps that touched the same memory at once."""


@dataclass(frozen=True)
class Faults:
    """What goes wrong.

    Attributes:
        fail, hang: (frame, step) that raises, or never ends.
        lose: (frame, step) in which the device is lost: everything that has not ended fails.
        buffers: how many buffers can be had; None for as many as asked for.
    """

    fail: tuple[int, str] | None = None
    hang: tuple[int, str] | None = None
    lose: tuple[int, str] | None = None
    buffers: int | None = None


@dataclass
class Move:
    """What may happen next: a step begins or ends.

    Attributes:
        begins: or ends.
        age: moves since it could first happen.
    """

    ticket: Ticket
    step: Step
    begins: bool
    age: int


Policy = Callable[[random.Random, Sequence[Move]], Move]
"""Picks the next of all moves that are possible."""


def any_move(chance: random.Random, moves: Sequence[Move]) -> Move:
    """One at random."""
    return chance.choice(moves)


def longest_first(chance: random.Random, moves: Sequence[Move]) -> Move:
    """Everything begins as early as it can, and what has begun ends as late as it can, the newest first."""
    return min(moves, key=lambda move: (not move.begins, move.age))


def newest_first(chance: random.Random, moves: Sequence[Move]) -> Move:
    """Later frames before earlier ones, wherever they may."""
    return max(moves, key=lambda move: (move.ticket.frame, move.begins))


def starving(lane: str) -> Policy:
    """One lane only goes on when nothing else can."""

    def policy(chance: random.Random, moves: Sequence[Move]) -> Move:
        others = [move for move in moves if move.step.lane != lane]
        return chance.choice(others or moves)

    return policy


@dataclass
class _Lane:
    waiting: deque[tuple[Ticket, Step]] = field(default_factory=deque)
    running: tuple[Ticket, Step] | None = None
    inputs: dict[str, bytes] = field(default_factory=dict)
    since: int = 0


class SimulatedDevice:
    """See the module. Time does not pass but by moves; `wait` makes them until the frame is done.

    Args:
        networks: compute the networks; closed with this.
        policy: picks the order.
        seed: of what the policy leaves to chance.
        faults: what goes wrong.

    Attributes:
        live: buffers that were made and not given back.
        moves: that were made.
    """

    name = "simulated"
    times_itself = True
    load_seconds: ClassVar[dict[str, float]] = {}  # no time passes in it

    def __init__(
        self, networks: Networks, policy: Policy = any_move, seed: int = 0, faults: Faults | None = None
    ) -> None:
        self._networks, self._policy = networks, policy
        self._chance = random.Random(seed)
        self._faults = faults or Faults()
        self.live = 0
        self.moves = 0
        self._arrays: list[Buffers] = []
        self._lanes: dict[str, _Lane] = {}
        self._done: dict[str, int] = {}
        self._needs: dict[str, list[Event]] = {}
        self._clear()

    @property
    def memory(self) -> dict[str, int]:
        """See `runtime.devices.protocol.Device.memory`."""
        return {"buffers": sum(array.nbytes for slot in self._arrays for array in slot.values())}

    def arrange(self, height: int, width: int, options: Options, part: Part | None = None) -> Arrangement:
        """See `runtime.devices.protocol.Device.arrange`."""
        return Arrangement(options, {}, None, self.open)

    def open(
        self, schedule: Schedule, events: Sequence[Event], constants: Buffers, observer: Observer | None
    ) -> None:
        """See `runtime.devices.protocol.Arrangement.open`; any schedule will do."""
        self._clear()
        wanted = sum(schedule.copies(buffer) for buffer in schedule.buffers)
        if self._faults.buffers is not None and wanted > self._faults.buffers:
            raise DeviceError(
                f"not enough memory: {wanted} buffers are needed, {self._faults.buffers} can be had."
            )
        self._schedule, self._observer = schedule, observer
        self._arrays = slot_arrays(schedule, constants, POISON)
        self.live = wanted
        self._own = schedule.device_steps
        self._last = self._own[-1].name
        self._lanes = {lane: _Lane() for lane in schedule.device_lanes}
        self._done = {step.name: -1 for step in self._own}
        self._needs = waits_of(schedule, events)

    def receive(self, slot: int, frame: Any, index: int = 0) -> None:
        """See `runtime.devices.protocol.Device.receive`."""
        put_row(self._schedule.takes, self._arrays[slot], frame, index)

    def deliver(self, slot: int, index: int = 0) -> Any:
        """See `runtime.devices.protocol.Device.deliver`."""
        return row_of(self._schedule.gives, self._arrays[slot], index)

    def submit(self, ticket: Ticket) -> None:
        """See `runtime.devices.protocol.Device.submit`. What the slot held of its last frame is poisoned."""
        former = ticket.frame - self._schedule.slots
        late = [
            step for step in self._own if self._done[step.name] < former
        ]  # its result was done before them
        in_use = {buffer for step in late for buffer, _ in step.accesses()}
        for name, buffer in self._schedule.buffers.items():
            if buffer.each_slot and name not in self._schedule.incoming and name not in in_use:
                _poison(self._arrays[ticket.slot][name])
        for step in self._own:
            self._lanes[step.lane].waiting.append((ticket, step))

    def is_done(self, ticket: Ticket) -> bool:
        """See `runtime.devices.protocol.Device.is_done`."""
        return self._done[self._last] >= ticket.frame or self._failed(ticket)

    def wait(self, ticket: Ticket, timeout: float | None) -> None:
        """See `runtime.devices.protocol.Device.wait`. A step that hangs has run out of any time."""
        while not self.is_done(ticket):
            moves = self._possible()
            if not moves:
                step = next(step for step in self._own if self._done[step.name] < ticket.frame)
                raise StepError("it has not ended in time", ticket.frame, step.name, step.stage)
            self._make(self._policy(self._chance, moves))
        if self._failure is not None and self._failed(ticket):
            raise self._failure

    def close(self) -> None:
        """See `runtime.devices.protocol.Device.close`."""
        self._clear()
        self._networks.close()

    def _clear(self) -> None:
        self.live = 0
        self._arrays = []
        self._lanes = {}
        self._done = {}
        self._needs = {}
        self._failure: StepError | None = None

    def _possible(self) -> list[Move]:
        moves = []
        for lane in self._lanes.values():
            if lane.running is not None:
                ticket, step = lane.running
                if (ticket.frame, step.name) != self._faults.hang:
                    moves.append(Move(ticket, step, False, self.moves - lane.since))
            elif lane.waiting:
                ticket, step = lane.waiting[0]
                if all(
                    self._done[event.before] >= ticket.frame - event.frames
                    for event in self._needs[step.name]
                ):
                    moves.append(Move(ticket, step, True, self.moves - lane.since))
        return moves

    def _make(self, move: Move) -> None:
        self.moves += 1
        lane = self._lanes[move.step.lane]
        lane.since = self.moves
        if move.begins:
            lane.running = lane.waiting.popleft()
            self._begin(lane, move.ticket, move.step)
        else:
            lane.running = None
            self._end(lane, move.ticket, move.step)
            self._done[move.step.name] = move.ticket.frame

    def _begin(self, lane: _Lane, ticket: Ticket, step: Step) -> None:
        lane.since = self.moves
        if self._skips(ticket, step):
            return
        arrays = self._arrays[ticket.slot]
        for other in self._lanes.values():
            if other is not lane and other.running is not None and not self._skips(*other.running):
                self._check_apart(ticket, step, *other.running)
        lane.inputs = {buffer: arrays[buffer].tobytes() for buffer in step.reads.values()}
        if not step.is_partial:
            for buffer in step.writes.values():
                _poison(arrays[buffer])

    def _check_apart(self, ticket: Ticket, step: Step, other: Ticket, its: Step) -> None:
        """Refuses two steps at once that touch the same memory, scratch included, if one writes."""
        for buffer, written in step.accesses():
            for its_buffer, its_written in its.accesses():
                same = buffer == its_buffer and (
                    ticket.slot == other.slot or not self._schedule.buffers[buffer].each_slot
                )
                if same and (written or its_written):
                    raise RaceError(
                        f"{step.name} of frame {ticket.frame} begins while {its.name} of frame {other.frame} runs, "
                        f"and both touch {buffer}"
                    )

    def _end(self, lane: _Lane, ticket: Ticket, step: Step) -> None:
        if self._skips(ticket, step):
            return
        here = ticket.frame, step.name
        if here == self._faults.lose:
            self._failure = StepError("the device was lost", -1, step.name, step.stage)
            self._failure.frame = min(t.frame for t, _ in self._under_way(ticket, step))
            return
        arrays = self._arrays[ticket.slot]
        for buffer, before in lane.inputs.items():
            if arrays[buffer].tobytes() != before:
                raise RaceError(f"{buffer} changed while {step.name} of frame {ticket.frame} read it")
        try:
            if here == self._faults.fail:
                raise RuntimeError("a fault was injected")
            perform(step, arrays, self._networks)
        except Exception as error:
            if self._failure is None or ticket.frame < self._failure.frame:
                self._failure = StepError(
                    str(error) or type(error).__name__, ticket.frame, step.name, step.stage
                )
            return
        if self._observer is not None:
            start, end = float(lane.since), float(self.moves)
            self._observer(
                Span(ticket.frame, ticket.slot, step.name, step.stage, step.lane, step.action, start, end)
            )

    def _under_way(self, ticket: Ticket, step: Step) -> list[tuple[Ticket, Step]]:
        found = [(ticket, step)]
        for lane in self._lanes.values():
            found += [*lane.waiting, *([lane.running] if lane.running else [])]
        return found

    def _skips(self, ticket: Ticket, step: Step) -> bool:
        return self._failed(ticket) or bool(step.first and not ticket.first)

    def _failed(self, ticket: Ticket) -> bool:
        return self._failure is not None and self._failure.frame <= ticket.frame


def _poison(array: np.ndarray) -> None:
    array.reshape(-1).view(np.uint8)[...] = POISON
