"""Clips whose times, sound or colours are told in an odd way; each is of a kind that tests/corpus found."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from corpus.generate import PALER, pattern
from corpus.make import ffmpeg
from helpers.media_clips import Clip, packets, restore, times
from PIL import Image

from vsr_trt.runtime import media

TONE = ["-f", "lavfi", "-i", "sine=frequency=400:sample_rate={rate}:samples_per_frame=512"]


def made(
    folder: Path,
    name: str,
    *words: str,
    size: str = "64x48",
    rate: str = "25",
    sounds: tuple[int, ...] = (),
    frames: int = 12,
) -> Path:
    """A clip of the ffmpeg program with these encoders."""
    inputs = ["-f", "lavfi", "-i", f"{pattern(size, rate)},{PALER}"]
    maps = ["-map", "0"]
    for number, sound in enumerate(sounds, 1):
        inputs += [word.format(rate=sound) for word in TONE]
        maps += ["-map", str(number)]
    length = [
        "-frames:v",
        str(frames),
        *(["-t", f"{frames / float(Fraction(rate)) + 0.05}"] if sounds else []),
    ]
    ffmpeg(folder, *inputs, *maps, *length, *words, name)
    return folder / name


def assert_steady(path: Path, rate: str, frames: int = 12) -> None:
    found = times(path)
    assert len(found) == frames
    assert [float(time - found[0]) for time in found] == pytest.approx(
        [index / float(Fraction(rate)) for index in range(frames)], abs=0.0011
    )


@pytest.mark.parametrize(
    ("encoder", "name"),
    [("libx264", "in.h264"), ("libx265", "in.hevc"), ("mpeg2video", "in.m2v"), ("mpeg1video", "in.m1v")],
)
def test_a_bare_stream_has_the_rate_that_it_says(tmp_path: Path, encoder: str, name: str) -> None:
    rate = "60000/1001"
    clip = made(tmp_path, name, "-c:v", encoder, "-pix_fmt", "yuv420p", rate=rate)
    run = restore(clip, tmp_path / "out.mkv", scale=1)
    assert_steady(run.path, rate)
    assert times(run.path)[0] == 0
    with media.open_source(clip) as source:
        assert source.info.fps == Fraction(rate)
    with media.open_source(clip, start=6 / 59.94) as source:
        rest = [frame.rgb for frame in source]
    assert len(rest) == 6
    assert all(np.array_equal(rgb, frame.rgb) for rgb, frame in zip(rest, run.frames[6:], strict=True))


@pytest.mark.parametrize(
    ("size", "rate", "sound", "tracks"), [("50x38", "24000/1001", "mp2", 2), ("98x18", "25", "pcm_dvd", 1)]
)
def test_frames_of_a_dvd_with_b_frames_are_steady(
    tmp_path: Path, size: str, rate: str, sound: str, tracks: int
) -> None:
    """Its multiplexer gives some of them the time of the frame that was shown before."""
    coded = [
        "-c:v",
        "mpeg2video",
        "-pix_fmt",
        "yuv422p",
        "-q:v",
        "2",
        "-bf",
        "2",
        "-g",
        "6",
        "-c:a",
        sound,
        "-ac",
        "2",
    ]
    clip = made(tmp_path, "in.vob", *coded, size=size, rate=rate, sounds=(48000,) * tracks)
    run = restore(clip, tmp_path / "out.mkv", scale=1)
    assert_steady(run.path, rate)
    assert not any("falling" in note for note in run.notes)


def test_a_clip_whose_first_packet_is_not_shown_first_begins_at_0(tmp_path: Path) -> None:
    clip = made(tmp_path, "in.ts", "-c:v", "libvvenc", "-pix_fmt", "yuv420p10le", "-preset", "faster")
    run = restore(clip, tmp_path / "out.mkv", scale=1)
    assert_steady(run.path, "25")
    assert times(run.path)[0] == 0


@pytest.mark.parametrize("encoder", ["pcm_s16le", "pcm_alaw", "pcm_s24le"])
@pytest.mark.parametrize("name", ["out.mp4", "out.mov", "out.mkv"])
def test_sound_that_does_not_name_its_channels_is_kept(tmp_path: Path, encoder: str, name: str) -> None:
    clip = made(tmp_path, "in.avi", "-c:v", "mpeg4", "-c:a", encoder, "-ac", "2", sounds=(44100,))
    before = b"".join(sample.data for sample in packets(clip, "audio"))
    run = restore(clip, tmp_path / name, scale=1)
    if name == "out.mp4" and encoder == "pcm_alaw":
        assert any("MP4 cannot hold it" in note for note in run.notes)
    else:
        assert b"".join(sample.data for sample in packets(run.path, "audio")) == before


def test_old_sound_beside_one_with_many_packets_in_a_millisecond(tmp_path: Path) -> None:
    coded = ["-c:v", "ffv1", "-strict", "-2", "-c:a:0", "mlp", "-c:a:1", "g726", "-b:a:1", "32k"]
    clip = made(tmp_path, "in.mkv", *coded, sounds=(48000, 8000))
    run = restore(clip, tmp_path / "out.mkv", scale=1)
    assert not any("copied" in note for note in run.notes)
    for number in range(2):
        before, after = (packets(path, "audio", number) for path in (clip, run.path))
        assert [sample.data for sample in after] == [sample.data for sample in before]
        assert [float(s.time) for s in after] == pytest.approx([float(s.time) for s in before], abs=0.0011)


def test_packets_without_a_time_are_copied(tmp_path: Path) -> None:
    coded = ["-c:v", "mpeg2video", "-c:a:0", "aac", "-c:a:1", "pcm_s16le", "-ac", "2"]
    clip = made(tmp_path, "in.wtv", *coded, sounds=(48000, 44100))
    with av.open(str(clip)) as container:
        assert any(packet.size and packet.dts is None for packet in container.demux(audio=0))
    ffmpeg(tmp_path, "-i", "in.wtv", "-map", "0:a:0", "-c", "copy", "copied.mkv")
    expected = packets(tmp_path / "copied.mkv", "audio")
    run = restore(clip, tmp_path / "out.mkv", scale=1)
    found = packets(run.path, "audio")
    assert [sample.data for sample in found] == [sample.data for sample in expected]
    assert [float(s.time - found[0].time) for s in found] == pytest.approx(
        [float(s.time - expected[0].time) for s in expected], abs=0.0021
    )


@pytest.mark.parametrize(("codec", "chunk", "seconds"), [("mp2", 1152, 1.05), ("ac3", 1536, 1.08)])
@pytest.mark.parametrize("name", ["out.mov", "out.mp4"])
def test_all_sound_of_joined_clips_is_kept(
    tmp_path: Path, codec: str, chunk: int, seconds: float, name: str
) -> None:
    """Each piece has more sound than picture, so sound of the next is moved, by whole ticks of the output."""
    frames = {"pts": range(25), "time_base": Fraction(1, 25), "codec": "mpeg2video", "options": {"bf": "0"}}
    sound = {"audio": 1, "audio_codec": codec, "audio_chunk": chunk, "audio_seconds": seconds}
    piece = Clip(**frames, **sound, audio_start=Fraction(1, 10)).write(tmp_path / "piece.ts")
    (tmp_path / "joined.ts").write_bytes(3 * piece.read_bytes())
    run = restore(tmp_path / "joined.ts", tmp_path / name, scale=1)
    assert len(packets(run.path, "audio")) == 3 * len(packets(piece, "audio"))
    assert not any("damaged" in note for note in run.notes)


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        (["-display_hflip"], np.fliplr),
        (["-display_vflip"], np.flipud),
        (["-display_rotation", "90"], np.rot90),
    ],
)
def test_frames_with_side_data_of_unknown_kinds_are_turned(
    tmp_path: Path, turn: list[str], expected: object
) -> None:
    """TIFF has EXIF, of which PyAV does not know, next to the display matrix."""
    made(tmp_path, "plain.mov", "-c:v", "tiff", "-pix_fmt", "rgb24", frames=2)
    angle = turn if "-display_rotation" in turn else ["-display_rotation", "0", *turn]
    ffmpeg(tmp_path, *angle, "-i", "plain.mov", "-c", "copy", "turned.mov")
    plain, turned = (
        restore(tmp_path / name, tmp_path / f"{name}.mkv", scale=1).frames
        for name in ("plain.mov", "turned.mov")
    )
    for before, after in zip(plain, turned, strict=True):
        assert np.array_equal(after.rgb, expected(before.rgb))


@pytest.mark.parametrize("pixel", ["yuv420p", "yuv422p", "yuv444p"])
@pytest.mark.parametrize("packing", ["raw", "lzw"])
def test_tiffs_of_ycbcr_have_the_colours_that_they_say(tmp_path: Path, pixel: str, packing: str) -> None:
    words = ["-frames:v", "1", "-pix_fmt", pixel, "-compression_algo", packing, "-update", "1"]
    smooth = "gradients=size=64x48:c0=red:c1=teal:n=2:seed=1,lutrgb=r=64+val/2:g=64+val/2:b=64+val/2"
    ffmpeg(tmp_path, "-f", "lavfi", "-i", smooth, *words, "a.tif")
    ffmpeg(
        tmp_path,
        "-i",
        "a.tif",
        "-vf",
        "scale=flags=accurate_rnd+full_chroma_int:out_range=full,format=rgb24",
        "a.png",
    )
    with media.open_source(tmp_path / "a.tif") as source:
        rgb = next(iter(source)).rgb
    assert np.abs(rgb.astype(float) - np.asarray(Image.open(tmp_path / "a.png"))).mean() < 2
