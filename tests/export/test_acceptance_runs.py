"""The acceptance with its real commands, as child processes, on a GPU that is none: see helpers.stub_driver.

Engines compute on the CPU what they were built from, kernels what they are named for; so what the steps compare is
compared for real. Faults are injected into the GPU, and the step that is there to find one must fail. What this cannot
show: times, TensorRT's own kernels, machine code as a GPU executes it, NVML's answers, and compute-sanitizer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from helpers import processes, stub_driver
from helpers.stub_driver import TESTS
from helpers.tiny_bundle import write_bundle, write_clip
from rich.console import Console

from vsr_trt.engines.accuracy.calibrate import CalibrationRequest, calibrate
from vsr_trt.engines.accuracy.recording import read_clip
from vsr_trt.recipes import SCRIPT
from vsr_trt.recipes.acceptance.library import Library
from vsr_trt.recipes.acceptance.run import PAGE, REPORT, accept, run_program
from vsr_trt.recipes.acceptance.steps import Extent, Setting, tasks
from vsr_trt.recipes.synthetic import by_hand, random

SIZE = "16x16"
LIBRARY = Library("tensorrt_rtx", "sm_89", "rtx", "RTX4090")
EXTENT = Extent((SIZE,), soak=0.2, seconds=0.1, latents=("8x8",))
# What cannot be done on this GPU, and what the report says of it. Nothing else may fail or be left out.
NOT_HERE = {
    "tests": (
        "failed",
        "tests were not run: not run: torch is a build without CUDA, or newer than the driver",
    ),
    "memcheck": ("not run", "compute-sanitizer is not installed"),
}


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stub_driver.compiled(tmp_path_factory.mktemp("stub"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle of four small networks and a clip, as earlier steps leave them."""
    out = tmp_path_factory.mktemp("acceptance")
    clip = write_clip(out / f"input-{SIZE}")
    calibrate(CalibrationRequest(write_bundle(out / "bundle"), read_clip(clip, 2)))
    return out


@pytest.fixture
def machine(driver: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children of this process have the GPU."""
    variables = stub_driver.environment(driver, place / "store") | {"XDG_CACHE_HOME": str(place / "cache")}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def run(out: Path, *names: str, limits: Mapping[str, float] | None = None) -> tuple[int, dict[str, dict]]:
    """Does the named steps, really; their exit code and report. It is looked at before each step, too."""
    clips = {SIZE: out / f"input-{SIZE}"}
    every = {
        step.name: step
        for step in tasks(Setting(SCRIPT, out, LIBRARY, {"sd": out, "checkpoint": out}, clips, EXTENT))
    }
    limits = limits or {}
    steps = [
        dataclasses.replace(every[name], needs=(), limit=limits.get(name, every[name].limit))
        for name in names
    ]
    (out / REPORT).unlink(missing_ok=True)
    for left in (
        *out.glob("pictures-*"),
        *out.glob("start-*"),
        *out.glob("kernel-cache"),
        *out.glob("verify-*"),
    ):  # by another test
        shutil.rmtree(left)

    def watched(program: Sequence[str], limit: float) -> tuple[int, str, str]:
        done = list(report(out)) if (out / REPORT).exists() else []
        assert done == list(names[: len(done)]), "the report has every step that is done"
        assert not done or all(f"<td>{name}</td>" in (out / PAGE).read_text() for name in done)
        assert len(done) == len(started)
        started.append(list(program))
        return run_program(program, limit)

    started: list[list[str]] = []
    code = accept(steps, out, Console(quiet=True), watched)
    assert len(started) == len(names)
    return code, report(out)


def build(out: Path) -> None:
    """Engines, where no test before has built them."""
    if not (out / "bundle" / "engines").exists():
        assert run(out, "engines")[0] == 0


def report(out: Path) -> dict[str, dict]:
    return {step["name"]: step for step in json.loads((out / REPORT).read_text())["done"]}


def states(found: dict[str, dict]) -> dict[str, str]:
    return {name: step["state"] for name, step in found.items()}


GPU, CPU = f"restore {SIZE} by tensorrt_rtx", f"restore {SIZE} by onnxruntime-cpu"
STARTS = [f"start, {state}" for state in ("cold", "with its cache", "cut cache", "foreign cache")]


@pytest.mark.usefixtures("machine")
@pytest.mark.thorough
def test_engines_are_built_verified_and_restore_the_cpus_picture(place: Path) -> None:
    code, found = run(place, "doctor", "engines", f"verify {SIZE}", GPU, CPU)
    assert code == 0, said(found)
    assert set(states(found).values()) == {"passed"}
    assert stub_driver.NAME in json.dumps(found["doctor"]["result"])
    networks = found[f"verify {SIZE}"]["result"]["networks"]
    assert sum(len(network["engines"]) for network in networks.values()) == 4
    assert all(engine["layers"] for network in networks.values() for engine in network["engines"])
    assert min(found[CPU]["result"]["psnr"]) > 45


@pytest.mark.thorough
@pytest.mark.usefixtures("machine")
def test_wrong_values_are_found_and_the_rest_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(place)
    monkeypatch.setenv("VSR_FAKE_FAULT", "values")
    code, found = run(place, f"verify {SIZE}", GPU, CPU, STARTS[0])
    assert code == 9
    assert states(found) == {f"verify {SIZE}": "failed", GPU: "passed", CPU: "failed", STARTS[0]: "passed"}
    assert re.search("error: .*encode.fp16", said(found)[f"verify {SIZE}"])
    assert re.search(r"a frame is \d+\.\d dB from the CPU's, at least 35 expected$", said(found)[CPU])
    page = (place / PAGE).read_text()
    assert f"{CPU}: failed" in page


@pytest.mark.thorough
@pytest.mark.usefixtures("machine")
def test_a_rejected_cache_that_stops_a_start_is_found(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(place)
    monkeypatch.setenv("VSR_FAKE_FAULT", "cache")
    code, found = run(place, *STARTS, "doctor")
    assert code == 9
    assert [state for name, state in states(found).items() if name in STARTS] == [
        *("passed", "passed", "failed", "failed")
    ]
    assert found["doctor"]["state"] == "passed"
    assert "no execution context could be made: the cache of kernels is damaged" in said(found)[STARTS[2]]


@pytest.mark.thorough
@pytest.mark.usefixtures("machine")
def test_memory_that_is_not_given_back_is_found(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSR_STUB_FAULT", "leak")
    code, found = run(place, "device without TensorRT", "doctor")
    assert code == 9
    assert states(found) == {"device without TensorRT": "failed", "doctor": "passed"}
    assert said(found)["device without TensorRT"].endswith("not so: no memory is kept")


@pytest.mark.thorough
@pytest.mark.usefixtures("machine")
def test_machine_code_that_is_refused_is_found(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSR_STUB_FAULT", "cubin")
    code, found = run(place, "machine code and PTX", "kernels", "doctor")
    assert code == 9
    assert states(found) == {"machine code and PTX": "failed", "kernels": "failed", "doctor": "passed"}
    result = found["machine code and PTX"]["result"]
    assert result["failed"]
    assert all("cubin" in name for name in result["failed"])
    assert result["passed"] == len(result["failed"]), "the PTX is taken"


def said(found: dict[str, dict]) -> dict[str, str]:
    """What failed steps said."""
    return {name: "\n".join(step["said"]) for name, step in found.items() if step["said"]}


@pytest.mark.thorough
@pytest.mark.usefixtures("machine")
def test_a_gpu_that_hangs_is_given_up_at_the_limit(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Work that never ends, in a process that the step's own process has started."""
    monkeypatch.setenv("VSR_STUB_FAULT", "hang")
    monkeypatch.setenv("VSR_THIS_TEST", str(tmp_path))
    code, found = run(place, "kernels", "doctor", limits={"kernels": 15.0})
    assert code == 9
    assert states(found) == {"kernels": "failed", "doctor": "passed"}
    assert said(found)["kernels"].endswith("it was ended after its limit of 15 seconds")
    assert found["kernels"]["exit_code"] == 130, "it could tidy up"
    assert found["kernels"]["seconds"] < 30
    assert left_behind(tmp_path) == []


def left_behind(mark: Path) -> list[str]:
    """Commands that still run with VSR_THIS_TEST set to the mark, besides this process."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if process.name != str(os.getpid()) and str(mark).encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


def command(out: Path, sd: Path, checkpoint: Path, *sizes: str) -> list[object]:
    """The acceptance as it is called."""
    options = ["--sd", sd, "--checkpoint", checkpoint, "--sizes", ",".join(sizes)]
    return [
        *(sys.executable, SCRIPT, "gpu-acceptance", "--out", out, *options),
        *("--soak", "3", "--seconds", "0.5", "--latents", "16x16"),
    ]


@pytest.mark.usefixtures("machine")
def test_ctrl_c_leaves_a_report_and_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSR_THIS_TEST", str(tmp_path))
    out, weights = tmp_path / "out", tmp_path / "sd"
    weights.mkdir()
    with processes.started(command(out, weights, weights, "512x512")) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "device_without_tensorrt.py" in line:  # the second step has been begun
                process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert states(report(out)) == {"doctor": "passed"}
    content = json.loads((out / REPORT).read_text())
    assert content["about"]["device"]["memory"] == 24 << 30
    assert "<td>memory, GB</td><td class='number'>25.8</td>" in (out / PAGE).read_text()
    assert f"{content['steps'] - 1} steps are still to be done" in (out / PAGE).read_text()
    assert left_behind(tmp_path) == []
    assert weights.exists(), "weights of the user's stay"


# Tests of tests/gpu that need a GPU's speed: bundles and engines of the golden model, 40 frames and more of each.
TOO_SLOW = ("test_runtime_on_gpu.py", "test_engines_on_gpu.py")
SIZES = ("512x512", "640x512")  # smaller ones are filled up to the first of these


@pytest.mark.full_size
@pytest.mark.usefixtures("machine")
def test_the_whole_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, with a model small enough for a CPU, at two sizes."""
    vae = by_hand.VAE_CONFIG | {"block_out_channels": [8, 8, 8, 64], "norm_num_groups": 4}
    shapes = random.Shapes(by_hand.UNET_CONFIG, vae, by_hand.TEXT_CONFIG)
    model = random.write_model(tmp_path / "weights", shapes)
    slow = " ".join(f"--ignore={TESTS / 'gpu' / name}" for name in TOO_SLOW)
    home = tmp_path / "home of zoë"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LOGNAME", "zoe-the-user")
    monkeypatch.setenv("PYTEST_ADDOPTS", slow)
    monkeypatch.setattr(processes, "GUARD", 3600.0)
    out = home / "out"
    done = processes.run(command(out, model.sd, model.checkpoint, *SIZES))
    found = report(out)
    content = json.loads((out / REPORT).read_text())
    clips, extent = dict.fromkeys(SIZES, out), Extent(SIZES, soak=3)
    every = tasks(Setting(SCRIPT, out, LIBRARY, {"sd": out, "checkpoint": out}, clips, extent))
    assert list(found) == [step.name for step in every]
    assert len(found) == content["steps"]
    wrong = {name: state for name, state in states(found).items() if state != "passed"}
    assert wrong == {name: state for name, (state, _) in NOT_HERE.items()}, (said(found), done.stderr[-4000:])
    for name, (_, reason) in NOT_HERE.items():
        assert said(found)[name].endswith(reason)
    assert done.returncode == 9, "tests that need torch's CUDA were not run"
    tests = found["tests"]["result"]
    assert tests["failed"] == []
    assert tests["passed"] >= 17
    assert all(
        re.match(r"not run: (no|torch|compute-sanitizer|pycuda|\w+ is not|TensorRT)", why)
        for why in tests["not_run"]
    )
    assert content["about"]["stand_in"] == stub_driver.STANDS_IN
    assert content["about"]["weights"] == "given"
    nothing_personal(out, "zoe-the-user", "home of zoë", str(tmp_path))
    page = (out / PAGE).read_text()
    assert page.index("No GPU was measured") < page.index("<h2>")
    for title in (
        *("Machine", "Measured", "Graphs and slots", "Memory, MB", "The GPU while it was measured", "Without a break"),
        *("The attention's forms", "Predicted and measured", "The 8 slowest layers", "Steps"),
    ):  # fmt: skip
        assert f"<h2>{title}" in page
    assert page.count("<svg") == 2
    assert "pcie generation" in page
    assert not (out / "bundle").exists()
    assert model.checkpoint.exists(), "weights of the user's stay"


def nothing_personal(out: Path, *words: str) -> None:
    for name in (REPORT, PAGE):
        text = (
            json.dumps(json.loads((out / name).read_text()), ensure_ascii=False)
            if name == REPORT
            else (out / name).read_text()
        )
        for word in words:
            assert word not in text, (name, text[max(0, text.index(word) - 200) :][:400])
        assert not re.search(rf"(?<![\w-]){re.escape(socket.gethostname())}(?![\w-])", text)
