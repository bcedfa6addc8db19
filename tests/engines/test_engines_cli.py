"""`build.py cache` and `build.py doctor`: what people and programs read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from helpers import clip_family

from vsr_trt import build as build_script
from vsr_trt.engines import cache as caches
from vsr_trt.engines import doctor
from vsr_trt.engines.cache import Cache
from vsr_trt.engines.display import estimate_seconds
from vsr_trt.engines.tensorrt.library import CompilerLibrary
from vsr_trt.runtime.errors import EngineError
from vsr_trt.runtime.machine import gpu
from vsr_trt.runtime.machine.gpu import Gpu

PARTS = {"network": "unet", "target": "sm_89", "backend": "tensorrt_rtx", "version": "1.7.1.116"}


def filled(folder: Path, count: int = 2) -> list[caches.Entry]:
    cache, entries = Cache(folder), []
    for index in range(count):
        with cache.workspace() as workspace:
            engine = workspace / "one" / "unet.engine"
            engine.parent.mkdir()
            engine.write_bytes(b"x" * 1000)
            entries.append(cache.add(PARTS | {"target": f"sm_8{index}"}, engine, {"seconds": 3.0 + index}))
        os.utime(entries[-1].folder / caches.ENTRY, (1000 + index, 1000 + index))
    return entries


def run(*arguments: object) -> int:
    return build_script.main(list(map(str, arguments)))


def output(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_list_shows_the_last_used_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = filled(tmp_path)
    assert run("cache", "list", "--cache-dir", tmp_path, "--json") == 0
    assert [entry["key"] for entry in output(capsys)] == [new.key, old.key]
    assert run("cache", "list", "--cache-dir", tmp_path) == 0
    text = capsys.readouterr().out
    assert new.key[:9] in text
    assert "2 entries" in text


def test_prune_removes_the_oldest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = filled(tmp_path)
    assert run("cache", "prune", "--limit", 0.0000015, "--cache-dir", tmp_path, "--json") == 0
    assert output(capsys) == {"removed": [old.key], "bytes": 1000}
    assert [entry.key for entry in Cache(tmp_path).entries()] == [new.key]
    assert run("cache", "prune", "--limit", 0, "--cache-dir", tmp_path) == 0
    assert "removed 1 engines" in capsys.readouterr().out
    assert run("cache", "prune", "--limit", -1, "--cache-dir", tmp_path) == 2
    assert "--limit is -1" in capsys.readouterr().err


def test_explain_shows_the_parts_and_the_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = filled(tmp_path)
    assert run("cache", "explain", one.key[:9], "--cache-dir", tmp_path, "--json") == 0
    assert output(capsys)["parts"] == one.parts
    assert run("cache", "explain", one.key[:9], other.key[:9], "--cache-dir", tmp_path, "--json") == 0
    assert output(capsys) == ["target: sm_80 instead of sm_81"]
    assert run("cache", "explain", one.key[:9], "--cache-dir", tmp_path) == 0
    assert "sm_80" in capsys.readouterr().out
    assert run("cache", "explain", "nothing", "--cache-dir", tmp_path) == 2
    assert "cache list" in capsys.readouterr().err.replace("\n", " ")


def test_a_like_engines_time_is_the_estimate(tmp_path: Path) -> None:
    class Item:
        parts = PARTS | {"target": "sm_81", "version": "2"}
        weights = 0

    filled(tmp_path)
    assert estimate_seconds(Item(), Cache(tmp_path)) == 4.0  # type: ignore[arg-type]  # sm_81's
    assert estimate_seconds(Item(), Cache(tmp_path / "empty")) == 1.5  # type: ignore[arg-type]


def test_doctor_says_what_can_be_built(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "detect", lambda: None)
    monkeypatch.setattr(gpu, "why_none", lambda: "no CUDA driver")

    def load(backend: str) -> CompilerLibrary:
        raise EngineError(f"{backend} is not there")

    monkeypatch.setattr(doctor, "load", load)
    assert run("doctor", "--json") == 0
    found = output(capsys)
    assert found["gpu"] == "none (no CUDA driver)"
    assert found["engines"] is None
    assert [compiler["remark"] for compiler in found["compilers"][:2]] == [
        "tensorrt_rtx is not there",
        "tensorrt is not there",
    ]
    assert found["compilers"][2]["targets"][0].startswith("cpu-")


def test_doctor_offers_this_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "detect", lambda: Gpu("NVIDIA L4", "sm_89", 24 << 30, "13.0"))

    class Module:
        pass

    monkeypatch.setattr(doctor, "load", lambda backend: CompilerLibrary(backend, Module(), "1"))  # type: ignore[arg-type]
    found = doctor.examine(None)
    assert found.gpu.startswith("NVIDIA L4 (sm_89), 26 GB")
    assert all("this-gpu" in compiler.targets for compiler in found.compilers[:2])


def test_doctor_lists_a_bundles_engines(golden_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", golden_bundle) == 0
    assert "the bundle has no engines" in capsys.readouterr().out
    assert run("doctor", golden_bundle / "nothing") == 4
    assert "is not a bundle" in capsys.readouterr().err


def test_engines_for_fewer_frames_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = clip_family.write(tmp_path / "bundle").path
    dry = (
        "engines",
        bundle,
        "--size",
        "128x96",
        "--target",
        "sm_89",
        "--precision",
        "fp32",
        "--dry-run",
        "--json",
    )
    cache = ("--cache-dir", tmp_path / "cache")

    def frames(*more: object) -> list[int]:
        assert run(*dry, *cache, *more) == 0
        (item,) = [item for item in output(capsys) if item["parts"]["network"] == "predict"]
        return [shape[2] for shape in item["parts"]["shapes"]["x"]]

    assert frames() == [1, 3, 3]
    assert frames("--set", "window=8") == [1, 8, 10]
    for given, said in (
        ("window=1", "window"),
        ("seed=3", "no engine of the family clip depends on it"),
        ("x", "NAME=VALUE"),
    ):
        assert run(*dry, *cache, "--set", given) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    options = ("--backend", "onnxruntime", "--set", "window=8")
    assert run("engines", bundle, *options, *cache, "--dry-run") == 2
    assert "--set has no meaning with --backend onnxruntime" in " ".join(capsys.readouterr().err.split())
