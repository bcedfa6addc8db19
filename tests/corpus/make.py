"""Makes the files of a recipe in a folder. The first word of a step says who makes it.

ffmpeg ...                     the program, with these arguments
picture FILE [larger]          Pillow, as the recipe's `picture` says
srt FILE | sup FILE            subtitles as text, as pictures
cut IN SHARE OUT               the first part of a file
flip IN SEED OUT               some bits inverted, not in the first 64 bytes
join IN SECONDS... OUT         the file, and behind it copies whose clock begins these seconds later
append IN OUT                  the file, and behind it one of another size
chapters IN OUT                the file with two chapters
profiles IN OUT                every PNG in it with a colour profile
"""

from __future__ import annotations

import random
import struct
import subprocess
import zlib
from functools import cache
from pathlib import Path

import av
import imageio_ffmpeg
from corpus import pictures
from corpus.recipe import Recipe

_CHAPTERS = ";FFMETADATA1\n" + "".join(
    f"[CHAPTER]\nTIMEBASE=1/1000\nSTART={start}\nEND={start + 100}\ntitle=part {start}\n"
    for start in (0, 100)
)
_SRT = (
    "1\n00:00:00,000 --> 00:00:00,400\nHello <i>there</i>\n\n2\n00:00:00,600 --> 00:00:00,900\ntwo\nlines\n"
)


class NotMadeError(Exception):
    """The recipe asks for something that this ffmpeg cannot make."""


@cache
def program() -> str:
    return imageio_ffmpeg.get_ffmpeg_exe()


def ffmpeg(folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    """Runs the program in `folder`; NotMadeError if it fails."""
    command = [program(), "-nostdin", "-v", "error", "-y", "-threads", "1", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=300)
    if check and done.returncode:
        raise NotMadeError(" ".join(words) + "\n" + done.stderr.decode(errors="replace")[-600:])
    return done


def make(recipe: Recipe, folder: Path) -> Path:
    """All steps; returns the file that is to be restored. NotMadeError."""
    for index, (kind, *words) in enumerate(recipe.steps):
        if kind == "ffmpeg":
            (folder / "font.ttf").write_bytes(bytes(range(256)) * 8)
            ffmpeg(folder, *(word.replace("{font}", "font.ttf") for word in words))
        elif kind == "picture":
            try:
                pictures.write(folder / words[0], recipe.picture, index, larger="larger" in words)
            except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
                raise NotMadeError(f"{type(error).__name__}: {error}") from error
        else:
            _STEPS[kind](folder, *words)
    path = folder / recipe.file
    if not path.exists() or (path.is_file() and not path.stat().st_size):
        raise NotMadeError(f"{recipe.file} is empty")
    return path


def _cut(folder: Path, name: str, share: str, out: str) -> None:
    data = (folder / name).read_bytes()
    (folder / out).write_bytes(data[: max(1, int(len(data) * float(share)))])


def _flip(folder: Path, name: str, seed: str, out: str) -> None:
    rng, data = random.Random(int(seed)), bytearray((folder / name).read_bytes())
    for _ in range(rng.choice((1, 3, 20))):
        data[rng.randrange(min(64, len(data) - 1), len(data))] ^= 1 << rng.randrange(8)
    (folder / out).write_bytes(data)


def _join(folder: Path, name: str, *words: str) -> None:
    *offsets, out = words
    data = (folder / name).read_bytes()
    joined = data
    for offset in offsets:
        if offset != "0":
            later = ["-map", "0", "-c", "copy", "-strict", "-2", "-output_ts_offset", offset]
            ffmpeg(folder, "-i", name, *later, f"piece{Path(name).suffix}")
            data = (folder / f"piece{Path(name).suffix}").read_bytes()
        joined += data
    (folder / out).write_bytes(joined)


def _append(folder: Path, name: str, out: str) -> None:
    data, other = (folder / name).read_bytes(), f"other{Path(name).suffix}"
    encoder = "libx264" if b"x264" in data else "mpeg2video"
    ffmpeg(folder, "-i", name, "-map", "0:v", "-vf", "scale=32:32", "-c:v", encoder, other)
    (folder / out).write_bytes(data + (folder / other).read_bytes())


def _with_chapters(folder: Path, name: str, out: str) -> None:
    (folder / "chapters.txt").write_text(_CHAPTERS)
    ffmpeg(folder, "-i", name, "-i", "chapters.txt", "-map", "0", "-map_chapters", "1", "-c", "copy", out)


def _with_profiles(folder: Path, name: str, out: str) -> None:
    """In every frame, as FFmpeg's decoder hands it on: an iCCP block in front of the samples."""
    profile = b"profile\0\0" + zlib.compress(pictures.profile_of("srgb"))
    block = struct.pack(">I", len(profile)) + b"iCCP" + profile
    block += struct.pack(">I", zlib.crc32(b"iCCP" + profile))
    with av.open(str(folder / name)) as source, av.open(str(folder / out), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            data = bytes(packet)
            if not data:
                continue
            place = data.index(b"IHDR") + 21
            changed = av.Packet(data[:place] + block + data[place:])
            changed.stream, changed.pts, changed.dts = stream, packet.pts, packet.dts
            changed.time_base, changed.is_keyframe, changed.duration = packet.time_base, True, packet.duration
            target.mux(changed)


def _sup(folder: Path, name: str) -> None:
    """Two subtitles of Blu-rays: white boxes, from 0.1 to 0.4 and from 0.5 to 0.8 s."""
    data = b""
    for start in (0.1, 0.5):
        data += _shown(start) + _hidden(start + 0.3)
    (folder / name).write_bytes(data)


def _segment(time: float, kind: int, body: bytes) -> bytes:
    return b"PG" + struct.pack(">IIBH", round(time * 90000), 0, kind, len(body)) + body


def _shown(time: float) -> bytes:
    width, height = 16, 4
    line = b"\0" + bytes((0x80 | width, 1)) + b"\0\0"  # a run of colour 1, the end of the line
    window = struct.pack(">BBHHHH", 1, 0, 8, 8, width, height)
    picture = struct.pack(">HHBHBBBB", 64, 48, 0x10, 1, 0x80, 0, 0, 1) + struct.pack(">HBBHH", 0, 0, 0, 8, 8)
    colours = bytes((0, 0, 0, 16, 128, 128, 0, 1, 235, 128, 128, 255))[1:]
    runs = line * height
    thing = (
        struct.pack(">HBB", 0, 0, 0xC0)
        + (len(runs) + 4).to_bytes(3, "big")
        + struct.pack(">HH", width, height)
        + runs
    )
    parts = [(0x16, picture), (0x17, window), (0x14, colours), (0x15, thing), (0x80, b"")]
    return b"".join(_segment(time, kind, body) for kind, body in parts)


def _hidden(time: float) -> bytes:
    picture = struct.pack(">HHBHBBBB", 64, 48, 0x10, 2, 0, 0, 0, 0)
    window = struct.pack(">BBHHHH", 1, 0, 8, 8, 16, 4)
    return b"".join(
        _segment(time, kind, body) for kind, body in [(0x16, picture), (0x17, window), (0x80, b"")]
    )


_STEPS = {
    "srt": lambda folder, name: (folder / name).write_text(_SRT),
    "sup": _sup,
    "cut": _cut,
    "flip": _flip,
    "join": _join,
    "append": _append,
    "chapters": _with_chapters,
    "profiles": _with_profiles,
}
