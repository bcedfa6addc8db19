"""Targets, and the libraries behind them: what is asked for, what there is, what is said otherwise."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from vsr_trt.engines.tensorrt import library as libraries
from vsr_trt.engines.tensorrt import targets
from vsr_trt.engines.tensorrt.library import CompilerLibrary
from vsr_trt.engines.tensorrt.targets import Target
from vsr_trt.runtime.errors import EngineError, InputError
from vsr_trt.runtime.machine import gpu
from vsr_trt.runtime.machine.gpu import Gpu

ADA = Gpu("NVIDIA GeForce RTX 4090", "sm_89", 24 << 30, "13.0")
HOPPER = Gpu("NVIDIA H100 80GB HBM3", "sm_90", 80 << 30, "13.0")
RTX = sys.platform == "linux"


def module(**members: object) -> ModuleType:
    made = ModuleType("made_up")
    vars(made).update(members)
    return made


def rtx() -> CompilerLibrary:
    names = ("NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120")
    return CompilerLibrary(
        "tensorrt_rtx", module(ComputeCapability=SimpleNamespace(__members__=dict.fromkeys(names))), "1.7"
    )


def tensorrt() -> CompilerLibrary:
    return CompilerLibrary("tensorrt", module(), "11.4")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine without a GPU, to which one can be given."""
    monkeypatch.setattr(gpu, "detect", lambda: None)
    monkeypatch.setattr(gpu, "why_none", lambda: "no CUDA driver")
    return monkeypatch


def test_targets_without_a_gpu(machine: pytest.MonkeyPatch) -> None:
    found = targets.parse(["sm_86,sm_89", "portable"], rtx())
    assert found == [
        Target("sm_86", ("sm_86",)),
        Target("sm_89", ("sm_89",)),
        Target("portable", ("sm_80", "sm_86", "sm_89", "sm_120")),
    ]
    assert targets.parse([], rtx()) == [found[2]]
    assert targets.parse(["sm_89", "sm_89,"], rtx()) == [found[1]]


def test_the_gpu_in_the_machine(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(gpu, "detect", lambda: ADA)
    assert targets.parse(["this-gpu"], rtx()) == [Target("sm_89", ("sm_89",))]
    expected = Target("sm_89", ("sm_89",), ADA.name, ADA.driver)
    assert targets.parse([], tensorrt()) == [expected]
    assert targets.parse(["sm_89"], tensorrt()) == [expected]
    assert targets.parse(["portable"], tensorrt()) == [Target("portable", ("sm_80",), None, ADA.driver)]
    machine.setattr(gpu, "detect", lambda: Gpu("T4", "sm_75", 1, "13.0"))
    with pytest.raises(
        EngineError, match=r"T4 \(sm_75\), and portable engines of TensorRT are for sm_80 and newer"
    ):
        targets.parse(["portable"], tensorrt())


@pytest.mark.parametrize("name", ["sm_9", "89", "ampere", "sm_89a", "SM89"])
def test_an_unknown_target_is_refused_with_those_there_are(machine: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(
        InputError, match=rf"{name}: there is no such target; expected one of sm_75.*portable"
    ):
        targets.parse([name], rtx())


@pytest.mark.parametrize("name", ["sm_90", "sm_100"])
def test_data_centre_gpus_are_tensorrts(machine: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(EngineError, match=rf"has no target {name}; it builds for sm_75.*--backend tensorrt"):
        targets.parse([name], rtx())


def test_this_gpu_that_the_library_does_not_know(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(gpu, "detect", lambda: HOPPER)
    with pytest.raises(EngineError, match=r"has no target sm_90.*--backend tensorrt"):
        targets.parse(["this-gpu"], rtx())


def test_no_gpu_where_one_is_needed(machine: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match=r"no GPU in this machine \(no CUDA driver\).*sm_75"):
        targets.parse(["this-gpu"], rtx())
    with pytest.raises(EngineError, match=r"no GPU in this machine.*--backend tensorrt-rtx"):
        targets.parse([], tensorrt())


def test_another_gpu_than_the_one_in_the_machine(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(gpu, "detect", lambda: HOPPER)
    with pytest.raises(
        EngineError, match=r"only for the GPU in the machine, which is NVIDIA H100.*sm_89 GPU"
    ):
        targets.parse(["sm_89"], tensorrt())


@pytest.mark.parametrize(
    ("backend", "installed", "said"),
    [
        (
            "tensorrt_rtx",
            ["tensorrt_rtx_cu12_libs", "tensorrt_rtx_cu13_libs", "numpy"],
            "tensorrt_rtx_cu12 and tensorrt_rtx_cu13",
        ),
        ("tensorrt", ["tensorrt-cu12-libs", "tensorrt-cu13-libs"], "tensorrt-cu12 and tensorrt-cu13"),
    ],
)
def test_two_versions_at_once_are_refused(
    backend: libraries.Backend, installed: list[str], said: str
) -> None:
    with pytest.raises(EngineError, match=rf"{said}.*pip uninstall"):
        libraries.refuse_two_versions(backend, installed)


def test_one_version_and_the_other_product_are_fine() -> None:
    installed = ["tensorrt-rtx-cu13-libs", "tensorrt-cu13-bindings", "tensorrt_cu13_libs"]
    libraries.refuse_two_versions("tensorrt_rtx", installed)
    libraries.refuse_two_versions("tensorrt", installed)


def test_a_missing_library_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries.load.cache_clear()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"TensorRT cannot be loaded.*pip install 'vsr-trt\[gpu\]'"):
        libraries.load("tensorrt")


def test_bindings_without_their_libraries_are_missing_too(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries.load.cache_clear()
    monkeypatch.setitem(sys.modules, "tensorrt", module(__version__="11.4"))
    with pytest.raises(EngineError, match=r"TensorRT cannot be loaded.*Builder"):
        libraries.load("tensorrt")


@pytest.mark.skipif(not RTX, reason="the tests install TensorRT-RTX for Linux only")
def test_the_installed_library_has_its_targets() -> None:
    found = libraries.load("tensorrt_rtx")
    assert {"sm_75", "sm_80", "sm_86", "sm_89", "sm_120"} <= set(found.targets)
    assert "sm_90" not in found.targets
    assert found.network_flags() != 0
    with pytest.raises(EngineError, match="no builder flag NO_SUCH_FLAG"):
        found.builder_flag("NO_SUCH_FLAG")


def test_flags_are_asked_of_the_module() -> None:
    one, two = SimpleNamespace(STRONGLY_TYPED=1, PREFER_AOT_PYTHON_PLUGINS=3), SimpleNamespace()
    flags = [
        CompilerLibrary("tensorrt", module(NetworkDefinitionCreationFlag=kind), "x").network_flags()
        for kind in (one, two)
    ]
    assert flags == [0b1010, 0]
