"""`vsr compare` with a video: every frame next to the one that it was restored from."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from helpers.media_clips import STEADY, Clip, decoded, packets, restore, times

from vsr_trt.runtime.cli import main as cli
from vsr_trt.runtime.media.resample import resize_bicubic


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    before = Clip(pts=STEADY[:5], size=(66, 50), codec="ffv1", options={}, pix_fmt="bgr0", audio=1).write(
        tmp_path / "in.mkv"
    )
    return before, restore(before, tmp_path / "out.mkv", codec="ffv1").path


def test_every_frame_is_next_to_its_own(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = pair
    output = tmp_path / "compare.mkv"
    assert cli.main(["compare", str(before), str(after), "-o", str(output)]) == 0
    assert "528x200, 5 frames, bicubic | restored" in capsys.readouterr().err
    found = decoded(output)
    assert times(output) == times(after)
    for joined, low, high in zip(found, decoded(before), decoded(after), strict=True):
        expected = np.concatenate((resize_bicubic(low, 200, 264), high), axis=1)
        assert np.abs(joined.astype(int) - expected).mean() < 12  # H.264 of 4:2:0
    with av.open(str(output)) as container:
        assert len(container.streams.audio) == 1
    assert [p.data for p in packets(output, "audio")] == [p.data for p in packets(after, "audio")]


def test_what_the_container_cannot_hold_is_said(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", *map(str, pair), "-o", str(tmp_path / "compare.webm")]) == 0
    with av.open(str(tmp_path / "compare.webm")) as container:
        assert not container.streams.audio  # AAC
    assert "note:" in capsys.readouterr().err


def test_an_odd_part_becomes_an_even_one(pair: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "compare.mp4"
    assert cli.main(["compare", *map(str, pair), "-o", str(output), "--crop", "101"]) == 0
    assert decoded(output)[0].shape == (100, 200, 3)


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lambda before, after: [before, after, "--frame", "1"], 2, "--frame is for one picture"),
        (lambda before, after: [after, before], 2, "expected a whole multiple"),
        (lambda before, after: [before, after, "--crop", "0"], 2, "--crop is 0"),
        (lambda before, after: [before, after, "--start", "0.08"], 2, "ends after"),
        (lambda before, after: [before, before.parent / "none.mkv"], 2, "none.mkv"),
    ],
)
def test_what_cannot_be_compared_leaves_nothing(
    pair: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: object,
    code: int,
    said: str,
) -> None:
    output = tmp_path / "compare.mp4"
    arguments = change(*pair)  # type: ignore[operator]
    assert cli.main(["compare", *map(str, arguments), "-o", str(output)]) == code
    assert said in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mkv", "out.mkv"]


def test_neither_clip_is_written_over(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    content = [path.read_bytes() for path in pair]
    for path in pair:
        assert cli.main(["compare", *map(str, pair), "-o", str(path), "--overwrite"]) == 3
    assert [path.read_bytes() for path in pair] == content
    assert cli.main(["compare", *map(str, pair), "-o", str(pair[0].parent / "c.mkv")]) == 0
    assert cli.main(["compare", *map(str, pair), "-o", str(pair[0].parent / "c.mkv")]) == 3
    assert "--overwrite" in capsys.readouterr().err
