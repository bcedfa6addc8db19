"""Which backend and which engines are taken, and what is said where none can be."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from helpers.stages import dloral_manifest

from vsr_trt.runtime import backends
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Engine
from vsr_trt.runtime.bundle.options import Settings
from vsr_trt.runtime.cuda import start
from vsr_trt.runtime.cuda.start import usable
from vsr_trt.runtime.errors import DeviceError, EngineError
from vsr_trt.runtime.machine import gpu
from vsr_trt.runtime.machine.gpu import Gpu

HERE = Gpu("RTX 4090", "sm_89", 24 << 30, "13.0")


def engine(file: str, backend: str = "tensorrt_rtx", flags: tuple[str, ...] = ()) -> Engine:
    return Engine("cfr", backend, "1", "sm_89", ("sm_89",), None, "fp16", {}, flags, file, file, file)


def bundle(*engines: Engine) -> Bundle:
    return Bundle(Path("/b"), dataclasses.replace(dloral_manifest(), engines=engines, kernels=()))


def runs(bundle: Bundle, engine: Engine, gpu: Gpu, installed: str | None) -> str | None:
    return None if "old" not in engine.file else "it was built by TensorRT-RTX 0.9"


def test_engines_that_run_here_are_taken() -> None:
    opened = bundle(engine("a"), engine("old"), engine("other", "tensorrt"))
    assert [found.file for found in usable(opened, "tensorrt_rtx", HERE, runs)] == ["a"]


def test_where_none_runs_each_reason_is_given_and_the_command() -> None:
    with pytest.raises(EngineError) as caught:
        usable(bundle(engine("old-1"), engine("old-2")), "tensorrt_rtx", HERE, runs)
    text = str(caught.value)
    assert "no TensorRT-RTX engine that runs on RTX 4090 (sm_89): old-1: it was built by" in text
    assert "old-2" in text
    assert "vsr-build engines /b --backend tensorrt-rtx --target sm_89 --size WIDTHxHEIGHT" in text
    with pytest.raises(EngineError, match=r"no TensorRT engine that runs on .*\)\. Build them"):
        usable(bundle(), "tensorrt", HERE, runs)


def test_auto_takes_engines_where_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "detect", lambda: None)
    monkeypatch.setattr(gpu, "why_none", lambda: "no CUDA driver")
    assert backends.choose_backend("auto") == ("onnxruntime-cpu", "there is no GPU (no CUDA driver)")
    monkeypatch.setattr(gpu, "detect", lambda: HERE)
    monkeypatch.setattr("vsr_trt.runtime.cuda.start.usable", lambda b, name, g: usable(b, name, g, runs))
    assert backends.choose_backend("auto")[0] == "onnxruntime-cpu"
    assert backends.choose_backend("auto", bundle(engine("a"))) == (
        "tensorrt_rtx",
        "the bundle has engines for RTX 4090 (sm_89)",
    )
    assert backends.choose_backend("auto", bundle(engine("b", "tensorrt")))[0] == "tensorrt"
    assert backends.choose_backend("auto", bundle(engine("old"))) == (
        "onnxruntime-cpu",
        "the bundle has no engines that run on RTX 4090 (sm_89)",
    )
    assert backends.choose_backend("tensorrt", None) == ("tensorrt", "as asked")


def test_without_a_gpu_the_backend_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "library", lambda backend: None)
    monkeypatch.setattr(start, "detect", lambda: None)
    monkeypatch.setattr(start, "why_none", lambda: "no CUDA driver")
    with pytest.raises(DeviceError, match="tensorrt_rtx needs an NVIDIA GPU: no CUDA driver"):
        start.open_device(bundle(), "tensorrt_rtx")


def test_without_the_library_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(DeviceError, match=r"TensorRT is not installed. .*pip install 'vsr-trt\[gpu\]'"):
        start.open_device(bundle(), "tensorrt")


def test_without_the_bindings_their_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(start, "library", lambda backend: None)
    monkeypatch.setattr(start, "detect", lambda: pytest.fail("a GPU was looked for"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(DeviceError, match=r"cuda-python is not installed.*pip install 'vsr-trt\[gpu\]'"):
        backends.check_backend("tensorrt", bundle(), Settings())
