"""Folders of pictures: natural order, one size, upright, in sRGB."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.media import color, structure
from vsr_trt.runtime.media.picture_reader import Look, PictureReader
from vsr_trt.runtime.media.source import Frame, Rgb, Source, SourceInfo

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp"),
    *(".heic", ".heif", ".hif", ".avif"),
)
_MAGIC = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|BM....\0\0\0\0|II\*\0|MM\0\*|RIFF....WEBP|....ftyp(?:hei[cxms]|hev[cxms]|mif1|avif)",
    re.DOTALL,
)
# that begin as pictures do, and are videos
_VIDEO_SUFFIXES = (".apng", ".mjpeg", ".mjpg", ".mng")


def is_picture(path: Path) -> bool:
    """Whether the file is a picture: by its suffix, or by its first bytes, whatever it is called."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return True
    if suffix in _VIDEO_SUFFIXES or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return _MAGIC.match(file.read(16)) is not None
    except OSError:
        return False  # whoever opens it says why


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts frame_2 before frame_10: runs of digits by value, the rest by letters, case ignored."""
    parts = re.findall(r"\d+|\D+", name.lower())
    return [(0, int(part), part) if part.isdigit() and part.isascii() else (1, 0, part) for part in parts]


class ImageSource(Source):
    """A folder of pictures, or one picture, as a `Source`; frames carry the file's name and no time.

    frames: how many to read, None for all. Headers and ends of all files are looked at before anything is decoded.
    InputError for an empty folder, pictures of different sizes, animations, files that are cut short, and where the
    first one cannot be decoded. A later one that cannot is left out, and `damage` names it.
    """

    def __init__(self, path: Path, frames: int | None = None) -> None:
        self.path = path
        self.notes: list[str] = []
        self.damage: str | None = None
        self.window = None
        self._bad: list[str] = []
        self._reader = PictureReader()
        try:
            self._files = self._list()[:frames]
            self._look()
            self._first: Rgb | None = self._decode(self._files[0])
        except BaseException:
            self.close()
            raise
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

    def _look(self) -> None:
        """Looks at every file's headers and end; what could not be restored is refused before any work."""
        first: tuple[Path, tuple[int, int]] | None = None
        for file in self._files:
            look = self._reader.look(file)
            if look.pictures > 1:
                raise _several(file, look)
            try:
                whole = structure.is_picture_whole(file, look.kind, look.end)
            except OSError as error:
                raise InputError(f"{file} cannot be read: {error.strerror}.") from error
            if not whole:
                raise InputError(f"{file} is incomplete: its end is missing. Replace or remove it.")
            if first is None:
                first = file, look.size
            elif look.size != first[1]:
                raise _mixed_sizes(first, (file, look.size))

    def _build_info(self, first: Rgb) -> SourceInfo:
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
            try:
                rgb = self._decode(file) if index or self._first is None else self._first
            except InputError as error:
                self._leave_out(file, error)
                continue
            self._first = None
            yield Frame(rgb=rgb, index=index, pts=index, time_base=None, name=file.name)

    def _leave_out(self, file: Path, error: InputError) -> None:
        self._bad.append(file.name)
        more = (
            f" So were {len(self._bad) - 1} more: {', '.join(self._bad[1:4])}." if len(self._bad) > 1 else ""
        )
        first = str(error) if self.damage is None else self.damage.split(" It was left out.")[0]
        self.damage = f"{first} It was left out.{more}"

    def close(self) -> None:
        """Let go of the picture that was decoded ahead, and of the decoder."""
        self._first = None
        self._reader.close()

    def _decode(self, file: Path) -> Rgb:
        rgb, notes = self._reader.decode(file)
        for note in notes:
            self.add_note(note)
        size = (rgb.shape[1], rgb.shape[0])
        if hasattr(self, "info") and size != (self.info.width, self.info.height):
            raise _mixed_sizes((self._files[0], (self.info.width, self.info.height)), (file, size))
        return rgb


def _several(file: Path, look: Look) -> InputError:
    if look.animated:
        # FFmpeg reads animations of these kinds, but not of WebP
        make = (
            f"magick {file.name} -coalesce {file.stem}-%04d.png"
            if look.kind == "WEBP"
            else (f"ffmpeg -i {file.name} {file.stem}.mkv")
        )
        return InputError(
            f"{file} is an animation of {look.pictures} frames; one picture was expected. Make a video or a folder of "
            f"pictures of it first, for example: {make}"
        )
    return InputError(
        f"{file} holds {look.pictures} pages; one picture was expected. Write each page to a file of its own first, "
        f"for example: magick {file.name} {file.stem}-%03d.png"
    )


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
