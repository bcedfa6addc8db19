"""What executes a schedule: the interface of all devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.devices.actions import Buffers
from vsr_trt.runtime.devices.timeline import Observer
from vsr_trt.runtime.errors import DeviceError
from vsr_trt.runtime.schedule.events import Event
from vsr_trt.runtime.schedule.forms import Form
from vsr_trt.runtime.schedule.graph import Schedule
from vsr_trt.runtime.schedule.parts import Part


@dataclass(frozen=True)
class Ticket:
    """A window of frames under way; of most families a single frame.

    Attributes:
        frame: running number of the window, from 0, without gaps.
        slot: whose buffers it uses.
        first: whether it has no predecessor.
    """

    frame: int
    slot: int
    first: bool


@dataclass(frozen=True)
class Arrangement:
    """How a device restores frames of a size.

    Attributes:
        options: the caller's, with the tiles that it takes.
        batches: network -> how many tiles it takes at once; 1 for those that are not named.
        form: how pictures go through the VAE, None where that is not known.
        open: makes lanes and buffers for a schedule of these options and batches, with its events, the arrays of its
            constants, and an observer or None; gives those of the former one back first. Raises DeviceError where there
            is not enough memory; nothing is kept then.
    """

    options: Options
    batches: Mapping[str, int]
    form: Form | None
    open: Callable[[Schedule, Sequence[Event], Buffers, Observer | None], None]


class StepError(DeviceError):
    """A step failed; the message is the cause's.

    Attributes:
        frame, step, stage: which.
    """

    def __init__(self, message: str, frame: int, step: str, stage: str) -> None:
        super().__init__(message)
        self.frame, self.step, self.stage = frame, step, stage


class Device(Protocol):
    """Executes the steps of a schedule that are not the host's own, lane by lane.

    Attributes:
        name: of the backend.
        times_itself: whether an observer costs nothing worth mentioning.
    """

    name: str
    times_itself: bool

    @property
    def memory(self) -> dict[str, int]:
        """Bytes that an opened schedule takes, by what for."""

    @property
    def load_seconds(self) -> dict[str, float]:
        """What loading took, by network, for those that are loaded."""

    def arrange(self, height: int, width: int, options: Options, part: Part | None = None) -> Arrangement:
        """How this device restores frames (height, width, 3), with what it needs to open a schedule for them.

        Args:
            height, width: of the frames.
            options: the caller's.
            part: of the family that the schedule is for; None for all of a family without phases.

        Raises:
            EngineError: it has no engines for this size.
        """

    def receive(self, slot: int, frame: Any, index: int = 0) -> None:
        """Takes a frame (H,W,3) uint8 into a slot, as the index-th of its window: an array, or what a device
        understands besides. Where several buffers come in, their rows by name.

        Raises:
            InputError: not such a frame.
        """

    def deliver(self, slot: int, index: int = 0) -> Any:
        """The index-th result (4H,4W,3) uint8 of a slot's window, once `wait` has returned. Where several buffers go
        out, their rows by name."""

    def submit(self, ticket: Ticket) -> None:
        """Asks for all steps of a frame that was received; returns before they are done."""

    def is_done(self, ticket: Ticket) -> bool:
        """Whether `wait` would return or raise at once."""

    def wait(self, ticket: Ticket, timeout: float | None) -> None:
        """Waits until a frame's result is there. Frames are waited for in order.

        Args:
            ticket: of a submitted frame.
            timeout: seconds, None for ever.

        Raises:
            StepError: a step of this frame failed, or has not ended in time.
        """

    def close(self) -> None:
        """Gives everything back, also in the middle of a frame. Closing twice is harmless."""
