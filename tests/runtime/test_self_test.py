"""`vsr --self-test`: the bundle that is carried along restores a clip, and what is wrong is told."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.cli.main import main
from vsr_trt.runtime.self_test import clip, run
from vsr_trt.runtime.self_test.run import Check


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made, so that what is left can be seen."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_passes_here_and_leaves_nothing(temporary: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--self-test", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"]
    assert [check["passed"] for check in report["checks"]] == [True] * 5
    assert not list(temporary.iterdir())


def failing(checks: list[Check]) -> Check:
    assert [check.passed for check in checks] == [True] * (len(checks) - 1) + [False]
    return checks[-1]


def test_another_picture_is_noticed(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = clip.read

    def darker(path: Path) -> list[np.ndarray]:
        return [frame - 8 if frame.shape[0] > clip.SIDE else frame for frame in read(path)]

    monkeypatch.setattr(clip, "read", darker)
    last = failing(list(run.run()))
    assert last.name == "the picture is right"
    assert "levels off, expected 0.5 at most" in last.found


@pytest.mark.thorough
def test_frames_in_another_order_are_noticed(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = clip.read
    monkeypatch.setattr(clip, "read", lambda path: read(path)[::-1] if path.suffix == ".mp4" else read(path))
    assert "levels off" in failing(list(run.run())).found


def weights_changed(monkeypatch: pytest.MonkeyPatch, change: Callable[[bytes], bytes]) -> None:
    """The UNet's weights are others than those that were packed."""
    extract = zipfile.ZipFile.extractall

    def changed(archive: zipfile.ZipFile, folder: Path) -> None:
        extract(archive, folder)
        weights = folder / "onnx" / "unet.onnx.data"
        weights.write_bytes(change(weights.read_bytes()))

    monkeypatch.setattr(zipfile.ZipFile, "extractall", changed)


def test_a_damaged_bundle_is_noticed(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    weights_changed(monkeypatch, lambda data: data[:-1] + b"x")
    assert main(["--self-test"]) == 1
    told = capsys.readouterr().out
    assert "FAILED the bundle is whole" in told
    assert "was changed" in told
    assert "see what is installed: vsr doctor" in told


def test_a_network_that_computes_something_else_is_noticed(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights_changed(monkeypatch, lambda data: (np.frombuffer(data, np.float32) / 2).tobytes())
    monkeypatch.setattr(Bundle, "check_hashes", lambda bundle: None)
    last = failing(list(run.run()))
    assert last.name == "the picture is right"
    assert "levels off" in last.found


@pytest.mark.parametrize("arguments", [[], ["--self-test", "doctor"], ["--json", "doctor"]])
def test_half_a_command_is_refused(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "--self-test" in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("vsr 0.")
