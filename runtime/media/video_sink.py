"""Videos as output: encoded frame by frame at the input's times, with the input's sound next to them."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container
from av.codec.context import Flags, ThreadType
from av.packet import Packet
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.machine.priority import ordinary_priority
from vsr_trt.runtime.media import codecs, color
from vsr_trt.runtime.media.reserved_file import ReservedFile
from vsr_trt.runtime.media.sink import Sink
from vsr_trt.runtime.media.source import Frame, Rgb, Source
from vsr_trt.runtime.media.staging import Staging, write_failure
from vsr_trt.runtime.media.streams import COARSE, StreamCopier, needs_tee, tee_of

_MILLISECOND = Fraction(1, 1000)
_MAX_TICKS = 1_000_000  # of a movie header's second; finer clocks overflow in long clips
_USUAL_LIMIT = 4096  # pixels a side, beyond which encoders begin to refuse
_SVT_VARIABLE = "SVT_LOG"
_X265_DELAY = 3  # frames until x265 knows by how much decoding leads showing
_environment = threading.Lock()  # it is the whole process's
_ENCODER_RATES = (Fraction(1), Fraction(240))  # SVT-AV1 refuses others; with crf it decides nothing


class VideoSink(Sink):
    """Encodes RGB frames into a video and copies sound, subtitles, chapters and tags of the source.

    output: its suffix picks the container. width, height: of the frames, in pixels. fps: of pictures, which
    have no times. codec: a name of `codecs.CODECS` or None for the container's default; crf: the encoder's
    quality, None for the codec's default. InputError for a codec, crf or size that cannot be; OutputError
    if the file cannot be written. The encoder is opened here, so that what it refuses is refused at once.
    """

    def __init__(
        self,
        output: Path,
        source: Source,
        width: int,
        height: int,
        *,
        fps: Fraction,
        codec: str | None,
        crf: int | None,
        overwrite: bool,
    ) -> None:
        self._container_name = codecs.CONTAINERS[output.suffix.lower()]
        self._codec = codecs.pick(self._container_name, codec)
        quality = codecs.crf_option(codec, self._codec, crf)
        if not codecs.holds(self._container_name, self._codec):
            holders = ", ".join(codecs.holders(self._codec))
            raise InputError(f"{output.suffix} files cannot hold {codec}; write it to one of {holders}.")
        super().__init__(Staging(output, overwrite=overwrite), width, height)
        self._source = source
        self._time_base = source.info.time_base or 1 / fps
        self._tags = _output_tags(source.info.color, self._codec)
        self._reformatter = VideoReformatter()
        self._frames = 0
        self._last_pts: int | None = None
        self._end = Fraction(0)
        self._durations: dict[int, int] = {}
        self._copier: StreamCopier | None = None
        self._container: av.container.OutputContainer | None = None
        self._file: ReservedFile | None = None
        try:
            self._open(source.info.fps or fps, self._codec.options | quality)
        except BaseException:
            self.abort()
            raise
        self._note_coarser_chroma()

    def _open(self, fps: Fraction, options: dict[str, str]) -> None:
        temporary, window = self._staging.temporary, self._source.window
        muxer, settings = self._container_name, _muxer_options(self._container_name, self._time_base)
        if window is not None and needs_tee(self._source.path, muxer):
            target: Any = tee_of(muxer, str(temporary.absolute()), settings)
            muxer, settings = "tee", {}
        else:
            target = self._file = ReservedFile(temporary.absolute())
        self._container = av.open(target, "w", format=muxer, container_options=settings)
        self._stream = self._add_stream(fps, options)
        if muxer == "tee":  # which does not ask for what Matroska asks for
            self._stream.codec_context.flags |= Flags.global_header.value
        if window is not None:
            self._copier = StreamCopier(
                self._source.path, window, self._container, self._container_name, self.add_note
            )
        try:
            with _quiet(self._codec.encoder), ordinary_priority():
                self._container.start_encoding()
        except (av.FFmpegError, OSError) as error:
            if not isinstance(error, av.FFmpegError) or _is_about_writing(error):
                raise write_failure(error, self._staging.final, temporary) from error
            # encoders have a least size, too, that of HEVC is 32 or 64 pixels
            too_large = max(self._shape) > _USUAL_LIMIT
            way_out = (
                "another codec or a smaller input"
                if too_large
                else "another codec; ffv1 in .mkv takes any size"
            )
            raise InputError(
                f"the encoder {self._codec.encoder} refuses frames of {self._shape[1]}x{self._shape[0]} "
                f"({error.strerror}); choose {way_out}."
            ) from error

    def _add_stream(self, fps: Fraction, options: dict[str, str]) -> VideoStream:
        assert self._container is not None
        height, width, _ = self._shape
        stream = self._container.add_stream(
            self._codec.encoder,
            rate=min(max(fps, _ENCODER_RATES[0]), _ENCODER_RATES[1]),
            options=dict(options) | {"chroma_sample_location": color.WRITTEN_SITING},
            width=width,
            height=height,
            time_base=self._time_base,
        )
        assert isinstance(stream, VideoStream)
        context = stream.codec_context
        context.pix_fmt = self._codec.pixel_format
        context.thread_type = ThreadType.AUTO  # PyAV's default would slice the frames, which costs quality
        if self._codec.tag and self._container_name in ("mp4", "mov"):
            context.codec_tag = self._codec.tag
        rgb = av.VideoFormat(self._codec.pixel_format).is_rgb
        context.colorspace = color.MATRIX_RGB if rgb else self._tags.matrix
        context.color_range = color.FULL_RANGE if rgb or self._tags.full_range else color.LIMITED_RANGE
        context.color_primaries = self._tags.primaries
        context.color_trc = self._tags.transfer
        if self._source.info.sample_aspect_ratio:
            context.sample_aspect_ratio = self._source.info.sample_aspect_ratio
        return stream

    def _note_coarser_chroma(self) -> None:
        stored = self._source.info.chroma
        written = color.chroma_of(av.VideoFormat(self._codec.pixel_format))
        if color.is_coarser(written, stored):
            self.add_note(
                f"The input's colours are {stored} and are written as {written}, where neighbouring pixels "
                "share their colour; write an .mkv file with the codec ffv1 to keep every pixel's own."
            )

    # -- writing ---------------------------------------------------------------------------------------

    def _write(self, rgb: Rgb, frame: Frame) -> None:
        picture = color.from_rgb(self._reformatter, rgb, self._codec.pixel_format, self._tags)
        picture.pts = self._strictly_later(frame.pts)
        self._frames += 1
        picture.time_base = self._time_base
        duration = frame.duration or max(1, round(1 / (self._rate() * self._time_base)))
        self._durations[picture.pts] = duration
        moment = picture.pts * self._time_base
        self._end = moment + duration * self._time_base
        if self._container_name in COARSE and moment % _MILLISECOND:
            self.add_note(
                "Matroska and WebM store times in milliseconds; the frames' times are rounded to these."
            )
        try:
            self._mux(self._stream.encode(picture))
            if self._copier is not None:
                self._copier.copy_until(moment)
        except (av.FFmpegError, OSError) as error:
            raise write_failure(error, self._staging.final, self._staging.temporary) from error
        if (
            self._file is not None and self._file.is_full
        ):  # this frame is written; what is left is for the end
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise write_failure(full, self._staging.final, self._staging.temporary)

    def _rate(self) -> Fraction:
        return self._source.info.fps or 1 / self._time_base

    def _strictly_later(self, pts: int) -> int:
        """`pts`, or the tick behind the last frame where the input's times stand still or run back."""
        if self._last_pts is not None and pts <= self._last_pts:
            self.add_note(
                "Some frames of the input have the same or a falling time; they are moved by one tick."
            )
            pts = self._last_pts + 1
        self._last_pts = pts
        return pts

    def _mux(self, packets: list[Packet]) -> None:
        assert self._container is not None
        for packet in packets:
            # not every encoder hands durations on, and the last frame's is what players stop by
            if packet.pts in self._durations:
                packet.duration = self._durations.pop(packet.pts)
            self._container.mux_one(packet)

    def _finish(self, *, partial: bool) -> None:
        assert self._container is not None
        window = self._source.window
        cut = partial or (window is not None and window.cut_end)
        try:
            last = self._stream.encode(None)
            if self._codec.encoder == "libx265" and self._frames < _X265_DELAY:
                _decode_as_shown(last)
            self._mux(last)
            if self._copier is not None:
                self._copier.finish(self._end if cut else None)
            self._container.close()
            if self._file is not None:
                self._file.close()
            if self._copier is not None:
                self._copier.note_losses(self._staging.temporary, self._source.info.sample_aspect_ratio)
                self._copier.close()
        except (av.FFmpegError, OSError) as error:
            raise write_failure(error, self._staging.final, self._staging.temporary) from error

    def _drop(self) -> None:
        if self._container is not None:
            with contextlib.suppress(av.FFmpegError, OSError):
                self._container.close()
        if self._file is not None:
            self._file.close()
        if self._copier is not None:
            self._copier.close()


def _output_tags(tags: color.ColorTags, codec: codecs.Codec) -> color.ColorTags:
    return replace(tags, full_range=False) if codec.limited_only else tags


def _muxer_options(container: str, time_base: Fraction) -> dict[str, str]:
    if container in COARSE:
        # else the first sound packet's negative time (its priming) would move the whole clip
        return {"avoid_negative_ts": "disabled"}
    options = {"movflags": "+faststart"}
    if time_base.denominator <= _MAX_TICKS:
        # edit lists count in the movie's clock; in the default milliseconds a late first frame is rounded
        options["movie_timescale"] = str(max(1000, time_base.denominator))
    return options


def _decode_as_shown(packets: list[Packet]) -> None:
    """Sets each packet's decoding time to the time it is shown at, which holds for one or two frames.

    x265 measures its reordering delay at the third frame; in a shorter clip it subtracts whatever lay in
    that memory, and the muxer refuses the result.
    """
    for packet in packets:
        packet.dts = packet.pts


@contextlib.contextmanager
def _quiet(encoder: str) -> Iterator[None]:
    """Keeps SVT-AV1 from describing itself on stderr while it is opened.

    It heeds neither FFmpeg's log level nor an option, only a variable of the environment, which is put
    back as soon as it has been read. Whoever sets the variable gets what it says.
    """
    if encoder != "libsvtav1":
        yield
        return
    with _environment:
        if _SVT_VARIABLE in os.environ:
            yield
            return
        os.environ[_SVT_VARIABLE] = "1"  # errors only
        try:
            yield
        finally:
            os.environ.pop(_SVT_VARIABLE, None)


def _is_about_writing(error: av.FFmpegError) -> bool:
    """Whether it is the disk that failed rather than the encoder."""
    return isinstance(error, OSError)
