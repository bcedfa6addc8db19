"""A video that is decoded in a process of its own, for work that must outlive a decoder's crash."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.media import decoder_process, video_decoder
from vsr_trt.runtime.media.source import Frame, Source

log = logging.getLogger(__name__)


class IsolatedVideo(Source):
    """As `VideoSource`, frame for frame. A crash of the decoder is damage: the frames before it come, `damage` says it.

    Args:
        path: of a video.
        start: seconds to skip.
        frames: how many to read, None for all.

    Raises:
        InputError: as `VideoSource`, and where the decoder crashes before it has given a frame.
    """

    def __init__(self, path: Path, start: float = 0.0, frames: int | None = None) -> None:
        self.path = path
        self.notes: list[str] = []
        self.damage: str | None = None
        self._read = 0
        self._closed = False
        # its start takes a third of a second: the packages are read from disk again
        self._process = decoder_process.start("-m", video_decoder.__name__)
        try:
            request = {"path": str(path), "start": float(start), "frames": frames}
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
            answer = self._answer()
            if answer is None:
                how = decoder_process.last_words(self._process)
                raise InputError(
                    f"{path} makes its decoder crash ({how}) before the first frame; convert it with another "
                    "program first, or replace it."
                )
            self.info, self.window = video_decoder.info_of(answer), video_decoder.window_of(answer)
        except BaseException:
            self.close()
            raise

    @property
    def files(self) -> list[Path]:
        """The video file."""
        return [self.path]

    def __iter__(self) -> Iterator[Frame]:
        assert self._process.stdout is not None
        shape = (self.info.height, self.info.width, 3)
        size = shape[0] * shape[1] * shape[2]
        while not self._closed:
            answer = self._answer()
            if answer is not None and "end" in answer:
                return
            data = self._process.stdout.read(size) if answer is not None else b""
            if answer is None or len(data) < size:
                if not self._closed:
                    self._crashed()
                return
            self._read += 1
            yield video_decoder.frame_of(answer, np.frombuffer(data, np.uint8).reshape(shape))

    def close(self) -> None:
        """Ends the decoder. Harmless to call twice; iterating goes no further."""
        self._closed = True
        decoder_process.end(self._process)

    def _answer(self) -> dict[str, Any] | None:
        """The next line of the decoder, its notes taken over; None if it has died."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            return None
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise InputError(answer["error"])
        self.notes = answer["notes"]
        self.damage = answer.get("damage")
        return answer

    def _crashed(self) -> None:
        how = decoder_process.last_words(self._process)
        log.info("%s: the decoder crashed (%s) behind frame %d", self.path, how, self._read - 1)
        self.damage = f"Its decoder crashed ({how}) behind frame {self._read - 1}."
