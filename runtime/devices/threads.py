"""The host device: a schedule whose lanes are threads, on arrays in the host's memory."""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.devices.actions import Buffers, Networks, perform, put_row, row_of
from vsr_trt.runtime.devices.protocol import Arrangement, StepError, Ticket
from vsr_trt.runtime.devices.timeline import Observer, Span
from vsr_trt.runtime.errors import DeviceError
from vsr_trt.runtime.schedule.events import Event, waits_of
from vsr_trt.runtime.schedule.forms import Form
from vsr_trt.runtime.schedule.graph import Schedule, Step
from vsr_trt.runtime.schedule.memory import slot_arrays
from vsr_trt.runtime.schedule.parts import Part

_LOOK = 0.1  # seconds between attempts to cancel what is under way


class ThreadedDevice:
    """Executes a schedule on threads, one a lane.

    Args:
        networks: run the schedule's networks; several lanes may call it at once. Closed with this.
        cancel: makes calls of networks that are under way fail soon, and lets later ones through again.
        load_seconds: what loading them took.
        arrange: says how pictures of a size go through the VAE, and makes the networks ready for it.
    """

    times_itself = True

    def __init__(
        self,
        networks: Networks,
        cancel: Callable[[], None] = lambda: None,
        load_seconds: dict[str, float] | None = None,
        arrange: Callable[[int, int, Options, Part | None], Form] | None = None,
    ) -> None:
        self.name = networks.name
        self.load_seconds = load_seconds if load_seconds is not None else {}
        self._networks, self._cancel = networks, cancel
        self._arrange = arrange
        self._run: _Run | None = None

    def arrange(self, height: int, width: int, options: Options, part: Part | None = None) -> Arrangement:
        """See `runtime.devices.protocol.Device.arrange`: the CPU takes any tile, one at a time."""
        form = None if self._arrange is None else self._arrange(height, width, options, part)
        return Arrangement(options, {}, form, self.open)

    def open(
        self, schedule: Schedule, events: Sequence[Event], constants: Buffers, observer: Observer | None
    ) -> None:
        """See `runtime.devices.protocol.Arrangement.open`; any schedule will do."""
        self._stop()
        self._run = _Run(schedule, events, constants, self._networks, observer)

    def receive(self, slot: int, frame: Any, index: int = 0) -> None:
        """See `runtime.devices.protocol.Device.receive`."""
        put_row(self._opened.schedule.takes, self._opened.arrays[slot], frame, index)

    def deliver(self, slot: int, index: int = 0) -> Any:
        """See `runtime.devices.protocol.Device.deliver`."""
        return row_of(self._opened.schedule.gives, self._opened.arrays[slot], index)

    def submit(self, ticket: Ticket) -> None:
        """See `runtime.devices.protocol.Device.submit`."""
        self._opened.submit(ticket)

    def is_done(self, ticket: Ticket) -> bool:
        """See `runtime.devices.protocol.Device.is_done`."""
        return self._opened.settled(ticket.frame)

    def wait(self, ticket: Ticket, timeout: float | None) -> None:
        """See `runtime.devices.protocol.Device.wait`."""
        self._opened.wait(ticket, timeout)

    def close(self) -> None:
        """See `runtime.devices.protocol.Device.close`. Steps that are under way are cancelled and waited for."""
        self._stop()
        self._networks.close()

    @property
    def memory(self) -> dict[str, int]:
        """See `runtime.devices.protocol.Device.memory`."""
        return {"buffers": self._run.bytes} if self._run is not None else {}

    @property
    def _opened(self) -> _Run:
        if self._run is None:
            raise DeviceError("the device has no schedule yet.")
        return self._run

    def _stop(self) -> None:
        if self._run is not None:
            self._run.stop(self._cancel)
            self._run = None


class _Run:
    """Threads and arrays of one schedule."""

    def __init__(
        self,
        schedule: Schedule,
        events: Sequence[Event],
        constants: Buffers,
        networks: Networks,
        observer: Observer | None,
    ) -> None:
        self.schedule = schedule
        self._networks, self._observer = networks, observer
        try:
            self.arrays = slot_arrays(schedule, constants)
        except MemoryError as error:
            raise DeviceError(
                "there is not enough memory for the buffers of this size; use fewer slots or a smaller frame."
            ) from error
        self.bytes = sum(buffer.bytes * schedule.copies(name) for name, buffer in schedule.buffers.items())
        own = schedule.device_steps
        self._last = own[-1].name
        self._needs = waits_of(schedule, events)
        self._changed = threading.Condition()
        self._done = dict.fromkeys((step.name for step in own), -1)  # step -> last frame that it is done for
        self._failure: StepError | None = None
        self._stopped = False
        self._submitted = -1
        self._queues: list[queue.SimpleQueue[Ticket | None]] = []
        self._threads = []
        for lane in schedule.device_lanes:
            steps, tickets = [step for step in own if step.lane == lane], queue.SimpleQueue[Ticket | None]()
            thread = threading.Thread(target=self._work, args=(steps, tickets), name=lane, daemon=True)
            self._queues.append(tickets)
            self._threads.append(thread)
            thread.start()

    def submit(self, ticket: Ticket) -> None:
        self._submitted = ticket.frame
        for tickets in self._queues:
            tickets.put(ticket)

    def settled(self, frame: int) -> bool:
        return self._done[self._last] >= frame or self._failed(frame)

    def wait(self, ticket: Ticket, timeout: float | None) -> None:
        with self._changed:
            ended = self._changed.wait_for(lambda: self.settled(ticket.frame), timeout)
            if self._failure is not None and self._failed(ticket.frame):
                raise self._failure
            if not ended:
                step = next(name for name, frame in self._done.items() if frame < ticket.frame)
                stage = self.schedule.step(step).stage
                message = f"it has not ended within {timeout:g} seconds"
                self._failure = StepError(message, ticket.frame, step, stage)
                raise self._failure

    def stop(self, cancel: Callable[[], None]) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for tickets in self._queues:
            tickets.put(None)
        for thread in self._threads:
            while thread.is_alive():
                if any(frame < self._submitted for frame in self._done.values()):
                    cancel()  # again: a call may have begun since
                thread.join(_LOOK)

    def _failed(self, frame: int) -> bool:
        return self._failure is not None and self._failure.frame <= frame

    def _work(self, steps: list[Step], tickets: queue.SimpleQueue[Ticket | None]) -> None:
        """A lane: every step of every frame, in order. What is not to run is passed over, never left out."""
        while (ticket := tickets.get()) is not None:
            for step in steps:
                with self._changed:
                    self._changed.wait_for(functools.partial(self._may_go_on, step, ticket.frame))
                    skipped = self._stopped or self._failed(ticket.frame)
                if not skipped and not (step.first and not ticket.first):
                    self._perform(step, ticket)
                with self._changed:
                    self._done[step.name] = ticket.frame
                    self._changed.notify_all()

    def _may_go_on(self, step: Step, frame: int) -> bool:
        return self._stopped or all(
            self._done[event.before] >= frame - event.frames for event in self._needs[step.name]
        )

    def _perform(self, step: Step, ticket: Ticket) -> None:
        started = time.perf_counter()
        try:
            perform(step, self.arrays[ticket.slot], self._networks)
            if self._observer is not None:
                times = started, time.perf_counter()
                self._observer(
                    Span(ticket.frame, ticket.slot, step.name, step.stage, step.lane, step.action, *times)
                )
        except Exception as error:  # whatever it is, the caller must hear of it, in its own thread
            failure = StepError(str(error) or type(error).__name__, ticket.frame, step.name, step.stage)
            failure.__cause__ = error
            with self._changed:
                if self._failure is None or ticket.frame < self._failure.frame:
                    self._failure = failure
