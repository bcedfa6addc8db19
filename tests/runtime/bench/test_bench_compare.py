"""Verdicts on distributions whose truth is known, and what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.bench_fakes import Maker, bundle, calm, options

from vsr_trt.runtime.bench import bench
from vsr_trt.runtime.bench.compare import Earlier, compare
from vsr_trt.runtime.bench.report import BenchReport, Change
from vsr_trt.runtime.cli import bench as cli
from vsr_trt.runtime.errors import InputError


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    calm(monkeypatch)


class Nobody:
    def loading(self, title: str) -> None:
        pass

    def frame(self, phase: str, frames: int, seconds: float) -> None:
        pass


def measured(
    folder: Path, mean: float = 0.02, spread: float = 0.01, seed: int = 0, **maker: Any
) -> BenchReport:
    """Frames that take `mean` seconds, more or less."""
    numbers = np.random.default_rng(seed)
    made = Maker(lambda n: mean * float(numbers.lognormal(0, spread)), **maker)
    plan = cli._plan(options("--bundle", bundle(folder), "--size", "32x24", "--seconds", 2))
    return bench.run(plan, made, Nobody(), clock=made.clock)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> BenchReport:
    return measured(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def file(tmp_path: Path, before: BenchReport) -> Path:
    path = tmp_path / "before.json"
    path.write_text(before.to_json())
    return path


def changes(file: Path, report: BenchReport, allowed: float = 5.0) -> tuple[Change, Change]:
    """Of frames a second, and of the latency."""
    throughput, latency = compare(Earlier.read(file), report, allowed).changes
    assert (throughput.metric, latency.metric) == ("frames a second", "latency median")
    return throughput, latency


def test_the_same_speed(file: Path, tmp_path: Path) -> None:
    found = [change for seed in range(1, 5) for change in changes(file, measured(tmp_path, seed=seed))]
    shown = [change for change in found if change.verdict != "no difference shown"]
    assert len(shown) <= 2  # of 8: an interval is wrong by chance once in 20 times
    assert not any(change.regression for change in found)


def test_ten_percent_slower(file: Path, tmp_path: Path, before: BenchReport) -> None:
    report = measured(tmp_path, 0.022, seed=1)
    throughput, latency = changes(file, report)
    assert latency.low < 10 < latency.high
    assert throughput.low < 100 * (1 / 1.1 - 1) < throughput.high
    for change in (throughput, latency):
        assert (change.verdict, change.regression) == ("worse", True)
        assert change.high - change.low < 2
    assert latency.before == pytest.approx(before.modes["latency"].latency.summary.median)
    assert latency.after == report.modes["latency"].latency.summary.median
    assert throughput.before == pytest.approx(before.modes["throughput"].fps)
    assert not any(change.regression for change in changes(file, report, allowed=15))


def test_three_percent_slower_is_worse_and_allowed(file: Path, tmp_path: Path) -> None:
    report = measured(tmp_path, 0.0206, seed=1)
    for change in changes(file, report):
        assert (change.verdict, change.regression) == ("worse", False)
    assert all(change.regression for change in changes(file, report, allowed=1))


def test_an_interval_across_the_limit_is_no_regression(file: Path, tmp_path: Path) -> None:
    report = measured(tmp_path, 0.024, spread=0.1, seed=2)
    change = changes(file, report)[1]
    assert (change.verdict, change.regression) == ("worse", True)
    assert not changes(file, report, allowed=(change.low + change.percent) / 2)[1].regression
    assert changes(file, report, allowed=change.low * 0.99)[1].regression


def test_faster(file: Path, tmp_path: Path) -> None:
    for change in changes(file, measured(tmp_path, 0.018, seed=1)):
        assert (change.verdict, change.regression) == ("better", False)


def test_what_else_differs_is_noted(file: Path, before: BenchReport) -> None:
    data = json.loads(before.to_json())
    assert compare(Earlier.read(file), before, 5).notes == ()
    data["environment"]["packages"]["numpy"] = "1.0"
    data["environment"]["packages"]["left-pad"] = "7"
    data["environment"]["system"]["processor"] = "abacus"
    data["environment"]["gpu"] = "slide rule"
    data["bundle"]["sha256"] = "f" * 64
    data["settings"]["threads"] = 3
    file.write_text(json.dumps(data))
    notes = "\n".join(compare(Earlier.read(file), before, 5).notes)
    for part in (
        "numpy: 1.0 before", "left-pad: 7 before, none now", "processor: abacus", "GPU: slide rule",
        "bundle: fp32 ffffffffffff before", "--threads: 3 before, the default now",
    ):  # fmt: skip
        assert part in notes


def test_few_frames_are_noted(file: Path, before: BenchReport) -> None:
    data = json.loads(before.to_json())
    data["modes"]["latency"]["latency"]["samples"] = [0.02, 0.021, 0.02]
    file.write_text(json.dumps(data))
    assert compare(Earlier.read(file), before, 5).notes == (
        "latency: 3 frames are too few to resample: the interval is the whole range",
    )


Change_ = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(kind="cake"), "no report of bench"),
        (lambda d: d.update(schema_version=1), "schema version 1, and this program reads 2"),
        (lambda d: d.pop("schema_version"), "schema version None"),
        (lambda d: d.pop("modes"), "damaged .*modes"),
        (lambda d: d["settings"].pop("tiles"), "damaged .*tiles"),
        (lambda d: d["modes"]["latency"]["latency"].update(samples=[]), "damaged .*samples"),
        (lambda d: d["modes"]["latency"]["latency"].update(samples=[1, -1]), "damaged .*samples"),
        (lambda d: d["modes"]["latency"]["latency"].update(samples=[1, float("nan")]), "damaged .*samples"),
        (lambda d: d["modes"]["latency"]["latency"].update(samples="fast"), "damaged"),
        (lambda d: d["modes"].update(dreaming={}), "damaged"),
        (lambda d: d.update(environment=7), "damaged"),
    ],
)
def test_damaged_reports_are_refused(file: Path, before: BenchReport, change: Change_, message: str) -> None:
    data = copy.deepcopy(json.loads(before.to_json()))
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(InputError, match=message):
        Earlier.read(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is no JSON"),
        ("[1]", "no report of bench"),
        ('"x"', "no report of bench"),
        ("\x00\x01", "it is no JSON"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        Earlier.read(path)
    path.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(InputError, match="it is no JSON"):
        Earlier.read(path)
    with pytest.raises(InputError, match="there is no such file"):
        Earlier.read(tmp_path / "missing.json")
    with pytest.raises(InputError, match="cannot be read"):
        Earlier.read(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "64x24"), "size is 32x24, now 64x24.*with --size 32x24"),
        (("--mode", "latency"), "mode is latency and throughput, now latency.*--mode both"),
        (("--tile", "64"), "--tile is the default, now 64.*without --tile"),
        (("--set", "color=none"), "--set is the default, now color=none"),
    ],
)
def test_other_plans_are_refused(
    file: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    wanted = ["--size", "32x24", "--bundle", bundle(tmp_path), *arguments]
    with pytest.raises(InputError, match=message):
        Earlier.read(file).check_plan(cli._plan(options(*wanted)))
    Earlier.read(file).check_plan(cli._plan(options(*wanted[:4])))


def test_other_restorers_are_refused(file: Path) -> None:
    earlier = Earlier.read(file)
    make = Maker(backend="other", slots=2)
    with pytest.raises(InputError, match=r"backend is onnxruntime-cpu, now other.*--backend onnxruntime-cpu"):
        earlier.check_restorer("latency", make(file))
    with pytest.raises(InputError, match=r"number of slots is 2, now 3.*--slots 2"):
        earlier.check_restorer("throughput", Maker(slots=3)(file))
    earlier.check_restorer("throughput", Maker(slots=2)(file))
