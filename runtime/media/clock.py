"""The clock of a clip that was joined of pieces: recordings put behind each other with `cat`, VOBs, captures.

Each piece brings a clock of its own, so times fall back or jump where it begins. Pieces are to follow each other
without a gap, and sound and picture of a piece are to stay together. So each piece has one offset, for all streams: the
first stream that gets there goes on without a gap, and with it decides. Of the others, packets belong to it that lie
behind that place in the file: readers hand on the last ones of the piece before when they have begun with the next.
"""

from __future__ import annotations

import bisect
from fractions import Fraction

from av.container import InputContainer
from av.packet import Packet

# As FFmpeg's own remuxing decides (-dts_delta_threshold, and a tenth of a second backwards).
_JUMP = 10
_FALL = Fraction(1, 10)
_FALL_OF_SHOWING = 1
_DISCONTINUOUS = 0x200  # AVFMT_TS_DISCONT
_TIMELESS = 0x80  # AVFMT_NOTIMESTAMPS
# Formats whose clock may restart, next to those that say it themselves.
_MAY_RESTART = ("flv",)


def may_restart(container: InputContainer) -> bool:
    """Whether files of this format can be put behind each other, so that times are not to be trusted."""
    marked = int(container.format.flags) & _DISCONTINUOUS and not is_timeless(container)
    return bool(marked) or container.format.name in _MAY_RESTART


def is_timeless(container: InputContainer) -> bool:
    """Whether it is a bare stream, such as .h264 and .m2v: its reader makes times up, and 25 frames a second."""
    return bool(int(container.format.flags) & _TIMELESS)


class JoinedClock:
    """Moves packets to one clock that runs through. All packets of video and sound have to pass, in file order."""

    def __init__(self) -> None:
        self._offsets = [Fraction(0)]  # of each piece, in seconds
        self._begins: list[int] = []  # where each piece but the first begins in the file
        self._piece: dict[int, int] = {}  # stream -> where it is
        self._expected: dict[int, Fraction] = {}  # stream -> seconds on its piece's own clock
        self._lead: dict[int, int] = {}  # stream -> ticks by which showing follows decoding

    @property
    def joins(self) -> int:
        """How many places were found where the clock restarts or jumps."""
        return len(self._offsets) - 1

    def move(self, packet: Packet, frame_seconds: Fraction | None = None) -> None:
        """Changes the packet's times, in its own ticks.

        Args:
            packet: of any stream; those of subtitles and data only follow.
            frame_seconds: how long the packet lasts where it does not say.
        """
        stream, unit = packet.stream.index, packet.time_base
        if packet.pts is not None and packet.dts is not None:
            if abs(packet.pts - packet.dts) * unit > _JUMP:  # one of them is of the next piece already
                packet.pts = packet.dts + self._lead.get(stream, 0)
            self._lead[stream] = packet.pts - packet.dts
        if packet.stream.type in ("video", "audio"):
            self._look(packet, frame_seconds or Fraction(0))
        offset = self._offsets[self._piece.get(stream, -1)]
        if offset:
            ticks = round(offset / unit)
            if packet.pts is not None:
                packet.pts += ticks
            if packet.dts is not None:
                packet.dts += ticks

    def _look(self, packet: Packet, frame_seconds: Fraction) -> None:
        """Finds out which piece the packet is of."""
        stream, unit = packet.stream.index, packet.time_base
        # times of showing fall back where frames are reordered, so they tell less
        stamp, fall = (packet.dts, _FALL) if packet.dts is not None else (packet.pts, _FALL_OF_SHOWING)
        if stamp is None:
            return
        time, expected = stamp * unit, self._expected.get(stream)
        before = self._piece.setdefault(stream, self.joins)
        place = packet.pos if packet.pos is not None and packet.pos >= 0 else None
        piece = before if place is None else max(before, bisect.bisect(self._begins, place))
        if expected is not None:
            now = expected + self._offsets[before]
            apart = time + self._offsets[piece] - now
            if abs(apart) > _JUMP or (piece == before and apart < -fall):
                piece = self._next(piece, time, now, place)
        self._piece[stream] = piece
        self._expected[stream] = time + (packet.duration * unit if packet.duration else frame_seconds)

    def _next(self, piece: int, time: Fraction, now: Fraction, place: int | None) -> int:
        """The piece behind `piece` in which `time` is near `now`; a new one if there is none yet."""
        for later in range(piece + 1, len(self._offsets)):
            if abs(time + self._offsets[later] - now) <= _JUMP:
                return later
        self._offsets.append(now - time)
        self._begins.append(max(place or 0, self._begins[-1] if self._begins else 0))
        return self.joins

    @property
    def note(self) -> str | None:
        """A sentence about the joins, None without any."""
        if not self.joins:
            return None
        places = "one place" if self.joins == 1 else f"{self.joins} places"
        return f"The clip's clock restarts or jumps at {places}, as where clips were joined; it runs through now."
