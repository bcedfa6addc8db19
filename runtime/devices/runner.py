"""Frames through a device: slots handed out, results in order, failures told with frame and stage."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from vsr_trt.runtime.bundle.errors import DeviceError, FrameError
from vsr_trt.runtime.devices.protocol import Device, StepError, Ticket


class Runner:
    """Takes frames of one size through an opened device.

    Args:
        device: opened with a schedule.
        slots: of that schedule.
        timeout: seconds that a frame may take once it is waited for; None for ever.
        finish: makes what is returned of what the device delivers.
    """

    def __init__(
        self,
        device: Device,
        slots: int,
        timeout: float | None = None,
        finish: Callable[[Any], Any] = lambda result: result,
    ) -> None:
        self._device, self._slots, self._timeout, self._finish = device, slots, timeout, finish
        self._flying: deque[Ticket] = deque()
        self._numbers: dict[int, int] = {}  # frame under way -> its number in its clip
        self._next = 0
        self._clip_began = 0
        self._broken: str | None = None

    @property
    def under_way(self) -> int:
        """How many frames."""
        return len(self._flying)

    def begin(self) -> None:
        """The next frame has no predecessor. Frames under way go on."""
        self._clip_began = self._next

    def push(self, frame: Any) -> list[Any]:
        """Takes a frame (H,W,3) u8; returns the results that are ready, in order.

        At most slots - 1 frames are under way afterwards.

        Raises:
            FrameError: this frame or an earlier one failed. The runner is of no use afterwards.
        """
        self._check()
        ticket = Ticket(self._next, self._next % self._slots, self._next == self._clip_began)
        self._device.receive(ticket.slot, frame)
        with self._breaking():
            self._numbers[ticket.frame] = ticket.frame - self._clip_began
            results: list[Any] = []
            try:
                self._device.submit(ticket)
            except StepError as error:
                while self._flying:  # what was asked for before may well be finished
                    self._collect(results)
                raise self._told(error, results) from error
            self._next += 1
            self._flying.append(ticket)
            while len(self._flying) >= self._slots or (
                self._flying and self._device.is_done(self._flying[0])
            ):
                self._collect(results)
            return results

    def flush(self) -> list[Any]:
        """Waits for all frames under way; returns their results, in order.

        Raises:
            FrameError: as for `push`.
        """
        self._check()
        results: list[Any] = []
        with self._breaking():
            while self._flying:
                self._collect(results)
        return results

    def _collect(self, results: list[Any]) -> None:
        ticket = self._flying[0]
        try:
            self._device.wait(ticket, self._timeout)
        except StepError as error:
            raise self._told(error, results) from error
        results.append(self._finish(self._device.deliver(ticket.slot)))
        self._numbers.pop(self._flying.popleft().frame)

    def _told(self, error: StepError, results: list[Any]) -> FrameError:
        frame, text = self._numbers.get(error.frame, error.frame), str(error).rstrip(".")
        told = text if text.startswith(error.stage) else f"{error.stage}: {text}"
        return FrameError(f"frame {frame}: {told}.", frame, error.stage, results)

    def _check(self) -> None:
        if self._broken is not None:
            raise DeviceError(f"this Restorer failed ({self._broken.rstrip('.')}); make a new one.")

    @contextlib.contextmanager
    def _breaking(self) -> Iterator[None]:
        """Whatever leaves this block as an error, Ctrl-C too: what is under way may then be in any state."""
        try:
            yield
        except BaseException as error:
            self._broken = str(error) or type(error).__name__
            raise
