"""Reading and writing clips: videos of any kind FFmpeg knows, and folders of pictures.

    with open_source("in.mp4") as source, open_sink("out.mp4", source) as sink:
        for frame in source:
            sink.write(restored(frame.rgb), frame)
        sink.close()

Needs numpy and PyAV only. Nothing here is shared between objects, so one thread may read while another
writes.
"""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

from vsr_trt.runtime.errors import InputError, OutputError
from vsr_trt.runtime.media import codecs, images
from vsr_trt.runtime.media.color import ColorTags
from vsr_trt.runtime.media.images import ImageSource
from vsr_trt.runtime.media.isolated import IsolatedVideo
from vsr_trt.runtime.media.picture_sink import PictureSink, more_than_one_frame
from vsr_trt.runtime.media.sink import Sink
from vsr_trt.runtime.media.source import Frame, Source, SourceInfo, Window
from vsr_trt.runtime.media.video_sink import VideoSink
from vsr_trt.runtime.media.video_source import VideoSource

__all__ = ["ColorTags", "Frame", "Sink", "Source", "SourceInfo", "Window", "open_sink", "open_source"]

DEFAULT_FPS = Fraction(25)
_MOST_SECONDS = 1e9  # of a start: 31 years; containers count in 64 bit
_MOST_FRAMES = 1_000_000_000
_MOST_RATE = 1000  # frames a second
_MOST_TICKS = 1_000_000  # in numerator and denominator of a frame rate; containers hold them in 32 bit


def open_source(
    path: str | os.PathLike[str], start: float = 0.0, frames: int | None = None, *, isolated: bool = False
) -> Source:
    """Open a video, a folder of pictures or one picture for reading.

    start: seconds of a video to skip. frames: how many frames to read, None for all. isolated: decode a video in a
    process of its own, which takes a third of a second to start; a decoder that crashes is then damage of the clip
    and takes nothing with it (pictures are always decoded so). The first frame is decoded here, so that what cannot
    be restored is refused before anything else happens.

    InputError: missing, empty or unreadable file, no video in it, empty folder, pictures of different
    sizes, high dynamic range, start beyond the end, start of a folder, frames below 1 or beyond reason.
    """
    path = Path(path)
    if not 0 <= start <= _MOST_SECONDS:  # not a number is refused, too
        raise InputError(f"the start must be a number of seconds from 0 to {_MOST_SECONDS:.0f}, not {start}.")
    if frames is not None and not 1 <= frames <= _MOST_FRAMES:
        raise InputError(f"the number of frames must be from 1 to {_MOST_FRAMES}, not {frames}.")
    if path.is_dir() or images.is_picture(path):
        if not path.exists():
            raise InputError(f"{path} does not exist.")
        if start:
            raise InputError("a start in seconds needs a video; pictures have no times. Leave it out.")
        return ImageSource(path, frames)
    return IsolatedVideo(path, start, frames) if isolated else VideoSource(path, start, frames)


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
    overwrite: replace what exists. fps: frames per second of a video made of pictures, unused otherwise; a
    Fraction is taken exactly, e.g. Fraction(30000, 1001).

    InputError: unknown suffix or codec, a codec that the container cannot hold, crf out of range, a size
    that the encoder refuses, - for standard output. OutputError: the output exists, is the input, a link that
    leads nowhere or no file, its folder is missing or not writable, the disk is full.
    """
    if str(output) == "-":
        raise InputError(
            "the output - (standard output) is not supported: results appear whole, under a name; give one such as "
            "out.mkv, and read that file afterwards (./- is a file or folder of that name)."
        )
    path = Path(output)
    as_folder = str(output).endswith(os.sep) or path.is_dir() or not path.suffix
    width, height = scale * source.info.width, scale * source.info.height
    _refuse_input_as_output(path, source)
    if not as_folder and codecs.is_video_name(path):
        rate = _rate(fps)
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


def _rate(fps: Fraction | float) -> Fraction:
    """`fps` as an exact rate: a fraction as it is, other numbers as the nearest fraction that means them."""
    if not isinstance(fps, Fraction):
        return images.fps_of(fps)
    if not 0 < fps <= _MOST_RATE or max(fps.numerator, fps.denominator) > _MOST_TICKS:
        raise InputError(
            f"{fps} frames per second cannot be written; between 0 and {_MOST_RATE} was expected, with a numerator and "
            f"a denominator of {_MOST_TICKS} at most."
        )
    return fps


def _refuse_input_as_output(output: Path, source: Source) -> None:
    """OutputError if writing `output` would destroy a file that is being read."""
    if not output.exists():
        return
    for file in source.files:
        if output.samefile(file) or (output.is_dir() and output.samefile(file.parent)):
            raise OutputError(f"{output} is the input itself; choose another name for the output.")
