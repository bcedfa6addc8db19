"""Decodes a video as a program of its own: `python -m vsr_trt.runtime.media.video_decoder`, spoken to over its pipes.

`isolated.IsolatedVideo` starts it. It is given one line of JSON, `{"path", "start", "frames"}`, and answers with lines
of JSON. The first is `{"info", "window", "notes"}` as `VideoSource` has them; then one of `{"frame", "notes",
"damage"}` for every frame, the bytes of its picture behind it; then `{"end", "notes", "damage"}`. `{"error": sentence}`
may stand for any of them and is the last. Fractions are text, `"1/25"`.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, fields
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.media.color import ColorTags
from vsr_trt.runtime.media.source import Frame, Rgb, SourceInfo, Window
from vsr_trt.runtime.media.video_source import VideoSource


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Reads one request and answers it to the end of the clip."""

    def say(answer: dict[str, Any]) -> None:
        answers.write(
            json.dumps(answer, default=str).encode() + b"\n"
        )  # only fractions and paths are no JSON

    request = json.loads(requests.readline())
    try:
        with VideoSource(Path(request["path"]), request["start"], request["frames"]) as source:
            assert source.window is not None
            say({"info": asdict(source.info), "window": asdict(source.window), "notes": source.notes})
            answers.flush()
            for frame in source:
                header = {
                    field.name: getattr(frame, field.name) for field in fields(frame) if field.name != "rgb"
                }
                say({"frame": header, "notes": source.notes, "damage": source.damage})
                answers.write(frame.rgb.data)
                answers.flush()
            say({"end": True, "notes": source.notes, "damage": source.damage})
    except InputError as error:
        say({"error": str(error)})
    except BrokenPipeError:
        raise
    except Exception as error:  # a decoder's or our own fault: the frames before it are still worth keeping
        say({"error": f"{request['path']} cannot be decoded ({type(error).__name__}: {error})."})
    answers.flush()


def info_of(answer: dict[str, Any]) -> SourceInfo:
    """What `serve` answered first, as the record that it was."""
    info = answer["info"]
    info["color"] = ColorTags(**info["color"])
    for name in ("fps", "duration", "time_base", "sample_aspect_ratio"):
        info[name] = _fraction(info[name])
    return SourceInfo(**info)


def window_of(answer: dict[str, Any]) -> Window:
    """The part of the video that is read, from the first answer."""
    window = answer["window"]
    return Window(
        **window | {"zero": Fraction(window["zero"]), "expected_end": _fraction(window["expected_end"])}
    )


def frame_of(answer: dict[str, Any], rgb: Rgb) -> Frame:
    """A frame from its answer and its picture, (H,W,3) uint8."""
    frame = answer["frame"]
    return Frame(rgb=rgb, **frame | {"time_base": _fraction(frame["time_base"])})


def _fraction(text: str | None) -> Fraction | None:
    return None if text is None else Fraction(text)


def main() -> None:
    """Serves its pipes; ends quietly when the other side has closed them."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what a library prints is no answer
    try:
        serve(sys.stdin.buffer, answers)
    except BrokenPipeError:
        os._exit(0)  # what is left to write has nowhere to go


if __name__ == "__main__":
    main()
