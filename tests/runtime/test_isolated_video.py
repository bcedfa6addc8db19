"""Videos that are decoded in a process of their own: the same frames, and a crash costs only what comes after it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import other_family
from helpers.media_clips import STEADY, Clip, number_of

from vsr_trt.runtime import media
from vsr_trt.runtime.cli import main as cli
from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.media.isolated import IsolatedVideo
from vsr_trt.runtime.media.source import Frame

FRAMES = len(STEADY)
LARGE = (352, 288)  # a frame is more than a pipe holds: the decoder cannot run far ahead of its reader


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "in.mkv"
    Clip(size=LARGE, audio=1).write(path)
    return path


def same(one: media.Source, other: media.Source) -> None:
    assert one.info == other.info
    assert one.window == other.window
    for expected, frame in zip(one, other, strict=True):
        assert (expected.rgb == frame.rgb).all()
        for name in ("index", "pts", "time_base", "duration", "name"):
            assert getattr(expected, name) == getattr(frame, name)
    assert one.notes == other.notes
    assert one.damage == other.damage
    assert one.files == other.files


@pytest.mark.parametrize("window", [{}, {"start": 0.3}, {"start": 0.1, "frames": 4}, {"frames": 1}])
def test_the_same_as_in_this_process(clip: Path, window: dict) -> None:
    with (
        media.open_source(clip, **window) as inside,
        media.open_source(clip, isolated=True, **window) as outside,
    ):
        assert isinstance(outside, IsolatedVideo)
        same(inside, outside)


def test_damage_and_odd_names(tmp_path: Path, clip: Path) -> None:
    path = tmp_path / os.fsdecode("in \udcff\n'ü.mkv" if sys.platform == "linux" else "in 'ü.mkv")
    path.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    with media.open_source(path) as inside, media.open_source(path, isolated=True) as outside:
        same(inside, outside)
        assert outside.damage is not None


def test_refusals_are_the_same(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    for path, start in ((tmp_path / "text.mp4", 0.0), (tmp_path / "none.mp4", 0.0), (clip, 99.0)):
        with pytest.raises(InputError) as inside:
            media.open_source(path, start=start)
        with pytest.raises(InputError) as outside:
            media.open_source(path, start=start, isolated=True)
        assert str(inside.value) == str(outside.value)


def test_a_crash_is_damage_behind_the_frames_before_it(clip: Path) -> None:
    with IsolatedVideo(clip) as source:
        frames = iter(source)
        kept = [next(frames), next(frames)]
        os.kill(source._process.pid, signal.SIGSEGV)
        kept += frames
        assert len(kept) < FRAMES
        assert source.damage == f"Its decoder crashed (SIGSEGV) behind frame {len(kept) - 1}."
        numbers = [number_of(frame.rgb) for frame in kept]
        assert numbers == sorted(numbers)  # the last one is whole


def test_a_crash_before_the_first_frame(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vsr_trt.runtime.media.video_decoder.__name__", "__future__")  # ends without a word
    with pytest.raises(
        InputError, match=r"in\.mkv makes its decoder crash \(exit code 0\) before the first frame"
    ):
        IsolatedVideo(clip)


def test_the_decoder_ends_with_its_reader(clip: Path) -> None:
    source = IsolatedVideo(clip)
    frames = iter(source)
    next(frames)
    source.close()
    source.close()
    assert source._process.poll() is not None
    assert list(frames) == []


def test_a_crash_leaves_what_was_restored(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    reading = IsolatedVideo.__iter__

    def crashing(self: IsolatedVideo) -> Iterator[Frame]:
        for frame in reading(self):
            yield frame
            if frame.index == 2:
                os.kill(self._process.pid, signal.SIGSEGV)

    monkeypatch.setattr(IsolatedVideo, "__iter__", crashing)
    bundle = other_family.write(tmp_path / "bundle")
    output = tmp_path / "out.mkv"
    code = cli.main(["restore", str(clip), "-o", str(output), "--bundle", str(bundle.path)])
    assert code == 8
    assert not output.exists()
    with media.open_source(tmp_path / "out.partial.mkv") as source:
        kept = list(source)
    assert 3 <= len(kept) < FRAMES
    said = " ".join(capsys.readouterr().err.split())
    assert "Its decoder crashed (SIGSEGV) behind frame" in said
    assert f"The {len(kept)} readable frames were restored and kept" in said
