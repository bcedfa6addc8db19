"""Takes frames through a Restorer and times them, with nothing else between.

Latency: a frame is pushed when the former one has been returned, and takes from the call of `push` until its
result is there.

Throughput: frames are pushed without waiting. What counts is the steady state, with every slot in use: the warm-up
goes over into the measurement without a pause, the clock begins when a push returns a result and ends when one
does, and the results returned between are counted. A clock from the first push to the end of `flush` would count
the empty slots at both ends, which weigh more the shorter the run is and the more slots there are.

A family that takes a clip through phases has no steady state: whole clips are timed, one after another, from the first
push to the last result, and a frame's interval is its share of that.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vsr_trt.runtime.bench.plan import LEAST_FRAMES, LEAST_SLOW_FRAMES, SLOW_FRAME
from vsr_trt.runtime.errors import DeviceError

Seconds = Callable[[], float]
Tell = Callable[[str, int, float], None]
"""Told between frames: `warm-up` or `measuring`, frames so far, seconds so far."""


class Subject(Protocol):
    """What of a Restorer is used here."""

    def prepare(self, height: int, width: int) -> None:
        """Loads and allocates what frames of this size need."""

    def push(self, frame: np.ndarray) -> list[np.ndarray]:
        """Takes a frame; returns the results that are ready."""

    def flush(self) -> list[np.ndarray]:
        """Returns the results that are under way."""

    def close(self) -> None:
        """Releases everything."""

    @property
    def backend(self) -> str:
        """What runs the networks."""

    @property
    def slots(self) -> int:
        """How many frames may be under way at once."""

    @property
    def window(self) -> int:
        """How many frames go through at once; 0 for a whole clip."""

    @property
    def load_seconds(self) -> dict[str, float]:
        """What loading took: of networks, and `all`."""

    @property
    def memory(self) -> dict[str, int]:
        """Bytes planned, by purpose."""


@dataclass(frozen=True)
class Run:
    """What was timed.

    Attributes:
        first: number of the first frame that counts, since the Restorer was made: those before warmed it up. Of clips,
            the first one.
        warmup: seconds that those took.
        seconds: from the first to the last moment that counts.
        latencies: of each frame, from the call of `push` until its result was returned; of each clip, where those are
            timed.
        intervals: from each result to the next; their sum is `seconds`. Results that one push returned
            together share the time since the push before that returned any.
    """

    first: int
    warmup: float
    seconds: float
    latencies: tuple[float, ...]
    intervals: tuple[float, ...]


def enough(frames: int, seconds: float, wanted: float) -> bool:
    """Whether to stop: after the seconds wanted and 10 frames, or 3 where a frame takes more than 5 s."""
    slow = frames > 0 and seconds / frames > SLOW_FRAME
    return seconds >= wanted and frames >= (LEAST_SLOW_FRAMES if slow else LEAST_FRAMES)


def latency(
    subject: Subject, frames: Sequence[np.ndarray], warmup: float, seconds: float, clock: Seconds, tell: Tell
) -> Run:
    """Times frames one by one.

    Raises:
        DeviceError: the Restorer did not return one result for a frame.
    """
    source = itertools.cycle(frames)

    def one() -> float:
        frame = next(source)
        started = clock()
        results = subject.push(frame) or subject.flush()
        ended = clock()
        if len(results) != 1:
            raise DeviceError(f"the Restorer returned {len(results)} results for one frame; expected one.")
        return ended - started

    began, first = clock(), 0
    while first == 0 or clock() - began < warmup:
        one()
        first += 1
        tell("warm-up", first, clock() - began)
    warmed = clock() - began
    times: list[float] = []
    total = 0.0
    while not enough(len(times), total, seconds):
        times.append(one())
        total += times[-1]
        tell("measuring", len(times), total)
    return Run(first, warmed, total, tuple(times), tuple(times))


def clips(
    subject: Subject,
    frames: Sequence[np.ndarray],
    count: int,
    warmup: float,
    seconds: float,
    clock: Seconds,
    tell: Tell,
    ended: Callable[[], None],
) -> Run:
    """Times clips of `count` frames; `ended` is called after each of them, those of the warm-up included.

    Raises:
        DeviceError: the Restorer did not return one result for each frame.
    """

    def one() -> float:
        source = itertools.islice(itertools.cycle(frames), count)
        started = clock()
        results = [result for frame in source for result in subject.push(frame)] + subject.flush()
        taken = clock() - started
        if len(results) != count:
            raise DeviceError(
                f"the Restorer returned {len(results)} results for {count} frames; expected {count}."
            )
        ended()
        return taken

    began, first = clock(), 0
    while first == 0 or clock() - began < warmup:
        one()
        first += 1
        tell("warm-up", first * count, clock() - began)
    warmed = clock() - began
    times: list[float] = []
    while not enough(len(times), sum(times), seconds):
        times.append(one())
        tell("measuring", len(times) * count, sum(times))
    each = tuple(seconds / count for seconds in times for _ in range(count))
    return Run(first, warmed, sum(times), tuple(times), each)


def throughput(
    subject: Subject, frames: Sequence[np.ndarray], warmup: float, seconds: float, clock: Seconds, tell: Tell
) -> Run:
    """Times results while frames are pushed without waiting.

    Raises:
        DeviceError: the Restorer keeps taking frames and returns nothing.
    """
    source = itertools.cycle(frames)
    waiting: deque[float] = deque()
    most = (4 * subject.slots + 4) * subject.window

    def push() -> tuple[float, list[float]]:
        frame = next(source)
        waiting.append(clock())
        results = subject.push(frame)
        now = clock()
        done = [now - waiting.popleft() for _ in results]
        if len(waiting) > most:
            raise DeviceError(
                f"the Restorer has {subject.slots} slots and keeps {len(waiting)} frames without a result."
            )
        return now, done

    began, first = clock(), 0
    while True:
        last, done = push()
        first += len(done)
        tell("warm-up", first, last - began)
        if done and last - began >= warmup:
            break
    start = last
    latencies: list[float] = []
    intervals: list[float] = []
    while not enough(len(latencies), last - start, seconds):
        now, done = push()
        if done:
            intervals += [(now - last) / len(done)] * len(done)
            latencies += done
            last = now
            tell("measuring", len(latencies), last - start)
    subject.flush()
    return Run(first, start - began, last - start, tuple(latencies), tuple(intervals))
