"""Whether an engine runs here: told from its first bytes, the manifest, the library and the GPU."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import struct
from pathlib import Path

import pytest
from helpers import small_bundle
from helpers.manifests import minimal_manifest

from vsr_trt.runtime import doctor
from vsr_trt.runtime.bundle import engine_check
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import STRIPS, Engine, FileEntry
from vsr_trt.runtime.errors import EngineError
from vsr_trt.runtime.machine import gpu
from vsr_trt.runtime.machine.gpu import Gpu
from vsr_trt.runtime.machine.processor import cpu_target

ADA = Gpu("NVIDIA GeForce RTX 4090", "sm_89", 24 << 30, "13.0")
VERSION = "1.7.1.116"


def plan(
    version: tuple[int, ...] = (1, 7, 1, 116), bits: int = 8, body: bytes = b"x" * 100, magic: bytes = b"vtrt"
) -> bytes:
    """The beginning of a TensorRT-RTX plan, as found in real ones (tests/engines compares them)."""
    start = struct.pack("<4s12xQ4B4sI", magic, 36 + len(body), *version, magic, bits)
    assert len(start) == 36
    return start + body


def bundle(folder: Path, content: bytes, **changed: object) -> tuple[Bundle, Engine]:
    values = {
        "network": "unet",
        "backend": "tensorrt_rtx",
        "version": VERSION,
        "target": "sm_89",
        "targets": ("sm_89",),
        "device": None,
        "precision": "fp16",
        "profiles": {},
        "flags": (),
        "file": "engines/x/unet.engine",
        "report": "engines/x/unet.json",
        "key": "0",
    } | changed
    engine = Engine(**values)  # type: ignore[arg-type]
    path = folder / engine.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    manifest = minimal_manifest(files={engine.file: FileEntry(len(content), "0")}, engines=(engine,))
    return Bundle(folder, manifest), engine


def verdict(
    folder: Path, content: bytes, here: Gpu | None = ADA, installed: str | None = VERSION, **changed: object
) -> str | None:
    found, engine = bundle(folder, content, **changed)
    return engine_check.why_not(found, engine, here, installed)


def test_a_header_says_version_size_and_targets(tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(plan(bits=0b11110))
    header = engine_check.read_header(tmp_path / "plan", "tensorrt_rtx")
    assert header == engine_check.Header(VERSION, 136, ("sm_80", "sm_86", "sm_89", "sm_120"))


def test_an_engine_for_this_gpu_and_version_runs(tmp_path: Path) -> None:
    assert verdict(tmp_path, plan()) is None
    assert verdict(tmp_path, plan(bits=0b11110), targets=("sm_80", "sm_86", "sm_89", "sm_120")) is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (plan()[:-1], r"is damaged: it should have 136 bytes, and has 135\. Build it again"),
        (plan() + b"x", r"is damaged: it should have 136 bytes, and has 137"),
        (b"", r"is no engine: it has only 0 bytes"),
        (b"vtrt", r"is no engine: it has only 4 bytes"),
        (b"PK\3\4" + plan()[4:], r"is no TensorRT-RTX engine, or its beginning is damaged"),
    ],
)
def test_a_damaged_plan_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    found = verdict(tmp_path, content)
    assert found is not None
    assert re.search(said, found)


@pytest.mark.parametrize(
    ("here", "installed", "said"),
    [
        (ADA, "1.6.1.120", "it was built by TensorRT-RTX 1.7.1.116, and 1.6.1.120 is installed"),
        (ADA, None, "TensorRT-RTX is not installed; install it with: pip install 'vsr-trt[rtx]'"),
        (None, VERSION, "there is no GPU in this machine"),
        (Gpu("A10", "sm_86", 1, "13.0"), VERSION, "it is for sm_89, and the GPU is A10 (sm_86)"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, here: Gpu | None, installed: str | None, said: str
) -> None:
    found = verdict(tmp_path, plan(), here, installed)
    assert found is not None
    assert said in found


def test_the_plan_is_believed_more_than_the_manifest(tmp_path: Path) -> None:
    found = verdict(tmp_path, plan(bits=4), targets=("sm_89",))
    assert found == "it is for sm_86, and the GPU is NVIDIA GeForce RTX 4090 (sm_89)"


def test_tensorrt_plans_are_tuned_on_one_card(tmp_path: Path) -> None:
    content = plan(version=(11, 4, 0, 106), magic=b"ftrt")
    same = {"backend": "tensorrt", "version": "11.4.0.106", "device": ADA.name}
    assert verdict(tmp_path, content, installed="11.4.0.106", **same) is None
    other = verdict(tmp_path, content, installed="11.4.0.106", **(same | {"device": "NVIDIA L4"}))
    assert other == "it was tuned on NVIDIA L4, and the GPU is NVIDIA GeForce RTX 4090 (sm_89)"
    garbage = verdict(tmp_path, b"garbage" * 20, installed="11.4.0.106", **same)
    assert garbage is not None
    assert "is no TensorRT engine, or its beginning is damaged" in garbage


@pytest.mark.parametrize(
    ("installed", "flags", "runs"),
    [
        ("11.4.0.106", (), True),
        ("11.5.0.1", (), False),
        ("11.5.0.1", ("compatible",), True),
        ("12.0.0.1", ("compatible",), True),
        ("13.0.0.1", ("compatible",), False),
        ("11.3.9.9", ("compatible",), False),
        ("10.16.0.1", ("compatible",), False),
    ],
)
def test_compatible_plans_run_on_later_versions_only(
    tmp_path: Path, installed: str, flags: tuple[str, ...], runs: bool
) -> None:
    content = plan(version=(11, 4, 0, 106), magic=b"ftrt")
    found = verdict(tmp_path, content, installed=installed, backend="tensorrt", flags=flags)
    assert (found is None) == runs
    assert found is None or f"built by TensorRT 11.4.0.106, and {installed} is installed" in found


def test_plans_of_another_system_and_without_weights_do_not_run(tmp_path: Path) -> None:
    content = plan(version=(11, 4, 0, 106), magic=b"ftrt")
    values = {"backend": "tensorrt", "installed": "11.4.0.106"}
    other = verdict(tmp_path, content, platform="plan9-vax", **values)
    assert other is not None
    assert other.startswith("it is for plan9-vax, and this machine is ")
    assert verdict(tmp_path, content, platform=engine_check.this_platform(), **values) is None
    stripped = verdict(tmp_path, content, flags=("strip",), **values)
    assert stripped == "it has no weights; put them in with engines.tensorrt.refit"


def test_portable_tensorrt_plans_run_on_later_generations(tmp_path: Path) -> None:
    content = plan(version=(11, 4, 0, 106), magic=b"ftrt")
    values = {"backend": "tensorrt", "version": "11.4.0.106", "target": "portable", "targets": ("sm_80",)}
    assert verdict(tmp_path, content, installed="11.4.0.106", **values) is None
    turing = Gpu("T4", "sm_75", 1, "13.0")
    found = verdict(tmp_path, content, turing, installed="11.4.0.106", **values)
    assert found == "it is for sm_80 and newer, and the GPU is T4 (sm_75)"


def test_doctor_misses_onnx_runtime_only_where_it_would_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    assert any("onnxruntime is not installed" in problem for problem in doctor.diagnose(None).problems)
    monkeypatch.setattr(
        "vsr_trt.runtime.backends.choose_backend", lambda *given: ("tensorrt_rtx", "the bundle has engines")
    )
    assert not any("not installed" in problem for problem in doctor.diagnose(None).problems)


def test_doctor_lists_every_engine_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, engine = bundle(tmp_path, plan())
    monkeypatch.setattr(gpu, "detect", lambda: None)
    monkeypatch.setattr(engine_check, "installed_version", lambda backend: VERSION)
    (one,) = doctor.judge_engines(found)
    assert one.file == engine.file
    assert one.why_not is not None
    assert one.why_not.startswith("there is no GPU in this machine")
    monkeypatch.setattr(gpu, "detect", lambda: ADA)
    (one,) = doctor.judge_engines(found)
    assert one.why_not is None


@pytest.mark.parametrize("flags", [(), (STRIPS,)])
def test_doctor_judges_optimised_graphs_of_every_form(tmp_path: Path, flags: tuple[str, ...]) -> None:
    version = engine_check.installed_version("onnxruntime")
    assert version is not None
    values = {"target": cpu_target(), "version": version, "precision": "fp32", "flags": flags}
    mine, other = (small_bundle.engine("a.onnx", **(values | changes)) for changes in ({}, {"version": "0"}))
    opened = dataclasses.replace(small_bundle.make(tmp_path / "bundle").manifest, engines=(mine, other))
    verdicts = doctor.judge_engines(Bundle(tmp_path, opened))
    assert [verdict.why_not is None for verdict in verdicts] == [True, False]
    assert "is for ONNX Runtime 0, installed is" in str(verdicts[1].why_not)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be read"):
        engine_check.read_header(tmp_path / "nothing", "tensorrt_rtx")


def test_versions_of_installed_libraries() -> None:
    assert engine_check.installed_version("onnxruntime") is not None
