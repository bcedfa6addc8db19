"""Reading and writing clips: videos of any kind FFmpeg knows, and folders of pictures.

    with open_source("in.mp4") as source, open_sink("out.mp4", source) as sink:
        for frame in source:
            sink.write(restored(frame.rgb), frame)
        sink.close()

Needs numpy and PyAV only. Nothing here is shared between objects, so one thread may read while another
writes.
"""

from __future__ import annotations

import math
import os
from fractions import Fraction
from pathlib import Path

from runtime.errors import InputError, OutputError
from runtime.media import codecs, images
from runtime.media.color import ColorTags
from runtime.media.images import ImageSource
from runtime.media.picture_sink import PictureSink, more_than_one_frame
from runtime.media.sink import Sink
from runtime.media.source import Frame, Source, SourceInfo, Window
from runtime.media.video_sink import VideoSink
from runtime.media.video_source import VideoSource

__all__ = ["ColorTags", "Frame", "Sink", "Source", "SourceInfo", "Window", "open_sink", "open_source"]

DEFAULT_FPS = Fraction(25)


def open_source(path: str | os.PathLike[str], start: float = 0.0, frames: int | None = None) -> Source:
    """Open a video, a folder of pictures or one picture for reading.

    start: seconds of a video to skip. frames: how many frames to read, None for all. The first frame is
    decoded here, so that what cannot be restored is refused before anything else happens.

    InputError: missing, empty or unreadable file, no video in it, empty folder, pictures of different
    sizes, high dynamic range, start beyond the end, start of a folder, frames below 1.
    """
    path = Path(path)
    if not math.isfinite(start) or start < 0:
        raise InputError(f"the start must be a number of seconds from 0 on, not {start}.")
    if frames is not None and frames < 1:
        raise InputError(f"the number of frames must be 1 or more, not {frames}.")
    if path.is_dir() or path.suffix.lower() in images.SUFFIXES:
        if not path.exists():
            raise InputError(f"{path} does not exist.")
        if start:
            raise InputError("a start in seconds needs a video; pictures have no times. Leave it out.")
        return ImageSource(path, frames)
    return VideoSource(path, start, frames)


def open_sink(
    output: str | os.PathLike[str],
    source: Source,
    *,
    scale: int = 4,
    codec: str | None = None,
    crf: int | None = None,
    overwrite: bool = False,
    fps: Fraction | float = DEFAULT_FPS,
) -> Sink:
    """Open the output for frames of `scale` times the size of those of `source`.

    output: a video if its suffix is .mp4, .m4v, .mov, .mkv or .webm; one picture if it is .png; a folder of
    PNG files if it has no suffix, ends with a slash or is a folder. codec: h264, hevc, av1, vp9, ffv1 or
    prores, None for the container's default (h264, in WebM vp9). crf: quality, None for the codec's default.
    overwrite: replace what exists. fps: frames per second of a video made of pictures, unused otherwise.

    InputError: unknown suffix or codec, a codec that the container cannot hold, crf out of range, a size
    that the encoder refuses. OutputError: the output exists, is the input, its folder is missing or not
    writable, the disk is full.
    """
    path = Path(output)
    as_folder = str(output).endswith(os.sep) or path.is_dir() or not path.suffix
    width, height = scale * source.info.width, scale * source.info.height
    _refuse_input_as_output(path, source)
    if not as_folder and codecs.is_video_name(path):
        rate = images.fps_of(fps)
        return VideoSink(path, source, width, height, fps=rate, codec=codec, crf=crf, overwrite=overwrite)
    if codec is not None or crf is not None:
        raise InputError("codec and crf are for videos; PNG pictures are lossless. Leave them out.")
    if as_folder:
        return PictureSink(path, source, width, height, overwrite=overwrite)
    if path.suffix.lower() != ".png":
        known = ", ".join((*codecs.CONTAINERS, ".png"))
        raise InputError(
            f"no output of the kind '{path.suffix}' can be written; give a name that ends with one of "
            f"{known}, or with / for a folder of PNG pictures."
        )
    if source.info.frame_count != 1:
        raise more_than_one_frame(path)
    return PictureSink(path, source, width, height, overwrite=overwrite, single=True)


def _refuse_input_as_output(output: Path, source: Source) -> None:
    """OutputError if writing `output` would destroy a file that is being read."""
    if not output.exists():
        return
    for file in source.files:
        if output.samefile(file) or (output.is_dir() and output.samefile(file.parent)):
            raise OutputError(f"{output} is the input itself; choose another name for the output.")
