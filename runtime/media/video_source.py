"""Videos: any container and codec that FFmpeg reads, frame by frame in presentation order."""

from __future__ import annotations

import heapq
import itertools
import logging
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.container
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.media import color, structure
from vsr_trt.runtime.media.clock import JoinedClock, is_timeless, may_restart
from vsr_trt.runtime.media.source import Frame, Source, SourceInfo, Window

log = logging.getLogger(__name__)

_TEXT_ART = "tty"  # FFmpeg reads any .txt as a film of ANSI art
_ALPHA_DROPPED = "The alpha channel (transparency) is dropped."
# AV_DISPOSITION_...
ATTACHED_PICTURE = 0x400
_DEFAULT = 0x1
_DEPENDENT = 0x80000
_NEAR_JOIN = 4  # packets that a reader of transport streams holds back at most
_REORDERING = 16  # frames that a decoder holds back at most
_PROGRESSIVE = (0, 1)  # AVFieldOrder: unknown, progressive
_FALLBACK_RATE = Fraction(25)
_PLAUSIBLE_RATES = (1, 240)


def open_container(path: Path) -> av.container.InputContainer:
    """`path` opened for demuxing; InputError in plain words if FFmpeg cannot make a clip of it."""
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    if not path.is_file():
        raise InputError(f"{path} is neither a file nor a folder of pictures.")
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path} is an empty file; a video or a picture was expected.")
        # the absolute path starts with "/", so no part of a name is taken for a protocol
        container = av.open(str(path.absolute()), "r", metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise InputError(f"{path} cannot be read: permission denied.") from error
        if isinstance(error, av.FFmpegError) and _structure_of(path).index_lost:
            raise InputError(
                f"{path} was cut off: its index (the 'moov' box at the end of an MP4) is missing, so no "
                "frame can be found. Copy it again, or rebuild the index with a repair tool such as untrunc."
            ) from error
        raise InputError(
            f"{path} is not a video that can be read ({_reason(error)}); an MP4, MKV, MOV, AVI, WebM "
            "or another file that FFmpeg knows was expected."
        ) from error
    if container.format.name == _TEXT_ART:
        container.close()
        raise InputError(f"{path} is a text file; a video was expected.")
    return container


def _structure_of(path: Path) -> structure.Structure:
    """The lengths in the outermost headers; InputError if they cannot be read."""
    try:
        return structure.scan(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def main_video(container: av.container.InputContainer, path: Path) -> VideoStream:
    """The video that players show: the first that is marked as default, else the first. Covers are none.

    InputError if there is none to decode.
    """
    videos = [s for s in container.streams.video if not int(s.disposition) & ATTACHED_PICTURE]
    if any(int(s.disposition) & _DEPENDENT for s in videos):
        raise InputError(
            f"{path} is a picture stored in tiles, not a video; give it a name that ends with .heic or .avif."
        )
    videos.sort(key=lambda stream: not int(stream.disposition) & _DEFAULT)  # stable
    if not videos:
        kinds = " and ".join(sorted({s.type for s in container.streams})) or "no streams"
        raise InputError(f"{path} has no video in it, only {kinds}.")
    if videos[0].codec_context is None:
        raise InputError(f"{path}: no decoder for this kind of video is built in; convert it to H.264 first.")
    return videos[0]


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _start_of(container: av.container.InputContainer) -> Fraction:
    """When the clip begins on its own clock: the earliest start of its video and audio streams.

    Sound before 0 is the priming of its encoder and no part of the clip.
    """
    starts = [
        max(s.start_time * s.time_base, Fraction(0)) if s.type == "audio" else s.start_time * s.time_base
        for s in (*container.streams.video, *container.streams.audio)
        if s.start_time is not None and s.time_base and not int(s.disposition) & ATTACHED_PICTURE
    ]
    return min(starts, default=Fraction(0))


class VideoSource(Source):
    """A video file as a `Source`. Times count from the earliest video or audio of the clip.

    start: seconds to skip; frames: how many to read, None for all. InputError if the file cannot be
    read, holds no frame in that window, or is of a kind that cannot be restored (see `Source`).
    """

    def __init__(self, path: Path, start: float = 0.0, frames: int | None = None) -> None:
        self.path = path
        self.notes: list[str] = []
        self.damage: str | None = None
        self._limit = frames
        self._yielded = 0
        self._closed = False
        self._sought = False
        self._joins_noted = ""
        self._reformatter = VideoReformatter()
        self._clock: JoinedClock | None = None
        self._container = open_container(path)
        try:
            self._missing = _structure_of(path).missing
            self._open(Fraction(start).limit_denominator(1_000_000))
        except BaseException:
            self.close()
            raise

    def _open(self, start: Fraction) -> None:
        self._stream = main_video(self._container, self.path)
        assert self._stream.time_base is not None
        self._time_base = self._stream.time_base
        self._rate = self._frame_rate()
        # the origin is rounded to a tick of the video once, so that the distances stay exact
        self._origin = round(_start_of(self._container) / self._time_base)
        self._zero = self._origin
        self._previous: int | None = None
        self._step = self._tick()  # from the frame before to one that has no time
        self._clock = JoinedClock() if may_restart(self._container) else None
        self._last_packet_dts: int | None = None
        self._frames: Iterator[VideoFrame] = self._frames_from(start)
        first = next(self._frames, None)
        if first is None:
            self._refuse_empty(start)
        assert first is not None
        if (
            start <= 0
        ):  # some readers know the first packet's time only, which need not be that of the first frame
            self._origin = self._zero = min(self._origin, self._pts(first))
        if start > 0:
            self._zero = self._pts(first)
        elif self._origin:
            moment = float(self._origin * self._time_base)
            self.add_note(f"The clip's clock starts at {moment:.3f} s; the output starts at 0.")
        self._frames = itertools.chain([first], self._frames)
        context = self._stream.codec_context
        self._color = self._tags(first)
        self._size = (first.width, first.height)
        self._stored_format = first.format.name
        self._chroma = color.chroma_of(first.format)
        said = color.siting_of(self._container, self._stream)
        self._siting = None if said else color.siting_unsaid(context.name, first.format)
        self._orientation = self._upright(first)
        self._describe_oddities(first, context.field_order)
        self.info = self._build_info(start)
        self.window = Window(
            zero=self._zero * self._time_base,
            cut_start=start > 0,
            cut_end=self._limit is not None,
            expected_end=None if self._limit is None else self.info.duration,
        )

    def _refuse_empty(self, start: Fraction) -> None:
        if start > 0:
            last = (
                ""
                if self._previous is None
                else (
                    f", whose last frame is shown at {float((self._previous - self._origin) * self._time_base):.3f} s"
                )
            )
            raise InputError(
                f"the start, {float(start):g} s, is behind the last frame of {self.path}{last}; give an earlier one."
            )
        reason = f" ({self.damage})" if self.damage else ""
        raise InputError(f"{self.path} has a video stream but not one frame of it can be decoded{reason}.")

    # -- reading ---------------------------------------------------------------------------------------

    @property
    def files(self) -> list[Path]:
        """The video file."""
        return [self.path]

    def __iter__(self) -> Iterator[Frame]:
        while self._limit is None or self._yielded < self._limit:
            frame = next(self._frames, None)
            if frame is None:
                if not self._closed:
                    self._check_complete()
                return
            converted = self._converted(frame)
            self._yielded += 1
            yield converted

    def close(self) -> None:
        """Release the file. Harmless to call twice; iterating goes no further."""
        self._frames = iter(())  # PyAV crashes on reading from a closed container
        self._closed = True
        self._container.close()

    def _converted(self, frame: VideoFrame) -> Frame:
        index = self._yielded
        if (frame.width, frame.height) != self._size:
            raise InputError(
                f"{self.path}: frame {index} is {frame.width}x{frame.height}, the frames before it are "
                f"{self._size[0]}x{self._size[1]}; a clip must keep one size. Cut it there or scale it first."
            )
        if frame.format.name != self._stored_format:
            self._color, self._stored_format = self._tags(frame), frame.format.name
        if frame.is_corrupt:
            self._damaged(f"frame {index} is damaged")
        if frame.interlaced_frame:
            self._note_interlaced()
        if _ALPHA_DROPPED not in self.notes and color.is_transparent(frame):
            self.add_note(_ALPHA_DROPPED)
        rgb = color.to_rgb(self._reformatter, frame, self._color, self._siting)
        return Frame(
            rgb=self._orientation.apply(rgb),
            index=index,
            pts=self._pts(frame) - self._zero,
            time_base=self._time_base,
            duration=frame.duration or None,
        )

    def _pts(self, frame: VideoFrame) -> int:
        """When the frame is shown, in ticks, as it says by itself."""
        if frame.pts is not None:
            return frame.pts
        return self._origin if frame.dts is None else frame.dts

    def _pts_behind(self, frame: VideoFrame) -> int:
        """When the frame is shown, which is later than the frame before it.

        Program streams, as on DVDs, may give a frame the time of the one that was shown just then: its decoding time
        tells. Where that does not help, and for a frame without a time: it follows when the one before was shown.
        """
        timeless = is_timeless(self._container)
        if self._previous is None:
            return self._origin if timeless else self._pts(frame)
        if timeless:
            return self._previous + self._step
        for pts in (frame.pts, frame.dts):
            if pts is not None and pts > self._previous:
                return pts
        if frame.pts is None or self._clock is not None:
            return self._previous + self._step
        return frame.pts

    def _tick(self) -> int:
        return max(1, round(1 / (self._rate * self._time_base)))

    # -- decoding and seeking --------------------------------------------------------------------------

    def _frames_from(self, start: Fraction) -> Iterator[VideoFrame]:
        """Decoded frames whose time is not before `start`, from the keyframe before it on."""
        # half a tick of tolerance: the container may have rounded the time that is asked for
        first_pts = self._origin + start / self._time_base - Fraction(1, 2)
        for frame in self._decoded_from(start):
            pts = frame.pts = self._pts_behind(frame)
            self._previous, self._step = pts, frame.duration or self._tick()
            if pts >= first_pts or start <= 0:
                yield frame

    def _decoded_from(self, start: Fraction) -> Iterator[VideoFrame]:
        """Decoded frames beginning with a keyframe at or before `start`, or with the clip's first frame.

        Containers index decoding times, which run ahead of presentation times, so a seek may land one
        keyframe too late: then step back further, in the end to the beginning. Where clocks may restart, and
        where there is none, what is at `start` is known only by who has read from the beginning on.
        """
        back = Fraction(0)
        seekable = self._clock is None and not is_timeless(self._container)
        while start - back > 0 and seekable:
            target = self._origin + (start - back) / self._time_base
            try:
                self._container.seek(int(target), stream=self._stream)
            except av.FFmpegError as error:
                log.debug("%s cannot be sought in (%s); reading it from the beginning", self.path, error)
                break
            self._sought = True
            frames = self._decoded()
            skipped = []
            for frame in frames:
                skipped.append(frame)
                if frame.key_frame or frame.time is None or len(skipped) > 64:
                    break
            landed = skipped[-1] if skipped else None
            if landed and landed.key_frame and self._pts(landed) <= self._origin + start / self._time_base:
                self.damage = None  # before the window: nobody sees it
                yield from itertools.chain([landed], frames)
                return
            back = max(Fraction(1), 2 * back)
        if start > 0 and self._clock is None:
            self._restart()
        yield from self._decoded(start)

    def _restart(self) -> None:
        """Back to the first packet, in containers that cannot seek there, too."""
        self._sought = False
        self._container.close()
        self._container = open_container(self.path)
        self._stream = main_video(self._container, self.path)
        self.damage = None

    def _decoded(self, start: Fraction = Fraction(0)) -> Iterator[VideoFrame]:
        """All frames from here to the end; damage is recorded, and the frames behind it still come."""
        self._last_packet_dts = None
        times = _DisplayTimes() if self._container.format.name == "avi" else None
        first_pts: int | None = None
        # packets that are marked as damaged: what to say, the joins before it, the packets that came since
        suspects: list[tuple[str, int, list[int]]] = []
        headless: bool | None = None  # begun between two keyframes? what cannot be decoded then is no damage
        packets = self._packets()
        if self._clock is not None and start > 0:
            packets = _from_keyframe(packets, self._origin + start / self._time_base)
        for packet in packets:
            if packet is not None and packet.size:
                if headless is None:
                    headless, first_pts = not packet.is_keyframe, packet.pts
                self._last_packet_dts = packet.dts
                if packet.is_corrupt and self._missing:
                    continue  # the packet in which the file breaks off: its lower part would be grey
                self._convict(suspects, _NEAR_JOIN)
                if packet.is_corrupt and not headless:
                    suspects.append((f"frame {self._yielded} or one near it is damaged", self._joins, [0]))
                if times is not None:
                    times.sent(packet)
            if packet is None:
                self._convict(suspects, 0)
            try:
                frames = self._stream.codec_context.decode(packet)
            except EOFError:
                return  # flushed already, by the demuxer's last packet
            except av.FFmpegError as error:
                frames = []
                if not headless:
                    self._damaged(
                        f"frame {self._yielded} or one near it cannot be decoded ({_reason(error)})"
                    )
            for frame in frames:
                if headless and frame.pts != first_pts and not self._sought:
                    self.add_note("The clip begins between two keyframes; it is read from the second on.")
                headless = False
                if times is not None:
                    times.show(frame)
                frame.time_base = self._time_base  # PyAV leaves it out where it flushes
                yield frame

    def _packets(self) -> Iterator[Packet | None]:
        """The packets of the video, then None, which empties the decoder; a reading error ends them."""
        streams = [self._stream] if self._clock is None else clocked(self._container, self._stream)
        packets = self._container.demux(streams)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:
                self._damaged(f"reading the file failed after frame {self._yielded} ({_reason(error)})")
                packet = None
            if packet is not None and self._clock is not None:
                self._clock.move(packet, 1 / self._rate if packet.stream.type == "video" else None)
                if self._clock.note is not None:
                    self._note_joins(self._clock.note)
                if packet.stream.index != self._stream.index:
                    continue
            yield packet
            if packet is None:
                return

    def _convict(self, suspects: list[tuple[str, int, list[int]]], patience: int) -> None:
        """Records damage of marked packets behind which no join came.

        The counters of a transport stream restart at a join, and its reader then marks a packet in front of it.
        """
        for suspect in list(suspects):
            sentence, joins, since = suspect
            since[0] += 1
            if self._joins > joins:
                suspects.remove(suspect)
            elif since[0] > patience:
                self._damaged(sentence)
                suspects.remove(suspect)

    @property
    def _joins(self) -> int:
        return 0 if self._clock is None else self._clock.joins

    def _note_joins(self, note: str) -> None:
        """Instead of the note about fewer joins."""
        self.notes = [other for other in self.notes if other != self._joins_noted]
        self._joins_noted = note
        self.add_note(note)

    def _check_complete(self) -> None:
        """Record damage if the file is shorter than its headers say."""
        if self._missing:
            self._damaged(
                f"the file is cut short: {self._missing} bytes are missing behind frame {self._yielded - 1}"
            )
            return
        entries = getattr(self._stream, "index_entries", None)
        if "mov" not in self._container.format.name or not entries or self._last_packet_dts is None:
            return
        behind = sum(1 for e in _tail(entries) if e.timestamp > self._last_packet_dts)
        if behind:
            self._damaged(f"the index promises {behind} or more frames behind frame {self._yielded - 1}")

    def _damaged(self, sentence: str) -> None:
        """Remember the first damage; what follows is mostly its consequence."""
        log.info("%s: %s", self.path, sentence)
        if self.damage is None:
            self.damage = sentence[0].upper() + sentence[1:] + "."

    # -- what the clip is ------------------------------------------------------------------------------

    def _frame_rate(self) -> Fraction:
        rates = [self._stream.average_rate, self._stream.guessed_rate, self._stream.base_rate]
        if is_timeless(self._container):
            rates = rates[1:] + rates[:1]
        for rate in rates:
            if rate and _PLAUSIBLE_RATES[0] <= rate <= _PLAUSIBLE_RATES[1]:
                return Fraction(rate)
        return Fraction(self._stream.average_rate or _FALLBACK_RATE)

    def _clip_duration(self) -> Fraction | None:
        """Seconds of the whole video, from the stream or else from the container."""
        if self._stream.duration:
            return self._stream.duration * self._time_base
        return Fraction(self._container.duration, av.time_base) if self._container.duration else None

    def _tags(self, frame: VideoFrame) -> color.ColorTags:
        context = self._stream.codec_context
        try:
            return color.tags_of(frame, context.color_primaries, context.color_trc)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error

    def _upright(self, frame: VideoFrame) -> color.Orientation:
        orientation = color.orientation_of(frame)
        if orientation is None:
            self.add_note("The clip asks to be shown at an odd angle; only quarter turns are applied.")
            return color.Orientation()
        if orientation != color.Orientation():
            self.add_note("The clip's rotation is applied to the frames; the output needs no rotating.")
        return orientation

    def _describe_oddities(self, frame: VideoFrame, field_order: int) -> None:
        depth = color.bit_depth(frame)
        if depth > 8:
            self.add_note(f"{depth}-bit input is processed and written in 8 bit.")
        if self._stream.metadata.get("alpha_mode") == "1" and not color.has_alpha(frame):
            self.add_note(_ALPHA_DROPPED)  # a channel that the decoder does not read
        if field_order not in _PROGRESSIVE:
            self._note_interlaced()

    def _note_interlaced(self) -> None:
        self.add_note(
            "The clip is interlaced; its frames are processed as if progressive. Deinterlace it first "
            "(ffmpeg -vf bwdif) for a better result."
        )

    def _build_info(self, start: Fraction) -> SourceInfo:
        width, height = self._size
        ratio = self._stream.sample_aspect_ratio
        sar = Fraction(ratio) if ratio and ratio > 0 and ratio != 1 else None
        if self._orientation.swaps:
            width, height = height, width
            sar = 1 / sar if sar else None
        count, exact = self._count(start)
        duration = self._clip_duration()
        if duration is not None:
            duration = max(Fraction(0), duration - start)
        if self._limit is not None and count is not None:
            within = Fraction(count) / self._rate
            duration = within if duration is None else min(duration, within)
        return SourceInfo(
            width=width,
            height=height,
            kind="video",
            description=self._description(width, height),
            color=self._color,
            fps=self._rate,
            frame_count=count,
            frame_count_exact=exact,
            duration=duration,
            time_base=self._time_base,
            sample_aspect_ratio=sar,
            chroma=self._chroma,
        )

    def _count(self, start: Fraction) -> tuple[int | None, bool]:
        """How many frames the window holds, and whether that is counted rather than estimated."""
        whole, exact = self._stream.frames or None, False
        entries = getattr(self._stream, "index_entries", None)
        if "mov" in self._container.format.name and entries and len(entries) == whole and not self._missing:
            whole, exact = sum(not entry.is_discard for entry in entries), True
        duration = self._clip_duration()
        if whole is None and duration is not None:
            whole = max(1, round(duration * self._rate))
        if whole is not None and start > 0:
            whole, exact = max(1, whole - int(start * self._rate)), False
        if self._limit is not None:
            return (self._limit if whole is None else min(whole, self._limit)), exact
        return whole, exact

    def _description(self, width: int, height: int) -> str:
        context = self._stream.codec_context
        parts = [f"{context.name} {self._stored_format} {width}x{height} {float(self._rate):.5g} fps"]
        for kind in ("audio", "subtitle"):
            names = [s.name or "?" for s in self._container.streams if s.type == kind and s.codec_context]
            if names:
                parts.append(f"{'subtitles' if kind == 'subtitle' else kind} {' + '.join(names)}")
        return ", ".join(parts)


class _DisplayTimes:
    """When frames of an AVI are shown. It has decoding times only, one for each frame, and FFmpeg's guess at the
    others is wrong where frames are reordered: the n-th frame that comes out is shown at the n-th time that went in.
    """

    def __init__(self) -> None:
        self._waiting: list[int] = []
        self._sent: dict[
            int, int
        ] = {}  # what FFmpeg guessed, by which a frame tells its packet -> decoding time

    def sent(self, packet: Packet) -> None:
        """A packet goes to the decoder."""
        if packet.dts is None:
            return
        heapq.heappush(self._waiting, packet.dts)
        if packet.pts is not None:
            self._sent[packet.pts] = packet.dts

    def show(self, frame: VideoFrame) -> None:
        """A frame comes out: sets its time."""
        own = self._sent.pop(frame.pts, None) if frame.pts is not None else None
        # of packets that became no frame, being damaged or without their keyframe
        while own is not None and self._waiting and self._waiting[0] < own - _REORDERING:
            heapq.heappop(self._waiting)
        if self._waiting:
            frame.pts = heapq.heappop(self._waiting)


def clocked(container: av.container.InputContainer, video: VideoStream) -> list[Stream]:
    """The streams that a `JoinedClock` has to see: the video and all sound."""
    return [video, *container.streams.audio]


def _from_keyframe(packets: Iterator[Packet | None], moment: Fraction) -> Iterator[Packet | None]:
    """The packets from the last keyframe on that is shown at `moment` (in ticks) or before it."""
    held: list[Packet | None] = []
    for packet in packets:
        if packet is not None and packet.pts is not None and packet.pts <= moment and packet.is_keyframe:
            held.clear()
        held.append(packet)
        if packet is None or (packet.pts is not None and packet.pts > moment):
            break
    yield from held
    yield from packets


def _tail(entries: object) -> list:
    """The last few entries of an index."""
    size = len(entries)  # type: ignore[arg-type]
    return [entries[i] for i in range(max(0, size - 64), size)]  # type: ignore[index]
