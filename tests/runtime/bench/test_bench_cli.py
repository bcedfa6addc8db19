"""The command: what it writes and prints, what it refuses before anything is measured, and its exit codes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from helpers.bench_fakes import Maker, bundle, calm, install_nvml, options
from rich.console import Console

from vsr_trt.runtime.bench import bench, show
from vsr_trt.runtime.bundle.options import Settings
from vsr_trt.runtime.cli import bench as cli
from vsr_trt.runtime.errors import DeviceError, InputError, OutputError, VsrError

SCHEMA = json.loads((Path(bench.__file__).parent / "bench.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    calm(monkeypatch)


def run(tmp_path: Path, *arguments: object, maker: Maker | None = None) -> tuple[int, Maker]:
    """A frame takes 1/64 s, unless `maker` says otherwise."""
    made = maker or Maker()
    given = options("--bundle", bundle(tmp_path / "bundle"), "--size", "32x24", "--seconds", 0.5, *arguments)
    return cli.run(given, made, made.clock), made


def outputs(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.iterdir() if path.name != "bundle")


@pytest.fixture
def report(tmp_path: Path) -> dict[str, Any]:
    code, _ = run(tmp_path, "--json", tmp_path / "r.json", "--seconds", 2, maker=Maker(observing=1 / 1024))
    assert code == 0
    return json.loads((tmp_path / "r.json").read_text())


def test_reports_follow_the_schema_which_is_strict(report: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    VALIDATOR.validate(report)
    for path in ("", "settings", "environment", "modes.latency", "modes.latency.latency.summary"):
        place = report
        for part in path.split(".") if path else []:
            place = place[part]
        for name in list(place):
            value = place.pop(name)
            assert not VALIDATOR.is_valid(report), f"{path} without {name}"
            place[name] = value
        place["more"] = 1
        assert not VALIDATOR.is_valid(report), f"{path} with more"
        del place["more"]
    VALIDATOR.validate(report)


def test_what_is_measured(report: dict[str, Any]) -> None:
    throughput, latency = report["modes"]["throughput"], report["modes"]["latency"]
    assert (throughput["slots"], latency["slots"]) == (2, 1)
    assert throughput["fps"] == 64
    assert latency["latency"]["summary"]["median"] == 1 / 64  # without what observing costs
    assert latency["frames"] == len(latency["latency"]["samples"]) == 128
    observed = latency["observed"]
    assert observed["latency"]["summary"]["median"] == 1 / 64 + 1 / 1024
    assert observed["frames"] == observed["metrics"]["compute"]["summary"]["n"] == 31  # a quarter of the time
    medians = {name: 64 * series["summary"]["median"] for name, series in observed["metrics"].items()}
    assert medians == pytest.approx({"frame": 1, "enqueue": 0.01, "H2D": 0.1, "compute": 0.8, "D2H": 0.1})
    stages = {name: 64 * series["summary"]["median"] for name, series in observed["stages"].items()}
    assert stages == pytest.approx({"upload": 0.1, "unet": 0.6, "decoder": 0.2, "download": 0.1})
    assert latency["load_seconds"] == {"unet": 1.5, "all": 2.0}
    assert latency["warmup_seconds"] == 13 / 64  # frames until 0.2 s are over
    assert report["cautions"] == []
    assert len(report["bundle"]["sha256"]) == 64
    assert report["peak_host_bytes"] > 1e6


def test_restorers_are_made_as_asked_and_closed(tmp_path: Path) -> None:
    tiles = ("--tile", 64, "--vae-tile", 96, "--overlap", 8, "--engine-cache", tmp_path)
    _, maker = run(tmp_path, "--slots", 3, *tiles, "--set", "color=none", "--threads", 2)
    settings = Settings(
        threads=2,
        tiles={"": 64, "vae": 96},
        overlaps={"": 8},
        choices={"color": "none"},
        engine_cache=tmp_path,
    )
    assert [fake.settings for fake in maker.made] == [settings] * 4
    assert [fake.options["slots"] for fake in maker.made] == [3, 1, 3, 1]
    # nothing observes where times are taken
    assert [fake.observer is not None for fake in maker.made] == [False, False, True, True]
    assert not any(fake.open for fake in maker.made)
    assert {size for fake in maker.made for size in fake.sizes} == {(6, 8, 3)}  # a quarter each way
    assert {fake.prepared for fake in maker.made} == {(6, 8)}, "loading is no part of the warm-up"


def test_defaults_are_the_restorers(tmp_path: Path) -> None:
    _, maker = run(tmp_path, "--mode", "throughput")
    assert [set(fake.options) for fake in maker.made] == [set(), {"observer"}]


@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_one_mode(tmp_path: Path, mode: str) -> None:
    run(tmp_path, "--mode", mode, "--json", tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    assert list(found["modes"]) == [mode]
    VALIDATOR.validate(found)


def test_the_trace_opens(tmp_path: Path) -> None:
    run(tmp_path, "--trace", tmp_path / "t.json")
    trace = json.loads((tmp_path / "t.json").read_text())
    events = trace["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X"}
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert processes == {1: "throughput, slots: 2", 2: "latency, slots: 1"}
    work = [event for event in events if event["ph"] == "X"]
    assert {(e["pid"], names[e["pid"], e["tid"]]) for e in work} == {
        (pid, lane) for pid in (1, 2) for lane in ("copies", "main", "side")
    }
    unet = next(e for e in work if e["name"] == "unet[1]" and e["pid"] == 2)
    assert (unet["cat"], unet["args"]["stage"], unet["args"]["slot"]) == ("network", "unet", 0)
    frame = 1e6 / 64
    assert (unet["ts"], unet["dur"]) == pytest.approx((0.4 * frame, 0.3 * frame), abs=0.01)
    assert unet["args"]["enqueue_us"] == pytest.approx(0.002 * frame, abs=0.01)
    assert min(e["ts"] for e in work) == 0
    for place in names:  # steps of a lane follow one another
        lane = sorted((e["ts"], e["dur"]) for e in work if (e["pid"], e["tid"]) == place)
        for (start, length), (following, _) in itertools.pairwise(lane):
            assert start + length <= following + 1e-6
    frames = sorted({e["args"]["frame"] for e in work if e["pid"] == 2})
    assert frames[0] >= 1  # the warm-up is not in it
    assert frames == list(range(frames[0], frames[-1] + 1))


def test_json_on_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "--json", "-")
    captured = capsys.readouterr()
    VALIDATOR.validate(json.loads(captured.out))
    assert "frames a second" in captured.err
    assert "loaded in 2.0 s, warmed up in 0.2 s, 3.00 GB of buffers" in captured.err
    assert outputs(tmp_path) == []


def test_tables_fit_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "--seconds", 0.1, maker=Maker(lambda n: 0.1234567 + n / 1000, observing=0.01))
    captured = capsys.readouterr()
    assert captured.out == ""
    text = captured.err
    for part in (
        "latency, 1 slot",
        "throughput, 2 slots",
        "H2D",
        "compute",
        "p99",
        "unet",
        "decoder",
        "warning:",
    ):
        assert part in text
    assert "…" not in text
    tables = [
        line
        for line in text.splitlines()
        if not line.startswith(("warning:", "latency,", "throughput,", "where "))
    ]
    assert max(map(len, tables)) <= 80


def test_a_gpu_is_looked_at_while_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    told = install_nvml(monkeypatch, mask=4)
    run(tmp_path, "--seconds", 2, "--json", tmp_path / "r.json", maker=Maker(backend="tensorrt"))
    found = json.loads((tmp_path / "r.json").read_text())
    VALIDATOR.validate(found)
    assert found["environment"]["nvml"]["during"]["samples"] == 2  # one for each mode that was timed
    assert [caution["kind"] for caution in found["cautions"]] == ["throttled"]
    assert told["shutdowns"] == 1
    assert "1500 to 1500 MHz" in capsys.readouterr().err
    run(tmp_path, "--seconds", 2, "--json", tmp_path / "cpu.json")
    found = json.loads((tmp_path / "cpu.json").read_text())
    VALIDATOR.validate(found)
    assert found["environment"]["nvml"]["during"] is None
    assert found["cautions"] == []


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (1.03, 0), (1.2, 11), (0.8, 0)])
def test_comparing(tmp_path: Path, capsys: pytest.CaptureFixture[str], factor: float, code: int) -> None:
    run(tmp_path, "--json", tmp_path / "old.json", maker=Maker(lambda n: 1 / 64 + (n % 7) * 1e-5))
    capsys.readouterr()
    arguments = ("--compare", tmp_path / "old.json", "--json", tmp_path / "new.json")
    maker = Maker(lambda n: factor * (1 / 64 + (n % 7) * 1e-5))
    assert run(tmp_path, *arguments, maker=maker)[0] == code
    text = " ".join(capsys.readouterr().err.split())
    assert ("regression: latency median got worse by more than 5 %" in text) == (code == 11)
    found = json.loads((tmp_path / "new.json").read_text())
    VALIDATOR.validate(found)
    assert [change["regression"] for change in found["comparison"]["changes"]] == [code == 11] * 2
    verdict = {1.0: "no difference shown", 1.03: "worse", 1.2: "worse", 0.8: "better"}[factor]
    assert {change["verdict"] for change in found["comparison"]["changes"]} == {verdict}
    assert text.count(f": {verdict}, ") == 2


def test_a_report_may_replace_the_one_it_was_compared_with(tmp_path: Path) -> None:
    same = tmp_path / "r.json"
    run(tmp_path, "--json", same)
    run(tmp_path, "--json", same, "--compare", same, "--overwrite")
    assert json.loads(same.read_text())["comparison"]["file"] == str(same)
    assert outputs(tmp_path) == ["r.json"]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("--json", "{tmp}/there"), OutputError, "--overwrite"),
        (("--trace", "{tmp}/there"), OutputError, "--overwrite"),
        (("--json", "{tmp}/no/r.json"), OutputError, "mkdir -p"),
        (("--json", "{tmp}/x", "--trace", "{tmp}/x"), OutputError, "the same file"),
        (("--json", "{tmp}/new", "--trace", "{tmp}/there"), OutputError, "--overwrite"),
        (("--compare", "{tmp}/there"), InputError, "it is no JSON"),
        (("--compare", "{tmp}/missing"), InputError, "no such file"),
        (("--size", "33x24"), InputError, "multiples of 4"),
        (("--slots", "0"), InputError, "--slots is 0"),
        (("--seconds", "-1"), InputError, "--seconds is -1"),
        (("--max-regression", "-1"), InputError, "--max-regression is -1"),
        (("--max-regression", "nan"), InputError, "--max-regression is nan"),
        (("--bundle", "{tmp}"), VsrError, "is not a bundle"),
    ],
)
def test_refused_before_anything_is_measured(
    tmp_path: Path, arguments: tuple[str, ...], kind: type[VsrError], message: str
) -> None:
    (tmp_path / "there").write_text("precious")
    maker = Maker()
    with pytest.raises(kind, match=message):
        run(tmp_path, *(argument.format(tmp=tmp_path) for argument in arguments), maker=maker)
    assert maker.made == []
    assert outputs(tmp_path) == ["there"]
    assert (tmp_path / "there").read_text() == "precious"


def test_another_size_is_refused_before_a_restorer_is_made(tmp_path: Path) -> None:
    run(tmp_path, "--json", tmp_path / "old.json")
    maker = Maker()
    with pytest.raises(InputError, match="size is 32x24, now 64x24"):
        run(tmp_path, "--compare", tmp_path / "old.json", "--size", "64x24", maker=maker)
    assert maker.made == []


def test_another_backend_is_refused_before_the_first_frame(tmp_path: Path) -> None:
    run(tmp_path, "--json", tmp_path / "old.json")
    maker = Maker(backend="other")
    with pytest.raises(InputError, match="backend is onnxruntime-cpu, now other"):
        run(tmp_path, "--compare", tmp_path / "old.json", maker=maker)
    assert [(fake.pushed, fake.open) for fake in maker.made] == [(0, False)]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DeviceError("out of memory")])
@pytest.mark.parametrize("frame", [0, 20, 50, 90, 120])  # in every pass, and in a warm-up
def test_a_run_that_breaks_off_leaves_nothing(tmp_path: Path, error: BaseException, frame: int) -> None:
    (tmp_path / "old.json").write_text("precious")
    maker = Maker()
    maker.fail_at = frame, error
    arguments = ("--json", tmp_path / "old.json", "--trace", tmp_path / "new.json", "--overwrite")
    with pytest.raises(type(error)):
        run(tmp_path, *arguments, maker=maker)
    assert outputs(tmp_path) == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "precious"
    assert maker.made
    assert not any(fake.open for fake in maker.made)


def test_overwriting(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("old")
    run(tmp_path, "--json", tmp_path / "r.json", "--overwrite")
    VALIDATOR.validate(json.loads((tmp_path / "r.json").read_text()))


def test_help_says_how_it_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        options("--help")
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "--bundle --size --backend --mode --slots --seconds --warmup --threads --tile --vae-tile --vae-statistics "
        "--memory --set --json "
        "--trace --overwrite --compare --max-regression"
    ).split():
        assert part in text
    for part in (
        "10 frames at least",
        "3 frames where one takes more than 5 s",
        "Exit code 11",
        "ceil(p * n / 100)",
    ):
        assert part in text


def test_a_log_file_gets_a_line_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(show.time, "monotonic", lambda: now[0])
    for terminal in (False, True):
        with (tmp_path / "log").open("w+") as log:
            console = Console(file=log, force_terminal=terminal, width=80)
            with show.measuring(console, 10.0) as watcher:
                watcher.loading("latency: loading")
                for i in range(10):
                    now[0] += 3
                    watcher.frame("measuring", i, 3.0 * i)
            log.seek(0)
            assert log.read().count("latency: measuring, 3 frames") == 1


def test_programs_use_it_without_a_command_line(tmp_path: Path) -> None:
    maker = Maker()
    plan = cli._plan(options("--bundle", bundle(tmp_path), "--size", "32x24", "--mode", "latency"))

    class Watcher:
        titles: list[str] = []  # noqa: RUF012

        def loading(self, title: str) -> None:
            self.titles.append(title)

        def frame(self, phase: str, frames: int, seconds: float) -> None:
            assert phase in ("warm-up", "measuring")

    assert bench.run(plan, maker, Watcher(), clock=maker.clock).modes["latency"].frames == 640
    assert Watcher.titles == ["latency: loading", "latency, observed: loading"]
