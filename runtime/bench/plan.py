"""What is to be measured, and the frames it is measured with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from vsr_trt.runtime.bundle.options import Settings, check_slots, check_threads
from vsr_trt.runtime.errors import InputError

Mode = Literal["throughput", "latency"]
# in this order: the throughput's Restorer tells the number of slots, so that --compare can refuse early
MODES: tuple[Mode, ...] = ("throughput", "latency")
LEAST_FRAMES = 10
LEAST_SLOW_FRAMES = 3
SLOW_FRAME = 5.0  # seconds
CHOICES = ("backend", "threads", "choices", "tiles", "overlaps", "statistics")
"""What a report keeps of the Restorer's settings."""
_DISTINCT = 5
_MOST_SIDE = 16_384  # of the restored picture; a bundle's own limit may be less


@dataclass(frozen=True)
class Plan:
    """What is to be measured.

    Attributes:
        bundle: its directory.
        width, height: of the restored picture.
        modes: in the order in which they are measured.
        slots: of the throughput's Restorer; None for the Restorer's own number.
        seconds: that each mode is measured for, at least.
        warmup: seconds of frames before that, one frame at least.
        given: for the Restorer; its number of slots is that of the mode.
        frames: of a clip, for a family that takes those through phases.
    """

    bundle: Path
    width: int
    height: int
    modes: tuple[Mode, ...]
    slots: int | None
    seconds: float
    warmup: float
    given: Settings
    frames: int | None = None

    @property
    def size(self) -> str:
        """Size of the restored picture, as on the command line."""
        return f"{self.width}x{self.height}"

    def check(self) -> None:
        """Refuses numbers out of range.

        Raises:
            InputError: naming the option.
        """
        if max(self.width, self.height) > _MOST_SIDE:  # before frames of that size are made
            raise InputError(f"--size {self.size}: expected sides of {_MOST_SIDE} at most.")
        if self.slots is not None:
            check_slots(self.slots)
        check_threads(self.given.threads)
        for name, value, limit in (("--seconds", self.seconds, 86_400), ("--warmup", self.warmup, 3_600)):
            if not 0 <= value <= limit:  # also refuses nan
                raise InputError(f"{name} is {value:g}; expected 0 to {limit}.")


def clip(width: int, height: int) -> list[np.ndarray]:
    """A few frames (H,W,3) u8, always the same: noise that moves over gradients. Endless when repeated."""
    noise = np.random.default_rng(0).integers(0, 128, (height, width, 3), dtype=np.uint8)
    down = np.linspace(0, 63, height)[:, None, None]
    across = np.linspace(0, 64, width)[None, :, None]
    gradients = (down + across).astype(np.uint8)
    return [gradients + np.roll(noise, (2 * i, 3 * i), (0, 1)) for i in range(_DISTINCT)]
