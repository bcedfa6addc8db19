"""Acceptance on a GPU: its steps, what counts as passed, its report, and the refusal without one."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers import processes
from PIL import Image
from rich.console import Console

from vsr_trt import build
from vsr_trt.recipes import SCRIPT
from vsr_trt.recipes.acceptance import checks, cli
from vsr_trt.recipes.acceptance import run as acceptance
from vsr_trt.recipes.acceptance.library import RTX_TARGETS, Library, library_for
from vsr_trt.recipes.acceptance.run import PAGE, REPORT, accept, run_program
from vsr_trt.recipes.acceptance.steps import SIZES, Setting, Task, tasks
from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.machine.gpu import Gpu
from vsr_trt.runtime.plan.roofline.machines import _CALLED, MACHINES, called

BENCH = {"modes": {"throughput": {"fps": 24.5}, "latency": {"latency": {"summary": {"median": 0.0412}}}}}
VERIFIED = {"networks": {"unet": {"engines": [{"file": "a"}]}}, "engines": "1 of 1 run on NVIDIA L4 (sm_89)"}
PASSED = "<testsuites><testsuite><testcase name='a' classname='t'/></testsuite></testsuites>"
SKIPPED = PASSED.replace(
    "/></testsuite>", "><skipped message='TensorRT is not here'/></testcase></testsuite>"
)
RTX = Library("tensorrt_rtx", "sm_89", "rtx")


def steps(out: Path, library: Library = RTX) -> list[Task]:
    model = {"sd": out / "sd", "checkpoint": out / "model.pkl"}
    clips = {size: out / f"input-{size}" for size in SIZES}
    return tasks(Setting(SCRIPT, out, library, model, clips))


class Commands:
    """Stands in for the commands: all pass, but for those with one of the words."""

    def __init__(self, *failing: str) -> None:
        self.failing, self.ran = failing, []
        self.verified: dict = VERIFIED
        self.tests = PASSED

    def __call__(self, program: Sequence[str], limit: float) -> tuple[int, str, str]:
        self.ran.append(" ".join(program))
        if any(name in self.ran[-1] for name in self.failing):
            return 10, "", "error: sm_89 is not to be had\n"
        if "bench" in program and "vsr_trt.runtime" in program:
            Path(program[program.index("--json") + 1]).write_text(json.dumps(BENCH))
        for word in program:
            if word.startswith("--junitxml="):
                Path(word.partition("=")[2]).write_text(self.tests)
        if "restore" in program:
            folder = Path(program[program.index("-o") + 1])
            folder.mkdir(exist_ok=True)
            Image.fromarray(np.full((4, 4, 3), 7, np.uint8)).save(folder / "a.png")
        if program[-1].endswith("device_without_tensorrt.py"):
            return 0, json.dumps({"checks": {"whole": True}}), ""
        return 0, json.dumps(self.verified if "verify" in program else {"load_seconds": 1.5}), ""


def report(out: Path) -> dict[str, dict]:
    return {step["name"]: step for step in json.loads((out / REPORT).read_text())["done"]}


def test_every_step_is_in_the_report(tmp_path: Path) -> None:
    console, run = Console(record=True, width=100), Commands()
    assert accept(steps(tmp_path), tmp_path, console, run) == 0
    found = report(tmp_path)
    assert list(found) == [step.name for step in steps(tmp_path)]
    assert {step["state"] for name, step in found.items() if name != "memcheck"} == {"passed"}
    assert set(found) >= {"tests", "engines", *(f"bench {s}" for s in SIZES), *(f"verify {s}" for s in SIZES)}
    assert found["bench 512x512"]["result"] == BENCH
    assert found["restore 1280x720 by onnxruntime-cpu"]["result"] == {"frames": 1, "psnr": [100.0]}
    assert found["tests"]["result"]["passed"] == 1
    assert "24.5" in console.export_text()
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.thorough
def test_the_page_shows_it(tmp_path: Path) -> None:
    accept(steps(tmp_path), tmp_path, Console(quiet=True), Commands("verify"))
    page = (tmp_path / PAGE).read_text()
    for words in ("<svg", "24.5", "41.2", "verify 512x512: failed", "sm_89 is not to be had", "100.0 dB"):
        assert words in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", ""), "it loads nothing from elsewhere"


@pytest.mark.thorough
def test_layers_and_predictions_are_on_the_page(tmp_path: Path) -> None:
    class Telling(Commands):
        def __call__(self, program: Sequence[str], limit: float) -> tuple[int, str, str]:
            code, out, error = super().__call__(program, limit)
            if "plan" in program:
                stage = {"stage": "unet", "seconds": 0.011, "measured_seconds": 0.022}
                whole = {"size": "512x512", "seconds": 0.02, "measured_seconds": None, "stages": [stage]}
                return 0, json.dumps({"roofline": {"predictions": [whole]}}), ""
            return code, out, error

    run = Telling()
    layers = {f"layer {number}": number / 1000 for number in range(1, 21)}
    run.verified = {"networks": {"unet": {"engines": [{"file": "unet.engine", "layers": layers}]}}}
    steps_here = steps(tmp_path, Library("tensorrt_rtx", "sm_89", "rtx", figures="RTX4090"))
    assert [step.name for step in steps_here if step.name.startswith("prediction")] == [
        f"prediction {size}" for size in SIZES
    ]
    assert accept(steps_here, tmp_path, Console(quiet=True), run) == 0
    page = (tmp_path / PAGE).read_text()
    for words in ("layer 20", "layer 13", "20.000", "10%", "11.00", "22.00", "50%"):
        assert words in page
    assert "layer 12<" not in page  # the slowest eight
    assert not any(step.name.startswith("prediction") for step in steps(tmp_path))  # of a GPU without figures


def test_the_gpu_is_told_from_those_of_nearly_the_same_name() -> None:
    assert called("NVIDIA GeForce RTX 4090") == "RTX4090"
    assert called("NVIDIA GeForce RTX 4090 Laptop GPU") is None
    assert library_for(Gpu("NVIDIA H200", "sm_90", 140 << 30, "13.0")).figures == "H200"
    for name in _CALLED.values():
        assert name in MACHINES


def test_the_report_is_written_after_each_step(tmp_path: Path) -> None:
    """A machine that goes down in the middle leaves what was done."""

    class Falling(Commands):
        def __call__(self, program: Sequence[str], limit: float) -> tuple[int, str, str]:
            if "calibrate" in program:
                raise KeyboardInterrupt
            return super().__call__(program, limit)

    with pytest.raises(KeyboardInterrupt):
        accept(steps(tmp_path), tmp_path, Console(quiet=True), Falling())
    assert list(report(tmp_path)) == ["doctor", "device without TensorRT", "tests", "bundle"]
    assert f"{len(steps(tmp_path)) - 4} steps are still to be done" in (tmp_path / PAGE).read_text()


def test_what_depends_on_a_failed_step_is_not_run(tmp_path: Path) -> None:
    run = Commands(" engines ")
    assert accept(steps(tmp_path), tmp_path, Console(quiet=True), run) == 9
    found = report(tmp_path)
    assert found["engines"]["state"] == "failed"
    assert found["engines"]["said"] == ["error: sm_89 is not to be had"]
    for name in ("verify 512x512", "bench 1280x720"):
        assert found[name]["state"] == "not run"
        assert found[name]["said"] == ["engines did not pass"]
    assert found["tests"]["state"] == found["kernels"]["state"] == "passed", "the others go on"


@pytest.mark.thorough
def test_nothing_that_was_left_out_counts_as_passed(tmp_path: Path) -> None:
    run = Commands()
    run.verified = {"networks": {"unet": {"engines": []}}, "engines": "0 of 9 run on NVIDIA H100 (sm_90)"}
    run.tests = PASSED.replace(
        "</testsuite>",
        "<testcase name='b' classname='t'><skipped message='not run: no CUDA driver'/></testcase></testsuite>",
    )
    assert accept(steps(tmp_path), tmp_path, Console(quiet=True), run) == 9
    found = report(tmp_path)
    assert found["verify 512x512"]["state"] == found["tests"]["state"] == "failed"
    assert found["verify 512x512"]["said"][-1] == "no engine was run: 0 of 9 run on NVIDIA H100 (sm_90)"
    assert found["tests"]["said"][-1] == "tests were not run: not run: no CUDA driver"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PASSED, None),
        (PASSED.replace("<testcase name='a' classname='t'/>", ""), "no test was run"),
        (SKIPPED, "no test was run"),
    ],
)  # fmt: skip
def test_what_tests_must_say(tmp_path: Path, text: str, said: str | None) -> None:
    (tmp_path / "t.xml").write_text(text)
    assert checks.ran_tests(checks.read_tests(tmp_path / "t.xml")) == said
    (tmp_path / "t.xml").write_text("no report")
    with pytest.raises(ValueError, match="is no report of tests"):
        checks.read_tests(tmp_path / "t.xml")


def test_pictures_that_are_far_from_the_cpus_fail(tmp_path: Path) -> None:
    for name, level in (("a", 100), ("b", 120)):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((4, 4, 3), level, np.uint8)).save(tmp_path / name / "0.png")
    found = checks.compare_pictures(tmp_path / "a", tmp_path / "b")
    assert checks.are_near(found) == "a frame is 22.1 dB from the CPU's, at least 35 expected"
    (tmp_path / "b" / "0.png").rename(tmp_path / "b" / "1.png")
    with pytest.raises(ValueError, match="do not hold the same pictures"):
        checks.compare_pictures(tmp_path / "a", tmp_path / "b")


def test_a_file_that_was_left_out_says_why(tmp_path: Path) -> None:
    """pytest puts `collection skipped` where the reason of a single test stands."""
    skip = "(&apos;tests/gpu/a.py&apos;, 9, &quot;Skipped: not run: no CUDA driver&quot;)"
    case = f"<testcase name='tests.gpu.a'><skipped message='collection skipped'>{skip}</skipped></testcase>"
    (tmp_path / "t.xml").write_text(PASSED.replace("</testsuite>", f"{case}</testsuite>"))
    found = checks.read_tests(tmp_path / "t.xml")
    assert found["not_run"] == {"not run: no CUDA driver": 1}
    assert checks.ran_tests(found) == "tests were not run: not run: no CUDA driver"


def test_the_users_own_folders_are_not_in_the_report(tmp_path: Path) -> None:
    weights = tmp_path / "a client's film" / "model.pkl"
    out = tmp_path / "out"
    out.mkdir()
    patterns = acceptance._personal(out, [weights])
    found = acceptance._impersonal({"command": f"bundle --checkpoint {weights} --out {out}/bundle"}, patterns)
    assert found == {"command": "bundle --checkpoint GIVEN/model.pkl --out OUT/bundle"}


def test_there_is_nothing_personal_in_the_report(tmp_path: Path) -> None:
    class Telling(Commands):
        def __call__(self, program: Sequence[str], limit: float) -> tuple[int, str, str]:
            super().__call__(program, limit)
            return 1, "", f"at {tmp_path}/x in {Path.home()}/y on {socket.gethostname()}, in {os.getcwd()}\n"  # noqa: PTH109

    accept(steps(tmp_path), tmp_path, Console(quiet=True), Telling())
    for name in (REPORT, PAGE):
        text = (tmp_path / name).read_text()
        assert str(tmp_path) not in text
        if len(str(Path.home())) > 1:
            assert f"{Path.home()}/" not in text
        assert f"on {socket.gethostname()}," not in text
        assert "at OUT/x in ~/y" in text


def test_the_users_name_is_not_in_it_wherever_it_is_a_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "zoe")
    said = "in /tmp/pytest-of-zoe/a and /media/zoe/b; a zoetrope, tests/zoe2 stay"

    class Telling(Commands):
        def __call__(self, program: Sequence[str], limit: float) -> tuple[int, str, str]:
            return 0, json.dumps({"psnr": [50], said: said}), ""

    accept([Task("one", ("-c", ""))], tmp_path, Console(quiet=True), Telling())
    clean = "in /tmp/pytest-of-USER/a and /media/USER/b; a zoetrope, tests/zoe2 stay"
    assert report(tmp_path)["one"]["result"] == {"psnr": [50], clean: clean}


def test_a_step_that_takes_too_long_is_ended() -> None:
    program = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
print("begun", flush=True)
time.sleep(600)
"""
    assert run_program([sys.executable, "-c", program], 3.0) == (5, "begun\n", ""), "it could tidy up"


@pytest.mark.skipif(os.name != "posix", reason="NOT RUN: Windows has no groups of processes")
def test_one_that_hears_of_nothing_is_ended_with_all_that_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """As what waits for a GPU that hangs: it does not end, and what it started keeps its output open."""
    monkeypatch.setattr(acceptance, "_GRACE", 1.0)
    program = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(other.pid, flush=True)
time.sleep(600)
"""
    code, printed, _ = run_program([sys.executable, "-c", program], 3.0)
    assert code == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # whoever inherits it takes a moment to notice
            os.kill(int(printed), 0)
            time.sleep(0.05)


def test_words_in_another_encoding_do_not_end_it() -> None:
    program = "import sys; sys.stderr.buffer.write(b'caf\\xe9\\n'); print('done')"
    assert run_program([sys.executable, "-c", program], 60.0) == (0, "done\n", "caf\ufffd\n")


def test_a_check_that_breaks_fails_its_step_alone(tmp_path: Path) -> None:
    def broken(result: object) -> str | None:
        raise KeyError("psnr")

    two = [Task("one", ("-c", "print(1)"), check=broken), Task("two", ("-c", "print(2)"))]
    assert accept(two, tmp_path, Console(quiet=True)) == 9
    found = report(tmp_path)
    assert [step["state"] for step in found.values()] == ["failed", "passed"]
    assert found["one"]["said"] == ["KeyError: 'psnr'"]


def test_a_page_that_cannot_be_drawn_costs_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> str:
        raise ImportError("no matplotlib")

    monkeypatch.setattr(acceptance.page, "html", broken)
    assert accept([Task("one", ("-c", "print(1)"))], tmp_path, Console(quiet=True)) == 0
    assert report(tmp_path)["one"]["result"] == 1
    assert "ImportError: no matplotlib" in (tmp_path / PAGE).read_text()


def test_the_sanitizers_errors_are_an_exit_code(tmp_path: Path) -> None:
    """Without the option it has the program's, whatever it finds."""
    (one,) = [step for step in steps(tmp_path) if step.name == "memcheck"]
    assert one.program == ("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9")


def test_the_kernels_are_measured_at_three_sizes_and_must_be_right(tmp_path: Path) -> None:
    rows = [
        {"form": form, "height": 64, "width": 64, "difference": 1e-6} for form in ("GPU kernel", "GPU engine")
    ]
    (one,) = [step for step in steps(tmp_path) if step.name == "kernels"]
    assert [word for word in one.arguments if "x" in word and word[0].isdigit()] == [
        "64x64",
        "96x96",
        "135x240",
    ]
    assert one.check is not None
    assert one.check({"measured": rows}) is None
    assert one.check({"measured": rows[:1]}) == "not measured: GPU engine"
    assert one.check({"measured": [rows[0], rows[1] | {"difference": float("nan")}]}) is not None
    other = steps(tmp_path, Library("tensorrt", "this-gpu", "gpu"))  # TensorRT-RTX does not know its GPU
    (one,) = [step for step in other if step.name == "kernels"]
    assert one.check is not None
    assert one.check({"measured": rows[:1]}) is None


@pytest.mark.parametrize("library", [RTX, Library("tensorrt", "this-gpu", "gpu")])
def test_every_command_is_understood(tmp_path: Path, library: Library) -> None:
    """By the parsers of all programs that are called."""
    for step in steps(tmp_path, library):
        cli.check_command(step)
    with pytest.raises(
        InputError, match=r"the command of x is not understood: -m vsr_trt.kernels bench --json"
    ):
        cli.check_command(Task("x", ("-m", "vsr_trt.kernels", "bench", "--json")))
    with pytest.raises(InputError, match="other is no program of this project"):
        cli.check_command(Task("x", ("-m", "other")))


def test_no_step_writes_over_anothers_result(tmp_path: Path) -> None:
    """`verify`, for one, refuses to: all but the first failed."""
    options = {"--report", "--json", "-o", "--junitxml"}
    written = []
    for step in steps(tmp_path):
        pairs = zip(step.arguments, (*step.arguments[1:], ""), strict=True)
        written += [value for option, value in pairs if option in options and not value.startswith("-")]
        if "verify" in step.arguments:
            assert "--report" in step.arguments
    written = [name for name in written if name]
    assert len(written) > 20
    assert len(set(written)) == len(written)


def test_a_dry_run_checks_them_and_runs_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert build.main(["gpu-acceptance", "--dry-run", "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"{len(steps(out, library_for(cli._ANY)))} commands, all understood; none was run" in said
    assert not out.exists()


def test_the_library_is_the_gpus() -> None:
    for capability in ("sm_75", "sm_86", "sm_89", "sm_120"):
        assert library_for(Gpu("a", capability, 1, "13.0")) == Library("tensorrt_rtx", capability, "rtx")
    for capability in ("sm_90", "sm_100", "sm_103"):
        here = Gpu("NVIDIA H100", capability, 1, "13.0")
        assert library_for(here) == Library("tensorrt", "this-gpu", "gpu")
        with pytest.raises(InputError, match=r"does not build for NVIDIA H100 .*take --backend tensorrt"):
            library_for(here, "tensorrt_rtx")
    assert library_for(Gpu("a", "sm_89", 1, "13.0"), "tensorrt").extra == "gpu"


def test_the_library_builds_for_what_it_is_chosen_for() -> None:
    pytest.importorskip("tensorrt_rtx")
    from vsr_trt.engines.tensorrt.library import load

    assert set(load("tensorrt_rtx").targets) == set(RTX_TARGETS)


def test_without_a_gpu_it_is_refused(tmp_path: Path) -> None:
    from helpers.gpu_hooks import why_not

    if why_not() is None:
        pytest.skip("this machine has a GPU")
    for more in ([], ["--extra"]):
        done = processes.run([sys.executable, SCRIPT, "gpu-acceptance", "--out", tmp_path / "out", *more])
        assert done.returncode == 7
        assert "acceptance needs an NVIDIA GPU" in done.stderr
        assert not (tmp_path / "out").exists()
