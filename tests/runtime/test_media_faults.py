"""runtime.media when something is wrong: bad input, bad output, a full disk, a killed process."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from helpers import processes
from helpers.examples import examples
from helpers.media_clips import (
    FAST,
    SIZE,
    STEADY,
    Clip,
    decoded,
    enlarged,
    packets,
    pattern,
    picture,
    restore,
    times,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vsr_trt.runtime import media
from vsr_trt.runtime.errors import InputError, OutputError
from vsr_trt.runtime.media import staging, structure
from vsr_trt.runtime.media.streams import StreamCopier

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with in.mp4 (index first), late.mp4 (index last), in.mkv, in.avi and in.ts, 24 frames each."""
    folder = tmp_path_factory.mktemp("clips")
    clip = Clip(pts=[512 * i for i in range(24)], options=FAST | {"g": "8"}, audio=1)
    clip.write(folder / "late.mp4")
    clip.write(folder / "in.mkv")
    clip.write(folder / "in.ts")
    clip.container_options = {"movflags": "+faststart"}
    clip.write(folder / "in.mp4")
    silent = Clip(pts=range(24), time_base=Fraction(1, 25), options=FAST | {"g": "8", "bf": "0"})
    silent.write(folder / "in.avi")
    return folder


def error_of(path: Path, **options: object) -> str:
    """The message of the InputError that opening and reading `path` ends in."""
    with pytest.raises(InputError) as caught, media.open_source(path, **options) as source:  # type: ignore[arg-type]
        list(source)
    message = str(caught.value)
    assert message.endswith(".") or "ffmpeg -i" in message
    return message


def left_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# -- input that cannot be used -------------------------------------------------------------------------


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    assert "does not exist" in error_of(tmp_path / "none.mp4")
    assert "does not exist" in error_of(tmp_path / "none.png")
    (tmp_path / "empty.mp4").touch()
    assert "empty file" in error_of(tmp_path / "empty.mp4")
    (tmp_path / "text.mp4").write_text("This is a letter, not a film.\n" * 99)
    assert "not a video that can be read" in error_of(tmp_path / "text.mp4")
    (tmp_path / "text.txt").write_text("FFmpeg would show this as ANSI art.\n" * 99)
    assert "text file" in error_of(tmp_path / "text.txt")
    (tmp_path / "junk.mkv").write_bytes(np.random.default_rng(1).bytes(50_000))
    error_of(tmp_path / "junk.mkv")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "neither a file nor" in error_of(tmp_path / "pipe.mp4")


def test_playlists_do_not_open_other_files(tmp_path: Path, clips: Path) -> None:
    (tmp_path / "list.mp4").write_text(
        f"ffconcat version 1.0\nfile 'http://127.0.0.1:9/x.mp4'\nfile '{clips}/in.mp4'\n"
    )
    error_of(tmp_path / "list.mp4")


def test_unreadable_file(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise av.error.PermissionError(13, "Permission denied")

    monkeypatch.setattr(av, "open", denied)
    assert "permission denied" in error_of(clips / "in.mp4")


def test_headers_that_cannot_be_read(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(structure, "scan", broken)
    assert "cannot be read: Input/output error" in error_of(clips / "in.mp4")


def test_the_headers_are_read_once(tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned = []
    scan = structure.scan

    def counted(path: Path) -> structure.Structure:
        scanned.append(path)
        return scan(path)

    monkeypatch.setattr(structure, "scan", counted)
    restore(clips / "in.mp4", tmp_path / "out.mp4", scale=1)
    assert scanned == [clips / "in.mp4"]


def test_the_file_is_closed_when_its_sound_cannot_be_prepared(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: StreamCopier) -> None:
        raise ValueError("chapters of an odd kind")

    def times_open() -> int:
        files = Path("/proc/self/fd").iterdir()
        return sum(os.path.realpath(file) == str(clips / "in.mp4") for file in files)

    monkeypatch.setattr(StreamCopier, "_copy_chapters", broken)
    with media.open_source(clips / "in.mp4") as source:
        before = times_open()
        with pytest.raises(ValueError, match="odd kind") as caught:
            media.open_sink(tmp_path / "out.mp4", source)
        assert times_open() == before == 1, caught  # which keeps everything alive that was not closed
    assert left_in(tmp_path) == []


def test_sound_only(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as output:
        clip = Clip(audio_seconds=0.2)
        clip._play(output, clip._sound(output, 0))
    assert "no video in it, only audio" in error_of(path)


def test_a_song_with_a_cover_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as output:
        clip = Clip(audio_seconds=0.2)
        sound = clip._sound(output, 0)
        cover = output.add_stream("mjpeg", 25, width=32, height=32, pix_fmt="yuvj420p")
        cover.disposition = av.stream.Disposition.attached_pic
        output.mux(cover.encode(picture(0, (32, 32), "yuvj420p")))
        clip._play(output, sound)
    assert "no video in it" in error_of(path)


def test_damaged_sound_does_not_stop_the_picture(tmp_path: Path, clips: Path) -> None:
    data = bytearray((clips / "in.ts").read_bytes())
    for sample in packets(clips / "in.ts", "audio")[8:]:
        assert sample.position is not None
        start = data.index(sample.data[:40], sample.position)
        data[start : start + 20] = b"\xff" * 20
    (tmp_path / "in.ts").write_bytes(data)
    run = restore(tmp_path / "in.ts", tmp_path / "out.mp4")
    assert len(run.frames) == 24
    assert any("Audio track 1 (aac) is copied only up to damaged data" in note for note in run.notes), (
        run.notes
    )
    assert len(packets(run.path, "audio")) >= 5


def test_no_frames(tmp_path: Path, clips: Path) -> None:
    data = (clips / "in.mp4").read_bytes()
    (tmp_path / "hollow.mp4").write_bytes(
        data[: data.index(b"mdat") + 4]
    )  # the index, and nothing that it names
    assert "not one frame" in error_of(tmp_path / "hollow.mp4")


def test_index_lost(tmp_path: Path, clips: Path) -> None:
    data = (clips / "late.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    message = error_of(tmp_path / "cut.mp4")
    assert "cut off" in message
    assert "moov" in message


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_start_beyond_the_end(clips: Path, suffix: str) -> None:
    assert "is behind the last frame" in error_of(clips / f"in{suffix}", start=100.0)


@pytest.mark.parametrize("options", [{"start": -1.0}, {"start": float("nan")}, {"frames": 0}, {"frames": -3}])
def test_senseless_windows(clips: Path, options: dict) -> None:
    error_of(clips / "in.mp4", **options)


@pytest.mark.parametrize(
    ("tags", "word"),
    [((9, 9, 16, 1), "PQ"), ((9, 9, 18, 1), "HLG"), ((9, 9, 14, 1), "BT.2020"), ((1, 9, 1, 1), "BT.2020")],
)
def test_hdr_is_refused(tmp_path: Path, tags: tuple[int, int, int, int], word: str) -> None:
    clip = Clip(colors=tags, pix_fmt="yuv420p10le").write(tmp_path / "in.mkv")
    message = error_of(clip)
    assert word in message
    assert "tonemap" in message


def test_unknown_matrix_is_refused(tmp_path: Path) -> None:
    assert "matrix 8" in error_of(Clip(colors=(8, 1, 1, 1)).write(tmp_path / "in.mkv"))


def test_changing_size_names_the_frame(tmp_path: Path) -> None:
    small = Clip(pts=STEADY[:5]).write(tmp_path / "small.ts").read_bytes()
    large = (
        Clip(pts=[p + 512 * 5 for p in STEADY[:5]], size=(96, 64)).write(tmp_path / "large.ts").read_bytes()
    )
    (tmp_path / "in.ts").write_bytes(small + large)
    message = error_of(tmp_path / "in.ts")
    assert "frame 5 is 96x64" in message
    assert "64x48" in message


# -- damaged input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_a_cut_file_gives_its_readable_frames(tmp_path: Path, clips: Path, suffix: str, share: float) -> None:
    data = (clips / f"in{suffix}").read_bytes()
    whole = decoded(clips / f"in{suffix}")
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(data[: int(share * len(data))])
    run = restore(cut, tmp_path / "out.mp4")
    assert 0 < len(run.frames) <= 24
    if share < 0.9:
        assert len(run.frames) < 24
    assert all(np.array_equal(f.rgb, w) for f, w in zip(run.frames, whole, strict=False))
    assert run.damage is not None
    assert "missing" in run.damage
    assert f"frame {len(run.frames) - 1}" in run.damage
    assert run.path == tmp_path / "out.partial.mp4"
    assert len(times(run.path)) == len(run.frames)
    assert left_in(tmp_path) == [cut.name, "out.partial.mp4"]
    end = times(run.path)[-1] + Fraction(1, 25)
    assert all(moment < end for moment in (times(run.path, "audio") if suffix != ".avi" else []))


def test_a_window_before_the_cut_is_not_damaged(tmp_path: Path, clips: Path) -> None:
    data = (clips / "in.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: int(0.8 * len(data))])
    run = restore(tmp_path / "cut.mp4", tmp_path / "out.mp4", frames=5)
    assert run.damage is None
    assert len(run.frames) == 5


def test_an_index_that_promises_more(tmp_path: Path, clips: Path) -> None:
    data = bytearray((clips / "in.mp4").read_bytes())
    where = data.index(b"mdat") - 4
    data[where : where + 4] = b"\0\0\0\0"  # "until the end of the file": no length to compare with
    cut = packets(clips / "in.mp4", "video")[15].position
    (tmp_path / "cut.mp4").write_bytes(data[:cut])
    run = restore(tmp_path / "cut.mp4", tmp_path / "out.mp4")
    assert len(run.frames) == 15
    assert run.damage == "The index promises 9 or more frames behind frame 14."


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_damage_in_the_middle_is_reported_and_the_rest_still_comes(
    tmp_path: Path, clips: Path, suffix: str
) -> None:
    clip = clips / f"in{suffix}"
    data = bytearray(clip.read_bytes())
    middle = packets(clip, "video")[10]
    assert middle.position is not None
    start = middle.position + 60  # behind the headers
    data[start : start + 300] = np.random.default_rng(3).bytes(300)
    (tmp_path / clip.name).write_bytes(data)
    run = restore(tmp_path / clip.name, tmp_path / "out.mp4")
    assert run.damage is not None
    number = int(re.findall(r"frame (\d+)", run.damage, re.IGNORECASE)[0])
    assert abs(number - 10) <= 2
    assert 20 <= len(run.frames) <= 24
    whole = decoded(clip)
    assert np.array_equal(run.frames[0].rgb, whole[0])
    assert np.array_equal(run.frames[-1].rgb, whole[-1])
    assert run.path.name == "out.partial.mp4"


def test_a_recording_that_begins_between_keyframes_is_not_damaged(tmp_path: Path, clips: Path) -> None:
    samples = packets(clips / "in.ts", "video")
    data = (clips / "in.ts").read_bytes()
    tables, cut = data[: samples[0].position], data[samples[3].position :]
    (tmp_path / "in.ts").write_bytes(tables + cut)
    run = restore(tmp_path / "in.ts", tmp_path / "out.mp4")
    assert run.damage is None
    assert len(run.frames) == 24 - 8
    assert any("begins between two keyframes" in note for note in run.source_notes)
    assert np.array_equal(run.frames[0].rgb, decoded(clips / "in.ts")[8])


def test_reading_errors_are_damage(tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with media.open_source(clips / "in.mp4") as source:
        frames = []
        for frame in source:
            frames.append(frame)
            if len(frames) == 3:
                monkeypatch.setattr(source, "_frames", _broken(source))
        assert len(frames) == 3
        assert source.damage is not None
        assert "reading the file failed" in source.damage.lower()


def _broken(source: media.Source) -> Iterator[av.VideoFrame]:
    """The source's own decoding loop over packets that end in an I/O error."""

    class Container:
        format = source._container.format  # type: ignore[attr-defined]

        def demux(self, stream: object) -> Iterator[av.Packet]:
            raise av.error.OSError(5, "Input/output error")
            yield

        def close(self) -> None: ...

    source._container.close()  # type: ignore[attr-defined]
    source._container = Container()  # type: ignore[attr-defined]
    return source._decoded()  # type: ignore[attr-defined]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_lengths_tell_every_cut(tmp_path: Path, clips: Path, suffix: str) -> None:
    data = (clips / f"in{suffix}").read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(data)
    assert structure.scan(path) == structure.Structure()
    for missing in (5, 100, len(data) // 3):
        path.write_bytes(data[:-missing])
        assert abs(structure.scan(path).missing - missing) <= 1


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\0\0\0\x18ftyp", b"\x1a\x45\xdf\xa3", b"RIFF", b"\0\0\0\1moov"]),
)
@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_can_be_scanned(tmp_path: Path, data: bytes, magic: bytes) -> None:
    path = tmp_path / "any"
    path.write_bytes(magic + data)
    assert structure.scan(path).missing >= 0


# -- pictures ------------------------------------------------------------------------------------------


def test_folders_without_pictures(tmp_path: Path) -> None:
    assert "no pictures" in error_of(tmp_path)
    (tmp_path / "a.txt").touch()
    assert "png, jpg" in error_of(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp"])
def test_mixed_sizes_are_refused_before_anything_is_restored(tmp_path: Path, suffix: str) -> None:
    for index, size in enumerate([(32, 16), (32, 16), (40, 16)]):
        Image.fromarray(pattern(0, size)).save(tmp_path / f"p{index}.{suffix}")
    with pytest.raises(InputError) as caught:
        media.open_source(tmp_path)
    assert f"p0.{suffix} is 32x16, p2.{suffix} is 40x16" in str(caught.value)


def test_bad_pictures_are_named(tmp_path: Path) -> None:
    for index in range(2):
        Image.fromarray(pattern(index)).save(tmp_path / f"p{index}.png")
    data = (tmp_path / "p1.png").read_bytes()
    (tmp_path / "p1.png").write_bytes(data[: len(data) // 2])
    assert "p1.png is incomplete" in error_of(tmp_path)
    (tmp_path / "p1.png").write_text("hello")
    assert "p1.png is not a picture" in error_of(tmp_path)


def test_a_folder_has_no_start(tmp_path: Path) -> None:
    Image.fromarray(pattern(0)).save(tmp_path / "a.png")
    assert "pictures have no times" in error_of(tmp_path, start=1.0)


def test_pictures_that_would_get_one_name(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for suffix in ("png", "bmp"):
        Image.fromarray(pattern(0)).save(tmp_path / "in" / f"a.{suffix}")
    with pytest.raises(InputError, match=r"both become a\.png"):
        restore(tmp_path / "in", tmp_path / "out")
    assert left_in(tmp_path) == ["in"]


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (["a.txt"], "1 entry of {} is not a picture and is ignored: a.txt"),
        (["a.txt", "b.txt"], "2 entries of {} are not pictures and are ignored: a.txt, b.txt"),
        (["1", "2", "3", "4"], "4 entries of {} are not pictures and are ignored: 1, 2, 3 ..."),
    ],
)
def test_ignored_entries_are_counted(tmp_path: Path, names: list[str], note: str) -> None:
    Image.fromarray(pattern(0)).save(tmp_path / "a.png")
    for name in names:
        (tmp_path / name).touch()
    with media.open_source(tmp_path) as source:
        assert source.notes == [note.format(tmp_path)]


@given(st.sampled_from(["PNG", "JPEG", "TIFF", "WEBP", "AVIF"]), st.binary(max_size=80), st.integers(0, 90))
def test_any_bytes_can_be_looked_at_for_their_end(kind: str, data: bytes, end: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(data)
        assert structure.is_picture_whole(path, kind, end) in (True, False)


# -- options of the output -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("out.mp4", {"codec": "divx"}, "h264, hevc, av1, vp9, ffv1, prores"),
        ("out.webm", {"codec": "h264"}, r"\.webm files cannot hold h264.*\.mp4"),
        ("out.mp4", {"codec": "prores"}, r"\.mov, \.mkv"),
        ("out.mp4", {"crf": 52}, "0 .best. to 51"),
        ("out.webm", {"crf": -1}, "0 .best. to 63"),
        ("out.mkv", {"codec": "ffv1", "crf": 10}, "crf has no meaning"),
        ("out.xyz", {}, r"\.mp4, \.m4v, \.mov, \.mkv, \.webm, \.png"),
        ("out.png", {}, "one picture"),
        ("out", {"crf": 10}, "lossless"),
        ("out.mp4", {"scale": 400}, "refuses frames of 25600x19200"),
        ("out.mp4", {"fps": 0}, "0 frames per second"),
        ("out.mp4", {"fps": float("nan")}, "no frame rate"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, clips: Path, name: str, options: dict, message: str) -> None:
    with media.open_source(clips / "in.mp4") as source, pytest.raises(InputError, match=message):
        media.open_sink(tmp_path / name, source, **options)
    assert left_in(tmp_path) == []


def test_a_single_picture_names_the_folder_beside_it(tmp_path: Path, clips: Path) -> None:
    (tmp_path / "sub").mkdir()
    with media.open_source(clips / "in.mp4") as source, pytest.raises(InputError) as caught:
        media.open_sink(tmp_path / "sub" / "out.png", source)
    message = str(caught.value)
    assert f"{tmp_path}/sub/out.png holds one picture" in message
    assert "--frames 1" in message
    assert message.endswith(f"give a folder: {tmp_path}/sub/out/")


def test_a_single_picture_refuses_a_second_frame(tmp_path: Path, clips: Path) -> None:
    with media.open_source(clips / "in.mp4") as source:
        source.info = replace(source.info, frame_count=1, frame_count_exact=False)  # as an estimate may say
        sink = media.open_sink(tmp_path / "out.png", source, scale=1)
        frames = iter(source)
        first, second = next(frames), next(frames)
        sink.write(first.rgb, first)
        with pytest.raises(InputError, match=rf"one picture.* --frames 1.*{tmp_path}/out/"):
            sink.write(second.rgb, second)
        assert left_in(tmp_path) == []
        with pytest.raises(OutputError, match="given up"):
            sink.close()
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("name", ["out.mp4", "out/"])
@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((48, 64, 3), np.uint8),
        np.zeros((192, 256, 3), np.float32),
        np.zeros((192, 256), np.uint8),
        "a picture",
    ],
)
def test_frames_of_another_shape_are_refused(tmp_path: Path, clips: Path, name: str, picture: object) -> None:
    with (
        media.open_source(clips / "in.mp4") as source,
        media.open_sink(f"{tmp_path}/{name}", source) as sink,
        pytest.raises(InputError, match=r"\(192, 256, 3\)"),
    ):
        sink.write(picture, next(iter(source)))  # type: ignore[arg-type]
    assert left_in(tmp_path) == []


# -- the output appears whole or not at all ------------------------------------------------------------


def output_error(output: Path | str, source: media.Source, **options: object) -> str:
    with pytest.raises(OutputError) as caught:
        media.open_sink(output, source, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_existing_output_is_kept_unless_overwritten(tmp_path: Path, clips: Path) -> None:
    (tmp_path / "out.mp4").write_text("precious")
    with media.open_source(clips / "in.mp4") as source:
        assert "--overwrite" in output_error(tmp_path / "out.mp4", source)
    assert (tmp_path / "out.mp4").read_text() == "precious"
    run = restore(clips / "in.mp4", tmp_path / "out.mp4", overwrite=True)
    assert len(times(run.path)) == 24
    assert left_in(tmp_path) == ["out.mp4"]


def test_existing_folder_is_kept_unless_overwritten(tmp_path: Path, clips: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert len(left_in(restore(clips / "in.mp4", out, frames=2).path)) == 2  # an empty folder may be filled
    with media.open_source(clips / "in.mp4") as source:
        assert "--overwrite" in output_error(out, source)
        assert left_in(out) == ["frame_000000.png", "frame_000001.png"]
    restore(clips / "in.mp4", out, frames=1, overwrite=True)
    assert left_in(out) == ["frame_000000.png"]
    (out / "diary.txt").write_text("precious")
    with media.open_source(clips / "in.mp4") as source:
        assert "diary.txt" in output_error(out, source, overwrite=True)
    assert left_in(tmp_path) == ["out"]


def test_the_input_is_never_the_output(tmp_path: Path, clips: Path) -> None:
    clip = tmp_path / "in.mp4"
    clip.write_bytes((clips / "in.mp4").read_bytes())
    (tmp_path / "link.mp4").symlink_to(clip)
    with media.open_source(clip) as source:
        assert "is the input itself" in output_error(clip, source, overwrite=True)
        assert "is the input itself" in output_error(tmp_path / "link.mp4", source, overwrite=True)
    (tmp_path / "pictures").mkdir()
    Image.fromarray(pattern(0)).save(tmp_path / "pictures" / "a.png")
    with media.open_source(tmp_path / "pictures") as source:
        assert "is the input itself" in output_error(tmp_path / "pictures", source, overwrite=True)
        assert "is the input itself" in output_error(tmp_path / "pictures" / "a.png", source, overwrite=True)
    assert clip.read_bytes() == (clips / "in.mp4").read_bytes()


def test_folders_that_cannot_be_written_to(tmp_path: Path, clips: Path) -> None:
    with media.open_source(clips / "in.mp4") as source:
        missing = output_error(tmp_path / "no" / "such" / "out.mp4", source)
        assert f"mkdir -p {tmp_path}/no/such" in missing
        assert "not a folder" in output_error(clips / "in.mkv" / "out.mp4", source)
        assert "/proc/self" in output_error("/proc/self/out.mp4", source)
        (tmp_path / "out.mp4").mkdir()
        (tmp_path / "file").touch()
        assert "is a file" in output_error(f"{tmp_path}/file/", source)


def test_permission_denied(tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    monkeypatch.setattr(structure, "scan", lambda path: structure.Structure())
    with media.open_source(clips / "in.mp4") as source:
        assert "not writable" in output_error(tmp_path / "out.mp4", source)


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_remains_after_an_exception(
    tmp_path: Path, clips: Path, name: str, error: type[BaseException]
) -> None:
    def interrupted() -> None:
        with media.open_source(clips / "in.mp4") as source, media.open_sink(tmp_path / name, source) as sink:
            for frame in source:
                sink.write(enlarged(frame.rgb, 4), frame)
                assert len(left_in(tmp_path)) == 1
                assert left_in(tmp_path)[0].startswith(".")
                if frame.index == 7:
                    raise error

    with pytest.raises(error):
        interrupted()
    assert left_in(tmp_path) == []


def test_leaving_without_close_keeps_nothing(tmp_path: Path, clips: Path) -> None:
    with media.open_source(clips / "in.mp4") as source:
        with media.open_sink(tmp_path / "out.mp4", source) as sink:
            frame = next(iter(source))
            sink.write(enlarged(frame.rgb, 4), frame)
        assert left_in(tmp_path) == []
        with pytest.raises(OutputError, match="finished"):
            sink.write(enlarged(frame.rgb, 4), frame)
        with pytest.raises(OutputError, match="given up"):
            sink.close()
        with (
            media.open_sink(tmp_path / "none.mp4", source) as sink,
            pytest.raises(OutputError, match="not one frame"),
        ):
            sink.close()
    assert left_in(tmp_path) == []


def test_close_twice_and_read_after_close(tmp_path: Path, clips: Path) -> None:
    source = media.open_source(clips / "in.mp4")
    frames = iter(source)
    with media.open_sink(tmp_path / "out.mp4", source) as sink:
        frame = next(frames)
        sink.write(enlarged(frame.rgb, 4), frame)
        assert sink.close() == sink.close() == tmp_path / "out.mp4"
    assert (tmp_path / "out.mp4").exists()
    source.close()
    source.close()
    assert list(frames) == []


@pytest.mark.parametrize(("name", "suffix"), [("out.mp4", ".mp4"), ("out", "")])
@pytest.mark.parametrize("overwrite", [False, True])
def test_partial_results_replace_nothing(
    tmp_path: Path, clips: Path, name: str, suffix: str, overwrite: bool
) -> None:
    def kept(count: int) -> Path:
        with (
            media.open_source(clips / "in.mp4", frames=count) as source,
            media.open_sink(tmp_path / name, source, scale=1, overwrite=overwrite) as sink,
        ):
            for frame in source:
                sink.write(frame.rgb, frame)
            return sink.close(partial=True)

    expected = [tmp_path / f"out.partial{number}{suffix}" for number in ("", "-2", "-3")]
    assert [kept(count) for count in (3, 2, 4)] == expected
    assert left_in(tmp_path) == sorted(path.name for path in expected)
    assert [len(left_in(path)) if path.is_dir() else len(times(path)) for path in expected] == [3, 2, 4]


@pytest.mark.parametrize("folder", [False, True])
def test_a_failed_partial_result_frees_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool
) -> None:
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    output = staging.Staging(tmp_path / "out", overwrite=False, folder=folder)
    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OutputError, match="Input/output error"):
        output.commit(partial=True)
    output.discard()
    assert left_in(tmp_path) == []


def test_two_outputs_of_one_name_do_not_write_into_each_other(tmp_path: Path) -> None:
    one, other = (staging.Staging(tmp_path / "out", overwrite=True, folder=True) for _ in range(2))
    assert one.temporary != other.temporary
    for output in (one, other):
        (output.temporary / "a.png").write_text(str(output.temporary))
    assert one.commit() == other.commit() == tmp_path / "out"
    assert (tmp_path / "out" / "a.png").read_text() == str(other.temporary)
    assert left_in(tmp_path) == ["out"]


def test_names_that_are_nearly_too_long(tmp_path: Path, clips: Path) -> None:
    name = "\u3042" * 70 + ".mp4"  # three bytes each
    restore(clips / "in.mp4", tmp_path / name, scale=1, frames=1)
    assert left_in(tmp_path) == [name]


# -- full disks and killed processes -------------------------------------------------------------------

NOISE = """
import sys
sys.path[:0] = {paths}
import numpy as np
from fractions import Fraction
from vsr_trt.runtime import media
with media.open_source({clip!r}) as source, media.open_sink({output!r}, source, crf={crf}, scale=8) as sink:
    rng = np.random.default_rng(0)
    for index, frame in enumerate(source):
        sink.write(rng.integers(0, 255, (384, 512, 3), np.uint8), frame)
        print(index, flush=True)
        {then}
    sink.close()
"""


def noise_script(clip: Path, output: Path, crf: int | None = 0, then: str = "") -> str:
    return textwrap.dedent(
        NOISE.format(paths=[str(ROOT)], clip=str(clip), output=str(output), crf=crf, then=then)
    )


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out"])
def test_file_size_limit(tmp_path: Path, clips: Path, name: str) -> None:
    limit = 100_000
    done = processes.run(
        [sys.executable, "-c", noise_script(clips / "in.mp4", tmp_path / name, 0 if "." in name else None)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert "OutputError" in done.stderr
    assert "grew larger" in done.stderr
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out"])
def test_disk_full(tmp_path: Path, clips: Path, name: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(OutputError) as caught:
            write_noise(clips / "in.mp4", disk / name)
        message = str(caught.value)
        assert re.search(r"disk is full: 0\.\d MB of out\S* were written, 0\.\d MB are left", message)
        assert left_in(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def write_noise(clip: Path, output: Path) -> None:
    """Megabytes, whatever the codec."""
    rng = np.random.default_rng(0)
    crf = 0 if output.suffix else None
    with media.open_source(clip) as source, media.open_sink(output, source, scale=8, crf=crf) as sink:
        for frame in source:
            sink.write(rng.integers(0, 255, (384, 512, 3), np.uint8), frame)
        sink.close()


def test_disk_full_at_the_very_end(tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(staging, "_sync", full)
    with pytest.raises(OutputError, match="disk is full"):
        restore(clips / "in.mp4", tmp_path / "out.mp4", scale=1)
    assert left_in(tmp_path) == []


def killed_run(clip: Path, output: Path) -> int:
    """Start restoring, kill the process after a few frames; its number."""
    then = "import time; index > 3 and time.sleep(10_000)"
    command = [sys.executable, "-c", noise_script(clip, output, 30 if output.suffix else None, then)]
    with processes.started(command) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "4":
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
    return process.pid


@pytest.mark.parametrize("name", ["out.mp4", "out"])
def test_sigkill_leaves_no_output_and_the_next_run_cleans_up(tmp_path: Path, clips: Path, name: str) -> None:
    pid = killed_run(clips / "in.mp4", tmp_path / name)
    [stale] = left_in(tmp_path)
    assert stale.startswith(f".{name}.")
    alive = stale.replace(f".{pid}.", f".{os.getppid()}.")  # of a process that still writes
    other = stale.replace(f".{name}.", ".other.mp4.")  # of another output
    assert len({stale, alive, other}) == 3
    (tmp_path / alive).touch()
    (tmp_path / other).touch()
    restore(clips / "in.mp4", tmp_path / name, scale=1)
    assert left_in(tmp_path) == sorted([alive, other, name])


@pytest.mark.parametrize("name", ["out.mp4", "out"])
def test_leftovers_of_an_earlier_process_with_this_number(tmp_path: Path, clips: Path, name: str) -> None:
    """In a container every run may have the number 1."""
    pid = killed_run(clips / "in.mp4", tmp_path / name)
    [stale] = left_in(tmp_path)
    (tmp_path / stale).rename(tmp_path / stale.replace(f".{pid}.", f".{os.getpid()}."))
    restore(clips / "in.mp4", tmp_path / name, scale=1)
    assert left_in(tmp_path) == [name]


@pytest.mark.parametrize("name", ["out.mp4", "out"])
def test_what_other_machines_write_is_left_alone(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Their processes have numbers that nothing has here."""
    with subprocess.Popen(["true"]) as ended:
        pass
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "far_away.example")
        patch.setattr(os, "getpid", lambda: ended.pid)
        distant = staging.Staging(tmp_path / name, overwrite=False, folder="." not in name)
    restore(clips / "in.mp4", tmp_path / name, scale=1)
    assert left_in(tmp_path) == sorted([distant.temporary.name, name])
    assert ".far-away-example-" in distant.temporary.name


def test_host_names_become_short_parts_of_file_names(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a/b", "a.b", "", "node-" * 20, "node-" * 20 + "2", "\u3042", "plain-7"]
    parts = []
    for name in names:
        monkeypatch.setattr(socket, "gethostname", lambda name=name: name)
        parts.append(staging._host())
    assert all(re.fullmatch(r"[A-Za-z0-9-]{1,32}", part) for part in parts), parts
    assert len(set(parts)) == len(names)
    assert parts[-1] == "plain-7"


SWAP = """
import os, signal, sys
sys.path[:0] = {paths}
from pathlib import Path
from vsr_trt.runtime.media.staging import Staging
renames, rename = 0, Path.rename
def dying(self, target):
    global renames
    renames += 1
    if renames == {last}:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.rename = dying
staging = Staging(Path({output!r}), overwrite=True, folder=True)
(staging.temporary / "new.png").touch()
staging.commit()
"""


@pytest.mark.parametrize(("last", "survivor"), [(1, "old.png"), (2, "old.png"), (3, "new.png")])
def test_a_folder_survives_a_swap_that_was_killed(tmp_path: Path, last: int, survivor: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.png").touch()
    script = SWAP.format(paths=[str(ROOT)], output=str(out), last=last)
    assert processes.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert len(left_in(tmp_path)) == 2
    with pytest.raises(OutputError, match="not empty; give --overwrite"):
        staging.Staging(out, overwrite=False, folder=True)
    assert left_in(out) == [survivor]
    assert left_in(tmp_path) == ["out"]


def test_sizes_are_what_the_tests_assume(clips: Path) -> None:
    with media.open_source(clips / "in.mp4") as source:
        assert (source.info.width, source.info.height) == SIZE
