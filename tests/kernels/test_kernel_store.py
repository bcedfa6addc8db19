"""Compiled kernels are kept in the engines' cache, by all that made them: a second export compiles none."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vsr_trt import build as commands
from vsr_trt.engines.cache import Cache
from vsr_trt.export import bundle as exporting
from vsr_trt.export.bundle import Progress
from vsr_trt.export.families.dloral.bundle import BundleModel
from vsr_trt.export.request import BundleRequest
from vsr_trt.kernels.gpu import build, store
from vsr_trt.kernels.gpu.launch import ATTENTION, BLENDING
from vsr_trt.kernels.gpu.targets import TARGETS
from vsr_trt.recipes import bundle as recipe
from vsr_trt.recipes.kernel_store import KernelStore, open_store

pytest.importorskip("triton", reason="Triton exists for Linux only")


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was compiled, in order; real kernels of a first run are reused under other targets."""
    log: list[str] = []
    compile_ = build._compile

    def counted(function: Any, chosen: Any, *rest: Any) -> build.Compiled:
        log.append(f"{function.__name__} {chosen.name}")
        key = (function.__name__, chosen.name, str(rest))
        if key not in _made:
            _made[key] = compile_(function, chosen, *rest)
        return _made[key]

    monkeypatch.setattr(build, "_compile", counted)
    return log


_made: dict[tuple[str, str, str], build.Compiled] = {}


@pytest.fixture
def kept(tmp_path: Path) -> KernelStore:
    found = open_store(tmp_path / "cache")
    assert found is not None
    return found


def test_a_second_time_nothing_is_compiled_and_all_is_the_same(
    kept: KernelStore, compiling: list[str]
) -> None:
    first = [build.compile_kernel("sm_89", store=kept), build.compile_blending("sm_89", kept)]
    assert compiling == ["gated_topk_attention sm_89", "blend_tiles sm_89"]
    again = open_store(kept.cache.folder)  # as another process opens it
    second = [build.compile_kernel("sm_89", store=again), build.compile_blending("sm_89", again)]
    assert len(compiling) == 2
    assert second == first
    entries = kept.cache.entries()
    assert sorted(entry.parts["network"] for entry in entries) == sorted([ATTENTION, BLENDING])
    assert all(len(entry.files) == 3 for entry in entries)


@pytest.mark.parametrize("other", ["target", "dtype", "top_k", "triton", "source", "assembler"])
def test_another_of_what_makes_it_is_another_kernel(
    kept: KernelStore, compiling: list[str], monkeypatch, tmp_path: Path, other: str
) -> None:
    build.compile_kernel("sm_89", store=kept)
    arguments: dict[str, Any] = {"target": "sm_89"}
    if other == "triton":
        version = build.importlib.metadata.version
        monkeypatch.setattr(
            build.importlib.metadata, "version", lambda name: "0" if name == "triton" else version(name)
        )
    elif other == "source":
        changed = tmp_path / "kernel.py"
        changed.write_text("# another")
        monkeypatch.setitem(build._SOURCES, ATTENTION, str(changed))
    elif other == "assembler":
        from triton import knobs

        monkeypatch.setenv("TRITON_PTXAS_PATH", knobs.nvidia.ptxas.path)
    else:
        arguments[other] = {"target": "sm_86", "dtype": "fp16", "top_k": True}[other]
    build.compile_kernel(**arguments, store=kept)
    assert len(compiling) == 2
    assert len(kept.cache.entries()) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: next(folder.glob("*.cubin")).write_bytes(b"damaged"),
        lambda folder: next(folder.glob("*.ptx")).unlink(),
        lambda folder: next(folder.glob("gated*.json")).write_text("{"),
        lambda folder: (folder / "entry.json").write_text("{"),
    ],
    ids=["cubin", "ptx", "metadata", "entry"],
)
def test_what_is_damaged_is_compiled_again(
    kept: KernelStore, compiling: list[str], damage: Callable[[Path], object]
) -> None:
    first = build.compile_kernel("sm_89", store=kept)
    (entry,) = kept.cache.entries()
    damage(entry.folder)
    for _ in range(2):
        assert build.compile_kernel("sm_89", store=kept) == first
    assert len(compiling) == 2
    assert store.load(entry.folder) == first


def test_a_cache_that_cannot_be_written_costs_no_export(
    kept: KernelStore, compiling: list[str], monkeypatch, tmp_path: Path
) -> None:
    def full(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Cache, "add", full)
    assert build.compile_kernel("sm_89", store=kept).launch.target == "sm_89"
    assert list((kept.cache.folder / "tmp").iterdir()) == []
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("vsr_trt.engines.cache.default_folder", lambda: tmp_path / "file" / "cache")
    assert open_store(None) is None


def test_kernels_push_no_engine_out(kept: KernelStore, compiling: list[str], tmp_path: Path) -> None:
    engines = Cache(kept.cache.folder)
    with engines.workspace() as space:
        (space / "one").mkdir()
        (space / "one" / "x.engine").write_bytes(b"x")
        with (space / "one" / "x.engine").open("r+b") as file:
            os.truncate(file.fileno(), 60_000_000_000)  # more than the engines' default limit; takes no disk
        parts = {"network": "unet", "target": "sm_89"}
        # its hash would take minutes
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("vsr_trt.engines.cache.sha256", lambda path: "0")
            Cache(kept.cache.folder, 10**12).add(parts, space / "one" / "x.engine", {})
    build.compile_kernel("sm_89", store=kept)
    assert {entry.parts["network"] for entry in engines.entries()} == {"unet", ATTENTION}


def test_a_second_export_compiles_none(kept: KernelStore, compiling: list[str], tmp_path: Path) -> None:
    """The part of an export that makes kernels; the networks before it are none of this."""
    model = BundleModel.__new__(BundleModel)
    made = []
    for number in range(2):
        request = BundleRequest(Path(), Path(), kernels=True, kernel_store=kept)
        model._request = request
        folder = tmp_path / str(number)
        folder.mkdir()
        names = exporting._kernels(request, model, folder, Progress())
        assert len(names) == 2 * len(TARGETS)
        made.append({path.name: path.read_bytes() for path in (folder / "kernels").iterdir()})
        assert len(compiling) == 2 * len(TARGETS)
    assert made[0] == made[1]


def requested(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> BundleRequest:
    """What the command line asks the exporter for."""
    seen: list[BundleRequest] = []

    class StopError(Exception):
        pass

    def stop(request: BundleRequest, console: object) -> None:
        seen.append(request)
        raise StopError

    monkeypatch.setattr(recipe, "build_bundle", stop)
    monkeypatch.setattr(recipe, "directory", lambda given, part, console: given)
    with pytest.raises(StopError):
        recipe.run(
            commands.parser().parse_args(
                ["bundle", "--sd", "s", "--checkpoint", "c", "--out", "o", *arguments]
            )
        )
    return seen[0]


def test_the_command_names_the_cache_or_leaves_it_alone(monkeypatch, tmp_path: Path, capsys) -> None:
    folder = str(tmp_path / "cache")
    found = requested(monkeypatch, "--cache-dir", folder).kernel_store
    assert isinstance(found, KernelStore)
    assert found.cache.folder == Path(folder)
    assert requested(monkeypatch, "--no-cache").kernel_store is None
    assert requested(monkeypatch, "--no-kernels", "--cache-dir", folder).kernel_store is None
    both = ["bundle", "--sd", "s", "--checkpoint", "c", "--out", "o", "--no-cache", "--cache-dir", folder]
    monkeypatch.undo()
    assert commands.main(both) == 2
    assert "leave one of them out" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "file").write_text("")
    elsewhere = [*both[:-3], "--cache-dir", str(tmp_path / "file" / "cache")]
    assert commands.main(elsewhere) == 3
    assert "Choose another folder with --cache-dir" in " ".join(capsys.readouterr().err.split())


def test_the_cache_lists_and_explains_kernels(kept: KernelStore, compiling: list[str], capsys) -> None:
    build.compile_kernel("sm_89", "fp32", True, kept)
    folder = str(kept.cache.folder)
    assert commands.main(["cache", "list", "--cache-dir", folder]) == 0
    text = capsys.readouterr().out
    for word in (ATTENTION, "sm_89", "top_k"):
        assert word in text
    (entry,) = kept.cache.entries()
    assert commands.main(["cache", "explain", entry.key[:9], "--cache-dir", folder]) == 0
    assert "triton" in capsys.readouterr().out
    assert commands.main(["cache", "prune", "--limit", "0", "--cache-dir", folder]) == 0
    assert kept.cache.entries() == []


def test_a_request_with_a_store_reaches_another_process(kept: KernelStore) -> None:
    import pickle

    request = BundleRequest(Path(), Path(), kernel_store=kept)
    again = pickle.loads(pickle.dumps(request))
    assert again.kernel_store.cache.folder == kept.cache.folder
    assert dataclasses.replace(again, kernel_store=kept) == request
