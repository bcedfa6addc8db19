"""runtime.media: what goes in comes out, at the same times, in the same colours, with everything next to it.

The files are looked into with PyAV and Pillow, not with the code under test. Faults are in
test_media_faults.py.
"""

from __future__ import annotations

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.matrix import matrix
from helpers.media_clips import (
    FAST,
    SIZE,
    STEADY,
    TICK,
    UNEVEN,
    Clip,
    Run,
    Sample,
    Subtitle,
    decoded,
    enlarged,
    number_of,
    packets,
    pattern,
    real_clip,
    restore,
    times,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from vsr_trt.runtime import media
from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.media import color, images

CHAPTERS = [
    {"id": 1, "start": 0, "end": 200, "time_base": Fraction(1, 1000), "metadata": {"title": "one"}},
    {"id": 2, "start": 200, "end": 480, "time_base": Fraction(1, 1000), "metadata": {"title": "two"}},
]
KR_KB = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087)}
Tags = tuple[int, int, int, int]  # matrix, primaries, transfer, range
BFRAMES = {"preset": "medium", "crf": "10", "bf": "3", "b-pyramid": "normal", "b_strategy": "0"}


def video_stream(path: Path) -> tuple[av.container.InputContainer, av.VideoStream]:
    container = av.open(str(path))
    return container, container.streams.video[0]


# -- frames and times ----------------------------------------------------------------------------------


def test_frames_carry_index_time_and_contiguous_rgb(tmp_path: Path) -> None:
    clip = Clip(pts=UNEVEN).write(tmp_path / "in.mp4")
    with media.open_source(clip) as source:
        info = source.info
        assert (info.width, info.height, info.kind) == (*SIZE, "video")
        assert (info.frame_count, info.frame_count_exact) == (len(UNEVEN), True)
        assert info.description.startswith("h264 yuv420p 64x48")
        frames = list(source)
    assert source.damage is None
    assert [frame.index for frame in frames] == list(range(len(UNEVEN)))
    assert [frame.time for frame in frames] == [pts * TICK for pts in UNEVEN]
    for frame in frames:
        assert frame.rgb.shape == (48, 64, 3)
        assert frame.rgb.dtype == np.uint8
        assert frame.rgb.flags.c_contiguous
        assert abs(number_of(frame.rgb) - number_of(pattern(frame.index))) < 6


def test_description_and_estimates() -> None:
    with media.open_source(real_clip("bigbuckbunny.mp4")) as source:
        info = source.info
    assert info.description == "h264 yuv420p 1280x720 25 fps, audio aac"
    assert (info.fps, info.frame_count, info.duration) == (25, 132, Fraction(132, 25))
    assert info.color == media.ColorTags(matrix=1, primaries=1, transfer=1, full_range=False)


@pytest.mark.parametrize("pts", [STEADY, UNEVEN], ids=["steady", "uneven"])
@pytest.mark.parametrize("options", [FAST, BFRAMES], ids=["plain", "b-frames"])
def test_mp4_keeps_every_timestamp_exactly(tmp_path: Path, pts: tuple[int, ...], options: dict) -> None:
    clip = Clip(pts=pts, options=dict(options)).write(tmp_path / "in.mp4")
    run = restore(clip, tmp_path / "out.mp4")
    assert times(run.path) == [p * TICK for p in pts] == [frame.time for frame in run.frames]
    container, stream = video_stream(run.path)
    with container:
        assert (stream.width, stream.height) == (4 * SIZE[0], 4 * SIZE[1])
    assert run.notes == run.source_notes == []


def test_ntsc_times_are_exact_even_for_a_late_first_frame(tmp_path: Path) -> None:
    late = Clip(pts=[1001 * (i + 1) for i in range(6)], time_base=Fraction(1, 30000), audio=1)
    clip = late.write(tmp_path / "in.mp4")
    origin = times(clip)
    run = restore(clip, tmp_path / "out.mp4")
    assert times(run.path) == origin
    assert times(run.path, "audio") == times(clip, "audio")


def test_matroska_rounds_to_milliseconds_and_says_so(tmp_path: Path) -> None:
    pts = [p for p in UNEVEN if p != 2001]  # 2000 and 2001 are the same millisecond
    run = restore(Clip(pts=pts).write(tmp_path / "in.mp4"), tmp_path / "out.mkv")
    assert all(abs(t - p * TICK) <= Fraction(1, 2000) for t, p in zip(times(run.path), pts, strict=True))
    assert [note for note in run.notes if "milliseconds" in note]
    steady = restore(Clip().write(tmp_path / "steady.mp4"), tmp_path / "steady.mkv")
    assert steady.notes == []
    assert times(steady.path) == [p * TICK for p in STEADY]


def test_durations_of_frames_are_kept(tmp_path: Path) -> None:
    clip = Clip().write(tmp_path / "in.mp4")
    with media.open_source(clip) as source, media.open_sink(tmp_path / "out.mp4", source) as sink:
        for frame in source:
            sink.write(enlarged(frame.rgb, 4), replace(frame, duration=5000))
        path = sink.close()
    container, stream = video_stream(path)
    with container:
        assert stream.duration == STEADY[-1] + 5000


def test_the_last_frame_keeps_its_duration(tmp_path: Path) -> None:
    run = restore(Clip().write(tmp_path / "in.mp4"), tmp_path / "out.mp4")
    container, stream = video_stream(run.path)
    with container:
        assert stream.duration * stream.time_base == Fraction(12, 25)


def test_times_that_stand_still_are_moved_and_noted(tmp_path: Path) -> None:
    clip = Clip(pts=(0, 40, 80)).write(tmp_path / "in.mp4")
    with media.open_source(clip) as source, media.open_sink(tmp_path / "out.mp4", source) as sink:
        first = next(iter(source))
        for _ in range(3):
            sink.write(enlarged(first.rgb, 4), first)
        path = sink.close()
    assert times(path) == [0, TICK, 2 * TICK]
    assert any("falling time" in note for note in sink.notes)


def test_frames_hidden_by_an_edit_list_stay_hidden(tmp_path: Path) -> None:
    pts = tuple(p - 3 * 512 for p in STEADY)  # three frames before 0: the muxer hides them
    clip = Clip(pts=pts, container_options={"avoid_negative_ts": "disabled"}).write(tmp_path / "in.mp4")
    with av.open(str(clip)) as container:
        shown = [frame.pts for frame in container.decode(video=0)]
    assert 0 < len(shown) < 12, "the test clip has no edit list"
    with media.open_source(clip) as source:
        assert (source.info.frame_count, source.info.frame_count_exact) == (len(shown), True)
    run = restore(clip, tmp_path / "out.mp4")
    assert len(run.frames) == len(times(run.path)) == len(shown)


@pytest.mark.parametrize("name", ["bikes.mp4", "carphone_distorted.mp4"])
def test_real_clips_come_out_with_as_many_frames(tmp_path: Path, name: str) -> None:
    clip = real_clip(name)
    run = restore(clip, tmp_path / "out.mp4", scale=1, crf=40)
    assert times(run.path) == times(clip)
    assert len(decoded(run.path)) == len(times(clip))


def test_odd_sizes(tmp_path: Path) -> None:
    clip = Clip(size=(63, 47), codec="ffv1", options={}, pix_fmt="yuv444p").write(tmp_path / "in.mkv")
    run = restore(clip, tmp_path / "out.mp4")
    container, stream = video_stream(run.path)
    with container:
        assert (stream.width, stream.height) == (252, 188)


def test_a_clip_that_starts_late_starts_at_zero_in_sync(tmp_path: Path) -> None:
    pts = [126000 + 3600 * i for i in range(12)]
    late = Clip(pts=pts, time_base=Fraction(1, 90000), audio=1, audio_start=Fraction(3, 2))
    clip = late.write(tmp_path / "in.ts")
    assert times(clip)[0] > 1
    delay = times(clip, "audio")[0] - times(clip)[0]
    for suffix, tolerance in ((".mp4", Fraction(1, 48000)), (".mkv", Fraction(1, 1000))):
        run = restore(clip, tmp_path / f"out{suffix}")
        assert times(run.path) == [Fraction(i, 25) for i in range(12)]
        assert abs(times(run.path, "audio")[0] - delay) <= tolerance
        assert any("starts at 1.400 s" in note for note in run.source_notes)


# -- start and frames ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_every_start_gives_the_frames_from_there(tmp_path: Path, suffix: str) -> None:
    pts = [512 * i for i in range(24)]
    clip = Clip(pts=pts, options=BFRAMES | {"g": "7", "sc_threshold": "0"}).write(tmp_path / f"in{suffix}")
    whole = decoded(clip)
    assert len(whole) == 24
    for first in range(24):
        with media.open_source(clip, start=first / 25 - 0.005 if first else 0) as source:
            frames = list(source)
        assert len(frames) == 24 - first
        assert all(np.array_equal(f.rgb, w) for f, w in zip(frames, whole[first:], strict=True)), first
        assert frames[0].time == 0


def test_start_and_frames_of_a_real_clip() -> None:
    clip = real_clip("bikes.mp4")
    with media.open_source(clip) as source:
        whole = [frame.rgb for frame, _ in zip(source, range(131), strict=False)]
    with media.open_source(clip, start=5.0, frames=3) as source:
        assert source.info.frame_count == 3
        assert source.info.duration == Fraction(3, 25)
        frames = list(source)
    assert len(frames) == 3
    assert all(np.array_equal(f.rgb, w) for f, w in zip(frames, whole[125:128], strict=True))
    assert [frame.time for frame in frames] == [0, Fraction(1, 25), Fraction(2, 25)]


def test_a_window_takes_sound_subtitles_and_chapters_along(tmp_path: Path) -> None:
    texts = [
        Subtitle("before", Fraction(0), Fraction(1, 10)),
        Subtitle("across", Fraction(1, 10), Fraction(2, 10)),
        Subtitle("within", Fraction(28, 100), Fraction(5, 100)),
        Subtitle("behind", Fraction(45, 100), Fraction(2, 100)),
    ]
    clip = Clip(audio=1, subtitles=texts, chapters=CHAPTERS).write(tmp_path / "in.mkv")
    run = restore(clip, tmp_path / "out.mkv", start=0.16, frames=5)
    assert times(run.path) == [Fraction(i, 25) for i in range(5)]

    sound = packets(run.path, "audio")
    original = {sample.data: sample.time for sample in packets(clip, "audio")}
    shifts = [original[sample.data] - sample.time for sample in sound]
    assert set(shifts) == {Fraction(16, 100)}
    assert 0 <= times(run.path, "audio")[0] < Fraction(3, 100)
    assert Fraction(15, 100) < times(run.path, "audio")[-1] < Fraction(20, 100)

    shown = [(s.data, s.time * 1000, s.duration * 1000) for s in packets(run.path, "subtitle")]
    assert shown == [(b"across", 0, 140), (b"within", 120, 50)]
    with av.open(str(run.path)) as container:
        chapters = [
            (c["metadata"]["title"], c["start"] * c["time_base"], c["end"] * c["time_base"])
            for c in container.chapters()
        ]
    assert chapters == [
        ("one", 0, Fraction(40, 1000)),
        ("two", Fraction(40, 1000), Fraction(200, 1000)),
    ]


# -- what is copied next to the picture -----------------------------------------------------------------


def everything() -> Clip:
    return Clip(
        audio=2,
        subtitles=[
            Subtitle("hello", Fraction(0), Fraction(1, 5)),
            Subtitle("you", Fraction(1, 4), Fraction(1, 5)),
        ],
        chapters=CHAPTERS,
        metadata={"title": "A clip", "comment": "made up", "creation_time": "2020-02-02T02:02:02.000000Z"},
        stream_metadata={
            "audio0": {"language": "eng", "title": "Main"},
            "audio1": {"language": "fra"},
            "subtitle": {"language": "spa"},
        },
    )


@pytest.mark.parametrize(
    ("suffix", "subtitles"), [(".mp4", "mov_text"), (".mkv", "subrip"), (".mov", "mov_text")]
)
def test_sound_subtitles_chapters_and_tags_are_copied(tmp_path: Path, suffix: str, subtitles: str) -> None:
    clip = everything()
    clip.subtitle_codec = subtitles
    source = clip.write(tmp_path / f"in{suffix}")
    run = restore(source, tmp_path / f"out{suffix}")
    assert run.notes == []
    for kind, number in (("audio", 0), ("audio", 1), ("subtitle", 0)):
        before, after = packets(source, kind, number), packets(run.path, kind, number)
        assert _contents(before, kind) == _contents(after, kind) != []
    with av.open(str(source)) as before, av.open(str(run.path)) as after:
        assert _tags(before.metadata) == _tags(after.metadata)
        assert _tags(after.metadata)["title"] == "A clip"
        assert _chapters(before) == _chapters(after) != []
        for one, other in zip(list(before.streams)[1:], list(after.streams)[1:], strict=True):
            assert _tags(one.metadata) == _tags(other.metadata)
            assert one.disposition == other.disposition
        assert [s.language for s in after.streams.audio] == ["eng", "fra"]


def _contents(samples: list[Sample], kind: str) -> list[tuple]:
    """Data, time and for texts their duration; without the "no text now" of MP4."""
    shown = [sample for sample in samples if sample.data != b"\0\0"]
    return [(s.data, s.time, s.duration if kind == "subtitle" else None) for s in shown]


def _tags(metadata: dict[str, str]) -> dict[str, str]:
    """What a person wrote; muxers add the rest."""
    wanted = ("title", "name", "comment", "language", "creation_time", "artist")
    return {key.lower(): value for key, value in metadata.items() if key.lower() in wanted}


def _chapters(container: av.container.Container) -> list[tuple]:
    return [
        (c["start"] * c["time_base"], c["end"] * c["time_base"], c["metadata"]) for c in container.chapters()
    ]


def test_sound_of_a_real_clip_is_bit_identical(tmp_path: Path) -> None:
    clip = real_clip("bigbuckbunny.mp4")
    with media.open_source(clip, frames=3) as source:  # three frames of video, to be quick
        source.window = media.Window(Fraction(0), cut_start=False, cut_end=False, expected_end=None)
        with media.open_sink(tmp_path / "out.mp4", source, scale=1) as sink:
            for frame in source:
                sink.write(frame.rgb, frame)
            path = sink.close()
    assert [s.data for s in packets(path, "audio")] == [s.data for s in packets(clip, "audio")]
    assert times(path, "audio") == times(clip, "audio")


def test_priming_sound_does_not_move_the_picture_in_matroska(tmp_path: Path) -> None:
    clip = Clip(audio=1).write(tmp_path / "in.mp4")
    assert times(clip, "audio")[0] < 0, "the test clip has no priming"
    run = restore(clip, tmp_path / "out.mkv")
    assert times(run.path)[0] == 0
    assert abs(times(run.path, "audio")[1]) <= Fraction(1, 1000)
    again = restore(run.path, tmp_path / "again.mp4", scale=1)  # nor when it is read back
    assert times(again.path)[0] == 0
    assert again.source_notes == []


def test_transport_stream_sound_fits_into_mp4(tmp_path: Path) -> None:
    clip = Clip(audio=1).write(tmp_path / "in.ts")  # ADTS headers have to go
    run = restore(clip, tmp_path / "out.mp4")
    with av.open(str(run.path)) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) > 20000


def test_what_the_container_cannot_hold_is_noted(tmp_path: Path) -> None:
    clip = everything()
    clip.attachment = b"glyphs" * 50
    clip.metadata["weird"] = "value"
    source = clip.write(tmp_path / "in.mkv")
    run = restore(source, tmp_path / "out.mp4")
    assert len(run.notes) == 3, run.notes
    assert run.notes[0].startswith("Subtitle track 3 (srt, spa) is not copied, because MP4 cannot hold it")
    assert ".mkv" in run.notes[0]
    assert run.notes[1].startswith("The attachment font.ttf is not copied")
    assert run.notes[2] == "MP4 does not keep these tags: WEIRD."
    assert len(packets(run.path, "audio", 1)) == len(packets(source, "audio", 1))

    run = restore(source, tmp_path / "out.webm")
    assert sum("Audio track" in note for note in run.notes) == 2
    assert any("font.ttf" in note for note in run.notes)

    run = restore(source, tmp_path / "out.mkv")
    assert run.notes == []
    with av.open(str(run.path)) as container:
        assert [a.data for a in container.streams.attachments] == [b"glyphs" * 50]


def test_cover_pictures_and_second_videos_are_not_taken_for_the_clip(tmp_path: Path) -> None:
    path = tmp_path / "in.mp4"
    with av.open(str(path), "w") as output:
        streams = []
        for codec, size, disposition in (
            ("mjpeg", (32, 32), 1024),
            ("libx264", SIZE, 1),
            ("ffv1", (16, 16), 0),
        ):
            pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream = output.add_stream(codec, 25, width=size[0], height=size[1], pix_fmt=pix_fmt)
            stream.disposition = disposition
            streams.append(stream)
        for stream in streams:
            for index in range(1 if stream is streams[0] else 3):
                frame = av.VideoFrame.from_ndarray(
                    pattern(index, (stream.width, stream.height)), format="rgb24"
                )
                output.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
            output.mux(stream.encode(None))
    run = restore(path, tmp_path / "out.mkv")
    assert len(run.frames) == 3
    assert run.frames[0].rgb.shape == (48, 64, 3)
    assert any(note.startswith("The cover picture is not copied") for note in run.notes), run.notes
    assert any(note.startswith("Video track 1 (ffv1) is not copied") for note in run.notes), run.notes


def test_sound_with_many_packets_in_a_millisecond_keeps_its_pace(tmp_path: Path) -> None:
    clip = Clip(audio=1, audio_codec="pcm_s16le", audio_chunk=16).write(tmp_path / "in.mkv")
    before = packets(clip, "audio")
    assert len({sample.time for sample in before}) < len(before), "no two packets share a time"
    run = restore(clip, tmp_path / "out.mov")
    assert run.notes == []
    with av.open(str(clip)) as one, av.open(str(run.path)) as other:
        sounds = [np.concatenate([f.to_ndarray() for f in c.decode(audio=0)], 1) for c in (one, other)]
    assert np.array_equal(*sounds)
    last = packets(run.path, "audio")[-1]
    assert abs(last.time + last.duration - Fraction(sounds[0].shape[1] // 2, 48000)) < Fraction(1, 1000)
    again = restore(clip, tmp_path / "out.mkv")
    assert [sample.time for sample in packets(again.path, "audio")] == [sample.time for sample in before]


def test_texts_of_mp4_are_not_multiplied(tmp_path: Path) -> None:
    clip = everything()
    clip.subtitle_codec = "mov_text"
    first = restore(clip.write(tmp_path / "in.mp4"), tmp_path / "one.mp4", scale=1)
    second = restore(first.path, tmp_path / "two.mp4", scale=1)
    samples = packets(second.path, "subtitle")
    assert [s.data for s in samples] == [s.data for s in packets(tmp_path / "in.mp4", "subtitle")]


def test_a_text_that_began_long_before_the_window(tmp_path: Path) -> None:
    texts = [Subtitle("long", Fraction(1), Fraction(8))]
    clip = Clip(pts=[512 * i for i in range(250)], subtitles=texts, options=FAST | {"g": "5"})
    run = restore(clip.write(tmp_path / "in.mkv"), tmp_path / "out.mkv", start=8.0, frames=5, scale=1)
    shown = [(s.data, s.time, s.duration) for s in packets(run.path, "subtitle")]
    assert shown == [(b"long", 0, 1)]


def test_roles_of_tracks(tmp_path: Path) -> None:
    path = tmp_path / "in.mkv"
    clip = Clip(audio=1)
    original = clip._sound

    def commented(output: av.container.OutputContainer, number: int) -> av.AudioStream:
        stream = original(output, number)
        stream.disposition = av.stream.Disposition.comment
        return stream

    clip._sound = commented  # type: ignore[method-assign]
    run = restore(clip.write(path), tmp_path / "out.mkv")
    with av.open(str(run.path)) as container:
        assert container.streams.audio[0].disposition & av.stream.Disposition.comment
    assert run.notes == []


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_pixel_shape(tmp_path: Path, suffix: str) -> None:
    clip = Clip(sample_aspect_ratio=Fraction(4, 3)).write(tmp_path / "in.mp4")
    run = restore(clip, tmp_path / f"out{suffix}")
    container, stream = video_stream(run.path)
    with container:
        assert stream.sample_aspect_ratio == Fraction(4, 3)
    lost = restore(clip, tmp_path / "out.webm")
    assert any("shape of the pixels (4/3)" in note for note in lost.notes)


# -- orientation ---------------------------------------------------------------------------------------

ONE = 1 << 16
TURNS = {
    "clockwise": ((0, ONE, -ONE, 0), lambda a: np.rot90(a, -1)),
    "counterclockwise": ((0, -ONE, ONE, 0), lambda a: np.rot90(a, 1)),
    "half": ((-ONE, 0, 0, -ONE), lambda a: np.rot90(a, 2)),
    "mirror": ((-ONE, 0, 0, ONE), lambda a: a[:, ::-1]),
    "transpose": ((0, ONE, ONE, 0), lambda a: a.swapaxes(0, 1)),
}


@pytest.mark.parametrize("turn", TURNS)
def test_rotation_is_applied(tmp_path: Path, turn: str) -> None:
    (a, b, c, d), upright = TURNS[turn]
    plain = decoded(Clip().write(tmp_path / "plain.mp4"))
    clip = Clip(matrix=(a, b, 0, c, d, 0, 0, 0, 1 << 30), sample_aspect_ratio=Fraction(4, 3))
    run = restore(clip.write(tmp_path / "in.mp4"), tmp_path / "out.mp4")
    for frame, stored in zip(run.frames, plain, strict=True):
        assert np.array_equal(frame.rgb, upright(stored))
        assert frame.rgb.flags.c_contiguous
    assert any("rotation is applied" in note for note in run.source_notes)
    with av.open(str(run.path)) as container:
        frame = next(container.decode(video=0))
        assert frame.rotation == 0
        height, width = upright(plain[0]).shape[:2]
        assert (frame.width, frame.height) == (4 * width, 4 * height)
        shape = container.streams.video[0].sample_aspect_ratio
        assert shape == (Fraction(3, 4) if a == 0 else Fraction(4, 3))


def test_odd_angles_are_noted(tmp_path: Path) -> None:
    clip = Clip(matrix=(46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30)).write(tmp_path / "in.mp4")
    with media.open_source(clip) as source:
        assert any("odd angle" in note for note in source.notes)


# -- colours -------------------------------------------------------------------------------------------

PATCHES = np.array(
    [
        [180, 30, 40],
        [40, 160, 60],
        [30, 50, 190],
        [200, 190, 40],
        [30, 170, 180],
        [128, 128, 128],
        [240, 240, 240],
        [16, 10, 20],
    ]
)


def to_yuv(rgb: np.ndarray, matrix: int, full: bool) -> np.ndarray:
    """8-bit Y, Cb, Cr of (..., 3) RGB by the equations of the standards."""
    kr, kb = KR_KB[matrix]
    r, g, b = np.moveaxis(rgb / 255, -1, 0)
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)
    scaled = (
        (255 * y, 255 * cb + 128, 255 * cr + 128) if full else (219 * y + 16, 224 * cb + 128, 224 * cr + 128)
    )
    return np.stack(scaled, -1).round().clip(0, 255).astype(np.uint8)


def to_rgb(yuv: np.ndarray, matrix: int, full: bool) -> np.ndarray:
    """The way back."""
    kr, kb = KR_KB[matrix]
    y, cb, cr = np.moveaxis(yuv.astype(float), -1, 0)
    y, cb, cr = (
        (y / 255, (cb - 128) / 255, (cr - 128) / 255)
        if full
        else ((y - 16) / 219, (cb - 128) / 224, (cr - 128) / 224)
    )
    r, b = y + (2 - 2 * kr) * cr, y + (2 - 2 * kb) * cb
    return np.stack([r, (y - kr * r - kb * b) / (1 - kr - kb), b], -1) * 255


def patch_clip(
    path: Path,
    matrix: int,
    full: bool,
    tags: Tags | None,
    size: tuple[int, int] = (128, 64),
) -> Path:
    """Eight flat patches, coded with the given matrix, losslessly; tagged with `tags`."""
    width, height = size
    yuv = to_yuv(PATCHES, matrix, full)
    y = yuv[:, 0].repeat(width // 8)[None].repeat(height, 0)
    u, v = (yuv[:, i].repeat(width // 16)[None].repeat(height // 2, 0) for i in (1, 2))
    planes = np.concatenate([y.ravel(), u.ravel(), v.ravel()]).reshape(height * 3 // 2, width)
    with av.open(str(path), "w") as output:
        stream = output.add_stream(
            "libx264", 25, options={"qp": "0", "preset": "ultrafast"}, width=width, height=height
        )
        if tags:
            context = stream.codec_context
            context.colorspace, context.color_primaries, context.color_trc, context.color_range = tags
        for _ in range(2):
            output.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(planes), format="yuv420p"))
            )
        output.mux(stream.encode(None))
    return path


def patch_centres(picture: np.ndarray) -> np.ndarray:
    """(8, C) values in the middle of the patches of an (H, W, C) picture."""
    height, width = picture.shape[:2]
    return picture[height // 2, [width * (2 * i + 1) // 16 for i in range(8)]].astype(float)


def written_colors(path: Path) -> tuple[np.ndarray, Tags]:
    """(8, 3) RGB of the patches by the written tags and the standards' equations, and the tags."""
    container, stream = video_stream(path)
    with container:
        context = stream.codec_context
        frame = next(container.decode(stream))
        planes = frame.to_ndarray()
        height, width = frame.height, frame.width
        y = planes[:height]
        u, v = (
            planes[height:].reshape(2, height // 2, width // 2)[i].repeat(2, 0).repeat(2, 1) for i in (0, 1)
        )
        tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
    return to_rgb(patch_centres(np.stack([y, u, v], -1)), tags[0], tags[3] == 2), tags


@pytest.mark.parametrize(
    "tags", [(1, 1, 1, 1), (1, 1, 1, 2), (6, 6, 6, 1), (5, 5, 6, 2), (7, 7, 7, 1)], ids=str
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_tagged_colors_survive(tmp_path: Path, tags: Tags, suffix: str) -> None:
    clip = patch_clip(tmp_path / "in.mp4", tags[0], tags[3] == 2, tags)
    run = restore(clip, tmp_path / f"out{suffix}", crf=1)
    assert np.abs(patch_centres(run.frames[0].rgb) - PATCHES).max() <= 2
    colors, written = written_colors(run.path)
    assert written == tags
    assert np.abs(colors - PATCHES).max() <= 3


def test_untagged_sd_stays_bt601_when_it_becomes_hd(tmp_path: Path) -> None:
    clip = patch_clip(tmp_path / "in.mp4", 6, False, None, size=(320, 192))
    run = restore(clip, tmp_path / "out.mp4", crf=1)
    assert np.abs(patch_centres(run.frames[0].rgb) - PATCHES).max() <= 2
    colors, tags = written_colors(run.path)
    assert (tags[0], tags[3]) == (6, 1)
    assert np.abs(colors - PATCHES).max() <= 3


@pytest.mark.parametrize(
    ("height", "expected"),
    [(718, (6, 1, 1, 1)), (720, (1, 1, 1, 1)), (576, (6, 5, 1, 1)), (480, (6, 6, 1, 1))],
)
def test_untagged_clips_are_tagged_by_their_height(tmp_path: Path, height: int, expected: Tags) -> None:
    clip = patch_clip(tmp_path / "in.mp4", expected[0], False, None, size=(128, height))
    run = restore(clip, tmp_path / "out.mp4", scale=1)
    assert np.abs(patch_centres(run.frames[0].rgb) - PATCHES).max() <= 2
    assert written_colors(run.path)[1] == expected


def test_chroma_is_interpolated(tmp_path: Path) -> None:
    """A smooth ramp of colour has no steps of two pixels, as nearest-neighbour chroma would."""
    clip = Clip(size=(128, 48), codec="libx264", options={"qp": "0"}).write(tmp_path / "in.mp4")
    rgb = decoded(clip)[0].astype(float)
    truth = pattern(0, (128, 48)).astype(float)
    assert np.abs(rgb - truth)[2:-2, 2:-2].max() <= 3


@pytest.mark.parametrize("pix_fmt", ["gray", "gray10le", "yuv422p", "gbrp10le", "bgr0", "yuv410p"])
def test_other_pixel_formats(tmp_path: Path, pix_fmt: str) -> None:
    clip = Clip(codec="ffv1", options={}, pix_fmt=pix_fmt).write(tmp_path / "in.mkv")
    run = restore(clip, tmp_path / "out.mp4", scale=1)
    rgb, truth = run.frames[3].rgb.astype(float), pattern(3).astype(float)
    if pix_fmt.startswith("gray"):
        assert np.abs(rgb - rgb[..., :1]).max() == 0
        truth = (truth @ [0.299, 0.587, 0.114])[..., None].repeat(3, -1)
    assert np.abs(rgb - truth)[2:-2, 2:-2].mean() < 3
    assert len(times(run.path)) == 12


@pytest.mark.parametrize(("matrix", "color_range"), [(1, 1), (1, 2), (6, 1), (6, 2)])
def test_full_size_chroma_obeys_its_tags(tmp_path: Path, matrix: int, color_range: int) -> None:
    yuv = to_yuv(PATCHES, matrix, color_range == 2)
    planes = np.ascontiguousarray(yuv.T[:, None].repeat(64, 1).repeat(16, 2))
    with av.open(str(tmp_path / "in.mkv"), "w") as output:
        stream = output.add_stream("ffv1", 25, width=128, height=64, pix_fmt="yuv444p")
        context = stream.codec_context
        context.colorspace, context.color_range = matrix, color_range
        output.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv444p")))
        output.mux(stream.encode(None))
    assert np.abs(patch_centres(decoded(tmp_path / "in.mkv")[0]) - PATCHES).max() <= 2


@pytest.mark.parametrize(
    ("pix_fmt", "codec", "name", "change"),
    [
        ("yuv444p", None, "out.mp4", "4:4:4 and are written as 4:2:0"),
        ("yuv422p", None, "out.mp4", "4:2:2 and are written as 4:2:0"),
        ("yuv422p10le", "av1", "out.mkv", "4:2:2 and are written as 4:2:0"),
        ("yuv411p", "vp9", "out.webm", "4:1:1 and are written as 4:2:0"),
        ("bgr0", "hevc", "out.mov", "RGB and are written as 4:2:0"),
        ("yuv444p", "prores", "out.mov", "4:4:4 and are written as 4:2:2"),
        ("yuv422p", "prores", "out.mov", None),
        ("yuv444p", "ffv1", "out.mkv", None),
        ("yuv420p", None, "out.mp4", None),
        ("yuv410p", None, "out.mp4", None),
        ("gray", None, "out.mp4", None),
    ],
)
def test_coarser_chroma_is_noted(
    tmp_path: Path, pix_fmt: str, codec: str | None, name: str, change: str | None
) -> None:
    clip = Clip(pts=STEADY[:2], codec="ffv1", options={}, pix_fmt=pix_fmt).write(tmp_path / "in.mkv")
    run = restore(clip, tmp_path / name, codec=codec)
    notes = [note for note in run.notes if "colours" in note]
    assert len(notes) == bool(change)
    assert all(f"The input's colours are {change}, " in note and "ffv1" in note for note in notes)


@pytest.mark.parametrize(("tag", "black", "white"), [(0, 16, 235), (1, 0, 255), (2, 16, 235)])
def test_gray_obeys_its_range(tmp_path: Path, tag: int, black: int, white: int) -> None:
    ramp = np.tile(np.array([16, 126, 235], np.uint8).repeat(16), (16, 1))
    with av.open(str(tmp_path / "in.mkv"), "w") as output:
        stream = output.add_stream("ffv1", 25, width=48, height=16, pix_fmt="gray")
        stream.codec_context.color_range = tag
        output.mux(stream.encode(av.VideoFrame.from_ndarray(ramp, format="gray")))
        output.mux(stream.encode(None))
    rgb = decoded(tmp_path / "in.mkv")[0]
    assert rgb[0, 0].tolist() == [black] * 3
    assert rgb[0, -1].tolist() == [white] * 3
    run = restore(tmp_path / "in.mkv", tmp_path / "out.mp4", crf=1)
    assert np.abs(decoded(run.path)[0][::4, ::4].astype(float) - rgb).max() <= 3


def transparent_clip(path: Path, alpha: list[int]) -> Path:
    """A frame for each alpha."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=25, width=SIZE[0], height=SIZE[1])
        stream.pix_fmt = "bgra"
        for index, value in enumerate(alpha):
            rgba = np.dstack([pattern(index), np.full(SIZE[::-1], value, np.uint8)])
            output.mux(stream.encode(av.VideoFrame.from_ndarray(rgba, format="rgba")))
        output.mux(stream.encode(None))
    return path


def test_ten_bits_alpha_and_interlacing_are_noted(tmp_path: Path) -> None:
    deep = Clip(codec="ffv1", options={}, pix_fmt="yuv420p10le").write(tmp_path / "deep.mkv")
    run = restore(deep, tmp_path / "out.mp4", scale=1)
    assert run.source_notes == ["10-bit input is processed and written in 8 bit."]
    assert np.abs(run.frames[2].rgb.astype(float) - pattern(2))[2:-2, 2:-2].mean() < 3

    opaque = Clip(codec="ffv1", options={}, pix_fmt="bgra").write(tmp_path / "opaque.mkv")
    assert restore(opaque, tmp_path / "out1.mp4", scale=1).source_notes == []
    clear = transparent_clip(tmp_path / "clear.mkv", alpha=[255, 255, 0])
    run = restore(clear, tmp_path / "out2.mp4", scale=1)
    assert run.source_notes == ["The alpha channel (transparency) is dropped."]

    woven = Clip(options=FAST | {"x264-params": "tff=1"}).write(tmp_path / "woven.mp4")
    run = restore(woven, tmp_path / "out3.mp4", scale=1)
    assert any("interlaced" in note for note in run.source_notes)
    assert len(run.frames) == 12


# -- codecs and containers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "name", "decoder", "tolerance"),
    [
        (None, "out.mp4", "h264", 3),
        (None, "out.m4v", "h264", 3),
        (None, "out.MOV", "h264", 3),
        (None, "out.webm", "vp9", 4),
        ("hevc", "out.mp4", "hevc", 4),
        ("av1", "out.mkv", "libdav1d", 4),
        ("prores", "out.mov", "prores", 3),
        ("ffv1", "out.mkv", "ffv1", 0),
    ],
)
def test_codecs(tmp_path: Path, codec: str | None, name: str, decoder: str, tolerance: float) -> None:
    clip = Clip(pts=STEADY[:4]).write(tmp_path / "in.mp4")
    run = restore(clip, tmp_path / name, codec=codec)
    container, stream = video_stream(run.path)
    with container:
        assert stream.codec_context.name == decoder
    pictures = decoded(run.path)
    assert len(pictures) == 4
    for picture, frame in zip(pictures, run.frames, strict=True):
        assert np.abs(picture.astype(float) - enlarged(frame.rgb, 4)).mean() <= tolerance
    assert times(run.path) == [p * TICK for p in STEADY[:4]]


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize(
    ("codec", "name"),
    [
        (None, "out.mp4"),
        (None, "out.webm"),
        ("hevc", "out.mp4"),
        ("hevc", "out.mov"),
        ("hevc", "out.mkv"),
        ("av1", "out.mp4"),
        ("prores", "out.mov"),
    ],
)
def test_clips_shorter_than_an_encoders_delay(
    tmp_path: Path, codec: str | None, name: str, frames: int
) -> None:
    clip = Clip(pts=STEADY[:frames], codec="ffv1", options={}).write(tmp_path / "in.mkv")
    run = restore(clip, tmp_path / name, codec=codec)
    assert times(run.path) == [p * TICK for p in STEADY[:frames]]
    assert len(decoded(run.path)) == frames


@pytest.mark.parametrize("level", [None, "2"])
def test_av1_is_silent_and_leaves_the_environment_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], level: str | None
) -> None:
    monkeypatch.delenv("SVT_LOG", raising=False)
    if level:
        monkeypatch.setenv("SVT_LOG", level)
    before = dict(os.environ)
    clip = Clip(pts=STEADY[:2]).write(tmp_path / "in.mp4")
    capfd.readouterr()
    restore(clip, tmp_path / "out.mkv", codec="av1")
    assert dict(os.environ) == before
    assert "Svt[info]" not in capfd.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="Linux tells of its threads there")
def test_av1_leaves_the_threads_their_priority(tmp_path: Path) -> None:
    """SVT-AV1 makes them the first of the whole machine, where it may: what else runs there comes to a stop."""
    clip = Clip(pts=STEADY[:2]).write(tmp_path / "in.mp4")
    with (
        media.open_source(clip) as source,
        media.open_sink(tmp_path / "out.mkv", source, codec="av1") as sink,
    ):
        threads = [int(entry.name) for entry in Path("/proc/self/task").iterdir()]
        assert len(threads) > 5  # the encoder's are among them
        assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_OTHER}
        for frame in source:
            sink.write(enlarged(frame.rgb, 4), frame)
        sink.close()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_hevc_is_tagged_for_apple(tmp_path: Path) -> None:
    run = restore(Clip().write(tmp_path / "in.mp4"), tmp_path / "out.mp4", codec="hevc")
    container, stream = video_stream(run.path)
    with container:
        assert stream.codec_context.codec_tag == "hvc1"


def test_crf_decides_the_quality(tmp_path: Path) -> None:
    clip = Clip().write(tmp_path / "in.mp4")
    sizes = [restore(clip, tmp_path / f"{crf}.mp4", crf=crf).path.stat().st_size for crf in (1, None, 45)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_frames_are_not_sliced_for_the_encoders_threads(tmp_path: Path) -> None:
    clip = Clip(size=(320, 192), pts=STEADY[:2]).write(tmp_path / "in.mp4")
    data = restore(clip, tmp_path / "out.mp4").path.read_bytes()
    assert b"sliced_threads=0" in data  # libx264 writes its settings into the stream


def test_mp4_starts_fast(tmp_path: Path) -> None:
    data = restore(Clip(audio=1).write(tmp_path / "in.mp4"), tmp_path / "out.mp4").path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


# -- pictures ------------------------------------------------------------------------------------------


def write_pictures(folder: Path, names: list[str], size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    folder.mkdir(exist_ok=True)
    pictures = [pattern(index, size) for index in range(len(names))]
    for name, picture in zip(names, pictures, strict=True):
        Image.fromarray(picture).save(folder / name)
    return pictures


def test_a_folder_comes_out_as_a_folder_of_the_same_names(tmp_path: Path) -> None:
    names = ["a2.png", "a10.png", "b1.bmp", "b2.tif", "b3.tiff"]
    pictures = write_pictures(tmp_path / "in", names)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    (tmp_path / "in" / ".hidden.png").write_text("no picture either")
    run = restore(tmp_path / "in", tmp_path / "out")
    assert [frame.name for frame in run.frames] == names
    assert [frame.time for frame in run.frames] == [None] * 5
    assert all(np.array_equal(frame.rgb, p) for frame, p in zip(run.frames, pictures, strict=True))
    assert any("notes.txt" in note for note in run.source_notes)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        f"{Path(n).stem}.png" for n in names
    )
    for name, picture in zip(names, pictures, strict=True):
        written = np.asarray(Image.open(tmp_path / "out" / f"{Path(name).stem}.png"))
        assert np.array_equal(written, enlarged(picture, 4))  # lossless
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.jpg", {"quality": 95}), ("a.webp", {"quality": 95}), ("a.webp", {"lossless": True})],
)
@pytest.mark.parametrize("size", [SIZE, (64, 800)])  # BT.601 even where a video would be BT.709
def test_lossy_pictures_have_the_colors_that_pillow_sees(
    tmp_path: Path, name: str, options: dict, size: tuple
) -> None:
    Image.fromarray(pattern(5, size)).save(tmp_path / name, **options)
    with media.open_source(tmp_path / name) as source:
        rgb = next(iter(source)).rgb.astype(float)
    expected = np.asarray(Image.open(tmp_path / name).convert("RGB"), dtype=float)
    assert np.abs(rgb - expected)[2:-2, 2:-2].max() <= 4
    assert source.notes == []


MODES = {"L": None, "P": None, "RGBA": "alpha", "LA": "alpha", "I;16": "16-bit"}


@pytest.mark.parametrize(
    ("mode", "name"),
    matrix(
        MODES, ["a.png", "a.tif"], fast=lambda mode, name: list(MODES).index(mode) % 2 == (name == "a.tif")
    ),
)
def test_kinds_of_pictures(tmp_path: Path, name: str, mode: str) -> None:
    note = MODES[mode]
    picture = Image.fromarray(pattern(1))
    if mode == "I;16":
        Image.fromarray(pattern(1)[..., 0].astype(np.uint16) * 257).save(tmp_path / name)
        expected = pattern(1)[..., :1].repeat(3, -1)
    else:
        if mode.endswith("A"):
            picture.putalpha(Image.fromarray(pattern(1)[..., 0]))
        picture.convert(mode).save(tmp_path / name)
        expected = np.asarray(picture.convert(mode).convert("RGB"))
    with media.open_source(tmp_path / name) as source:
        rgb = next(iter(source)).rgb
    assert np.abs(rgb.astype(float) - expected).max() <= 1
    assert len(source.notes) == bool(note)
    assert all(note and note in text for text in source.notes)


def test_old_full_range_formats_are_full_range() -> None:
    frame = av.VideoFrame(16, 16, "yuvj420p")
    assert color.tags_of(frame, 2, 2).full_range
    assert not color.tags_of(av.VideoFrame(16, 16, "yuv420p"), 2, 2).full_range


PHOTOS = {"jpg": {"quality": 98, "subsampling": 0}, "png": {}, "webp": {"lossless": True}, "tif": {}}


def write_photo(path: Path, orientation: int, size: tuple[int, int] = SIZE) -> None:
    """A picture whose EXIF says how it is turned: 6 is shown turned clockwise."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pattern(1, size)).save(path, exif=exif, **PHOTOS[path.suffix[1:]])


@pytest.mark.parametrize(
    ("suffix", "orientation"),
    matrix(
        PHOTOS,
        range(10),
        fast=lambda suffix, turned: list(PHOTOS).index(suffix) == turned % 4,
    ),  # 0 and 9 mean nothing
)
def test_photos_are_turned_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"a.{suffix}"
    write_photo(path, orientation)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    with media.open_source(path) as source:
        rgb = next(iter(source)).rgb
        assert (source.info.width, source.info.height) == expected.shape[1::-1]
    assert rgb.shape == expected.shape
    assert np.abs(rgb.astype(float) - expected).mean() < 3


def test_exif_behind_the_picture_is_found(tmp_path: Path) -> None:
    write_photo(tmp_path / "a.png", 6)
    data = (tmp_path / "a.png").read_bytes()
    start = data.index(b"eXIf") - 4
    chunk = data[start : start + 12 + int.from_bytes(data[start : start + 4], "big")]
    end = data.index(b"IEND") - 4
    (tmp_path / "a.png").write_bytes(data[:start] + data[start + len(chunk) : end] + chunk + data[end:])
    with media.open_source(tmp_path / "a.png") as source:
        assert (source.info.width, source.info.height) == (48, 64)


@pytest.mark.parametrize(
    "suffix", ["jpg", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("png", "webp", "tif"))]
)
def test_photos_count_with_their_upright_size(tmp_path: Path, suffix: str) -> None:
    write_photo(tmp_path / f"a.{suffix}", 6)
    write_photo(tmp_path / f"b.{suffix}", 1, size=SIZE[::-1])
    with media.open_source(tmp_path) as source:
        assert [frame.rgb.shape for frame in source] == [(64, 48, 3)] * 2
    write_photo(tmp_path / f"b.{suffix}", 1)
    with pytest.raises(InputError, match=rf"a\.{suffix} is 48x64, b\.{suffix} is 64x48"):
        media.open_source(tmp_path)


def test_one_picture_in_one_picture_out(tmp_path: Path) -> None:
    [picture] = write_pictures(tmp_path, ["one.png"])
    run = restore(tmp_path / "one.png", tmp_path / "big.png")
    assert run.path == tmp_path / "big.png"
    assert np.array_equal(np.asarray(Image.open(run.path)), enlarged(picture, 4))


def test_pictures_become_a_video_and_back(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "in", [f"{i}.png" for i in range(6)])
    run = restore(tmp_path / "in", tmp_path / "out.mp4")
    assert times(run.path) == [Fraction(i, 25) for i in range(6)]
    assert written_colors(run.path)[1] == (1, 1, 1, 1)
    assert run.notes == []
    ntsc = restore(tmp_path / "in", tmp_path / "ntsc.mkv", fps=Fraction(24000, 1001), codec="ffv1", frames=4)
    assert len(times(ntsc.path)) == 4
    assert abs(times(ntsc.path)[3] - Fraction(3003, 24000)) <= Fraction(1, 1000)
    back = restore(ntsc.path, tmp_path / "back/", scale=1)
    assert sorted(p.name for p in back.path.iterdir()) == [f"frame_{i:06d}.png" for i in range(4)]
    for i in range(4):
        written = np.asarray(Image.open(back.path / f"frame_{i:06d}.png"))
        assert np.array_equal(written, enlarged(pictures[i], 4))
    assert any("no sound" in note for note in back.notes)


@given(st.lists(st.integers(0, 10**12), max_size=8, unique=True))
def test_names_sort_by_number(numbers: list[int]) -> None:
    names = sorted((f"Shot-{n}.png" for n in numbers), key=images.natural_key)
    assert names == [f"Shot-{n}.png" for n in sorted(numbers)]


@given(st.lists(st.text(max_size=6), max_size=6))
def test_any_names_can_be_sorted(names: list[str]) -> None:
    assert sorted(sorted(names, key=images.natural_key)) == sorted(names)


def test_run_is_what_the_tests_think_it_is(tmp_path: Path) -> None:
    run = restore(Clip().write(tmp_path / "in.mp4"), tmp_path / "out.mp4")
    assert isinstance(run, Run)
    assert run.path == tmp_path / "out.mp4"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]
