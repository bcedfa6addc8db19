"""Whether a file is as long as it says: the outermost boxes of MP4/MOV, Matroska/WebM and AVI, and of pictures.

FFmpeg reads a cut file to its end without a word. The lengths in the outermost headers tell exactly.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_MP4_BOXES = frozenset(
    b"ftyp styp moov mdat moof mfra sidx ssix free skip wide udta uuid meta pnot emsg prft".split()
)
_EBML_HEADER = 0x1A45DFA3
_EBML_SEGMENT = 0x18538067
_RIFF_UNKNOWN = (0, 0xFFFFFFFF)
_START_OF_SCAN = 0xDA


@dataclass(frozen=True, slots=True)
class Structure:
    """missing: bytes that the headers promise and the file lacks. index_lost: an MP4 without its `moov`."""

    missing: int = 0
    index_lost: bool = False


def scan(path: Path) -> Structure:
    """Read the outermost headers of the file at `path`; OSError if it cannot be opened."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        magic = file.read(12)
        file.seek(0)
        if magic[4:8] in _MP4_BOXES:
            return _scan_mp4(file, size)
        if magic[:4] == _EBML_HEADER.to_bytes(4, "big"):
            return Structure(missing=_missing_of_matroska(file, size))
        if magic[:4] == b"RIFF":
            return Structure(missing=_missing_of_riff(file, size))
    return Structure()


def is_picture_whole(path: Path, kind: str, end: int) -> bool:
    """Whether the file of a picture ends where its headers say; nothing is decoded.

    Args:
        path: the file. kind: "PNG", "JPEG" and so on, as Pillow names them.
        end: the least length that is known otherwise.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size < end:
            return False
        if kind == "PNG":
            return _has_end_of_png(file)
        if kind in ("JPEG", "MPO"):
            return _has_end_of_jpeg(file.read())
    return not scan(path).missing


def _has_end_of_png(file: BinaryIO) -> bool:
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":
            return len(file.read(4)) == 4  # the checksum
        file.seek(length + 4, os.SEEK_CUR)
    return False


def _has_end_of_jpeg(data: bytes) -> bool:
    """Whether an end marker follows the scan's start: in a scan, 0xFF never stands in front of 0xD9."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker, length = struct.unpack_from(">xBH", data, position)
        if marker == _START_OF_SCAN:
            return data.find(b"\xff\xd9", position) >= 0
        position += 1 if marker == 0xFF else 2 + length  # a fill byte; a segment
    return True  # of a kind that the decoder has to judge


def _scan_mp4(file: BinaryIO, size: int) -> Structure:
    position, index_found = 0, False
    while position < size:
        file.seek(position)
        header = file.read(16)
        if len(header) < 8:
            return Structure(8 - len(header), not index_found)
        length, kind = struct.unpack(">I4s", header[:8])
        if kind not in _MP4_BOXES:
            break  # trailing junk: no promise
        index_found |= kind == b"moov"
        if length == 0:
            break  # "until the end of the file"
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8:
            break
        position += length
    return Structure(max(0, position - size), not index_found)


def _missing_of_matroska(file: BinaryIO, size: int) -> int:
    position = 0
    while position < size:
        file.seek(position)
        identifier = _ebml_number(file, keep_marker=True)
        length = _ebml_number(file, keep_marker=False)
        if identifier is None or length is None:
            return 0
        position = file.tell() + length
        if identifier == _EBML_SEGMENT:
            break
    return max(0, position - size)


def _ebml_number(file: BinaryIO, *, keep_marker: bool) -> int | None:
    """A variable-length number; None at the end of the file and for the "unknown length" of live files."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    rest = file.read(length - 1)
    if len(rest) < length - 1:
        return None
    value = int.from_bytes(first + rest, "big")
    if keep_marker:
        return value
    value &= (1 << 7 * length) - 1
    return None if value == (1 << 7 * length) - 1 else value


def _missing_of_riff(file: BinaryIO, size: int) -> int:
    length = struct.unpack("<4sI", file.read(8))[1] if size >= 8 else 0
    # one byte of tolerance: writers differ about counting the padding
    return 0 if length in _RIFF_UNKNOWN else max(0, 8 + length - size - 1)
