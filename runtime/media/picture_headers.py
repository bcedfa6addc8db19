"""What the headers of picture files say, read from their bytes without decoding them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from runtime.media.color import Orientation

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_TIFF = (b"II*\0", b"MM\0*")
_START_OF_SCAN = 0xDA
_APP1 = 0xE1
_NO_FRAME_HEADER = (0xC4, 0xC8, 0xCC)  # DHT, JPG and DAC stand between SOF0 and SOF15
_ORIENTATION = 274
_COMPRESSION = 259
# EXIF's numbers: 1 upright, 3 upside down, 6 and 8 quarter turns; the others are mirrored besides
_ORIENTATIONS = {
    1: Orientation(),
    2: Orientation(-1, 0, 0, 1),
    3: Orientation(-1, 0, 0, -1),
    4: Orientation(1, 0, 0, -1),
    5: Orientation(0, 1, 1, 0),
    6: Orientation(0, 1, -1, 0),
    7: Orientation(0, -1, -1, 0),
    8: Orientation(0, -1, 1, 0),
}


def upright_size(head: bytes) -> tuple[int, int] | None:
    """(width, height) of a PNG, BMP or JPEG as it is shown; None for the other kinds and short heads."""
    size = _stored_size(head)
    return size and (orientation(head) or Orientation()).turned(*size)


def orientation(data: bytes) -> Orientation | None:
    """How EXIF says that the picture is turned to be upright; None if it has no EXIF that says it."""
    exif = _exif(data)
    return None if exif is None else _ORIENTATIONS.get(_tiff_value(exif, _ORIENTATION) or 0)


def tiff_compression(data: bytes) -> int | None:
    """The compression of a TIFF's first picture; None where its directory cannot be read."""
    return _tiff_value(data, _COMPRESSION)


def _stored_size(head: bytes) -> tuple[int, int] | None:
    if head.startswith(_PNG) and len(head) >= 24:
        width, height = struct.unpack_from(">II", head, 16)
        return width, height
    if head.startswith(b"BM") and len(head) >= 26 and head[14] >= 40:
        width, height = struct.unpack_from("<ii", head, 18)
        return width, abs(height)
    if head.startswith(_JPEG):
        for marker, payload in _jpeg_segments(head):
            if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME_HEADER and len(payload) >= 5:
                height, width = struct.unpack_from(">HH", payload, 1)
                return width, height
    return None


def _exif(data: bytes) -> bytes | None:
    """The picture's EXIF block, which is a small TIFF file; a TIFF is its own."""
    if data.startswith(_TIFF):
        return data
    if data.startswith(_JPEG):
        blocks = (block for marker, block in _jpeg_segments(data) if marker == _APP1)
        return next((block[6:] for block in blocks if block.startswith(b"Exif\0")), None)
    if data.startswith(_PNG):
        return next((block for kind, block in _png_chunks(data) if kind == b"eXIf"), None)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        block = next((block for kind, block in _riff_chunks(data) if kind == b"EXIF"), None)
        return block and block.removeprefix(b"Exif\0\0")  # some writers copy what JPEG has in front
    return None


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, payload) of what stands in front of the picture itself."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker, length = struct.unpack_from(">xBH", data, position)
        if marker == _START_OF_SCAN:
            return
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        yield marker, data[position + 4 : position + 2 + length]
        position += 2 + length


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, payload) of what stands in front of the picture itself, where EXIF belongs."""
    position = len(_PNG)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IDAT":
            return
        yield kind, data[position + 8 : position + 8 + length]
        position += 12 + length  # the checksum stands behind


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 12
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        yield kind, data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2


def _tiff_value(data: bytes, wanted: int) -> int | None:
    """A 16-bit entry of a TIFF's first directory; None where it is missing or cannot be read."""
    order = "<" if data.startswith(b"II") else ">"
    try:
        (position,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, position)
        for entry in range(position + 2, position + 2 + 12 * count, 12):
            tag, value = struct.unpack_from(order + "H6xH", data, entry)
            if tag == wanted:
                return value
    except struct.error:
        pass
    return None
