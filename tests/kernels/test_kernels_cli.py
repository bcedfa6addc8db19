"""`python -m vsr_trt.kernels`: what it prints, its JSON, its refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from helpers import processes

from vsr_trt.kernels.__main__ import main
from vsr_trt.kernels.gpu import build
from vsr_trt.kernels.gpu.targets import TARGETS

linux = pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux only")


@pytest.mark.thorough
@linux
def test_report_fits_80_columns_and_names_every_target(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["report"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for target in TARGETS.values():
        assert target.name in text
        assert target.card in text
    assert "…" not in text
    assert "Nothing here was measured" in text
    assert "blend_tiles" in text


@linux
def test_report_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["report", "--json", "--target", "sm_80", "--target", "sm_120", "--dtype", "fp16", "--top-k"]
    assert main([*arguments, "--size", "8x8", "--size", "96x96"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [row["launch"]["target"] for row in content["kernels"]] == ["sm_80", "sm_120"]
    for row in content["kernels"]:
        assert row["launch"]["dtype"] == "fp16"
        assert row["launch"]["top_k"]
        assert row["launch"]["spilled"] == 0
        assert 0 < row["occupancy"] <= 1
        assert row["inner_loop"]["instructions"] == sum(row["inner_loop"]["by_kind"].values())
        small, large = row["predicted"]
        assert (small["height"], large["width"]) == (8, 96)
        assert 0 < small["seconds"] < large["seconds"]
        assert large["flop_per_byte"] == 18 * 9 * 9216 / (3 * 4 * 2)
    assert [row["launch"]["target"] for row in content["blending"]] == ["sm_80", "sm_120"]
    for row in content["blending"]:
        assert row["launch"]["kernel"] == "blend_tiles"
        assert 0 < row["occupancy"] <= 1


@linux
def test_compile_writes_what_it_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "--out", str(tmp_path / "k"), "--target", "sm_86", "--target", "sm_89"]) == 0
    named = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(named) == sorted((tmp_path / "k").iterdir())
    assert len(named) == 2 * 2 * 3  # targets, kernels, files


@linux
@pytest.mark.parametrize("under", ["missing", "file"])
def test_folders_that_cannot_be_written_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], under: str
) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(["compile", "--out", str(tmp_path / under / "k"), "--target", "sm_89"]) == 3
    assert "cannot be written" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("size", ["96", "96x", "x96", "0x96", "axb", "-1x4"])
def test_sizes_that_are_none_are_refused(capsys: pytest.CaptureFixture[str], size: str) -> None:
    assert main(["report", f"--size={size}"]) == 2
    assert f"--size {size}: expected HEIGHTxWIDTH" in capsys.readouterr().err


def test_without_triton_the_reason_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "is_available", lambda: False)
    assert main(["report"]) == 1
    assert "Triton is not installed" in capsys.readouterr().err


def test_unknown_targets_are_wrong_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["report", "--target", "sm_61"])
    assert stopped.value.code == 2
    assert "sm_75" in capsys.readouterr().err


@pytest.mark.thorough
def test_bench_measures_every_form_that_runs_here(tmp_path: Path) -> None:
    """A small size; that the figures are right for larger ones is not a test's business."""
    report = tmp_path / "bench.json"
    done = processes.run(
        [
            sys.executable,
            "-m",
            "kernels",
            "bench",
            "--size",
            "16x16",
            "--seconds",
            "0.1",
            "--json",
            str(report),
        ],
        check=True,
        env={"COLUMNS": "80", "PATH": "/usr/bin:/bin", "HOME": str(Path.home())},
    )
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "…" not in done.stdout
    content = json.loads(report.read_text())
    forms = [row["form"] for row in content["measured"]]
    assert forms[:3] == ["torch, dense", "torch, folded", "ONNX function"]
    for form in ("GPU kernel", "GPU engine"):
        assert (form in forms) != (f"{form}: not run, " in done.stdout)
    for row in content["measured"]:
        assert len(row["seconds"]) >= 3
        assert row["median"] > 0
        assert row["difference"] < 1e-4
    assert content["machine"]["cores"]
