"""`build.py time` and `build.py alternatives`: what they measure, refuse, show and leave behind."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import clip_family, processes
from helpers.golden import GOLDEN
from PIL import Image
from rich.console import Console

from vsr_trt import build
from vsr_trt.export import eager
from vsr_trt.recipes import demo as showcase
from vsr_trt.recipes.alternatives import WAYS, child, cli, comparison, show, ways
from vsr_trt.recipes.alternatives.comparison import ComparisonRequest
from vsr_trt.recipes.synthetic import random as synthetic
from vsr_trt.runtime import doctor
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.devices.in_order import Pipeline
from vsr_trt.runtime.errors import DeviceError, VsrError
from vsr_trt.runtime.onnxruntime.cpu import CpuNetworks

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]
CLIP = GOLDEN / "in"
WEIGHTS = ("--sd", GOLDEN / "sd", "--checkpoint", GOLDEN / "model.pkl")

# Stands for build.py: does what the environment's plan says of the way, and writes its arguments down.
SCRIPT = """
import json, os, signal, sys

way, plan = sys.argv[2], json.loads(os.environ["PLAN"])
with open(os.environ["LOG"], "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
print(f"{way}: frame 1 of 3\\nsome library: a hint", file=sys.stderr, flush=True)
print(json.dumps(plan[way].get("output", "")))
print(plan[way].get("said", ""), file=sys.stderr, flush=True)
if "signal" in plan[way]:
    os.kill(os.getpid(), plan[way]["signal"])
sys.exit(plan[way].get("code", 0))
"""


def measured(way: str, *seconds: float, peak: int | None = 1_000_000_000) -> dict[str, Any]:
    stages = {"unet": seconds[0] / 2, "vae_decoder": seconds[0] / 4}
    return {
        "output": {
            "way": way,
            "width": 128,
            "height": 128,
            "seconds": seconds,
            "warmup_seconds": 2 * seconds[0],
            "stages": stages | ({"text_encoder": 0.1} if way == "torch" else {}),
            "load_seconds": 3.0,
            "compile_seconds": 40.0 if way == "torch-compile" else None,
            "peak_memory": peak,
            "threads": 2,
            "versions": {"torch" if "torch" in way else "onnxruntime": "9.9"},
        }
    }


def refused(message: str, code: int) -> dict[str, Any]:
    return {"output": {"error": message, "kind": "VsrError", "exit_code": code}, "code": code}


class Listener:
    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []

    def began(self, way: str) -> None:
        self.heard.append(("began", way))

    def said(self, text: str) -> None:
        self.heard.append(("said", text))

    def ended(self, way: str, record: comparison.Record) -> None:
        self.heard.append(("ended", way))


@pytest.fixture
def listener() -> Listener:
    return Listener()


Compare = Callable[..., dict[str, Any]]


@pytest.fixture
def compare(
    golden_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> Compare:
    """Compares ways of which each does as it is told."""
    script, log = tmp_path / "script.py", tmp_path / "log"
    script.write_text(SCRIPT)
    monkeypatch.setattr(comparison, "_RATE", "print(2e11)")
    monkeypatch.setattr(
        doctor, "diagnose", lambda bundle: doctor.Diagnosis({"processor": "P", "cores": "2", "python": "3"})
    )
    monkeypatch.setenv("LOG", str(log))

    def run(plan: dict[str, Any], bundle: Path = golden_bundle, **more: Any) -> dict[str, Any]:
        monkeypatch.setenv("PLAN", json.dumps(plan))
        order = ComparisonRequest(
            script, bundle, CLIP, 3, tuple(plan), ("--sd", "SD", "--checkpoint", "CKPT"), **more
        )
        return comparison.compare(order, listener)

    run.log = log  # type: ignore[attr-defined]
    return run


def shown(report: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=80)
    show.show(console, report)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def changed_work(bundle: Path, out: Path, work: dict[str, Any] | None) -> Path:
    """A copy whose manifest counts that for every network, or nothing."""
    shutil.copytree(bundle, out)
    path = out / "bundle.json"
    manifest = json.loads(path.read_text())
    for network in manifest["networks"].values():
        network["work"] = work
    path.write_text(json.dumps(manifest))
    return out


def test_every_way_in_its_order_and_what_is_gained(compare: Any, listener: Listener) -> None:
    plan = {
        "torch": measured("torch", 4.0, 6.0, peak=4_000_000_000),
        "runtime": measured("runtime", 2.0, 2.5, 3.0),
        "torch-compile": measured("torch-compile", 5.0, 5.0, peak=None),
        "onnxruntime": measured("onnxruntime", 3.0, 3.5),
    }
    report = compare(plan, threads=2)
    assert report["kind"] == "vsr-trt alternatives"
    assert report["order"] == list(report["ways"]) == list(plan)
    assert [what for what in listener.heard if what[0] != "said"] == [
        (event, way) for way in plan for event in ("began", "ended")
    ]
    assert {text for event, text in listener.heard if event == "said"} == {
        "frame 1 of 3",  # what a library says is not progress
        "matrix products, to compare",
    }
    calls = [json.loads(line) for line in compare.log.read_text().splitlines()]
    shared = ["--clip", str(CLIP), "--frames", "3"]
    assert calls[0] == ["time", "torch", *shared, "--sd", "SD", "--checkpoint", "CKPT", "--threads", "2"]
    assert calls[1][:2] == ["time", "runtime"]
    assert "--bundle" in calls[1]
    assert "--sd" not in calls[1]

    torch, ours = report["ways"]["torch"], report["ways"]["runtime"]
    assert (ours["summary"]["n"], ours["summary"]["median"]) == (3, 2.5)
    assert (ours["summary"]["min"], ours["summary"]["max"]) == (2.0, 3.0)
    assert torch["faster"] == {"value": 2.0, "low": 4 / 3, "high": 3.0}
    assert torch["memory_share"] == 0.25
    assert report["ways"]["torch-compile"]["memory_share"] is None
    assert "faster" not in ours
    assert torch["matmul_flops"] == 2e11
    assert json.loads(json.dumps(report)) == report

    text = shown(report)
    assert all(len(line) <= 80 for line in text.split("What bounds")[0].splitlines())
    for words in ("128x128 -> 512x512", "torch-compile", "2.00x", "1.33-3.00", "25%", "40.0", "text_encoder"):
        assert words in text
    assert "torch, runtime, torch-compile, onnxruntime" in text


def test_what_bounds_the_runtime(compare: Any, golden_bundle: Path, tmp_path: Path) -> None:
    plan = {"runtime": measured("runtime", 2.0, 2.0)}
    nothing = compare(plan, changed_work(golden_bundle, tmp_path / "none", None))
    assert nothing["bound"] is None
    assert "it cannot be said" in shown(nothing)

    work = {"multiply_adds": {"1": 2e10}, "weights": 1, "activations": {"1": 1}, "integer_bytes": {}}
    report = compare(plan, changed_work(golden_bundle, tmp_path / "some", work))
    stages = len(Bundle.open(golden_bundle).manifest.stages)
    flop = stages * 4e10
    assert report["bound"] == {"flop": flop, "seconds": 2.0, "flops": flop / 2, "share": flop / 2 / 2e11}
    text = shown(report)
    assert f"{flop / 1e12:.2f} TFLOP" in text
    assert f"{flop / 4e11:.0%} of the 200 GFLOP/s" in text
    assert "Winograd" in text
    assert "the processor's arithmetic." in text
    slow = compare({"runtime": measured("runtime", 9.0, 9.0)}, tmp_path / "some")
    assert "more than arithmetic" in shown(slow)
    assert "What bounds" not in shown(compare({"torch": measured("torch", 1.0)}))


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (refused("there is no compiler.", 7), "there is no compiler."),
        ({"said": "MemoryError: too much", "code": 1}, "MemoryError: too much"),
        ({"signal": signal.SIGKILL}, "signal 9, most often for lack of memory"),
    ],
)
def test_a_way_that_cannot_run_is_shown_as_such(compare: Any, ending: dict[str, Any], reason: str) -> None:
    report = compare({"torch-compile": ending, "runtime": measured("runtime", 1.0, 1.0)})
    assert reason in report["ways"]["torch-compile"]["not_run"]
    assert report["ways"]["runtime"]["summary"]["n"] == 2
    text = shown(report)
    assert "not run" in text
    assert f"torch-compile was not run: {report['ways']['torch-compile']['not_run']}".rstrip(".") in text


@pytest.mark.parametrize(
    ("way", "ending", "code"),
    [
        ("runtime", refused("unet ran out of memory.", 7), 7),
        ("runtime", {"signal": signal.SIGKILL}, 7),
        ("runtime", {"said": "Traceback", "code": 1}, 7),
        ("torch", refused("these are no weights.", 5), 5),  # a user's mistake is none of the machine's
    ],
)
def test_our_own_failure_and_refusals_end_it(
    compare: Any, way: str, ending: dict[str, Any], code: int
) -> None:
    with pytest.raises(VsrError, match=f"^{way}: ") as caught:
        compare({way: ending, "onnxruntime": measured("onnxruntime", 1.0)})
    assert caught.value.exit_code == code
    assert len(compare.log.read_text().splitlines()) == 1


def test_memory_is_the_process_s_own() -> None:
    held = np.ones(100_000_000)  # 0.8 GB, which a child must not be charged with
    script = "from vsr_trt.runtime.machine.memory import peak_bytes; print(peak_bytes())"
    ended = child.run([sys.executable, "-c", script], {}, lambda line: None)
    assert 0 < int(ended.output) < held.nbytes / 2


def test_temporary_files_of_a_killed_process_go_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = "import tempfile, os; print(tempfile.mkdtemp(), flush=True); os.kill(os.getpid(), 9)"
    ended = child.run([sys.executable, "-c", script], {}, lambda line: None)
    assert ended.code == -signal.SIGKILL
    assert Path(ended.output.strip()).is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []


def run(*arguments: object) -> int:
    return build.main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("time", "runtime"), 2, "runtime needs --bundle"),
        (("time", "torch", "--sd", "SD"), 2, "torch needs --checkpoint"),
        (("time", "runtime", "--bundle", "{bundle}", "--frames", 1), 2, "the first is warm-up"),
        (("time", "runtime", "--bundle", "{bundle}", "--threads", 0), 2, "--threads is 0"),
        (("time", "onnxruntime", "--bundle", "{bundle}", "--clip", "{small}"), 2, "at least 128x128"),
        (("time", "torch", *WEIGHTS, "--clip", "{small}"), 2, "at least 128x128"),
        (("time", "torch", *WEIGHTS, "--clip", "{one}"), 2, "fewer than 2 frames"),
        (("alternatives", "{bundle}"), 2, "torch and torch-compile need --sd and --checkpoint"),
        (("alternatives", "{bundle}", "--ways", "runtime", "--set", "color=none"), 2, "--set is for clips of families"),
        (("time", "runtime", "--bundle", "{bundle}", "--clips", 3), 2, "--clips is for families"),
        (("full-size", "--family", "star", "--frames", 3), 2, "no other options than --out and --keep"),
        (("alternatives", "{bundle}", "--ways", "runtime,jax"), 2, "no way 'jax'"),
        (("alternatives", "{bundle}", "--ways", ""), 2, "no way ''"),
        (("alternatives", "{tmp}", "--ways", "runtime"), 4, "is not a bundle"),
        (("alternatives", "{bundle}", "--frames", 1), 2, "the first is warm-up"),
        (("alternatives", "{bundle}", "--ways", "onnxruntime", "--clip", "{small}"), 2, "at least 128x128"),
        (("alternatives", "{bundle}", "--ways", "runtime", "--clip", "{one}"), 2, "fewer than 2 frames"),
        (("alternatives", "{bundle}", "--sd", "{tmp}", "--checkpoint", "{tmp}/x"), 5, "cannot be read"),
        (("alternatives", "{bundle}", *WEIGHTS[:2], "--checkpoint", "{json}"), 5, "the bundle was made from"),
        (("alternatives", "{bundle}", "--ways", "runtime", "--json", "{json}"), 3, "--overwrite"),
    ],
)  # fmt: skip
def test_refusals(
    golden_bundle: Path, tmp_path: Path, capsys: Any, arguments: tuple[Any, ...], code: int, message: str
) -> None:
    from PIL import Image

    for name, side, frames in (("small", 64, 2), ("one", 128, 1)):
        (tmp_path / name).mkdir()
        for frame in range(frames):
            Image.new("RGB", (side, side)).save(tmp_path / name / f"{frame}.png")
    taken = tmp_path / "taken.json"
    taken.write_text("precious")
    names = {
        "bundle": golden_bundle,
        "tmp": tmp_path,
        "json": taken,
        "small": tmp_path / "small",
        "one": tmp_path / "one",
    }
    filled = [str(argument).format(**names) for argument in arguments]
    clip = [] if "--clip" in filled or filled[0] == "full-size" else ["--clip", CLIP]
    assert run(*filled, *clip) == code
    printed = capsys.readouterr()
    assert message in " ".join(printed.err.split())
    assert taken.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "small", "taken.json"]
    if arguments[0] == "time":  # for the process that started it
        assert json.loads(printed.out)["exit_code"] == code


@pytest.mark.parametrize("command", ["time", "alternatives"])
def test_help_tells_what_each_way_is(command: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        run(command, "--help")
    text = capsys.readouterr().out
    for words in (*WAYS, "Kinder", "warm-up", "--clip", "--threads", "--frames"):
        assert words in text


class Fake:
    """A way that takes a second, the first time five; of a clock that it moves itself."""

    def __init__(self, log: list[str], now: list[float]) -> None:
        self.log, self.now, self.versions, self.threads = log, now, {"fake": "1"}, None

    def run(self, frame: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        self.log.append("frame")
        self.now[0] += 1.0 if self.log.count("frame") > 1 else 5.0
        return frame, {"unet": float(self.log.count("frame"))}

    def close(self) -> None:
        self.log.append("closed")


def test_time_tells_compiling_apart(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    now = [0.0]
    monkeypatch.setattr(ways.time, "perf_counter", lambda: now[0])

    def open_torch(options: argparse.Namespace, height: int, width: int) -> Fake:
        log.append(f"{options.way} {height}x{width}")
        return Fake(log, now)

    arguments = [str(part) for part in ("time", "torch-compile", "--clip", CLIP, *WEIGHTS)]
    monkeypatch.setattr(cli, "_open_torch", open_torch)
    assert cli.time_way(build.parser().parse_args(arguments)) == 0
    assert log == ["torch-compile 128x128", *["frame"] * 4, "closed"]
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["seconds"] == [1.0] * 3
    assert report["stages"] == {"unet": 3.0}  # the median without the first
    assert (report["warmup_seconds"], report["compile_seconds"]) == (5.0, 4.0)
    assert report["versions"] == {"fake": "1"}
    assert printed.err.splitlines()[:2] == ["torch-compile: loading", "torch-compile: frame 1 of 4, warm-up"]


@pytest.fixture
def phased(tmp_path: Path) -> Path:
    """A family that takes clips at once, and a clip of 5 frames next to it."""
    bundle = clip_family.write(tmp_path / "bundle").path
    (tmp_path / "clip").mkdir()
    for index in range(5):
        picture = np.random.default_rng(index).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "clip" / f"{index}.png")
    return bundle


@pytest.mark.parametrize("way", ["runtime", "onnxruntime"])
def test_a_clip_is_restored_at_once_where_its_family_takes_it_so(phased: Path, way: str, capsys: Any) -> None:
    clip = phased.parent / "clip"
    options = ("--frames", 5, "--clips", 3, "--set", "steps=2", "--set", "solver=normal")
    assert run("time", way, "--bundle", phased, "--clip", clip, *options) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert len(report["seconds"]) == 2
    assert report["frames"] == 5
    assert list(report["stages"]) == [stage.name for stage in clip_family.STAGES]
    assert sum(report["stages"].values()) < 5 * min(report["seconds"])  # a frame's share of each
    assert f"{way}: clip 1 of 3, warm-up" in printed.err


def test_whole_clips_give_the_runtimes_frames(phased: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), dtype=np.uint8)
    opened = Bundle.open(phased)
    made = [
        ways.WholeClips(phased, {"seed": "3"}, 1, networks, {}) for networks in (None, ways.Native(opened, 1))
    ]
    ours, plain = (way.run(frames)[0] for way in made)
    for way in made:
        way.close()
    assert ours.shape == (4, 96, 128, 3)
    assert np.abs(ours.astype(int) - plain).max() <= 1


@pytest.mark.parametrize("way", ["runtime", "onnxruntime"])
def test_a_network_alone(phased: Path, way: str, capsys: Any) -> None:
    assert (
        run("time", way, "--bundle", phased, "--network", "predict", "--at", "f=3,h=16,w=24", "--clips", 4)
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert len(report["seconds"]) == 3
    assert list(report["stages"]) == ["predict"]


def test_a_network_is_compared(phased: Path, tmp_path: Path) -> None:
    """Real processes."""
    report = tmp_path / "report.json"
    arguments = ("--network", "predict", "--at", "f=2,h=16,w=16", "--ways", "runtime,onnxruntime")
    assert run("alternatives", phased, *arguments, "--json", report) == 0
    found = json.loads(report.read_text())
    assert found["settings"]["network"] == "predict"
    assert set(found["ways"]) == {"runtime", "onnxruntime"}
    assert found["bound"] is None, "this bundle counts no work"
    assert "predict at f=2,h=16,w=16" in shown(found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--network", "predict"), "needs --at SIZES"),
        (("--network", "predict", "--at", "f=3"), "has the sizes f=1,h=8,w=8"),
        (("--network", "predict", "--at", "f=3,h=1,w=8"), "--at h=1: predict takes 8 to 512"),
        (("--network", "predict", "--at", "three"), "--at three: expected sizes"),
        (("--network", "other", "--at", "f=3"), "--network other: the bundle has encode, sample"),
        (("--network", "predict", "--at", "f=3,h=8,w=8", "--set", "steps=2"), "--set is for clips"),
        (("--set", "steps=0"), "give --clip INPUT, or --network NAME"),
        (("--clip", "{clip}", "--set", "steps=0"), "steps"),
        (("--clip", "{clip}", "--clips", "1"), "--clips is 1; expected 2 or more"),
        (("--clip", "{clip}", "--network", "predict", "--at", "f=3"), "give --clip INPUT, or --network NAME"),
    ],
)
def test_refusals_of_clips_and_networks(
    phased: Path, arguments: tuple[str, ...], message: str, capsys: Any
) -> None:
    filled = [argument.format(clip=phased.parent / "clip") for argument in arguments]
    assert run("alternatives", phased, "--ways", "runtime", *filled) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_plain_loop_gives_the_pipelines_picture(golden_bundle: Path) -> None:
    """On a textured frame. On flat pictures ONNX Runtime's own group normalisation loses digits, and levels differ."""
    frame = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    opened = Bundle.open(golden_bundle)
    device = CpuNetworks(opened)
    expected, _ = Pipeline(opened.manifest, device, Options(), opened.constants()).run(frame)
    plain = ways.Plain(golden_bundle, 2, 128, 128)
    got, seconds = plain.run(frame)
    plain.close()
    assert np.abs(got.astype(int) - expected).max() <= 1
    assert seconds.keys() == {stage.name for stage in opened.manifest.stages}
    assert plain.threads == 2


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Compiled` over modules that are mere names."""

    def init(self: eager.Eager, sd: Path, checkpoint: Path, prompt: str) -> None:
        self.versions = {"torch": "9"}
        for name in (
            "preprocess",
            "encoder",
            "decoder",
            "spynet",
            "attention",
            "text_encoder",
            "unet",
            "postprocess",
        ):
            setattr(self, name, name)

    monkeypatch.setattr(eager.Eager, "__init__", init)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    monkeypatch.setenv("CXX", sys.executable)  # says a version too


def test_every_module_with_weights_is_compiled_anew(no_weights: None) -> None:
    compiled = eager.Compiled(Path(), Path(), "", lambda module, dynamic: (module, dynamic))  # type: ignore[misc]
    for name in ("encoder", "decoder", "spynet", "attention", "text_encoder", "unet"):
        assert getattr(compiled, name) == (name, False)
    assert compiled.preprocess == "preprocess"
    assert compiled.versions["compiler"].startswith("Python 3")
    cache = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert cache.is_dir()
    compiled.close()
    assert not cache.exists()


def test_what_torch_compile_cannot_do_is_said(no_weights: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(module: object, dynamic: bool) -> None:
        raise RuntimeError("Python 3.99 is not supported\nand more")

    with pytest.raises(DeviceError, match=r"does not work here: Python 3\.99 is not supported$"):
        eager.Compiled(Path(), Path(), "", refuse)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(DeviceError, match=r"no no-such-compiler here.*apt install g") as caught:
        eager.Compiled(Path(), Path(), "")
    assert caught.value.exit_code == 7


def test_the_commands_as_typed(golden_bundle: Path, tmp_path: Path) -> None:
    """Real processes: the runtime on the golden model, and torch.compile where there is no compiler."""
    report = tmp_path / "report.json"
    command = [sys.executable, ROOT / "build.py", "alternatives", golden_bundle, "--clip", CLIP, *WEIGHTS]
    options = ["--frames", 2, "--ways", "torch-compile,runtime", "--threads", 2, "--json", report]
    environment = dict(os.environ, CXX="no-such-compiler")
    done = processes.run(command + options, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert found["order"] == ["torch-compile", "runtime"]
    assert "apt install g++" in found["ways"]["torch-compile"]["not_run"]
    ours = found["ways"]["runtime"]
    assert len(ours["seconds"]) == 1
    assert set(ours["stages"]) >= {"vae_encoder", "spynet", "warp", "cfr", "unet", "vae_decoder"}
    assert 0 < sum(ours["stages"].values()) <= ours["seconds"][0]
    assert ours["peak_memory"] > 100_000_000
    assert ours["threads"] == 2
    assert ours["matmul_flops"] > 1e8
    assert found["machine"]["cores"] == os.cpu_count()
    assert "torch-compile was not run" in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == [report]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_comparison_leaves_nothing(
    golden_bundle: Path, tmp_path: Path, number: signal.Signals
) -> None:
    temporary, report = tmp_path / "tmp", tmp_path / "report.json"
    temporary.mkdir()
    command = [sys.executable, ROOT / "build.py", "alternatives", golden_bundle, "--clip", CLIP]
    options = ["--ways", "runtime", "--json", report]
    with processes.started(command + options, env=dict(os.environ, TMPDIR=str(temporary))) as process:
        processes.said(process, "runtime: frame")
        found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(number)
        _, message = process.communicate()
        assert process.returncode == 130, message
        assert found
        assert not any(Path(f"/proc/{pid}").exists() for pid in found)
    assert list(temporary.iterdir()) == []
    assert list(tmp_path.iterdir()) == [temporary]


@pytest.mark.parametrize(
    ("torch_frames", "frames", "chosen"), [(3, "3", ",".join(WAYS)), (0, "5", "runtime,onnxruntime")]
)
def test_full_size_ends_with_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_frames: int, frames: str, chosen: str
) -> None:
    typed: list[list[str]] = []

    def pretend(arguments: list[object], capture: bool = False) -> dict[str, Any]:
        typed.append([str(argument) for argument in arguments])
        machine = {"processor": "P", "cores": "2", "python": "3"}
        packages = {"onnxruntime": "1", "torch": "2"}
        numbers = {"load_seconds": 1.0, "seconds": 2.0, "peak_memory": 3, "bytes": 4, "engines": []}
        return {"system": machine, "packages": packages, "command": typed[-1][1], **numbers}

    monkeypatch.setattr(showcase, "_run", pretend)
    monkeypatch.setattr(
        synthetic, "write_model", lambda *_, **__: argparse.Namespace(sd="SD", checkpoint="CKPT")
    )
    monkeypatch.setattr(showcase, "_full_size_engines", lambda *_: None)
    monkeypatch.setattr(showcase.counts, "is_current", lambda bundle: True)
    script = Path("build.py")
    assert (
        showcase.full_size(script, tmp_path, 5, torch_frames, "fp32", False, Console(file=io.StringIO())) == 0
    )
    options = build.parser().parse_args(typed[-1][1:])
    assert (options.command, str(options.frames), options.ways) == ("alternatives", frames, chosen)
    assert options.json == "-"
    assert options.clip == tmp_path / "input"
    assert len(list(options.clip.iterdir())) == 5
    assert json.loads((tmp_path / "report.json").read_text())["alternatives"]["command"] == "alternatives"
    assert run("full-size", "--torch-frames", 1) == run("full-size", "--frames", 1) == 2
