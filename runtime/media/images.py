"""Folders of pictures: natural order, one size, decoded with FFmpeg's own decoders."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from runtime.errors import InputError
from runtime.media import color, picture_headers
from runtime.media.source import Frame, Source, SourceInfo

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
# The first bytes decide, not the suffix: a renamed picture is still a picture.
_DECODERS = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "png"),
    (re.compile(rb"\xff\xd8\xff"), "mjpeg"),
    (re.compile(rb"BM"), "bmp"),
    (re.compile(rb"II\*\0|MM\0\*"), "tiff"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "webp"),
)
_JPEG_IN_TIFF = (6, 7)
_HEAD_BYTES = 1 << 18  # enough for the size of a JPEG behind its EXIF and colour profile


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts frame_2 before frame_10: runs of digits by value, the rest by letters, case ignored."""
    parts = re.findall(r"\d+|\D+", name.lower())
    return [(0, int(part), part) if part.isdigit() and part.isascii() else (1, 0, part) for part in parts]


class ImageSource(Source):
    """A folder of pictures, or one picture, as a `Source`; frames carry the file's name and no time.

    frames: how many to read, None for all. All sizes are read before anything is decoded. InputError for
    an empty folder, pictures of different sizes and files that cannot be decoded.
    """

    def __init__(self, path: Path, frames: int | None = None) -> None:
        self.path = path
        self.notes: list[str] = []
        self.damage: str | None = None
        self.window = None
        self._reformatter = VideoReformatter()
        self._files = self._list()[:frames]
        self._check_sizes()
        self._first: np.ndarray | None = self._decode(self._files[0])
        self.info = self._build_info(self._first)

    def _list(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        try:
            entries = sorted(self.path.iterdir(), key=lambda entry: natural_key(entry.name))
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}.") from error
        entries = [entry for entry in entries if not entry.name.startswith(".")]
        pictures = [e for e in entries if e.suffix.lower() in SUFFIXES and e.is_file()]
        if not pictures:
            kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
            raise InputError(f"{self.path} holds no pictures; files of these kinds were expected: {kinds}.")
        ignored = [entry.name for entry in entries if entry not in set(pictures)]
        if ignored:
            shown = ", ".join(ignored[:3]) + (" ..." if len(ignored) > 3 else "")
            if len(ignored) == 1:
                self.add_note(f"1 entry of {self.path} is not a picture and is ignored: {shown}")
            else:
                self.add_note(
                    f"{len(ignored)} entries of {self.path} are not pictures and are ignored: {shown}"
                )
        return pictures

    def _check_sizes(self) -> None:
        """Compare the sizes of the pictures as they are shown.

        They are read from the headers; pictures of the kinds whose headers are not read are decoded.
        """
        first: tuple[Path, tuple[int, int]] | None = None
        for file in self._files:
            try:
                with file.open("rb") as stream:
                    size = picture_headers.upright_size(stream.read(_HEAD_BYTES))
            except OSError as error:
                raise InputError(f"{file} cannot be read: {error.strerror}.") from error
            if size is None:
                frame, orientation = self._decode_frame(file)
                size = orientation.turned(frame.width, frame.height)
            if first is None:
                first = file, size
            elif size != first[1]:
                raise _mixed_sizes(first, (file, size))

    def _build_info(self, first: np.ndarray) -> SourceInfo:
        height, width = first.shape[:2]
        count = len(self._files)
        plural = "s" if count > 1 else ""
        return SourceInfo(
            width=width,
            height=height,
            kind="images",
            description=f"{count} picture{plural} {width}x{height}",
            color=color.RGB_PICTURE,
            frame_count=count,
            frame_count_exact=True,
        )

    @property
    def files(self) -> list[Path]:
        """The pictures, in the order in which they are read."""
        return list(self._files)

    def __iter__(self) -> Iterator[Frame]:
        for index, file in enumerate(self._files):
            rgb = self._decode(file) if index or self._first is None else self._first
            self._first = None
            size = (rgb.shape[1], rgb.shape[0])
            if size != (self.info.width, self.info.height):
                raise _mixed_sizes((self._files[0], (self.info.width, self.info.height)), (file, size))
            yield Frame(rgb=rgb, index=index, pts=index, time_base=None, name=file.name)

    def close(self) -> None:
        """Let go of the picture that was decoded ahead."""
        self._first = None

    def _decode(self, file: Path) -> np.ndarray:
        frame, orientation = self._decode_frame(file)
        depth = color.bit_depth(frame)
        if depth > 8:
            self.add_note(f"{depth}-bit pictures are processed and written in 8 bit.")
        if color.is_transparent(frame):
            self.add_note("The alpha channel (transparency) is dropped.")
        try:
            tags = color.tags_of(
                frame,
                getattr(frame, "color_primaries", color.UNSPECIFIED),
                getattr(frame, "color_trc", color.UNSPECIFIED),
            )
            return orientation.apply(color.to_rgb(self._reformatter, frame, tags))
        except InputError as error:
            raise InputError(f"{file}: {error}") from error

    def _decode_frame(self, file: Path) -> tuple[VideoFrame, color.Orientation]:
        """The picture as it is stored, and how it is turned to be upright."""
        try:
            data = file.read_bytes()
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}.") from error
        decoder = next((name for magic, name in _DECODERS if magic.match(data)), None)
        if decoder is None:
            raise InputError(f"{file} is not a picture; a PNG, JPEG, BMP, TIFF or WebP file was expected.")
        if decoder == "tiff" and picture_headers.tiff_compression(data) in _JPEG_IN_TIFF:
            raise InputError(
                f"{file} is a TIFF compressed as JPEG, whose colours FFmpeg misreads; convert it to PNG."
            )
        context = av.CodecContext.create(decoder, "r")
        assert isinstance(context, VideoCodecContext)
        try:
            frames = context.decode(av.Packet(data))
            frames = frames or context.decode(None)
        except av.FFmpegError as error:
            raise InputError(f"{file} cannot be decoded ({error.strerror}); replace or remove it.") from error
        if not frames or frames[0].is_corrupt:
            raise InputError(f"{file} is damaged or incomplete; replace or remove it.")
        # the decoder finds EXIF in odd places, too, but what PyAV hands on of it lacks the mirroring
        turned = picture_headers.orientation(data) or color.orientation_of(frames[0])
        return frames[0], turned or color.Orientation()


def _mixed_sizes(one: tuple[Path, tuple[int, int]], other: tuple[Path, tuple[int, int]]) -> InputError:
    (a, (aw, ah)), (b, (bw, bh)) = one, other
    return InputError(
        f"the pictures have different sizes: {a.name} is {aw}x{ah}, {b.name} is {bw}x{bh}. All pictures of a "
        "clip must have one size; restore the others from folders of their own."
    )


def fps_of(fps: Fraction | float) -> Fraction:
    """`fps` as an exact rate; InputError unless it is one that players can show."""
    try:
        rate = Fraction(fps).limit_denominator(1001)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{fps} is no frame rate; a number such as 25 was expected.") from error
    if not 0 < rate <= 1000:
        raise InputError(f"{fps} frames per second cannot be written; between 0 and 1000 was expected.")
    return rate
