"""What `vsr doctor` says a frame costs on this processor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vsr_trt.recipes import counts
from vsr_trt.runtime import backends
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.cli.main import main
from vsr_trt.runtime.plan import cost, roofline

SIZES = ["512x512", "1280x720", "1920x1080"]


def found(bundle: Path, capsys: pytest.CaptureFixture) -> dict:
    assert main(["doctor", "--bundle", str(bundle), "--json"]) == 0
    [cost] = json.loads(capsys.readouterr().out)["costs"]
    return cost


def test_twice_the_rate_is_half_the_time(
    golden_bundle: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "processor_rate", lambda: 1e9)
    slow = found(golden_bundle, capsys)
    monkeypatch.setattr(cost, "processor_rate", lambda: 2e9)
    fast = found(golden_bundle, capsys)
    assert list(slow["sizes"]) == list(fast["sizes"]) == SIZES
    for size, each in slow["sizes"].items():
        width, height = map(int, size.split("x"))
        assert each["operations"] == roofline.operations(Bundle.open(golden_bundle).manifest, width, height)
        assert each["seconds"] == each["operations"] / 1e9 == 2 * fast["sizes"][size]["seconds"]
        assert each["memory"] > width * height * 3
    assert "at best" in slow["how"]


def test_the_processor_is_measured(golden_bundle: Path, capsys: pytest.CaptureFixture) -> None:
    rate = found(golden_bundle, capsys)["operations_per_second"]
    assert 1e8 < rate < 1e14


def test_it_is_a_table(
    golden_bundle: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "processor_rate", lambda: 123e9)
    assert main(["doctor", "--bundle", str(golden_bundle)]) == 0
    told = capsys.readouterr().out
    assert "what a frame takes here with this bundle, estimated" in " ".join(told.split())
    assert "(123 GFLOP/s); measure with: vsr bench" in told


def test_a_gpu_is_not_guessed(
    golden_bundle: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "choose_backend", lambda name, bundle=None: ("tensorrt", "a test says so"))
    assert main(["doctor", "--bundle", str(golden_bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["costs"] == []


def test_without_a_rate_there_is_no_estimate(
    golden_bundle: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "processor_rate", lambda: None)
    assert main(["doctor", "--bundle", str(golden_bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["costs"] == []


def test_without_a_bundle_it_is_that_of_the_published_weights(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "processor_rate", lambda: 1e11)
    assert main(["doctor", "--json"]) == 0
    told, clips = json.loads(capsys.readouterr().out)["costs"]
    assert clips["of"] == "a bundle of star's published weights"
    assert clips["frames"] == 32
    # 28 evaluations of 129 TMAC for 32 frames, less what both passes share, and the VAE's 7.6 TMAC
    assert clips["sizes"]["1280x720"]["operations"] == pytest.approx(226e12, rel=1e-2)
    assert clips["sizes"]["512x512"] == clips["sizes"]["1280x720"], "the canvas is never smaller"
    assert told["of"] == "a bundle of dloral's published weights"
    assert list(told["sizes"]) == SIZES
    for each in told["sizes"].values():
        assert each["seconds"] == each["operations"] / 1e11
        assert each["memory"] > 4.5e9  # the weights alone
    assert main(["doctor"]) == 0
    assert "with a bundle of dloral's published weights, estimated" in " ".join(
        capsys.readouterr().out.split()
    )


def test_the_published_sizes_are_those_of_the_model() -> None:
    (manifest,) = [found for found in cost.published() if found.family == "dloral"]
    assert manifest.networks["unet"].parameters == pytest.approx(866e6, rel=0.05)  # Stable Diffusion 2.1's
    assert sum(entry.bytes for entry in manifest.files.values()) > 4e9
    assert roofline.operations(manifest, 1280, 720) > 2 * roofline.operations(manifest, 512, 512)


def test_other_networks_than_those_written_down_are_noticed(
    golden_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not counts.is_current(golden_bundle)
    monkeypatch.setattr(cost, "published", lambda: [counts.of_bundle(golden_bundle)])
    assert counts.is_current(golden_bundle)
