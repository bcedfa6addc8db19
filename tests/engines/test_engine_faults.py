"""Builds that are refused, fail, are stopped or killed: what is said, and what is left behind."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import processes
from helpers.building import MEMORY, ROOT, build, command, copy_of, rtx, run, small_graph

from vsr_trt import build as build_script
from vsr_trt.engines.build import Progress
from vsr_trt.engines.cache import Cache
from vsr_trt.engines.jobs import BuildJob, Pool, Result
from vsr_trt.engines.tensorrt.builder import BuildOrder
from vsr_trt.engines.worker import Phase
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Manifest, Profile, sha256
from vsr_trt.runtime.bundle.reading import read_manifest
from vsr_trt.runtime.errors import BundleError, EngineError, OutputError

pytestmark = rtx
SHAPE = Profile((4, 4), (4, 4), (4, 4))


def order(graph: Path, **changed: object) -> BuildOrder:
    values = {"network": "small", "graph": graph, "capabilities": ("sm_89",), "profiles": {"x": SHAPE}}
    return BuildOrder(**(values | changed))  # type: ignore[arg-type]


def compile_one(order: BuildOrder, out: Path) -> Result:
    (result,) = Pool("tensorrt_rtx", 1, MEMORY).run([BuildJob(order, out, 1)])
    return result


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# -- what the compiler refuses ---------------------------------------------------------------------------


def test_a_small_graph_compiles(tmp_path: Path) -> None:
    result = compile_one(order(small_graph(tmp_path / "g.onnx")), tmp_path / "plan")
    assert result.error is None
    assert result.done is not None
    assert result.done.facts.bytes == (tmp_path / "plan").stat().st_size
    assert result.done.facts.outputs == {"y": (4, 4)}
    assert result.done.peak is not None


def test_the_parsers_words_are_in_the_error(tmp_path: Path) -> None:
    graph = small_graph(tmp_path / "g.onnx", op_type="NoSuchOperator", domain="nobody")
    result = compile_one(order(graph), tmp_path / "plan")
    assert isinstance(result.error, EngineError)
    assert "TensorRT-RTX does not parse small (g.onnx): node last (NoSuchOperator): " in str(result.error)


def test_a_build_that_gives_no_plan_gives_its_reasons(tmp_path: Path) -> None:
    """Weight-stripped plans need a GPU; the builder says so in its log, and returns nothing."""
    result = compile_one(order(small_graph(tmp_path / "g.onnx"), flags=("strip",)), tmp_path / "plan")
    assert isinstance(result.error, EngineError)
    assert re.search(r"cannot build small: .*(CUDA|driver)", str(result.error), re.DOTALL)


def test_a_graph_that_is_no_onnx(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"nothing of the kind")
    result = compile_one(order(tmp_path / "g.onnx"), tmp_path / "plan")
    assert isinstance(result.error, EngineError)
    assert "does not parse small" in str(result.error)


def test_too_little_workspace_is_refused(golden_bundle_fp16: Path, tmp_path: Path) -> None:
    bundle = copy_of(golden_bundle_fp16, tmp_path)
    with pytest.raises(
        EngineError, match=r"vae_decoder needs more .* --workspace allows \(0\.01 GB\) for latent \(1, 4,"
    ):
        build(bundle, Cache(tmp_path / "cache"), networks=("vae_decoder",), workspace=10_000_000)
    assert Bundle.open(bundle, check=True).manifest.engines == ()


@pytest.mark.thorough
def test_one_failure_does_not_keep_the_others_out(golden_bundle_fp16: Path, tmp_path: Path) -> None:
    bundle = copy_of(golden_bundle_fp16, tmp_path)
    notes: list[str] = []
    progress = Progress(note=notes.append)
    with pytest.raises(EngineError, match="vae_decoder needs"):
        build(
            bundle, Cache(tmp_path / "cache"), networks=("vae_decoder", "preprocess"), workspace=30_000_000,
            progress=progress,
        )  # fmt: skip
    assert {engine.network for engine in read_manifest(bundle).engines} == {"preprocess"}
    assert any("vae_decoder" in note and "failed" in note for note in notes)


# -- bad requests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--target", "sm_xx"], 2, r"--target sm_xx: there is no such target; expected one of sm_75"),
        (["--target", "sm_90"], 10, r"has no target sm_90; it builds for sm_75.*--backend tensorrt"),
        (["--target", "this-gpu"], 10, r"there is no GPU in this machine"),
        (["--size", "big"], 2, r"--size big: expected WIDTHxHEIGHT"),
        (["--size", "1281x720"], 2, r"multiples of 4"),
        (["--tile", "100"], 2, r"--tile latent=100: expected a multiple of 8"),
        (["--vae-tile", "101"], 2, r"--tile vae=101: expected a multiple of 8"),
        (["--batch", "0"], 2, r"--batch is 0; expected a number above 0"),
        (["--workspace", "-1"], 2, r"--workspace is -1\.0"),
        (["--workspace", "nan"], 2, r"--workspace is nan"),
        (["--cache-limit", "inf"], 2, r"--cache-limit is inf"),
        (["--network", "nothing"], 2, r"--network nothing: no stage runs it; expected one of preprocess"),
        (["--operator", "other"], 2, r"invalid choice: 'other'"),
        (
            ["--operator", "kernel", "--backend", "onnxruntime"],
            2,
            "--operator has no meaning with --backend onnxruntime",
        ),
        (["--strip"], 10, r"--strip needs --backend tensorrt on a machine with a GPU"),
        (["--compatible"], 10, r"--compatible needs --backend tensorrt"),
        (["--precision", "fp32"], 10, r"has FP16 graphs only"),
        (
            ["--dynamic", "--batch", "1", "--network", "unet"],
            10,
            r"no fused kernel .* at dynamic sizes.*leave out --dynamic",
        ),
        (["--backend", "tensorrt", "--jobs", "2"], 2, r"--jobs 2: TensorRT times its tactics on the GPU"),
        (["--backend", "tensorrt"], 10, r"TensorRT cannot be loaded.*pip install 'vsr-trt\[gpu\]'"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    golden_bundle_fp16: Path,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (golden_bundle_fp16 / "bundle.json").read_bytes()
    try:
        found = build_script.main(
            ["engines", str(golden_bundle_fp16), *arguments, "--cache-dir", str(tmp_path)]
        )
    except SystemExit as exit:  # of the parser
        found = exit.code
    error = capsys.readouterr().err
    assert found == code, error
    assert re.search(said, " ".join(error.split())), error
    assert (golden_bundle_fp16 / "bundle.json").read_bytes() == before


def test_builds_that_are_timed_on_the_gpu_are_one_at_a_time() -> None:
    from vsr_trt.engines import cli

    assert cli._jobs(None, "tensorrt") == cli._jobs(1, "tensorrt") == 1
    assert cli._jobs(7, "tensorrt_rtx") == 7


def test_no_bundle_at_all(tmp_path: Path) -> None:
    done = run(tmp_path, cache=tmp_path / "cache")
    assert done.returncode == 4
    assert "is not a bundle" in done.stderr


def test_an_unwritable_cache_is_refused(golden_bundle_fp16: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(golden_bundle_fp16, cache=tmp_path / "file" / "cache")
    assert done.returncode == 3
    assert "cannot be written" in done.stderr
    assert "--cache-dir" in done.stderr


@pytest.mark.parametrize("file", ["onnx/unet.onnx", "onnx/unet.onnx.data"])
def test_a_changed_graph_is_not_compiled(golden_bundle_fp16: Path, tmp_path: Path, file: str) -> None:
    bundle = copy_of(golden_bundle_fp16, tmp_path)
    content = bytearray((bundle / file).read_bytes())
    content[-10] ^= 1
    (bundle / file).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{file} was changed"):
        build(bundle, Cache(tmp_path / "cache"), networks=("unet",))
    assert list((tmp_path / "cache" / "engines").iterdir()) == []


def test_a_dry_run_says_why_and_builds_nothing(golden_bundle_fp16: Path, tmp_path: Path) -> None:
    bundle = copy_of(golden_bundle_fp16, tmp_path)
    cache = tmp_path / "cache"
    arguments = (bundle, "--network", "preprocess", "--target", "sm_89", "--dry-run", "--json", "--size")
    (item,) = json.loads(run(*arguments, "512x512", cache=cache).stdout)
    assert (item["state"], item["why"]) == ("build", "never built")
    assert read_manifest(bundle).engines == ()

    build(bundle, Cache(cache), networks=("preprocess",))
    (item,) = json.loads(run(*arguments, "512x512", cache=cache).stdout)
    assert item["state"] == "bundle"
    (item,) = json.loads(run(*arguments, "640x512", cache=cache).stdout)
    assert item["state"] == "build"
    assert "shapes: " in item["why"]
    assert "[1, 128, 160, 3]" in item["why"]
    assert "instead of" in item["why"]


# -- stopped, killed, full -------------------------------------------------------------------------------


def children_of(pid: int) -> list[int]:
    """The compilers' processes; Python's own helper for semaphores is none of them."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if not entry.name.isdigit() or b"spawn_main" not in (entry / "cmdline").read_bytes():
                continue
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(entry.name))
    return found


def whole(cache: Path) -> None:
    """Every engine in the cache is complete, and nothing is under way."""
    for entry in Cache(cache).entries():
        for name, expected in entry.files.items():
            assert sha256(entry.folder / name) == expected
    assert {path.name for path in (cache / "engines").glob("*/*/*") if path.suffix == ".tmp"} == set()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGHUP, 129)]
)
def test_ctrl_c_stops_and_leaves_the_cache_whole(
    golden_bundle_fp16: Path, tmp_path: Path, number: int, code: int
) -> None:
    bundle, cache = copy_of(golden_bundle_fp16, tmp_path), tmp_path / "cache"
    arguments = command(bundle, "--target", "sm_80,sm_86,sm_89", "--size", "512x512", cache=cache)
    with processes.started(arguments) as process:
        processes.said(process, "begun")  # the first build
        builders = children_of(process.pid)
        assert builders
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does: every process of the group
        else:
            process.send_signal(number)
        _, said = process.communicate()
    assert process.returncode == code
    assert "interrupted" in said
    assert "Traceback" not in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in builders)
    assert list((cache / "tmp").iterdir()) == []
    whole(cache)
    Bundle.open(bundle, check=True)
    assert list(bundle.rglob("*.tmp")) == []


@pytest.mark.thorough
def test_a_killed_build_leaves_nothing_that_looks_whole(golden_bundle_fp16: Path, tmp_path: Path) -> None:
    bundle, cache = copy_of(golden_bundle_fp16, tmp_path), tmp_path / "cache"
    with processes.started(command(bundle, "--network", "unet", "--size", "512x512", cache=cache)) as process:
        processes.said(process, "begun")
        builders = children_of(process.pid)
        process.kill()
        process.wait()
        processes.until(  # the compiler dies with its parent
            lambda: not any(Path(f"/proc/{pid}").exists() for pid in builders)
        )
    assert Cache(cache).entries() == []
    Bundle.open(bundle, check=True)
    assert [one.origin for one in build(bundle, Cache(cache), ("portable",), networks=("unet",))] == ["built"]


def test_a_compiler_that_dies_is_named_with_its_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = multiprocessing.process.BaseProcess.start

    def start_and_kill(process: multiprocessing.process.BaseProcess) -> None:
        start(process)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSEGV)  # at once: it cannot have built anything yet

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", start_and_kill)
    pool = Pool("tensorrt_rtx", 1, MEMORY)
    (result,) = pool.run([BuildJob(order(small_graph(tmp_path / "g.onnx", weights=4)), tmp_path / "plan", 1)])
    assert isinstance(result.error, EngineError)
    assert "the compiler died while it built small (signal SIGSEGV)" in str(result.error)


@pytest.mark.thorough
def test_two_builds_at_once_build_each_engine_once(golden_bundle_fp16: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with contextlib.ExitStack() as stack:
        both = []
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            bundle = copy_of(golden_bundle_fp16, tmp_path / name)
            networks = [word for network in ("preprocess", "warp", "cfr") for word in ("--network", network)]
            arguments = command(
                bundle, "--target", "sm_89", "--size", "512x512", "--json", *networks, cache=cache
            )
            both.append(stack.enter_context(processes.started(arguments)))
        outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    origins: dict[str, list[str]] = {}
    for output, _ in outputs:
        for engine in json.loads(output)["engines"]:
            origins.setdefault(engine["key"], []).append(engine["origin"])
    assert len(origins) == 3
    assert all(sorted(found) == ["built", "cache"] for found in origins.values()), origins


@pytest.mark.thorough
def test_a_build_waits_for_another_process_that_builds_the_same(
    golden_bundle_fp16: Path, tmp_path: Path
) -> None:
    bundle, cache = copy_of(golden_bundle_fp16, tmp_path), Cache(tmp_path / "cache")
    arguments = ("--network", "unet", "--target", "sm_89", "--size", "512x512", "--json")
    planned = json.loads(run(bundle, *arguments, "--dry-run", cache=cache.folder).stdout)
    with (
        cache.lock(planned[0]["key"]),
        processes.started(command(bundle, *arguments, cache=cache.folder)) as process,
    ):
        processes.said(process, "another process is building")
    assert cache.entries() == []


@pytest.mark.thorough
def test_the_disk_fills_up_in_the_middle_of_a_plan(golden_bundle_fp16: Path, tmp_path: Path) -> None:
    bundle = copy_of(golden_bundle_fp16, tmp_path)
    with small_disk(tmp_path, "2m") as disk:
        with pytest.raises(
            OutputError, match=r"the disk is full: the engine of unet was not written.*cache prune"
        ):
            build(bundle, Cache(disk), networks=("unet",))
        assert list((disk / "tmp").iterdir()) == []
        assert Cache(disk).entries() == []
    assert Bundle.open(bundle, check=True).manifest.engines == ()


@pytest.mark.thorough
def test_an_engine_that_is_replaced_is_never_half_there(
    golden_bundle_fp16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up, or the process ends, at any moment while an engine of another build takes its place."""
    bundle, cache = copy_of(golden_bundle_fp16, tmp_path), Cache(tmp_path / "cache")
    build(bundle, cache, networks=("preprocess",))
    before = (bundle / "bundle.json").read_bytes()
    (old,) = read_manifest(bundle).engines
    write, calls = Manifest.write, []

    for failing in (0, 1, 2):

        def broken(manifest: Manifest, folder: Path, failing: int = failing) -> None:
            calls.append(folder)
            if len(calls) == failing + 1:
                raise OSError(28, "No space left on device")
            write(manifest, folder)

        calls.clear()
        monkeypatch.setattr(Manifest, "write", broken)
        if failing < 2:
            with pytest.raises(OutputError, match=r"the disk is full.*The engine is in the cache"):
                build(bundle, cache, networks=("preprocess",), workspace=4_000_000_000)
            assert Bundle.open(bundle, check=True).manifest.engines == (old,)
            assert (bundle / "bundle.json").read_bytes() == before
        else:
            build(bundle, cache, networks=("preprocess",), workspace=4_000_000_000)
            (new,) = Bundle.open(bundle, check=True).manifest.engines
            assert (new.file, new.key == old.key) == (old.file, False)


@pytest.mark.thorough
def test_many_engines_enter_one_bundle_at_once(golden_bundle_fp16: Path, tmp_path: Path) -> None:
    bundle = copy_of(golden_bundle_fp16, tmp_path)
    networks = ("preprocess", "postprocess_none", "postprocess_adain")
    options = ("--target", "sm_89", "--size", "512x512")
    with contextlib.ExitStack() as stack:
        each = [
            stack.enter_context(
                processes.started(command(bundle, "--network", name, *options, cache=tmp_path / "cache"))
            )
            for name in networks
        ]
        for process in each:
            _, said = process.communicate()
            assert process.returncode == 0, said
    assert {engine.network for engine in Bundle.open(bundle, check=True).manifest.engines} == set(networks)


def test_what_is_damaged_beyond_reading_is_named(golden_bundle_fp16: Path, tmp_path: Path) -> None:
    bundle = copy_of(golden_bundle_fp16, tmp_path)
    path = bundle / "onnx" / "unet.onnx"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(BundleError, match=r"onnx/unet\.onnx was changed"):
        build(bundle, Cache(tmp_path / "cache"), networks=("unet",))


@pytest.mark.thorough
def test_the_disk_fills_up_while_an_engine_enters_the_bundle(
    golden_bundle_fp16: Path, tmp_path: Path
) -> None:
    size = sum(path.stat().st_size for path in golden_bundle_fp16.rglob("*") if path.is_file())
    with small_disk(tmp_path, str(size + 3_000_000)) as disk:
        bundle = copy_of(golden_bundle_fp16, disk)
        before = (bundle / "bundle.json").read_bytes()
        with pytest.raises(OutputError, match=r"the disk is full: .*The engine is in the cache"):
            build(bundle, Cache(tmp_path / "cache"), networks=("unet",))
        assert (bundle / "bundle.json").read_bytes() == before
        Bundle.open(bundle, check=True)
        assert list(bundle.rglob("*.tmp")) == []
    assert len(Cache(tmp_path / "cache").entries()) == 1


def test_a_damaged_engine_in_the_cache_is_built_anew(golden_bundle_fp16: Path, tmp_path: Path) -> None:
    cache, notes = Cache(tmp_path / "cache"), []
    (tmp_path / "one").mkdir()
    build(copy_of(golden_bundle_fp16, tmp_path / "one"), cache, networks=("preprocess",))
    (entry,) = cache.entries()
    engine = entry.folder / next(iter(entry.files))
    content = bytearray(engine.read_bytes())
    content[len(content) // 2] ^= 0xFF
    engine.write_bytes(content)
    bundle = copy_of(golden_bundle_fp16, tmp_path)
    made = build(bundle, cache, networks=("preprocess",), progress=Progress(note=notes.append))
    assert [one.origin for one in made] == ["built"]
    assert any("was damaged" in note for note in notes)
    Bundle.open(bundle, check=True)


# -- bounds ----------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_builds_run_within_the_memory_and_number_that_are_given(tmp_path: Path) -> None:
    graph = small_graph(tmp_path / "g.onnx")
    most = 0

    def watch(job: BuildJob, phase: Phase) -> None:
        nonlocal most
        most = max(
            most, sum(child.name.startswith("SpawnProcess") for child in multiprocessing.active_children())
        )

    for limit, memory, expected in ((1, 100, 1), (3, 10, 1), (2, 100, 2)):
        most = 0
        jobs = [BuildJob(order(graph), tmp_path / str(index), 10) for index in range(4)]
        results = list(Pool("tensorrt_rtx", limit, memory, watch).run(jobs))
        assert all(result.error is None for result in results)
        assert most == expected


def test_a_build_larger_than_the_memory_still_runs_alone(tmp_path: Path) -> None:
    pool = Pool("tensorrt_rtx", 2, 1)
    (result,) = pool.run([BuildJob(order(small_graph(tmp_path / "g.onnx")), tmp_path / "plan", 10**15)])
    assert result.error is None


def test_help_teaches() -> None:
    done = processes.run([sys.executable, ROOT / "build.py", "engines", "--help"], check=True)
    for word in ("--target", "portable", "this-gpu", "--size", "--dry-run", "examples:", "four times"):
        assert word in done.stdout
