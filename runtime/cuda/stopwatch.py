"""Times of steps on streams, by events around each: for whoever observes, at the price of graphs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from vsr_trt.runtime.cuda.driver import Driver, Owned
from vsr_trt.runtime.devices.protocol import Ticket
from vsr_trt.runtime.devices.timeline import Observer, Span
from vsr_trt.runtime.schedule.graph import Schedule, Step


class Stopwatch:
    """Events before and after each step of each slot, and what they say once the frame is done.

    Args:
        driver, owned: make the events.
        schedule: whose steps are timed.
        observer: is passed the spans.
        streams: lane -> stream; the clock starts on the first.
    """

    def __init__(
        self,
        driver: Driver,
        owned: Owned,
        schedule: Schedule,
        observer: Observer,
        streams: Mapping[str, Any],
    ) -> None:
        self._driver, self._schedule, self._observer = driver, schedule, observer
        self._events = [
            {
                step.name: (owned.event(timing=True), owned.event(timing=True))
                for step in schedule.device_steps
            }
            for _ in range(schedule.slots)
        ]
        self._taken: list[dict[str, float]] = [{} for _ in range(schedule.slots)]
        self._zero = owned.event(timing=True)
        stream = next(iter(streams.values()))
        driver.call("cuEventRecord", self._zero, stream)
        driver.call("cuStreamSynchronize", stream)
        self._began = time.perf_counter()

    def begin(self, ticket: Ticket, step: Step, stream: Any) -> None:
        """Before a step is put on its stream."""
        self._driver.call("cuEventRecord", self._events[ticket.slot][step.name][0], stream)

    def end(self, ticket: Ticket, step: Step, stream: Any, enqueue: float) -> None:
        """After it; `enqueue`: seconds that it took the host."""
        self._driver.call("cuEventRecord", self._events[ticket.slot][step.name][1], stream)
        self._taken[ticket.slot][step.name] = enqueue

    def report(self, ticket: Ticket) -> None:
        """Tells the observer of a frame that is done."""
        taken = self._taken[ticket.slot]
        for name, enqueue in taken.items():
            step = self._schedule.step(name)
            # of lanes that the result did not wait for
            self._driver.call("cuEventSynchronize", self._events[ticket.slot][name][1])
            begin, finish = self._events[ticket.slot][name]
            # two numbers of single precision: the length by itself, or it would fade after some minutes
            start = self._began + self._driver.call("cuEventElapsedTime", self._zero, begin) / 1e3
            end = start + self._driver.call("cuEventElapsedTime", begin, finish) / 1e3
            self._observer(
                Span(ticket.frame, ticket.slot, name, step.stage, step.lane, step.action, start, end, enqueue)
            )
        taken.clear()
