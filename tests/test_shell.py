"""How the command lines behave in a shell: pipes that close, full disks, poor terminals, no home, signals."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from helpers import planned_bundle, processes
from helpers.matrix import matrix
from PIL import Image

from vsr_trt.runtime.machine import shell

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="shells of POSIX systems")

PYTHON = sys.executable
RUNTIME = (PYTHON, "-m", "vsr_trt.runtime")
BUILD = (PYTHON, processes.ROOT / "build.py")
KERNELS = (PYTHON, "-m", "vsr_trt.kernels")
FULL = Path("/dev/full")
full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DLoRAL's, without anything in its graphs: enough to plan with."""
    return planned_bundle.make(tmp_path_factory.mktemp("planned") / "bundle").path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(8):
        Image.fromarray(np.full((128, 128, 3), 30 * index, np.uint8)).save(folder / f"{index}.png")
    return folder


def run(command: Sequence[object], **options: object) -> subprocess.CompletedProcess[str]:
    done = processes.run(command, cwd=processes.ROOT, **options)
    for words in ("Traceback", "Exception ignored"):
        assert words not in (done.stderr or "")
    return done


COMMANDS: list[tuple[object, ...]] = [
    (*RUNTIME, "schema"),
    (*RUNTIME, "--help"),
    (*RUNTIME, "restore", "--help"),
    (*RUNTIME, "doctor"),
    (*RUNTIME, "doctor", "--json"),
    (*RUNTIME, "plan", "--bundle", "{bundle}", "--size", "512x512"),
    (*RUNTIME, "plan", "--bundle", "{bundle}", "--size", "512x512", "--json"),
    (*BUILD, "--help"),
    (*BUILD, "doctor"),
    (*BUILD, "doctor", "--json"),
    (*BUILD, "cache", "list", "--cache-dir", "{tmp}"),
    (*KERNELS, "--help"),
]
REFUSED: list[tuple[object, ...]] = [
    (*RUNTIME, "restore", "missing.mkv", "-o", "o.mkv", "--bundle", "{bundle}", "--json"),
    (*KERNELS, "report", "--size", "0x0"),
]
# A command of each program, one that prints much, and one that is refused; the others in `make full-size`.
_OFTEN = (COMMANDS[0], COMMANDS[6], COMMANDS[8], COMMANDS[11], REFUSED[0])
each = pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            command,
            id=" ".join(map(str, command[1:]))[-60:],
            marks=() if command in _OFTEN else pytest.mark.full_size,
        )
        for command in COMMANDS + REFUSED
    ],
)


def code_of(command: tuple, delivered: int) -> int:
    """The exit code: what was refused is more than what was not delivered."""
    return 2 if command in REFUSED else delivered


def filled(command: Sequence[object], **names: object) -> list[str]:
    return [str(part).format(**names) if "{" in str(part) else str(part) for part in command]


@contextlib.contextmanager
def closed_pipe() -> Iterator[int]:
    """The end that is written to, of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        yield writing
    finally:
        os.close(writing)


@pytest.mark.thorough
@each
def test_a_closed_pipe_ends_quietly(command: tuple, bundle: Path, tmp_path: Path) -> None:
    with closed_pipe() as pipe:
        done = run(filled(command, bundle=bundle, tmp=tmp_path), stdout=pipe)
        both = run(filled(command, bundle=bundle, tmp=tmp_path), stdout=pipe, stderr=pipe)
    assert done.returncode == both.returncode == code_of(command, 141)
    assert ("error:" in done.stderr) == (command in REFUSED)


@pytest.mark.thorough
@full
@each
def test_a_full_disk_is_told(command: tuple, bundle: Path, tmp_path: Path) -> None:
    with FULL.open("w") as disk:
        done = run(filled(command, bundle=bundle, tmp=tmp_path), stdout=disk)
        both = run(filled(command, bundle=bundle, tmp=tmp_path), stdout=disk, stderr=disk)
    assert done.returncode == both.returncode == code_of(command, 3)
    if command not in REFUSED or "--json" in command:
        assert "standard output cannot be written: No space left on device" in done.stderr


@pytest.mark.parametrize("closing", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_streams_that_were_closed_before(closing: str) -> None:
    done = run(["sh", "-c", f'"$@" {closing}', "sh", *RUNTIME, "schema"])
    assert done.returncode == (3 if ">&-" in closing.split() else 0)
    if closing == ">&-":
        assert "standard output cannot be written: Bad file descriptor" in done.stderr


def test_a_pipe_that_does_not_wait_gets_everything() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with processes.started([*RUNTIME, "schema"], cwd=processes.ROOT, stdout=writing) as process:
        os.close(writing)
        with os.fdopen(reading) as pipe:
            text = pipe.read()
        assert process.wait() == 0
    assert text == run([*RUNTIME, "schema"]).stdout


# -- terminals -------------------------------------------------------------------------------------------

POOR = {
    "iso-8859-1, 20 columns": {"PYTHONIOENCODING": "iso-8859-1", "PYTHONUTF8": "0", "COLUMNS": "20"},
    "ascii, 1 column": {
        "PYTHONIOENCODING": "ascii",
        "PYTHONUTF8": "0",
        "COLUMNS": "1",
        "PYTHONUNBUFFERED": "1",
    },
    "C, 0 columns": {"LC_ALL": "C", "COLUMNS": "0"},
    "C without UTF-8, dumb": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TERM": "dumb"},
    "a million columns": {"COLUMNS": "1000000"},
}
poor = pytest.mark.parametrize("variables", POOR.values(), ids=POOR.keys())


@pytest.mark.thorough
@poor
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((*RUNTIME, "doctor"), "onnxruntime-cpu"),
        ((*RUNTIME, "plan", "--bundle", "{bundle}", "--size", "512x512", "--slots", 2), "vae_decoder"),
        ((*RUNTIME, "restore", "--help"), "--overwrite"),
        ((*BUILD, "doctor"), "tensorrt_rtx"),
    ],
    ids=["doctor", "plan", "help", "build doctor"],
)
def test_every_terminal_will_do(command: tuple, words: str, variables: dict, bundle: Path) -> None:
    done = run(filled(command, bundle=bundle), env=os.environ | variables)
    assert done.returncode == 0, done.stderr
    if variables.get("COLUMNS") not in ("1", "20"):
        assert words in done.stdout
    else:
        assert done.stdout


@pytest.mark.thorough
@poor
def test_names_that_cannot_be_shown(variables: dict, bundle: Path, tmp_path: Path) -> None:
    name = os.fsdecode("nö…雪\x1b[2J".encode() + b"\xff.png")
    (tmp_path / name).write_text("no picture")
    command = [*RUNTIME, "restore", tmp_path / name, "-o", "o", "--bundle", bundle, "--json"]
    done = run(command, env=os.environ | variables)
    assert done.returncode == 2, done.stderr
    assert "is not a picture" in " ".join(done.stderr.split())
    assert "\x1b" not in done.stderr
    shown = json.loads(done.stdout)["error"]
    assert os.fsencode(name) in shown.encode("utf-8" if "ö" in shown else "ascii", "surrogateescape")


# -- no home ---------------------------------------------------------------------------------------------

NOBODY = "import pwd\ndef unknown(user): raise KeyError(user)\npwd.getpwuid = unknown\n"


@pytest.mark.thorough
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize(
    ("command", "home"),
    [
        ((*RUNTIME, "doctor"), None),
        ((*BUILD, "cache", "list"), None),
        ((*BUILD, "cache", "list"), ""),
        ((*BUILD, "cache", "prune", "--limit", "0"), "~"),
        ((*BUILD, "cache", "list"), "relative"),
        pytest.param(
            (*KERNELS, "compile", "--target", "sm_89", "--out", "cubins"),
            None,
            marks=pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux only"),
        ),
    ],
    ids=lambda part: part[-1] if isinstance(part, tuple) else f"home {part}",
)
def test_without_a_home_nothing_lands_in_the_working_directory(
    command: tuple, home: str | None, known: bool, tmp_path: Path
) -> None:
    places = {name: tmp_path / name for name in ("here", "site", "tmp", "cache")}
    for place in places.values():
        place.mkdir()
    if not known:  # a user without an entry in the system's list, as in containers
        (places["site"] / "sitecustomize.py").write_text(NOBODY)
    variables = {
        "PATH": os.defpath,
        "TMPDIR": str(places["tmp"]),
        "PYTHONPATH": str(places["site"]),
    }
    if known:  # else the caches of whoever runs the tests
        variables |= {"XDG_CACHE_HOME": str(places["cache"]), "TRITON_CACHE_DIR": str(places["cache"])}
    if home is not None:
        variables["HOME"] = home
    done = processes.run(command, cwd=places["here"], env=variables)
    assert done.returncode == 0, done.stderr
    assert [entry.name for entry in places["here"].iterdir()] == (["cubins"] if "compile" in command else [])
    for folder in places["tmp"].iterdir():  # caches, for the user's eyes only
        assert folder.name.startswith("vsr-trt-home-")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_of_somebody_else_is_no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first = shell._private_folder()
    assert shell._private_folder() == first
    Path(first).chmod(0o777)  # others may put there what they like
    other = shell._private_folder()
    assert other != first
    assert stat.S_IMODE(Path(other).stat().st_mode) == 0o700
    Path(first).rmdir()
    Path(first).symlink_to(tmp_path)
    assert shell._private_folder() != first


# -- signals ---------------------------------------------------------------------------------------------

CODES = {signal.SIGINT: 130, signal.SIGTERM: 130, signal.SIGHUP: 129}
signals = pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
PLACES = [  # commands, and what they are importing when the signal comes
    *((RUNTIME, module) for module in ("vsr_trt.runtime.cli.main", "numpy", "vsr_trt.runtime.restore.job")),
    *((BUILD, module) for module in ("argparse", "numpy")),
    *((KERNELS, module) for module in ("argparse", "rich.console")),
]
AT_IMPORT = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["AT"]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), int(os.environ["NUMBER"]))
sys.meta_path.insert(0, Finder())
"""


def signalled(number: int, module: str, folder: Path) -> dict[str, str]:
    """Variables that make Python send itself a signal when it is about to import a module."""
    (folder / "sitecustomize.py").write_text(AT_IMPORT)
    return os.environ | {"PYTHONPATH": str(folder), "AT": module, "NUMBER": str(int(number))}


@pytest.mark.parametrize(
    ("place", "number"),
    matrix(PLACES, CODES, fast=lambda place, number: list(CODES)[PLACES.index(place) % len(CODES)] == number),
    ids=lambda part: part.name if isinstance(part, signal.Signals) else f"{Path(part[0][-1]).name}-{part[1]}",
)
def test_signals_are_understood_from_the_first_import_on(
    place: tuple[tuple, str], number: signal.Signals, tmp_path: Path
) -> None:
    command, module = place
    done = run([*command, "doctor"], env=signalled(number, module, tmp_path))
    assert done.returncode == CODES[number], done
    assert done.stderr == "interrupted; nothing half-written was left behind.\n"
    assert done.stdout == ""


@pytest.mark.thorough
@signals
@pytest.mark.parametrize("module", ["numpy", "onnxruntime"])  # before the work, and in it
def test_signals_that_are_ignored_stay_so(module: str, number: signal.Signals, tmp_path: Path) -> None:
    """nohup ignores SIGHUP, a shell without job control SIGINT of what it starts with &."""
    done = run([*BUILD, "doctor"], env=signalled(number, module, tmp_path), ignored=(number,))
    assert done.returncode == 0, done
    assert "compilers" in done.stdout


@pytest.mark.thorough
@signals
def test_signals_in_the_import_of_a_library_are_not_lost(number: signal.Signals, tmp_path: Path) -> None:
    """`doctor` takes a library that cannot be imported for one that is not there."""
    done = run([*BUILD, "doctor"], env=signalled(number, "onnxruntime", tmp_path))
    assert done.returncode == CODES[number], done
    assert done.stderr == "interrupted; nothing half-written was left behind.\n"


RESTORE = """
import collections, json, os, sys, time
from vsr_trt.runtime.machine import shell

PLAN, GO = json.loads(os.environ["PLAN"]), os.environ.get("GO")
calls = collections.Counter()

def at(point):
    calls[point] += 1
    call, numbers = PLAN.get(point, (0, ()))
    if calls[point] == call:
        while GO and not os.path.exists(GO):
            time.sleep(0.01)
        for number in numbers:
            os.kill(os.getpid(), number)

def told(owner, name):
    function = getattr(owner, name)
    def call(*args, **options):
        at(name)
        result = function(*args, **options)
        at("after " + name)
        return result
    setattr(owner, name, call)

def command():
    from vsr_trt.runtime.bundle.reading import read_manifest
    from vsr_trt.runtime.cli import main as cli
    from vsr_trt.runtime.restore import job
    from vsr_trt.runtime.media.sink import Sink
    from vsr_trt.runtime.media.staging import Staging

    class Restorer:
        backend, slots, form = "none", 1, None
        def __init__(self, bundle, *_, **options):
            self.manifest = read_manifest(bundle)
            self.notes = ()
            at("load")
        def __enter__(self): return self
        def __exit__(self, *_): at("exit")
        def prepare(self, *_): pass
        def push(self, frame):
            at("push")
            return [frame.repeat(4, 0).repeat(4, 1)]
        def flush(self): return []
        def drain(self): return iter(())
        def timings(self): return []

    job.Restorer = Restorer
    for owner, names in ((Sink, ("write", "close", "abort")), (Staging, ("__init__", "commit", "discard"))):
        for name in names:
            told(owner, name)
    return cli.main(sys.argv[1:])

sys.exit(shell.run(command))
"""


def restoring(bundle: Path, pictures: Path, output: Path) -> list[object]:
    """A restoration with everything but networks; `PLAN` says when which signals are sent."""
    return [PYTHON, "-c", RESTORE, "restore", pictures, "-o", output, "--bundle", bundle]


def plan(**points: tuple[int, Sequence[int]]) -> dict[str, str]:
    named = {name.replace("__after_", "after "): value for name, value in points.items()}
    return os.environ | {"PLAN": json.dumps(named, default=int)}


def frames_of(path: Path) -> int:
    if path.is_dir():
        return len(list(path.iterdir()))
    with av.open(str(path)) as container:
        return len(list(container.decode(video=0)))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGINT, "out.mkv"), (signal.SIGHUP, "out.mkv"), (signal.SIGHUP, "out")],
    ids=["interrupt", "hangup, video", "hangup, folder"],
)
@pytest.mark.parametrize(
    "point",
    ["__init__", "after __init__", "load", "push", "write", "after write", "exit", "close", "commit", "after commit",
     "abort", "discard", "after discard"],
)  # fmt: skip
def test_a_signal_at_any_moment_leaves_all_or_nothing(
    bundle: Path, pictures: Path, tmp_path: Path, point: str, name: str, number: signal.Signals
) -> None:
    """Only a lost terminal leaves a part, and says so in its name."""
    output = tmp_path / name
    call = 4 if point in ("push", "write", "after write") else 1
    done = processes.run(
        restoring(bundle, pictures, output), env=plan() | {"PLAN": json.dumps({point: (call, [number])})}
    )
    assert "Traceback" not in done.stderr, done.stderr
    left = {path.name: frames_of(path) for path in tmp_path.iterdir()}
    partial = f"out.partial{output.suffix}"
    if done.returncode == 0:
        assert left == {name: 8}, "the signal came when all was done"
    else:
        assert done.returncode == CODES[number]
        assert "interrupted; " in done.stderr
        if (
            number == signal.SIGHUP
            and point not in ("__init__", "after __init__", "load")
            and name not in left
        ):
            assert left.keys() == {partial}
            assert 1 <= left[partial] <= 8
            assert re.search(rf"{left[partial]} frames? that \w+ finished \w+ kept as", done.stderr)
        else:
            assert left in ({}, {name: 8})


@pytest.mark.thorough
@pytest.mark.parametrize("second", ["exit", "close", "abort", "discard", "commit"])
@pytest.mark.parametrize(
    ("first", "name"),
    [(signal.SIGTERM, "out.mkv"), (signal.SIGHUP, "out.mkv"), (signal.SIGHUP, "out")],
    ids=["SIGTERM", "hangup, video", "hangup, folder"],
)
def test_further_signals_while_it_cleans_up_change_nothing(
    bundle: Path, pictures: Path, tmp_path: Path, first: signal.Signals, second: str, name: str
) -> None:
    output = tmp_path / name
    planned = {
        "push": (4, [first, signal.SIGINT]),
        second: (1, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]),
    }
    done = processes.run(restoring(bundle, pictures, output), env=plan() | {"PLAN": json.dumps(planned)})
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in (CODES[first], 130)
    left = [path.name for path in tmp_path.iterdir()]
    assert left in ([], [f"out.partial{output.suffix}"])
    assert (left == []) == (done.returncode == 130)


def test_a_partial_result_replaces_nothing(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    for name in ("out.mkv", "out.partial.mkv"):
        (tmp_path / name).write_bytes(b"precious")
    command = [*restoring(bundle, pictures, tmp_path / "out.mkv"), "--overwrite"]
    done = processes.run(command, env=plan(push=(4, [signal.SIGHUP])))
    assert done.returncode == 129, done.stderr
    assert (tmp_path / "out.mkv").read_bytes() == (tmp_path / "out.partial.mkv").read_bytes() == b"precious"
    assert frames_of(tmp_path / "out.partial-2.mkv") >= 1


@pytest.mark.parametrize("ignored", [(), (signal.SIGHUP,)], ids=["terminal", "nohup"])
def test_a_terminal_that_has_gone(
    bundle: Path, pictures: Path, tmp_path: Path, ignored: tuple[int, ...]
) -> None:
    """What is written to it then is an error of its own, EIO."""
    output, go = tmp_path / "out" / "out.mkv", tmp_path / "go"
    output.parent.mkdir()
    master, slave = pty.openpty()
    variables = plan(push=(4, [signal.SIGHUP])) | {"GO": str(go)}
    with processes.started(
        restoring(bundle, pictures, output), ignored, env=variables, stdout=slave, stderr=slave
    ) as process:
        os.close(slave)
        heard = b""
        while b"8 pictures" not in heard:
            heard += os.read(master, 4096)
        os.close(master)
        go.touch()
        process.wait()
    left = {path.name: frames_of(path) for path in output.parent.iterdir()}
    if ignored:
        assert (process.returncode, left) == (141, {"out.mkv": 8})
    else:
        assert (process.returncode, left.keys()) == (129, {"out.partial.mkv"})


@pytest.mark.parametrize("streams", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_a_closed_pipe_does_not_cost_the_work(
    bundle: Path, pictures: Path, tmp_path: Path, streams: tuple[str, ...]
) -> None:
    output = tmp_path / "out.mkv"
    with closed_pipe() as pipe:
        done = processes.run(
            [*restoring(bundle, pictures, output), "--json"], env=plan(), **dict.fromkeys(streams, pipe)
        )
    assert done.returncode == 141
    assert "Traceback" not in (done.stderr or "")
    assert frames_of(output) == 8


LOST = """
import os, signal, sys, time
from vsr_trt.runtime.machine import shell

class Swallows:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass

def command():
    with shell.working():
        try:
            Swallows()
            time.sleep(10_000)
        except KeyboardInterrupt:
            print("heard")
    return 0

sys.exit(shell.run(command))
"""


def test_a_signal_that_a_destructor_swallows_comes_again() -> None:
    done = run([PYTHON, "-c", LOST])
    assert (done.returncode, done.stdout) == (0, "heard\n")


@pytest.mark.skipif(signal.getsignal(signal.SIGTERM) == signal.SIG_IGN, reason="it is ignored here")
def test_a_shield_lets_signals_wait() -> None:
    done = []
    with shell.working(), pytest.raises(KeyboardInterrupt):
        with shell.shield():
            with shell.shield():
                signal.raise_signal(signal.SIGTERM)
                done.append("inner")
            done.append("outer")
        done.append("never")
    assert done == ["inner", "outer"]
    before = signal.getsignal(signal.SIGTERM)
    with shell.working():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_characters_that_an_encoding_lacks() -> None:
    shell.codecs.register_error(shell._HANDLER, shell._shown)
    text = io.TextIOWrapper(buffer := io.BytesIO(), encoding="ascii", errors=shell._HANDLER)
    text.write("…│━⠋“n\xf6”\udcff雪")
    text.flush()
    assert buffer.getvalue() == rb"...--*\"n\xf6\"\xff\u96ea".replace(rb"\"", b'"')
