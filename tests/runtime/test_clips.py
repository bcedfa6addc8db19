"""Clips that people have: joined recordings, AVI with B-frames, tracks, old sound, chroma siting, full disks."""

from __future__ import annotations

import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.media_clips import FAST, SIZE, STEADY, Clip, number_of, packets, pattern, restore, times
from PIL import Image, ImageCms

from vsr_trt.runtime import media
from vsr_trt.runtime.errors import InputError, OutputError
from vsr_trt.runtime.machine.priority import ordinary_priority
from vsr_trt.runtime.media import reserved_file, staging, video_sink

FRAME = Fraction(1, 25)


def joined(folder: Path, suffix: str, codec: str, audio: str, pieces: int = 2, gap: int = 0) -> Path:
    """A file of pieces that were put behind each other; each one's clock starts again, or `gap` seconds later."""
    data = b""
    for piece in range(pieces):
        start = piece * gap
        path = folder / f"piece{piece}{suffix}"
        Clip(
            codec=codec,
            options=dict(FAST) if codec == "libx264" else {"bf": "0"},
            pts=[start * 25 + index for index in range(25)],
            time_base=FRAME,
            audio=1,
            audio_codec=audio,
            audio_start=Fraction(start),
            audio_seconds=1.0,
        ).write(path)
        data += path.read_bytes()
    path = folder / f"joined{suffix}"
    path.write_bytes(data)
    return path


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("suffix", "codec", "audio"),
    [(".ts", "libx264", "aac"), (".mpg", "mpeg2video", "mp2"), (".vob", "mpeg2video", "mp2")],
)
@pytest.mark.parametrize(("pieces", "gap"), [(2, 0), (3, 0), (2, 100)])
def test_joined_pieces_follow_each_other_without_a_gap(
    tmp_path: Path, suffix: str, codec: str, audio: str, pieces: int, gap: int
) -> None:
    clip = joined(tmp_path, suffix, codec, audio, pieces, gap)
    run = restore(clip, tmp_path / "out.mkv", scale=1)
    assert run.damage is None
    assert any("restarts or jumps" in note for note in run.source_notes)
    found = times(run.path)
    # to a frame: what a piece's sound is longer than its picture stays between the pieces
    steps = np.diff([float(time) for time in found])
    assert len(found) == 25 * pieces
    assert steps.min() > 0
    assert steps.max() < 0.1
    one = len(packets(tmp_path / f"piece0{suffix}", "audio"))
    sound = [float(time) for time in times(run.path, "audio")]
    assert len(sound) == pieces * one
    assert np.diff(sound).max() < 0.1
    assert abs(sound[-1] - float(found[-1])) < 0.2


def test_sound_and_picture_of_a_later_piece_stay_together(tmp_path: Path) -> None:
    """In the second piece sound begins half a second behind the picture; so it does in the result."""
    data = b""
    for piece, late in enumerate((Fraction(0), Fraction(1, 2))):
        path = tmp_path / f"{piece}.ts"
        Clip(pts=range(25), time_base=FRAME, audio=1, audio_start=late, audio_seconds=0.5).write(path)
        data += path.read_bytes()
    (tmp_path / "in.ts").write_bytes(data)
    run = restore(tmp_path / "in.ts", tmp_path / "out.mkv", scale=1)
    picture, sound = times(run.path), times(run.path, "audio")
    second = [time for time in sound if time > Fraction(9, 10)]
    apart = float(second[0] - picture[25])
    assert abs(apart - 0.5) < 0.07  # a frame, and a packet of sound


@pytest.mark.parametrize("start", [0.5, 1.0, 1.5])
def test_a_start_behind_a_join(tmp_path: Path, start: float) -> None:
    clip = joined(tmp_path, ".ts", "libx264", "aac")
    with media.open_source(clip) as source:
        whole = [(float(frame.time), number_of(frame.rgb)) for frame in source]
    with media.open_source(clip, start=start) as source:
        rest = [number_of(frame.rgb) for frame in source]
    expected = [number for time, number in whole if time >= start - 1e-4]
    assert len(rest) == len(expected)
    assert np.allclose(rest, expected, atol=2)


def test_a_clip_without_joins_has_no_note(tmp_path: Path) -> None:
    clip = Clip(audio=1).write(tmp_path / "in.ts")
    with media.open_source(clip) as source:
        list(source)
        assert not any("restarts" in note for note in source.notes)


def test_frames_of_an_avi_are_shown_in_their_order(tmp_path: Path) -> None:
    options = {"preset": "medium", "crf": "10", "bf": "3", "b-adapt": "0"}
    clip = Clip(pts=range(20), time_base=FRAME, options=options).write(tmp_path / "in.avi")
    run = restore(clip, tmp_path / "out.mp4", scale=1)
    assert times(run.path) == [index * FRAME for index in range(20)]
    numbers = [number_of(frame.rgb) for frame in run.frames]
    assert np.allclose(numbers[:11], [30 + (17 * index) % 190 for index in range(11)], atol=4)
    assert not any("falling" in note for note in run.notes)


@pytest.mark.parametrize("default", [0, 1])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_the_track_that_is_marked_as_default_is_taken(tmp_path: Path, default: int, suffix: str) -> None:
    path = tmp_path / f"in{suffix}"
    with av.open(str(path), "w") as output:
        streams = []
        for number, size in enumerate([(64, 48), (96, 64)]):
            stream = output.add_stream("libx264", rate=25, width=size[0], height=size[1], options=dict(FAST))
            stream.pix_fmt = "yuv420p"
            stream.disposition = 1 if number == default else 0
            streams.append(stream)
        for index in range(4):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(pattern(index, (stream.width, stream.height)), "rgb24")
                output.mux(stream.encode(frame))
        for stream in streams:
            output.mux(stream.encode(None))
    with media.open_source(path) as source:
        assert source.info.width == (64, 96)[default]
        assert len(list(source)) == 4


OLD_SOUND = [("adpcm_ms", ".avi"), ("adpcm_ima_wav", ".avi"), ("wmav2", ".wmv"), ("wmav1", ".wmv")]
OLD_SOUND += [("pcm_alaw", ".avi"), ("pcm_mulaw", ".avi"), ("pcm_mulaw", ".mov")]


@pytest.mark.parametrize(("codec", "suffix"), OLD_SOUND)
def test_sound_that_matroska_holds_is_kept_packet_for_packet(tmp_path: Path, codec: str, suffix: str) -> None:
    path = tmp_path / f"in{suffix}"
    video = {".wmv": "wmv2"}.get(suffix, "mpeg4")
    with av.open(str(path), "w") as output:
        stream = output.add_stream(video, rate=25, width=SIZE[0], height=SIZE[1], options={"bf": "0"})
        sound = output.add_stream(codec, 44100, layout="mono")
        sound.bit_rate = 64000
        for index in range(10):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pattern(index), "rgb24")))
        size = sound.codec_context.frame_size or 1024
        for index in range(8):
            noise = np.random.default_rng(index).integers(-999, 999, (1, size)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(noise, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 44100, index * size, Fraction(1, 44100)
            for part in av.AudioResampler(sound.format.name, "mono", 44100).resample(frame):
                output.mux(sound.encode(part))
        output.mux(stream.encode(None))
        output.mux(sound.encode(None))
    before = [sample.data for sample in packets(path, "audio")]
    run = restore(path, tmp_path / "it's [a] out|put.mkv", scale=1)
    assert [sample.data for sample in packets(run.path, "audio")] == before
    assert not any("not copied" in note for note in run.notes)
    with av.open(str(run.path)) as result:
        assert result.streams.audio[0].codec_context.name == codec
        assert len([p for p in result.demux(result.streams.video[0]) if p.size]) == 10
    if codec.startswith(("adpcm", "wma")):
        other = restore(path, tmp_path / "out.mp4", scale=1)
        assert any("MP4 cannot hold it; write to an .mkv file" in note for note in other.notes)


# -- where chroma lies ----------------------------------------------------------------------------------


def bump() -> np.ndarray:
    """A coloured spot on grey, of equal brightness, so that only chroma shows where it is."""
    x = np.arange(128)
    height = 60 * np.exp(-(((x - 63.3) / 9) ** 2))
    rgb = np.stack([128 + height, 128 - 0.35 * height, 128 - 0.35 * height], -1)
    return np.repeat(rgb[None], 64, 0).round().astype(np.uint8)


def place(rgb: np.ndarray) -> float:
    """Where the spot is, across."""
    red = rgb[..., 0].astype(float) - rgb[..., 1]
    weight = np.clip(red.mean(0) - 4, 0, None)
    return float((weight * np.arange(weight.size)).sum() / weight.sum())


def spot(path: Path, codec: str, pix_fmt: str, siting: str, said: bool, **options: str) -> Path:
    """A clip of the spot whose chroma lies at `siting`."""
    from vsr_trt.runtime.media import color

    with av.open(str(path), "w") as output:
        all_options = options | ({"chroma_sample_location": siting} if said else {})
        stream = output.add_stream(codec, rate=25, width=128, height=64, options=all_options)
        stream.pix_fmt = pix_fmt
        with ordinary_priority(), video_sink._quiet(codec):  # SVT-AV1 keeps what it is first told
            stream.codec_context.open()
        for index in range(3):
            frame = color.sited(av.VideoFrame.from_ndarray(bump(), "rgb24"), siting)
            frame = av.video.reformatter.VideoReformatter().reformat(frame, format=pix_fmt)
            frame.pts, frame.time_base = index, FRAME
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "siting", "said"),
    [
        ("a.mp4", "libx264", "yuv420p", "left", True),
        ("a.mp4", "libx264", "yuv420p", "center", True),
        ("a.mkv", "ffv1", "yuv420p", "center", True),
        ("a.mkv", "libx265", "yuv420p", "left", False),
        ("a.mkv", "libsvtav1", "yuv420p", "left", False),
        ("a.mkv", "libsvtav1", "yuv420p", "left", True),
        ("a.webm", "libvpx-vp9", "yuv420p", "left", False),
        ("a.mkv", "ffv1", "yuv422p", "left", False),
        ("a.mkv", "ffv1", "yuv411p", "left", False),
        ("a.mov", "prores_ks", "yuv422p10le", "left", False),
        ("a.mpg", "mpeg2video", "yuv420p", "left", False),
        ("a.mpg", "mpeg1video", "yuv420p", "center", False),
        ("a.avi", "mjpeg", "yuvj420p", "center", False),
    ],
)
def test_chroma_is_read_from_where_it_lies(
    tmp_path: Path, name: str, codec: str, pix_fmt: str, siting: str, said: bool
) -> None:
    fine = {"crf": "2"} if codec == "libx264" else {}
    clip = spot(tmp_path / name, codec, pix_fmt, siting, said, **fine)
    with media.open_source(clip) as source:
        assert place(next(iter(source)).rgb) == pytest.approx(place(bump()), abs=0.2)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("o.mp4", "h264"), ("o.mp4", "hevc"), ("o.mkv", "av1"), ("o.webm", "vp9"), ("o.mov", "prores")],
)
def test_chroma_is_written_where_the_tags_say(tmp_path: Path, name: str, codec: str) -> None:
    from vsr_trt.runtime.media import color

    clip = spot(tmp_path / "in.mkv", "ffv1", "yuv444p", "left", False)
    run = restore(clip, tmp_path / name, codec=codec)
    with av.open(str(run.path)) as result:
        said = color.siting_of(result, result.streams.video[0])
        assert said in ("left", None)
        frame = next(result.decode(video=0))
        rgb = color.to_rgb(
            av.video.reformatter.VideoReformatter(), color.sited(frame, "left"), run_tags(frame)
        )
    expected = place(bump().repeat(4, 0).repeat(4, 1))
    assert place(rgb) == pytest.approx(expected, abs=0.4)


def run_tags(frame: av.VideoFrame) -> media.ColorTags:
    from vsr_trt.runtime.media import color

    return color.tags_of(frame, 2, 2)


# -- side data --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mov", ".avi"])
def test_a_video_of_pictures_with_colour_profiles_does_not_crash(tmp_path: Path, suffix: str) -> None:
    """In a process of its own: it used to be killed by SIGSEGV."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pattern(3)).save(tmp_path / "a.png", icc_profile=profile)
    path = tmp_path / f"in{suffix}"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("png", rate=25, width=SIZE[0], height=SIZE[1])
        stream.pix_fmt = "rgb24"
        for index in range(2):
            packet = av.Packet((tmp_path / "a.png").read_bytes())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, index, index, FRAME
            packet.is_keyframe = True
            output.mux(packet)
    script = (
        f"from vsr_trt.runtime import media\nwith media.open_source({str(path)!r}) as s: print(len(list(s)))"
    )
    root = str(Path(media.__file__).parents[2])
    done = subprocess.run(
        [__import__("sys").executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "2"), done.stderr


# -- nothing that was finished is lost ---------------------------------------------------------------------


@pytest.mark.parametrize("stem", ["x" * 251, "ü" * 125, "\udcff" * 240])
def test_a_partial_result_has_a_name_that_fits(tmp_path: Path, stem: str) -> None:
    final = tmp_path / f"{stem}.mp4"
    for expected in (".partial.mp4", ".partial-2.mp4"):
        stage = staging.Staging(final, overwrite=False)
        kept = stage.commit(partial=True)
        assert kept.exists()
        assert kept.name.endswith(expected)


@pytest.mark.thorough
# Codecs that hold nothing back, as little is put aside on such small disks; Matroska's muxer holds 5 MB.
@pytest.mark.parametrize(
    ("name", "codec", "megabytes"), [("out.mov", "prores", 4), ("out.mkv", "ffv1", 56), ("out", None, 4)]
)
def test_a_full_disk_keeps_what_was_finished(
    tmp_path: Path, name: str, codec: str | None, megabytes: int
) -> None:
    clip = Clip(pts=range(120), time_base=FRAME, audio=1).write(tmp_path / "in.mp4")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        rng, written = np.random.default_rng(0), 0
        source = media.open_source(clip)
        sink = media.open_sink(disk / name, source, scale=8, codec=codec)
        with source, sink:
            with pytest.raises(OutputError, match="disk is full"):
                for frame in source:
                    sink.write(rng.integers(0, 255, (384, 512, 3), np.uint8), frame)
                    written += 1
            kept = sink.close(partial=True)
        if codec is None:
            assert len(list(kept.iterdir())) == written
        else:
            with av.open(str(kept)) as container:
                assert written <= len(list(container.decode(video=0))) <= written + 1
        assert [entry.name for entry in disk.iterdir()] == [kept.name]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_writing_goes_on_with_the_space_that_was_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").touch()
    file = reserved_file.ReservedFile(tmp_path / "a")
    failures = iter([OSError(28, "No space left on device")])
    write = file._file.write

    class Full:
        def __getattr__(self, name: str) -> object:
            return getattr(inner, name)

        def write(self, data: object) -> int:
            for failure in failures:
                raise failure
            return write(data)

    inner, file._file = file._file, Full()
    assert file.write(b"hello") == 5
    assert file.is_full
    file.close()
    assert (tmp_path / "a").read_bytes() == b"hello"


# -- words --------------------------------------------------------------------------------------------------


def test_an_encoder_that_wants_larger_frames_is_not_told_to_take_smaller_ones(tmp_path: Path) -> None:
    clip = Clip(size=(8, 8), pts=STEADY[:2]).write(tmp_path / "in.mp4")
    with media.open_source(clip) as source, pytest.raises(InputError) as caught:
        media.open_sink(tmp_path / "out.mp4", source, scale=1, codec="hevc")
    assert "smaller" not in str(caught.value)
    assert "another codec" in str(caught.value)


def test_a_start_behind_the_last_frame_says_when_that_is(tmp_path: Path) -> None:
    clip = Clip(pts=range(25), time_base=FRAME).write(tmp_path / "in.mp4")
    with pytest.raises(InputError, match=r"behind the last frame .* is shown at 0\.960 s"):
        media.open_source(clip, start=0.99)
