"""Everything of a clip that is not its picture: sound, subtitles, chapters, attachments and tags.

Packets are copied as they are, only their times are shifted. What the output cannot hold is said in a
sentence and left out; nothing here stops a restoration.
"""

from __future__ import annotations

import io
import logging
import math
import os
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container
from av.audio.codeccontext import AudioCodecContext
from av.audio.stream import AudioStream
from av.packet import Packet
from av.stream import Disposition, Stream

from vsr_trt.runtime.media.clock import JoinedClock, may_restart
from vsr_trt.runtime.media.source import Window
from vsr_trt.runtime.media.video_source import ATTACHED_PICTURE, clocked, main_video, open_container

log = logging.getLogger(__name__)

COARSE = ("matroska", "webm")  # these round every time to milliseconds, and may repeat one
_USUAL_CHANNELS = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
_MICROSECOND = Fraction(1, 1_000_000)
_COPIED = ("audio", "subtitle", "attachment")
_SUBTITLE_MARGIN = 10  # seconds before a cut in which a subtitle may begin that is still shown behind it
# Tags that describe the input file rather than the clip; the muxer writes its own.
_TECHNICAL = frozenset(
    (
        *("major_brand", "minor_version", "compatible_brands", "encoder", "handler_name", "vendor_id"),
        *("duration", "rotate", "alpha_mode", "bps", "number_of_frames", "number_of_bytes"),
    )
)
_MOV_TEXT_GAP = b"\0\0"  # "no text now"; the muxer writes its own
_NO_DATE = "1970-01-01"  # an MP4 whose date was never set
_NAMES = {"mp4": "MP4", "mov": "MOV", "matroska": "Matroska", "webm": "WebM"}


def clip_tags(metadata: dict[str, str]) -> dict[str, str]:
    """The entries of `metadata` that belong to the clip."""
    return {key: value for key, value in metadata.items() if not _is_technical(key, value)}


def _is_technical(key: str, value: str) -> bool:
    key = key.lower()
    if key == "creation_time":
        return value.startswith(_NO_DATE)
    return key.split("-")[0] in _TECHNICAL or key.startswith("_statistics")


def _stream_tags(metadata: dict[str, str]) -> dict[str, str]:
    """As `clip_tags`, under the names that muxers take; a stream was created when its file was."""
    tags = {key: value for key, value in clip_tags(metadata).items() if key.lower() != "creation_time"}
    if "name" in tags:  # so MP4's reader calls what its writer takes as "title"
        tags.setdefault("title", tags.pop("name"))
    return tags


class StreamCopier:
    """Copies from the file at `path` into `output`, whose video stream is there already.

    Opens the file a second time, so that decoding is free to run ahead. `container`: FFmpeg's name of what is written,
    which `output` may reach through `tee_of`. `note` receives the sentences.
    Call `copy_until` as the video proceeds, then `finish`, and `note_losses` when the file is closed.
    """

    def __init__(
        self,
        path: Path,
        window: Window,
        output: av.container.OutputContainer,
        container: str,
        note: Callable[[str], None],
    ) -> None:
        self._window = window
        self._output = output
        self._note = note
        self._format = container
        self._by_tee = output.format.name == "tee"
        self._holder = _NAMES.get(self._format, self._format)
        self._targets: dict[int, Stream] = {}
        self._next_dts: dict[int, int] = {}  # of each input stream, in its ticks
        self._ends: dict[int, int] = {}  # of the last packet of each input stream, on the input's clock
        self._refused: set[int] = set()
        self._copied: set[int] = set()
        self._filled: set[int] = set()  # subtitle tracks with samples between the texts
        self._input = open_container(path)
        try:
            self._prepare(path)
        except BaseException:
            self.close()
            raise

    def _prepare(self, path: Path) -> None:
        """Copy what goes in front of the output's header, and read up to the first packet."""
        self._video = main_video(self._input, path)
        self._copy_tags()
        self._copy_chapters()
        for stream in self._input.streams:
            if stream.index != self._video.index:
                self._add(stream)
        self._packets = self._demuxed()
        self._pending = next(self._packets, None)

    def close(self) -> None:
        """Release the file."""
        self._input.close()

    # -- before the header -----------------------------------------------------------------------------

    def _copy_tags(self) -> None:
        self._output.metadata.update(clip_tags(self._input.metadata))
        video = self._output.streams.video[0]
        video.metadata.update(_stream_tags(self._video.metadata))
        video.disposition = self._video.disposition

    def _copy_chapters(self) -> None:
        chapters = []
        for chapter in self._input.chapters():
            unit = chapter["time_base"]
            if not unit:
                continue
            start, end = (chapter[side] * unit - self._window.zero for side in ("start", "end"))
            limit = self._window.expected_end
            if (self._window.cut_start and end <= 0) or (limit is not None and start >= limit):
                continue
            start, end = max(start, Fraction(0)), end if limit is None else min(end, limit)
            chapters.append(chapter | {"start": round(start / unit), "end": round(end / unit)})
        self._chapters = bool(chapters)
        if chapters:
            self._output.set_chapters(chapters)

    def _add(self, stream: Stream) -> None:
        name = _describe(stream)
        if stream.type not in _COPIED:
            if not (stream.name == "bin_data" and self._input.chapters()):  # so MP4 keeps its chapters
                self._note(f"{name} is not copied.")
            return
        reason = _refusal(self._format, stream)
        if reason is not None:
            log.debug("%s: %s", name, reason)
            advice = "" if self._format == "matroska" else "; write to an .mkv file to keep it"
            self._note(f"{name} is not copied, because {self._holder} cannot hold it{advice}.")
            return
        target = self._output.add_stream_from_template(stream)
        _name_channels(target)
        if self._by_tee:
            target.time_base = _MICROSECOND
        target.metadata.update(_stream_tags(stream.metadata))
        target.disposition = stream.disposition
        if stream.type == "attachment":
            return
        self._targets[stream.index] = target
        if stream.codec_context.name == "mov_text":
            self._filled.add(stream.index)

    # -- packets ---------------------------------------------------------------------------------------

    def _demuxed(self) -> Iterator[Packet]:
        if not self._targets:
            return
        if self._window.cut_start and not may_restart(self._input):
            moment = max(Fraction(0), self._window.zero - _SUBTITLE_MARGIN)
            try:
                self._input.seek(int(moment * av.time_base))
            except av.FFmpegError as error:
                log.debug("cannot seek for the sound (%s); reading from the beginning", error)
        streams = [self._input.streams[index] for index in self._targets]
        clock = JoinedClock() if may_restart(self._input) else None
        if clock is not None:
            streams += [s for s in clocked(self._input, self._video) if s.index not in self._targets]
        rate = self._video.average_rate
        frame_seconds = 1 / Fraction(rate) if rate else None
        try:
            for packet in self._input.demux(streams):
                if not packet.size:
                    continue  # those at the end
                self._complete(packet)
                if clock is not None:
                    clock.move(packet, frame_seconds if packet.stream.type == "video" else None)
                    if packet.stream.index not in self._targets:
                        continue
                if self._shift(packet):
                    yield packet
        except av.FFmpegError as error:
            self._note(
                f"Sound and subtitles are copied only in part: the input is damaged ({error.strerror})."
            )

    def _complete(self, packet: Packet) -> None:
        """Gives a packet without a time that of the end of the one before."""
        index = packet.stream.index
        if packet.pts is None and packet.dts is None:
            packet.pts = packet.dts = self._ends.get(index, packet.stream.start_time or 0)
        begin = packet.dts if packet.dts is not None else packet.pts
        assert begin is not None
        self._ends[index] = begin + (packet.duration or _ticks_of_frame(packet))

    def _shift(self, packet: Packet) -> bool:
        """Move the packet to the output's clock; False if it is not to be copied."""
        if packet.stream.index in self._filled and bytes(packet) == _MOV_TEXT_GAP:
            return False
        zero = round(self._window.zero / packet.time_base)
        if packet.pts is None:
            packet.pts = packet.dts
        if packet.dts is None:
            packet.dts = packet.pts
        assert packet.pts is not None
        assert packet.dts is not None
        packet.pts -= zero
        packet.dts -= zero
        if self._window.cut_start and packet.pts < 0:
            remaining = packet.pts + (packet.duration or 0)
            if packet.stream.type != "subtitle" or remaining <= 0:
                return False
            packet.pts = packet.dts = 0
            packet.duration = remaining
        return True

    def copy_until(self, moment: Fraction) -> None:
        """Mux packets in the order of the file up to the first one that begins at `moment` or later.

        moment: output seconds. av.FFmpegError if the output cannot be written.
        """
        while self._pending is not None and _moment(self._pending) < moment:
            self._mux(self._pending)
            self._pending = next(self._packets, None)

    def finish(self, end: Fraction | None) -> None:
        """Mux every packet that is left and begins before `end` (output seconds), all if None.

        av.FFmpegError if the output cannot be written.
        """
        running = set(self._targets)
        while self._pending is not None and running:
            if end is None or _moment(self._pending) < end:
                self._mux(self._pending)
            else:
                running.discard(self._pending.stream.index)
            self._pending = next(self._packets, None)

    def _mux(self, packet: Packet) -> None:
        source = packet.stream
        target = self._targets[source.index]
        if source.index in self._refused:
            return
        assert packet.pts is not None
        assert packet.dts is not None
        if self._by_tee:
            _in_microseconds(packet)
        # most muxers refuse a time that stands still, and count in ticks of their own
        packet.dts = max(packet.dts, self._next_dts.get(source.index, packet.dts))
        packet.pts = max(packet.pts, packet.dts)
        self._next_dts[source.index] = packet.dts
        if self._by_tee or self._format not in COARSE:
            self._next_dts[source.index] += max(1, math.ceil((target.time_base or 0) / packet.time_base))
        packet.stream = target
        try:
            self._output.mux_one(packet)
        except OSError:
            raise
        except av.FFmpegError as error:
            self._refused.add(source.index)
            self._note(f"{_describe(source)} is copied only up to damaged data ({error.strerror}).")
        else:
            self._copied.add(source.index)

    # -- after the trailer -----------------------------------------------------------------------------

    def note_losses(self, written: Path, sample_aspect_ratio: Fraction | None) -> None:
        """Open the finished file and say which tags, roles, chapters and pixel shape it does not have."""
        with av.open(str(written.absolute()), "r", metadata_errors="replace") as result:
            lost = _missing_keys(clip_tags(self._input.metadata), result.metadata)
            # in the order of the output, which leaves out streams without packets
            written_streams = (self._video.index, *(i for i in self._targets if i in self._copied))
            for index, after in zip(written_streams, result.streams, strict=False):
                before = self._input.streams[index]
                lost |= _missing_keys(_stream_tags(before.metadata), _stream_tags(after.metadata))
                role = before.disposition & ~after.disposition
                if role:
                    self._note(
                        f"{self._holder} does not keep the role of {_describe(before)}: {_roles(role)}."
                    )
            shape = result.streams.video[0].sample_aspect_ratio
            if sample_aspect_ratio not in (None, shape):
                self._note(
                    f"{self._holder} does not keep the shape of the pixels ({sample_aspect_ratio}) with this "
                    "codec; write H.264 or an .mp4 file to keep it."
                )
            if self._chapters and not result.chapters():
                self._note(f"{self._holder} does not keep the chapters.")
        if lost:
            self._note(f"{self._holder} does not keep these tags: {', '.join(sorted(lost))}.")


def _in_microseconds(packet: Packet) -> None:
    """Counts the packet's times so finely that many in a millisecond can be distinguished."""
    factor = packet.time_base / _MICROSECOND
    assert packet.pts is not None
    assert packet.dts is not None
    packet.pts, packet.dts = round(packet.pts * factor), round(packet.dts * factor)
    packet.duration = round((packet.duration or 0) * factor)
    packet.time_base = _MICROSECOND


def _ticks_of_frame(packet: Packet) -> int:
    """How long a packet of sound lasts that does not say it; 0 where its codec does not either."""
    context = packet.stream.codec_context
    if not isinstance(context, AudioCodecContext) or not context.frame_size or not context.sample_rate:
        return 0
    return round(context.frame_size / (context.sample_rate * packet.time_base))


def _moment(packet: Packet) -> Fraction:
    assert packet.pts is not None
    return packet.pts * packet.time_base


def _missing_keys(before: dict[str, str], after: dict[str, str]) -> set[str]:
    kept = {key.lower() for key in after}
    return {key for key, value in before.items() if key.lower() not in kept and value not in ("", "und")}


def _roles(disposition: Disposition) -> str:
    return ", ".join(role.name.replace("_", " ") for role in Disposition if role in disposition and role.name)


def _describe(stream: Stream) -> str:
    """Such as "Audio track 1 (aac, eng)"; the number is the stream's place in the input."""
    if int(stream.disposition) & ATTACHED_PICTURE:
        return "The cover picture"
    if stream.type == "attachment":
        return f"The attachment {stream.name or stream.index}"
    codec = stream.codec_context.name if stream.codec_context else getattr(stream, "name", None)
    details = ", ".join(part for part in (codec, stream.language) if part and part != "und")
    kind = {"audio": "Audio track", "subtitle": "Subtitle track", "video": "Video track"}
    return f"{kind.get(stream.type, 'Data track')} {stream.index}" + (f" ({details})" if details else "")


def _refusal(container: str, stream: Stream) -> str | None:
    """Why `container` cannot hold the stream, found by writing the header of a file with it alone."""
    if container == "webm" and stream.type == "attachment":
        return "its muxer drops them without a word"
    reason = _refusal_by(io.BytesIO(), container, stream)
    if reason is not None and container == "matroska" and stream.type == "audio":
        return _refusal_by(tee_of(container, os.devnull), "tee", stream)
    return reason


def _name_channels(stream: Stream) -> None:
    """Says which channels a sound has that only says how many, as WAV and AVI do: MP4 cannot be ended without."""
    if isinstance(stream, AudioStream) and stream.codec_context.layout.name.endswith(" channels"):
        usual = _USUAL_CHANNELS.get(stream.codec_context.layout.nb_channels)
        if usual is not None:
            stream.codec_context.layout = usual


def _refusal_by(target: Any, container: str, stream: Stream) -> str | None:
    try:
        with av.open(target, "w", format=container) as probe:
            _name_channels(probe.add_stream_from_template(stream))
            probe.start_encoding()
    except (av.FFmpegError, ValueError) as error:
        return str(error)
    return None


def needs_tee(path: Path, container: str) -> bool:
    """Whether `container` holds a stream of the clip that PyAV does not let it be given.

    PyAV asks the muxer of Matroska for the codecs that have a name of their own there. The muxer holds every sound that
    WAV has a number for besides, WMA, ADPCM and A-law for example; its asking cannot be avoided, but another muxer can
    be asked instead: `tee`, which takes everything and hands it on. Not so for MOV: its muxer takes them, too, but of
    some it finds only when it ends the file that it cannot.
    """
    if container != "matroska":
        return False
    with open_container(path) as clip:
        return any(
            _refusal(container, stream) is None and _refusal_by(io.BytesIO(), container, stream) is not None
            for stream in clip.streams.audio
        )


def tee_of(container: str, path: str, options: dict[str, str] | None = None) -> str:
    """The name by which FFmpeg's `tee` muxer writes one file at `path`."""
    said = "".join(f":{name}={value}" for name, value in (options or {}).items())
    return f"[f={container}{said}]" + re.sub(r"([\\'|\[\] ])", r"\\\1", path)
