"""A schedule that is open on a GPU: streams, one a lane, with memory, contexts and graphs of its slots."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Engine
from vsr_trt.runtime.cuda.actions import Actions, ContextKey, Enqueue
from vsr_trt.runtime.cuda.driver import CudaError, Driver, Owned
from vsr_trt.runtime.cuda.engines import LoadedEngine, RuntimeCache
from vsr_trt.runtime.cuda.interop import DeviceArray, DeviceFrame
from vsr_trt.runtime.cuda.memory import Addresses, allocate
from vsr_trt.runtime.cuda.segments import Segment, segments
from vsr_trt.runtime.cuda.stopwatch import Stopwatch
from vsr_trt.runtime.devices.actions import Buffers, put_row, row_of
from vsr_trt.runtime.devices.protocol import StepError, Ticket
from vsr_trt.runtime.devices.recycled import Recycled
from vsr_trt.runtime.devices.timeline import Observer
from vsr_trt.runtime.errors import DeviceError, InputError, VsrError
from vsr_trt.runtime.schedule import memory
from vsr_trt.runtime.schedule.events import Event
from vsr_trt.runtime.schedule.graph import Schedule, Step
from vsr_trt.runtime.schedule.memory import MemoryPlan

_log = logging.getLogger(__name__)
PATIENCE = 20.0  # seconds that work under way is waited for before its memory is given back
_POLL = 20e-6  # seconds between looks at a frame that is waited for
# Capturing forbids what opening does, also in other threads: one of either at a time in a process.
_opening = threading.RLock()


@dataclass(frozen=True)
class Setup:
    """What a schedule is opened with.

    Attributes:
        driver: CUDA's.
        bundle: whose kernels they are.
        capability: of the GPU.
        engines: network -> its record, and the engine; emptied where the device is closed.
        cache: of kernels that TensorRT-RTX compiles.
        graphs: capture CUDA graphs.
        caller: the caller's stream, see `CudaDevice`.
        device_results: results stay on the device.
    """

    driver: Driver
    bundle: Bundle
    capability: str
    engines: Mapping[str, tuple[Engine, LoadedEngine]]
    cache: RuntimeCache | None
    graphs: bool
    caller: int | None
    device_results: bool


@dataclass
class _Slot:
    """What belongs to one slot.

    Attributes:
        staged: staging memory, as arrays by buffer.
        at: buffer -> address.
        done: recorded when the result is in its staging memory.
        met: recorded on the caller's stream, where lanes wait for it.
        contexts: execution contexts, see `Actions.network`.
        recorded: step -> event that is recorded after it, for those that something waits for.
        launches: for each segment its steps' work.
        graphs: segment's number -> graph, where it could be captured.
        external: a frame of the caller's on the device, None for a staged one. It is read where it lies, or
            copied into the slot where engines could not read it there.
        lent: the result that the caller may still read where it lies.
    """

    staged: dict[str, np.ndarray]
    at: Mapping[str, int]
    done: Any
    met: Any
    contexts: dict[ContextKey, Any] = field(default_factory=dict)
    recorded: dict[str, Any] = field(default_factory=dict)
    launches: list[list[tuple[Step, Enqueue]]] = field(default_factory=list)
    graphs: dict[int, Any] = field(default_factory=dict)
    external: DeviceArray | None = None
    lent: bool = False


class Lanes:
    """Executes one schedule; what is made for it lives as long as this. All calls need the context to be current.

    Args:
        setup: engines, and what else is the same for all schedules.
        schedule, events: what is executed, and what waits for what.
        constants: arrays of the schedule's constants.
        observer: passed the time of each step, None for none.

    Raises:
        DeviceError: not enough memory, or a call that fails; nothing is kept then.
    """

    def __init__(
        self,
        setup: Setup,
        schedule: Schedule,
        events: Sequence[Event],
        constants: Buffers,
        observer: Observer | None,
    ) -> None:
        self._setup, self._driver, self._schedule = setup, setup.driver, schedule
        self._owned, self._captures = Owned(setup.driver), Owned(setup.driver)
        self._slots: list[_Slot] = []
        self._streams: dict[str, Any] = {}
        self._stopwatch: Stopwatch | None = None
        self._capture = setup.graphs and observer is None
        self._allocated = self._pinned = self._contexts = 0
        self._recycled = Recycled()
        downloads = [step for step in schedule.steps if step.action == "download"]
        upload = next(step for step in schedule.steps if step.action == "upload")
        self._frame, self._result = upload.writes["target"], downloads[0].reads["source"]
        self._stays = setup.device_results and schedule.last  # results stay on the device
        self._segments = segments(schedule, events, (self._frame,))
        self._segments_end = downloads[-1].lane
        with _opening:
            try:
                self._open(setup, schedule, constants, observer)
            except BaseException:
                self.release()
                raise

    def _open(self, setup: Setup, schedule: Schedule, constants: Buffers, observer: Observer | None) -> None:
        needs = {name: found.scratch for name, (_, found) in setup.engines.items()}
        planned = memory.add_up(schedule, needs, {})
        self._check_memory(planned)
        addresses = allocate(schedule, planned.scratch, self._owned)
        self._allocated = addresses.bytes
        self._streams = {lane: self._owned.stream() for lane in schedule.device_lanes}
        up = self._owned.stream()
        actions = Actions(self._driver, self._owned, setup.bundle, setup.capability, schedule, up)
        for name, buffer in schedule.buffers.items():
            if buffer.kind == "constant":
                array = np.ascontiguousarray(constants[name], buffer.dtype)
                self._driver.copy_in(addresses.slots[0][name], array, up)
        if observer is not None:
            self._stopwatch = Stopwatch(self._driver, self._owned, schedule, observer, self._streams)
        free, _ = self._driver.call("cuMemGetInfo")
        for _ in range(schedule.slots):
            self._add_slot(schedule, addresses, actions)
        for number in range(schedule.slots):
            self._make_ready(number)
        left, _ = self._driver.call("cuMemGetInfo")
        self._contexts = max(0, free - left)

    @property
    def memory(self) -> dict[str, int]:
        """Bytes that were allocated: `buffers` on the device, scratch included, `pinned` on the host, and `contexts`:
        what execution contexts and graphs took besides, as the driver says."""
        return {"buffers": self._allocated, "pinned": self._pinned, "contexts": self._contexts}

    def release(self) -> None:
        """Waits for the streams, then gives everything of the schedule back, in reverse order.

        A GPU that does not end its work keeps what that work uses: giving it back would wait for ever.
        """
        ended = self._all_ended()
        if not ended:
            self._captures.abandon()
        self._captures.close()  # graphs before the contexts that they run, contexts before the memory
        for slot in self._slots:
            slot.launches.clear()
            slot.graphs.clear()
            slot.contexts.clear()
        self._slots, self._streams = [], {}
        if not ended:
            _log.error(
                "the GPU has not ended its work after %g seconds; its memory is lost to this process.",
                PATIENCE,
            )
            self._owned.abandon()
        self._owned.close()

    def receive(self, slot: int, frame: Any, index: int = 0) -> None:
        """Takes a frame: into staging memory, or where it lies on the device."""
        place = self._slots[slot]
        if isinstance(frame, DeviceArray):
            shape = self._schedule.buffers[self._schedule.frame].shape
            if shape[0] != 1 or len(self._schedule.takes) > 1:
                raise InputError(
                    f"this family takes windows of {shape[0]} frames, which are gathered from "
                    "arrays of the CPU; pass those."
                )
            frame.check(shape[1:])
            place.external = frame
        else:
            place.external = None
            put_row(self._schedule.takes, place.staged, frame, index)

    def deliver(self, slot: int, index: int = 0) -> Any:
        """A slot's result: a copy, or where it lies on the device (valid until the next frame is received)."""
        place = self._slots[slot]
        if not self._stays:
            return row_of(self._schedule.gives, place.staged, index, self._recycled.copy)
        place.lent = True
        buffer = self._schedule.buffers[self._result]
        each = buffer.bytes // buffer.shape[0]
        return DeviceFrame(place.at[self._result] + index * each, buffer.shape[1:])

    def submit(self, ticket: Ticket) -> None:
        """See `runtime.devices.protocol.Device.submit`.

        Raises:
            StepError: a step could not be put on its stream.
        """
        slot = self._slots[ticket.slot]
        try:
            self._meet_caller(slot)
            for number, segment in enumerate(self._segments):
                self._enqueue(ticket, slot, number, segment)
            self._record(slot.done, self._streams[self._segments_end])
        except CudaError as error:
            raise self._lost(ticket, error) from error

    def is_done(self, ticket: Ticket) -> bool:
        """See `runtime.devices.protocol.Device.is_done`."""
        try:
            return self._driver.is_ready(self._slots[ticket.slot].done)
        except CudaError:
            return True  # `wait` tells

    def wait(self, ticket: Ticket, timeout: float | None) -> None:
        """See `runtime.devices.protocol.Device.wait`."""
        slot = self._slots[ticket.slot]
        until = None if timeout is None else time.monotonic() + timeout
        try:
            while not self._driver.is_ready(slot.done):
                if until is not None and time.monotonic() > until:
                    raise self._late(ticket, slot, timeout)
                time.sleep(_POLL)
            if self._stopwatch is not None:
                self._stopwatch.report(ticket)
        except CudaError as error:
            raise self._lost(ticket, error) from error

    def _all_ended(self) -> bool:
        """Whether the streams, the caller's where it reads results of ours, ended their work within `PATIENCE`."""
        streams = list(self._streams.values())
        if self._setup.caller is not None and any(slot.lent for slot in self._slots):
            streams.append(self._setup.caller)
        until = time.monotonic() + PATIENCE
        for stream in streams:
            try:
                while not self._driver.is_idle(stream):
                    if time.monotonic() > until:
                        return False
                    time.sleep(_POLL)
            except DeviceError as error:  # lost: nothing runs any more
                _log.warning("%s", error)
        return True

    def _add_slot(self, schedule: Schedule, addresses: Addresses, actions: Actions) -> None:
        ports = [*schedule.takes.values(), *(() if self._stays else schedule.gives.values())]
        buffers = [schedule.buffers[port.buffer] for port in ports]
        staged = {
            buffer.name: self._owned.pinned(buffer.bytes).view(buffer.dtype).reshape(buffer.shape)
            for buffer in buffers
        }
        self._pinned += sum(array.nbytes for array in staged.values())
        slot = _Slot(staged, addresses.slots[len(self._slots)], self._owned.event(), self._owned.event())
        self._slots.append(slot)  # before its contexts are made: what fails from here on is released with it
        for segment in self._segments:
            if segment.records:
                slot.recorded[segment.steps[-1].name] = self._owned.event()
            slot.launches.append(
                [(step, self._enqueuer(step, slot, addresses, actions)) for step in segment.steps]
            )

    def _enqueuer(self, step: Step, slot: _Slot, addresses: Addresses, actions: Actions) -> Enqueue:
        if step.action == "network":
            assert step.network is not None
            if step.network not in self._setup.engines:
                return actions.kernel(step)
            assert step.workspace is not None
            scratch = addresses.scratch[step.workspace]
            return actions.network(step, self._setup.engines, scratch, slot.contexts, self._setup.cache)
        if step.action == "upload":
            return actions.upload(step, slot.staged[step.reads["source"]])
        if step.action == "download":
            return actions.download(step, slot.staged.get(step.writes["target"]))
        others = {"cut": actions.cut, "blend": actions.blend, "copy": actions.copy, "frames": actions.frames}
        return others[step.action](step)

    def _meet_caller(self, slot: _Slot) -> None:
        """Streams wait for what others were asked before: to write the frame, or to read the slot's last result."""
        others = {self._setup.caller} if slot.external is not None or slot.lent else set()
        if slot.external is not None:
            others.add(slot.external.stream)
        for other in others - {None}:
            self._record(slot.met, self._driver.module.CUstream(other))
            for stream in self._streams.values():
                self._driver.call("cuStreamWaitEvent", stream, slot.met, 0)
        slot.lent = False

    def _enqueue(self, ticket: Ticket, slot: _Slot, number: int, segment: Segment) -> None:
        stream = self._streams[segment.lane]
        for event in segment.waits:
            former = ticket.frame - event.frames
            if former >= 0:
                source = self._slots[former % self._schedule.slots].recorded[event.before]
                self._driver.call("cuStreamWaitEvent", stream, source, 0)
        graph = slot.graphs.get(number)
        if graph is not None:
            self._driver.call("cuGraphLaunch", graph, stream)
        else:
            self._run(ticket, slot, slot.launches[number], stream)
        if segment.records:
            self._record(slot.recorded[segment.steps[-1].name], stream)

    def _run(
        self, ticket: Ticket, slot: _Slot, launches: Sequence[tuple[Step, Enqueue]], stream: Any
    ) -> None:
        at, frame = slot.at, slot.external
        if frame is not None and frame.is_aligned:
            at = {**at, self._frame: frame.address}
        for step, enqueue in launches:
            if step.action == "upload" and frame is not None and not frame.is_aligned:
                size = self._schedule.buffers[self._frame].bytes
                self._driver.call("cuMemcpyDtoDAsync", at[self._frame], frame.address, size, stream)
            if self._passed_over(step, ticket, slot):
                continue
            started = time.perf_counter()
            try:
                if self._stopwatch is not None:
                    self._stopwatch.begin(ticket, step, stream)
                enqueue(stream, at)
                if self._stopwatch is not None:
                    self._stopwatch.end(ticket, step, stream, time.perf_counter() - started)
            except VsrError as error:
                raise StepError(str(error), ticket.frame, step.name, step.stage) from error

    def _passed_over(self, step: Step, ticket: Ticket, slot: _Slot) -> bool:
        return (
            bool(step.first and not ticket.first)
            or (step.action == "upload" and slot.external is not None)
            or (step.action == "download" and self._stays)
        )

    def _make_ready(self, number: int) -> None:
        """Takes an empty frame through a slot, in which engines make ready, and captures its segments as graphs: so no
        frame of a clip is slower than the others. Where capturing fails, it is said once."""
        slot, ticket = self._slots[number], Ticket(number, number, True)
        for array in slot.staged.values():
            array[...] = 0
        stopwatch, self._stopwatch = self._stopwatch, None  # no frame of the clip's
        try:
            self.submit(ticket)
            self.wait(ticket, None)
        finally:
            self._stopwatch = stopwatch
        for index, segment in enumerate(self._segments):
            if not self._capture or not segment.capture:
                continue
            stream, launches = self._streams[segment.lane], slot.launches[index]
            try:
                self._refuse_uncapturable(slot, segment, stream)
                slot.graphs[index] = self._captures.graph(
                    stream, functools.partial(self._run, ticket, slot, launches, stream)
                )
            except DeviceError as error:
                self._capture = False
                _log.warning("CUDA graphs are not used: %s", error)

    def _refuse_uncapturable(self, slot: _Slot, segment: Segment, stream: Any) -> None:
        """Asks the contexts, where they can be asked, before a capture that would fail spoils the stream."""
        networks = {step.network for step in segment.steps if step.network is not None}
        for (lane, network, _), context in slot.contexts.items():
            asked = getattr(context, "is_stream_capturable", None)
            if lane == segment.lane and network in networks and asked is not None and not asked(int(stream)):
                raise DeviceError(f"the engine of {network} cannot be captured.")

    def _record(self, event: Any, stream: Any) -> None:
        self._driver.call("cuEventRecord", event, stream)

    def _late(self, ticket: Ticket, slot: _Slot, timeout: float | None) -> StepError:
        """Names the stages among which one has not ended, by the events that are known to have passed."""
        began: dict[str, str] = {}  # lane -> its first stage of which nothing is known
        for segment in self._segments:
            began.setdefault(segment.lane, segment.steps[0].stage)
            last = segment.steps[-1]
            done = slot.recorded.get(last.name) if segment.lane != self._segments_end else slot.done
            if done is None:
                continue
            if not self._driver.is_ready(done):
                first = began[segment.lane]
                stages = last.stage if first == last.stage else f"{first} to {last.stage}"
                return StepError(
                    f"it has not ended within {timeout:g} seconds", ticket.frame, last.name, stages
                )
            began.pop(segment.lane)
        raise AssertionError("a frame whose last event is recorded is done")

    def _lost(self, ticket: Ticket, error: CudaError) -> StepError:
        text = f"the GPU was lost: {str(error).rstrip('.')}. A new process can use it again"
        return StepError(text, ticket.frame, self._schedule.steps[-1].name, "GPU")

    def _check_memory(self, planned: MemoryPlan) -> None:
        """Weights are there already."""
        free, total = self._driver.call("cuMemGetInfo")
        if planned.device > free:
            raise DeviceError(
                f"{planned.device / 1e9:.2f} GB of GPU memory are needed for {planned.slots} slots of this size, and "
                f"{free / 1e9:.2f} of {total / 1e9:.2f} GB are free. Use fewer slots or smaller tiles; "
                "`vsr plan` tells what is needed."
            )
