"""Names given as output that are no plain new file: links, devices, standard output; and exact frame rates."""

from __future__ import annotations

import os
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from helpers.media_clips import Clip, restore, times
from PIL import Image

from vsr_trt.runtime import media
from vsr_trt.runtime.cli.values import parse_fps
from vsr_trt.runtime.errors import InputError, OutputError


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "in.mp4"
    Clip().write(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for index in range(4):
        Image.fromarray(np.full((8, 12, 3), 60 * index, np.uint8)).save(tmp_path / "in" / f"{index}.png")
    return tmp_path / "in"


def tree(folder: Path) -> dict[str, str]:
    """What is in a folder: where links lead, and what files hold."""
    return {
        entry.name: f"-> {entry.readlink()}" if entry.is_symlink() else "folder" if entry.is_dir() else "file"
        for entry in folder.iterdir()
    }


@pytest.mark.parametrize("name", ["out.mkv", "out.png", "out"])
@pytest.mark.parametrize("leads", ["missing.mkv", "missing/deep.mkv", "{name}"])  # the last is a loop
@pytest.mark.parametrize("overwrite", [False, True])
def test_links_to_nothing_are_refused_and_stay(
    clip: Path, tmp_path: Path, name: str, leads: str, overwrite: bool
) -> None:
    link = tmp_path / name
    link.symlink_to(leads.format(name=name))
    before = tree(tmp_path)
    with (
        media.open_source(clip, frames=1) as source,
        pytest.raises(
            (OutputError, InputError), match=r"is a link to .* where there is nothing|holds one picture"
        ),
    ):
        media.open_sink(link, source, overwrite=overwrite)
    assert tree(tmp_path) == before


def test_a_link_to_a_file_stays_and_its_file_is_replaced(clip: Path, tmp_path: Path) -> None:
    real, link = tmp_path / "elsewhere" / "real.mkv", tmp_path / "out.mkv"
    real.parent.mkdir()
    real.write_bytes(b"old")
    link.symlink_to(Path("elsewhere") / "real.mkv")
    with pytest.raises(OutputError, match="exists already"):
        restore(clip, link)
    assert real.read_bytes() == b"old"
    run = restore(clip, link, overwrite=True)
    assert tree(tmp_path) == {"elsewhere": "folder", "out.mkv": "-> elsewhere/real.mkv"}
    assert tree(real.parent) == {"real.mkv": "file"}
    assert run.path.samefile(real)
    assert len(times(real)) == len(times(clip))


def test_a_link_to_a_folder_stays_and_its_folder_is_replaced(clip: Path, tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "out"
    real.mkdir()
    (real / "old.png").write_bytes(b"old")
    link.symlink_to("real")
    with pytest.raises(OutputError, match="is not empty"):
        restore(clip, link)
    restore(clip, link, overwrite=True, frames=2)
    assert tree(tmp_path) == {"out": "-> real", "real": "folder"}
    assert sorted(path.name for path in real.iterdir()) == ["frame_000000.png", "frame_000001.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_are_not_replaced(clip: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "out.mkv"
    os.mkfifo(pipe)
    with media.open_source(clip) as source, pytest.raises(OutputError, match="a device or a pipe"):
        media.open_sink(pipe, source, overwrite=True)
    assert pipe.is_fifo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.mkv"]


def test_standard_output_is_refused(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with media.open_source(clip) as source:
        for name in ("-", Path("-")):
            with pytest.raises(InputError, match=r"give one such as out\.mkv"):
                media.open_sink(name, source)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("start", [1e300, 1.8e308, -1.0, float("nan"), float("inf"), 1e18])
def test_starts_beyond_reason(clip: Path, start: float) -> None:
    with pytest.raises(InputError, match="must be a number of seconds from 0 to"):
        media.open_source(clip, start=start)


@pytest.mark.parametrize(
    ("text", "fps"),
    [
        ("30000/1001", Fraction(30000, 1001)),
        ("24000/1001", Fraction(24000, 1001)),
        ("1/7919", Fraction(1, 7919)),
        ("29.97", Fraction(2997, 100)),
        ("25", Fraction(25)),
    ],
)
def test_frame_rates_are_exact(folder: Path, tmp_path: Path, text: str, fps: Fraction) -> None:
    run = restore(folder, tmp_path / "out.mp4", fps=parse_fps(text))
    assert times(run.path) == [index / fps for index in range(4)]


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "nan",
        "inf",
        "1e999",
        "-25",
        "1e-300",
        "0/1",
        "25/0",
        "1/2/3",
        "x",
        "1001/1",
        "999999999/999999998",
    ],
)
def test_frame_rates_that_cannot_be(folder: Path, tmp_path: Path, text: str) -> None:
    with media.open_source(folder) as source, pytest.raises(InputError):
        media.open_sink(tmp_path / "out.mp4", source, fps=parse_fps(text))
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize("name", ["out.mkv", "out"])
def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path, name: str) -> None:
    clip = Clip().write(tmp_path / "in.mp4")
    for expected in ("-2", "-3"):
        with (
            media.open_source(clip, frames=2) as source,
            media.open_sink(tmp_path / name, source, scale=1) as sink,
        ):
            for frame in source:
                sink.write(frame.rgb, frame)
            path = tmp_path / name
            if path.suffix:
                path.write_text("somebody else's")
            else:
                path.mkdir(exist_ok=True)
                (path / "a.png").write_text("somebody else's")
            kept = sink.close()
            assert kept.name == f"out{expected}{path.suffix}"
            assert any("by now" in note for note in sink.notes)
        assert (path if path.suffix else path / "a.png").read_text() == "somebody else's"
        path.unlink() if path.suffix else shutil.rmtree(path)
