"""What the runtime reads from: frames with exact times, whatever the clip is stored as."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from vsr_trt.runtime.media.color import ColorTags

Rgb = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded picture.

    rgb: (H, W, 3) uint8, C-contiguous, full range, upright (any rotation of the clip is applied).
    index: 0, 1, 2, ... in presentation order within the window that is read.
    pts, time_base: presentation time in ticks of `time_base` seconds; 0 is the beginning of the window.
    duration: in the same ticks, None if the clip does not say. Pictures have no clock: there `pts` is
    the index and `time_base` is None.
    name: the file name of a picture, None for frames of a video.
    """

    rgb: Rgb
    index: int
    pts: int
    time_base: Fraction | None
    duration: int | None = None
    name: str | None = None

    @property
    def time(self) -> Fraction | None:
        """Seconds from the beginning of the window, exact; None for pictures."""
        return None if self.time_base is None else self.pts * self.time_base


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """What is known about a clip before it is read.

    width, height: pixels of `Frame.rgb` (after rotation). fps: average frames per second, None for
    pictures. frame_count: frames that will be read, None if nothing tells; `frame_count_exact` says
    whether it is counted or estimated from the duration. duration: seconds of the window, None if
    unknown. time_base: seconds per tick of `Frame.pts`. sample_aspect_ratio: width of a pixel over its
    height, None if square or unknown. color: what the samples mean, and what the output is tagged with.
    chroma: how densely a video samples colour, "4:2:0" and the like or "RGB"; None for grey and pictures.
    """

    width: int
    height: int
    kind: Literal["video", "images"]
    description: str
    color: ColorTags
    fps: Fraction | None = None
    frame_count: int | None = None
    frame_count_exact: bool = False
    duration: Fraction | None = None
    time_base: Fraction | None = None
    sample_aspect_ratio: Fraction | None = None
    chroma: str | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """Which part of a video is read, for whoever copies its sound and subtitles.

    zero: the moment, in seconds on the input's own clock, that becomes 0 in the output.
    cut_start, cut_end: whether something lies before or behind that is left out.
    expected_end: where the window ends in output seconds, estimated; None: at the end of the clip.
    """

    zero: Fraction
    cut_start: bool
    cut_end: bool
    expected_end: Fraction | None


class Source(ABC):
    """An opened clip: iterate over it once for its frames, in presentation order.

    path: the file or folder. info: what is known beforehand. notes: sentences about what is read
    differently from how it is stored (interlaced, 10 bit, alpha ...); complete after the last frame.
    damage: None, or after the last readable frame a sentence about what could not be read. window: the
    part of a video that is read, None for pictures.

    Iterating raises InputError when the clip turns out to be one that cannot be restored (the frame size
    changes, high dynamic range). Damaged data never raises: the readable frames come, then `damage` says
    where it was. Use it as a context manager, or call `close`.
    """

    path: Path
    info: SourceInfo
    notes: list[str]
    damage: str | None
    window: Window | None

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]: ...

    @abstractmethod
    def close(self) -> None:
        """Release the file. Harmless to call twice."""

    @property
    @abstractmethod
    def files(self) -> list[Path]:
        """The files that are read; none of them may be the output."""

    def add_note(self, note: str) -> None:
        """Append `note` to `notes` unless it is already there."""
        if note not in self.notes:
            self.notes.append(note)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
