"""Restores a file with the cheapest pipeline and compares the result with what ffmpeg makes of the same file.

Compared are: the number of frames, their times, their colours as they are read (each pixel) and as they are written
(means over a grid), the orientation with them, the packets of sound and subtitles and when the first one comes,
attachments, chapters, notes, and what is left behind after a refusal.
"""

from __future__ import annotations

import re
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from corpus import pictures
from corpus.make import NotMadeError, ffmpeg, make
from corpus.recipe import DAMAGED, REFUSED, RESTORED, Recipe
from helpers.media_clips import Run, restore
from PIL import Image, ImageOps

from vsr_trt.runtime.errors import InputError, OutputError

GRID, LEAST = 4, 12  # cells across and down; pixels of a cell's side
WRITTEN_TOLERANCE = 5.0  # levels of a cell's mean, after an encoder that loses something
EXACT_TOLERANCE = 0.01
EXACT_CODECS = ("ffv1",)
# what MOV holds by its number in WAV or by a name that only FFmpeg reads; not copied, see docs/known-issues.md
NOT_IN_MOV = (
    "wmav1 wmav2 adpcm_ms adpcm_ima_wav adpcm_yamaha adpcm_swf g723_1 g726 real_144 pcm_bluray vorbis".split()
)
COARSE = Fraction(1, 1000)  # ticks of Matroska and WebM
_SCALE = "scale=flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp:out_range=full:interl=-1"


@dataclass
class Outcome:
    """result: "restored", "refused", "damaged" or "not made". findings: what is wrong, a sentence each."""

    result: str
    findings: list[str] = field(default_factory=list)
    said: str = ""


@dataclass
class Probe:
    """What ffmpeg makes of a file.

    frames: (N,H,W,3). times: in seconds. sounds: times of the packets of each. shape: of a pixel, its width over its
    height.
    """

    frames: np.ndarray
    times: list[Fraction] = field(default_factory=list)
    sounds: list[list[Fraction]] = field(default_factory=list)
    shape: Fraction = Fraction(1)


def check(recipe: Recipe, folder: Path) -> Outcome:
    """Makes the file of `recipe` in the empty `folder`, restores it and compares."""
    try:
        path = make(recipe, folder)
    except NotMadeError as error:
        return Outcome("not made", said=str(error))
    (folder / "out").mkdir()
    output = folder / "out" / ("result" if recipe.output == "/" else f"result{recipe.output}")
    options = {"codec": recipe.codec} if recipe.codec else {}
    try:
        run = restore(path, output, scale=recipe.scale, **options)
    except (InputError, OutputError) as error:
        left = [entry.name for entry in output.parent.iterdir()]
        findings = [f"left behind after a refusal: {left}"] if left else []
        return Outcome("refused", findings + _about_refusal(recipe, folder, path, str(error)), str(error))
    except Exception:
        return Outcome("restored", ["traceback: " + traceback.format_exc(limit=-4)])
    return _about_result(recipe, folder, path, run)


def _about_refusal(recipe: Recipe, folder: Path, path: Path, sentence: str) -> list[str]:
    if recipe.expect == RESTORED:
        try:
            probe(folder, path, recipe)
        except NotMadeError:
            return []  # ffmpeg cannot either
        return [f"refused without need: {sentence}"]
    if recipe.expect == REFUSED and recipe.words not in sentence:
        return [f"refused with other words than '{recipe.words}': {sentence}"]
    return []


def _about_result(recipe: Recipe, folder: Path, path: Path, run: Run) -> Outcome:
    notes = [*run.source_notes, *run.notes]
    outcome = Outcome(
        "damaged" if run.damage else "restored", said=" | ".join(filter(None, [run.damage, *notes]))
    )
    if recipe.expect == REFUSED:
        outcome.findings.append(f"restored, though it should be refused with '{recipe.words}'")
    elif recipe.expect == DAMAGED and not run.damage:
        outcome.findings.append("restored as if it were whole")
    elif recipe.expect == RESTORED and run.damage:
        outcome.findings.append(f"called damaged: {run.damage}")
    elif recipe.expect == RESTORED:
        try:
            outcome.findings += _differences(recipe, folder, path, run)
        except NotMadeError as error:
            return Outcome("not made", said=f"ffmpeg cannot read it: {error}")
        outcome.findings += _about_notes(recipe, notes)
    return outcome


def _about_notes(recipe: Recipe, notes: list[str]) -> list[str]:
    findings = []
    if recipe.notes and not any(recipe.notes in note for note in notes):
        findings.append(f"no note with '{recipe.notes}'")
    if recipe.silent and any(recipe.silent in note for note in notes):
        findings.append(f"a note with '{recipe.silent}' without reason")
    return findings


def _differences(recipe: Recipe, folder: Path, path: Path, run: Run) -> list[str]:
    expected = _expected(recipe, folder, path)
    read = np.stack([frame.rgb for frame in run.frames])
    if run.frames[0].time is None:
        times = [Fraction(frame.index, 25) for frame in run.frames]
    else:
        times = [frame.time for frame in run.frames]  # type: ignore[misc]
    findings = _about_frames("read", read, expected.frames, recipe.tolerance, _apart)
    if expected.times:
        findings += _about_times("read", times, expected.times, recipe.slack, tick=Fraction(1, 10**6))
    if run.path.is_dir() or run.path.suffix == ".png":
        names = sorted(run.path.iterdir()) if run.path.is_dir() else [run.path]
        written = Probe(np.stack([np.asarray(Image.open(name)) for name in names]))
    else:
        written = probe(folder, run.path)
    tolerance = EXACT_TOLERANCE if _is_lossless(recipe) else WRITTEN_TOLERANCE
    findings += _about_frames("written", _reduced(written.frames, recipe.scale), read, tolerance, _grid_apart)
    if written.times:
        tick = COARSE if run.path.suffix in (".mkv", ".webm") else Fraction(1, 10**6)
        findings += _about_times("written", written.times, expected.times or times, recipe.slack, tick)
    if not recipe.picture and expected.times:
        findings += _about_tracks(folder, path, run)
        findings += _about_sync(expected, written, recipe.slack)
        if (
            written.times
            and written.shape != expected.shape
            and not any("shape" in note for note in run.notes)
        ):
            findings.append(f"pixels are {written.shape}, ffmpeg's are {expected.shape}")
    return findings


def _is_lossless(recipe: Recipe) -> bool:
    return recipe.codec in EXACT_CODECS or recipe.output in ("/", ".png")


# -- what ffmpeg makes of it ------------------------------------------------------------------------------------


def _expected(recipe: Recipe, folder: Path, path: Path) -> Probe:
    if not recipe.picture or path.suffix == ".gif":
        found = probe(folder, path, recipe)
        if recipe.steady:
            steady = enumerate([found.times[0]] * len(found.times))
            found.times = [first + index / Fraction(recipe.steady) for index, first in steady]
        elif path.suffix == ".avi":  # without B-frames or with them: it has decoding times only
            found.times = _decoding_times(folder, path, recipe.stream)
        return found
    if path.is_dir():
        files = sorted(path.iterdir())
        return Probe(np.concatenate([_of_picture(recipe, folder, file) for file in files]))
    return Probe(_of_picture(recipe, folder, path))


def _of_picture(recipe: Recipe, folder: Path, path: Path) -> np.ndarray:
    """Of what ffmpeg cannot read or not as it is meant (ink, palettes of WebP, HEIC), what was put in."""
    mode, options = recipe.picture["mode"], recipe.picture["options"]
    if (
        path.suffix == ".heic"
        or mode in ("CMYK", "YCbCr")
        or (mode == "L" and path.suffix == ".avif")
        or "big_tiff" in options
        or "zstd" in options.values()
    ):
        frames = _put_in(recipe, path)
    else:
        frames = probe(folder, path, recipe).frames
    return pictures.p3_as_srgb(frames) if recipe.profile == "p3" else frames


def _put_in(recipe: Recipe, path: Path) -> np.ndarray:
    with Image.open(path) as image:
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))[None]


def probe(folder: Path, path: Path, recipe: Recipe | None = None) -> Probe:
    """Decodes the video to RGB and copies the sound, by the ffmpeg program. NotMadeError if it cannot."""
    stream, before = (recipe.stream, recipe.reference) if recipe else (0, [])
    matrix, siting = (recipe.matrix, recipe.siting or "left") if recipe else ("auto", "left")
    # said here: setparams=chroma_location in front of it has no effect
    filters = f"{_SCALE}:in_color_matrix={matrix}:in_chroma_loc={siting}"
    video = ["-map", f"0:v:{stream}", "-vf", filters, "-c:v", "rawvideo", "-pix_fmt", "rgb24"]
    video += ["-fps_mode", "passthrough", "-enc_time_base", "demux"]
    done = ffmpeg(
        folder,
        *before,
        *("-i", str(path)),
        *(*video, "-f", "rawvideo", "probe.rgb"),
        *(*video, "-map", "0:a?", "-c:a", "copy", "-f", "framehash", "-hash", "md5", "probe.txt"),
        check=False,
    )
    text = (folder / "probe.txt").read_text() if (folder / "probe.txt").exists() else ""
    size = re.search(r"#dimensions 0: (\d+)x(\d+)", text)
    data = (folder / "probe.rgb").read_bytes() if size else b""
    if not size or not data:
        raise NotMadeError(done.stderr.decode(errors="replace")[-500:])
    width, height = int(size[1]), int(size[2])
    times = _times(text)
    frames = np.frombuffer(data, np.uint8).reshape(-1, height, width, 3)
    shape = re.search(r"#sar 0: (\d+)/(\d+)", text)
    known = shape is not None and int(shape[1]) and int(shape[2])
    ratio = Fraction(int(shape[1]), int(shape[2])) if shape and known else Fraction(1)
    return Probe(frames, times.pop(0, []), [times[index] for index in sorted(times)], ratio)


def _decoding_times(folder: Path, path: Path, stream: int) -> list[Fraction]:
    ffmpeg(folder, "-i", str(path), "-map", f"0:v:{stream}", "-c", "copy", "-f", "framehash", "probe.txt")
    text = (folder / "probe.txt").read_text()
    unit = Fraction(re.search(r"#tb 0: (\S+)", text)[1])  # type: ignore[index]
    return sorted(int(line.split(",")[1]) * unit for line in text.splitlines() if not line.startswith("#"))


def _times(text: str) -> dict[int, list[Fraction]]:
    """Of each stream in a framehash, when its frames are shown, in that order."""
    units = {int(index): Fraction(unit) for index, unit in re.findall(r"#tb (\d+): (\S+)", text)}
    found: dict[int, list[Fraction]] = {index: [] for index in units}
    for line in text.splitlines():
        if not line.startswith("#"):
            index, _, pts, *_ = (part.strip() for part in line.split(","))
            found[int(index)].append(int(pts) * units[int(index)])
    return {index: sorted(times) for index, times in found.items()}


# -- comparisons ------------------------------------------------------------------------------------------------


def _reduced(frames: np.ndarray, scale: int) -> np.ndarray:
    """Means over the pixels that one of the input became."""
    count, height, width, _ = frames.shape
    if height % scale or width % scale:
        return frames
    return frames.reshape(count, height // scale, scale, width // scale, scale, 3).mean((2, 4))


def _about_frames(
    what: str, found: np.ndarray, expected: np.ndarray, tolerance: float, measure: Callable[..., np.ndarray]
) -> list[str]:
    if len(found) != len(expected):
        return [f"{what}: {len(found)} frames, {len(expected)} were expected"]
    if found.shape != expected.shape:
        (_, height, width, _), (_, rows, columns, _) = found.shape, expected.shape
        return [f"{what}: frames {width}x{height}, {columns}x{rows} were expected"]
    apart = measure(found, expected)
    worst = int(apart.argmax())
    if apart[worst] > tolerance:
        return [f"{what}: frame {worst} is {apart[worst]:.2f} levels off (at most {tolerance})"]
    return []


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) mean difference of all pixels."""
    return np.abs(a.astype(np.float32) - b).mean((1, 2, 3))


def _grid_apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) largest difference of a cell's mean."""
    difference = a.astype(np.float32) - b
    worst = np.zeros(len(a), np.float32)
    _, height, width, _ = a.shape
    for rows in np.array_split(np.arange(height), max(1, min(GRID, height // LEAST))):
        for columns in np.array_split(np.arange(width), max(1, min(GRID, width // LEAST))):
            cell = difference[:, rows][:, :, columns].mean((1, 2))
            worst = np.maximum(worst, np.abs(cell).max(-1))
    return worst


def _about_times(
    what: str, found: list[Fraction], expected: list[Fraction], slack: float, tick: Fraction
) -> list[str]:
    if len(found) != len(expected):
        return []  # said with the frames
    apart = [float(abs((a - found[0]) - (b - expected[0]))) for a, b in zip(found, expected, strict=True)]
    worst = int(np.argmax(apart))
    if apart[worst] > float(tick) + slack + 1e-9:
        return [
            f"{what}: frame {worst} comes {float(found[worst] - found[0]):.6f} s after the first, ffmpeg has "
            f"{float(expected[worst] - expected[0]):.6f} s"
        ]
    return []


def _about_sync(expected: Probe, written: Probe, slack: float) -> list[str]:
    """Whether sound and picture lie to each other as ffmpeg has them."""
    findings = []
    if len(written.sounds) != len(expected.sounds):
        return findings  # said with the tracks
    for number, (a, b) in enumerate(zip(written.sounds, expected.sounds, strict=True)):
        if not a or len(a) != len(b):
            continue
        # by the first or the last: readers of Matroska guess times in front of 0, and divide PCM as they like
        apart = min((float((a[i] - written.times[0]) - (b[i] - expected.times[0])) for i in (0, -1)), key=abs)
        if abs(apart) > 0.0021 + slack:
            findings.append(f"sound {number} comes {apart:+.4f} s from where ffmpeg has it")
    return findings


def _about_tracks(folder: Path, path: Path, run: Run) -> list[str]:
    """Sound and subtitles packet for packet, against ffmpeg -c copy into the same kind of file."""
    notes = " ".join(run.notes)
    inputs = _tracks(path)
    if run.path.suffix in ("", ".png"):
        sounds = any(kind == "audio" for kind, _, _ in inputs)
        return ["sound is lost without a note"] if sounds and "sound" not in notes else []
    written = _tracks(run.path)
    findings, rest = [], list(written)
    counts = {"audio": 0, "subtitle": 0}
    for kind, codec, data in inputs:
        number = counts[kind]
        counts[kind] += 1
        copied = _copied(folder, path, kind, number, run.path.suffix)
        wanted = [_whole(codec, packets) for packets in (copied, data) if packets is not None]
        own = next((t for t in rest if t[0] == kind and _whole(codec, t[2]) in wanted), None)
        if own is not None:
            rest.remove(own)
        elif copied is None and "not copied" not in notes:
            findings.append(f"{kind} {number} ({codec}) is lost without a note")
        elif copied and not (run.path.suffix == ".mov" and codec in NOT_IN_MOV and "not copied" in notes):
            findings.append(f"{kind} {number} ({codec}): {_what_differs(copied, kind, rest)}; notes: {notes}")
    return findings + _about_extras(path, run)


def _whole(codec: str, packets: list[bytes]) -> list[bytes]:
    """The packets; of sound that readers divide as they like, all in one."""
    return [b"".join(packets)] if codec.startswith(("pcm", "adpcm")) else packets


def _what_differs(copied: list[bytes], kind: str, rest: list[tuple[str, str, list[bytes]]]) -> str:
    other = next((data for kind_, _, data in rest if kind_ == kind), None)
    if other is None:
        return f"not there, ffmpeg copies {len(copied)} packets"
    same = sum(a == b for a, b in zip(copied, other, strict=False))
    return f"{len(other)} packets, ffmpeg copies {len(copied)}; {same} are equal"


def _copied(folder: Path, path: Path, kind: str, number: int, suffix: str) -> list[bytes] | None:
    """The packets that ffmpeg copies; None if it says that the container cannot hold them."""
    target = folder / f"copied{suffix}"
    target.unlink(missing_ok=True)
    done = ffmpeg(
        folder, "-i", str(path), "-map", f"0:{kind[0]}:{number}", "-c", "copy", str(target), check=False
    )
    if done.returncode or not target.exists():
        return None
    try:
        tracks = _tracks(target)
    except av.FFmpegError:
        return None
    return tracks[0][2] if tracks else []


def _tracks(path: Path) -> list[tuple[str, str, list[bytes]]]:
    """(kind, codec, packets) of every stream of sound and subtitles."""
    with av.open(str(path), metadata_errors="replace") as container:
        streams = [s for s in container.streams if s.type in ("audio", "subtitle")]
        data: dict[int, list[bytes]] = {stream.index: [] for stream in streams}
        for packet in container.demux(streams) if streams else ():
            if packet.size:
                data[packet.stream.index].append(bytes(packet))
        return [
            (s.type, s.codec_context.name if s.codec_context else "?", _without_gaps(data[s.index]))
            for s in streams
        ]


def _without_gaps(packets: list[bytes]) -> list[bytes]:
    return [packet for packet in packets if packet != b"\0\0"]  # no text, of mov_text


def _about_extras(path: Path, run: Run) -> list[str]:
    findings = []
    with av.open(str(path), metadata_errors="replace") as before, av.open(str(run.path)) as after:
        counts = [sum(s.type == "attachment" for s in c.streams) for c in (before, after)]
        if counts[0] != counts[1] and not any("attachment" in note for note in run.notes):
            findings.append(f"{counts[1]} attachments of {counts[0]}")
        if len(before.chapters()) != len(after.chapters()) and not any(
            "chapter" in note for note in run.notes
        ):
            findings.append(f"{len(after.chapters())} chapters of {len(before.chapters())}")
        rotated = next(after.decode(video=0)).rotation
        if rotated:
            findings.append(f"the result asks to be turned by {rotated} degrees")
    return findings


def emptied(folder: Path) -> None:
    """Deletes what a recipe left."""
    shutil.rmtree(folder, ignore_errors=True)
