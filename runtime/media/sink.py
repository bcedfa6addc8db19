"""What the runtime writes to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from vsr_trt.runtime.errors import InputError, OutputError
from vsr_trt.runtime.machine import shell
from vsr_trt.runtime.media.source import Frame, Rgb
from vsr_trt.runtime.media.staging import Staging


class Sink(ABC):
    """An output that appears whole or not at all.

    notes: sentences about what the output cannot hold; complete after `close`. As a context manager it
    calls `abort` on leaving without `close`. `write` and `close` raise OutputError when the disk is full
    or writing fails otherwise.
    """

    notes: list[str]

    def __init__(self, staging: Staging, width: int, height: int) -> None:
        self.notes = []
        self._staging = staging
        self._shape = (height, width, 3)
        self._written = 0
        self._ended = False
        self._result: Path | None = None

    def write(self, rgb: Rgb, frame: Frame) -> None:
        """Append `rgb`, (scale x H, scale x W, 3) uint8, restored from `frame`, at the time of `frame`.

        InputError if shape or dtype are others; OutputError if writing fails or the output is finished.
        """
        if self._ended:
            raise OutputError(f"{self._staging.final} is finished; no frame can be added to it.")
        if not isinstance(rgb, np.ndarray) or rgb.dtype != np.uint8 or rgb.shape != self._shape:
            found = f"{rgb.dtype} {rgb.shape}" if isinstance(rgb, np.ndarray) else type(rgb).__name__
            raise InputError(f"a restored frame must be a uint8 array of shape {self._shape}, not {found}.")
        self._write(np.ascontiguousarray(rgb), frame)
        self._written += 1

    def close(self, *, partial: bool = False) -> Path:
        """Finish the output and give it its final name; its path.

        With `partial`, after damaged input, the name is <stem>.partial<suffix>, or <stem>.partial-2<suffix>
        and so on where that is taken, and sound and subtitles end with the last frame. OutputError if no
        frame was written or the rest cannot be written; then, too, nothing remains. Calling it again returns
        the same path.
        """
        if self._result is None:
            if self._ended:
                raise OutputError(f"{self._staging.final} was given up; nothing of it is kept.")
            try:
                if not self._written:
                    raise OutputError(f"not one frame was written to {self._staging.final}; nothing is kept.")
                self._finish(partial=partial)
                with shell.shield():  # there and known to be, or neither
                    self._result = self._staging.commit(partial=partial)
                if not partial and self._result != self._staging.final:
                    self.add_note(
                        f"Something else is at {self._staging.final} by now; the result is kept as {self._result}."
                    )
                    self._ended = True
            except BaseException:
                self.abort()
                raise
        return self._result

    def abort(self) -> None:
        """Remove everything that was written. Harmless after `close` and when called twice."""
        if not self._ended:
            self._ended = True
            self._staging.discard()  # first, so that closing the muxer does not finish a file for nothing
            self._drop()

    def add_note(self, note: str) -> None:
        """Append `note` to `notes` unless it is already there."""
        if note not in self.notes:
            self.notes.append(note)

    @abstractmethod
    def _write(self, rgb: Rgb, frame: Frame) -> None: ...

    @abstractmethod
    def _finish(self, *, partial: bool) -> None:
        """Everything that is still to be written, closed."""

    @abstractmethod
    def _drop(self) -> None:
        """Let go of open files without raising."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()
