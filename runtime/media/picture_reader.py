"""Pictures, decoded in a process of their own: a decoder that crashes there is an error of one file."""

from __future__ import annotations

import contextlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.media import decoder_process
from vsr_trt.runtime.media.source import Rgb

_PROGRAM = Path(__file__).with_name("picture_decoder.py")


@dataclass(frozen=True, slots=True)
class Look:
    """What a picture's headers say.

    kind: "PNG", "JPEG" and so on. size: (width, height), upright. pictures: frames of an animation or pages of a
    TIFF. animated: whether they follow in time. end: least length of the file in bytes, 0 if the headers do not tell.
    """

    kind: str
    size: tuple[int, int]
    pictures: int
    animated: bool
    end: int


class PictureReader:
    """Starts the decoder with the first picture, and again where it has crashed. For one thread at a time.

    Methods raise InputError for a file that cannot be read as it should be.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def look(self, path: Path) -> Look:
        """What the headers of the picture at `path` say; nothing is decoded."""
        answer, _ = self._ask("look", path)
        return Look(**answer | {"size": tuple(answer["size"])})

    def decode(self, path: Path) -> tuple[Rgb, list[str]]:
        """(H,W,3) uint8 in sRGB, upright, and sentences about what is read differently from how it is stored."""
        answer, data = self._ask("decode", path)
        width, height = answer["size"]
        return np.frombuffer(data, np.uint8).reshape(height, width, 3), answer["notes"]

    def close(self) -> None:
        """Ends the decoder. Harmless to call twice; the next picture starts it again."""
        process, self._process = self._process, None
        if process is not None:
            decoder_process.end(process)

    def _ask(self, what: str, path: Path) -> tuple[dict[str, Any], bytes]:
        if self._process is None:
            self._process = decoder_process.start(str(_PROGRAM))
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        line, data = b"", b""
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps({"do": what, "path": str(path)}).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._crashed(path)
        answer = json.loads(line)
        if "error" in answer:
            raise InputError(f"{path} {answer['error']}")
        if what == "decode":
            width, height = answer["size"]
            data = process.stdout.read(width * height * 3)
            if len(data) < width * height * 3:
                raise self._crashed(path)
        return answer, data

    def _crashed(self, path: Path) -> InputError:
        assert self._process is not None
        how = decoder_process.last_words(self._process)
        self.close()
        return InputError(f"{path} makes the decoder of pictures crash ({how}); replace or remove it.")
