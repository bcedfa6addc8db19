"""From frames to windows of frames and back: which frames go through together, and whose results are returned.

Neighbouring windows share `overlap` frames. Of the results for those, the first half is the earlier window's and the
rest the later one's. A clip's last window ends at its last frame; of a clip shorter than a window that frame is
repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vsr_trt.runtime.bundle.manifest import Window


@dataclass(frozen=True)
class Gathered:
    """A window that is complete.

    Attributes:
        frames: in order, as many as a window has.
        first: number in the clip of the first of them.
        results: which of the window's results are returned.
    """

    frames: Sequence[Any]
    first: int
    results: range


class Gatherer:
    """Gathers the frames of a clip into windows."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._kept: list[Any] = []  # the last frames, at least those that the next window begins with
        self._first = 0  # number of the first of them
        self._start = 0  # of the next window
        self._returned = 0  # results that windows so far were asked for

    @property
    def waiting(self) -> int:
        """Frames that were taken and whose window is not complete."""
        return self._first + len(self._kept) - self._returned

    def push(self, frame: Any) -> list[Gathered]:
        """Takes a frame; returns the windows that are complete with it.

        A window of several frames waits for the frame behind it, because the last window of a clip is another one.
        """
        size = self._window.size
        self._kept.append(frame)
        behind = self._first + len(self._kept) - (self._start + size)
        if behind < (0 if size == 1 else 1):
            return []
        later = self._window.overlap - self._window.overlap // 2  # results that are the next window's
        found = self._gathered(self._start, self._start + size - later)
        self._start += size - self._window.overlap
        drop = self._first + len(self._kept) - max(size, 1)
        if drop > self._first:
            del self._kept[: drop - self._first]
            self._first = drop
        if size == 1:
            self._kept.clear()
            self._first = self._start
        return [found]

    def flush(self) -> list[Gathered]:
        """Returns the windows for the frames that wait, as if the clip ended here."""
        end = self._first + len(self._kept)
        if end == self._returned:
            return []
        found = self._gathered(max(end - self._window.size, self._first), end)
        self._kept.clear()
        self._first = self._start = self._returned = end
        return [found]

    def _gathered(self, start: int, end: int) -> Gathered:
        """The window from `start` on, and of its results those up to frame `end` that nobody was asked for."""
        frames = self._kept[start - self._first :][: self._window.size]
        frames += [frames[-1]] * (self._window.size - len(frames))
        found = Gathered(frames, start, range(self._returned - start, end - start))
        self._returned = end
        return found
