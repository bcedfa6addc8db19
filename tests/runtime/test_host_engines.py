"""The CPU takes the graph that was optimised for it, says why it passes over others, and restores the same bytes."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from helpers.small_bundle import NETWORK, engine, make, picture, with_files

from vsr_trt.engines.onnxruntime.save import save_optimised
from vsr_trt.runtime import Restorer
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Engine
from vsr_trt.runtime.errors import DeviceError
from vsr_trt.runtime.machine.processor import cpu_target
from vsr_trt.runtime.onnxruntime.cpu import CpuNetworks, optimised_graph

VERSION = onnxruntime.__version__


def optimised(bundle: Bundle, **changes: str) -> Bundle:
    """Adds engines of all networks for this CPU; `changes` are of what the manifest says about them."""
    engines = []
    for name, record in bundle.manifest.networks.items():
        file = f"engines/onnxruntime-{cpu_target()}/{name}.onnx"
        (bundle.path / file).parent.mkdir(parents=True, exist_ok=True)
        graph = record.graphs.get("cpu", record.graphs["native"])
        save_optimised(bundle.file(graph), bundle.path / file)
        fits = {"version": VERSION, "target": cpu_target(), "precision": bundle.manifest.precision}
        engines.append(engine(file, name, **(fits | changes)))
    return with_files(bundle.path, engines=tuple(engines))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make(tmp_path / "bundle")


def test_the_engine_is_loaded_as_it_is(
    bundle: Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = CpuNetworks(bundle)
    plain.load(NETWORK)
    with_engine = optimised(bundle)
    asked = []
    make_session = onnxruntime.InferenceSession

    def watch(path: Path, options: onnxruntime.SessionOptions, **named: object) -> object:
        asked.append((path.relative_to(bundle.path).as_posix(), options.graph_optimization_level))
        return make_session(path, options, **named)

    monkeypatch.setattr(onnxruntime, "InferenceSession", watch)
    device = CpuNetworks(with_engine)
    with caplog.at_level(logging.INFO, "vsr_trt.runtime.onnxruntime.cpu"):
        device.load(NETWORK)
    file = f"engines/onnxruntime-{cpu_target()}/net.onnx"
    assert asked == [(file, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)]
    assert caplog.messages == [f"net: takes {file}"]
    got, expected = device.run(NETWORK, picture()), plain.run(NETWORK, picture())
    assert np.array_equal(got["y"], expected["y"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"target": "cpu-other"}, f"is for cpu-other, this CPU is {cpu_target()}"),
        ({"version": "1.0.0"}, f"is for ONNX Runtime 1.0.0, installed is {VERSION}"),
        ({"precision": "fp16"}, "is fp16, the bundle is fp32"),
    ],
)
def test_an_engine_of_another_kind_is_passed_over_and_the_log_says_why(
    bundle: Bundle, caplog: pytest.LogCaptureFixture, changes: dict[str, str], reason: str
) -> None:
    other = optimised(bundle, **changes)
    for file in (bundle.path / other.manifest.engines[0].file,):
        file.write_bytes(b"it would not load")
    device = CpuNetworks(other)
    with caplog.at_level(logging.INFO, "vsr_trt.runtime.onnxruntime.cpu"):
        device.load(NETWORK)
    assert caplog.messages[0].endswith(reason)
    assert caplog.messages[1] == "net: takes the network's graph"
    assert device.run(NETWORK, picture())["y"].shape == (1, 3, 32, 40)


def test_an_engine_that_does_not_load_names_the_mend(bundle: Bundle) -> None:
    damaged = optimised(bundle)
    (bundle.path / damaged.manifest.engines[0].file).write_bytes(b"abc")
    with pytest.raises(
        DeviceError, match=r"cannot load .*vsr-build engines .* --backend onnxruntime --force"
    ):
        CpuNetworks(damaged).load(NETWORK)


def test_the_choice_depends_on_all_of_it() -> None:
    fits = {"version": "1.32.0", "target": "cpu-avx2", "precision": "fp32"}
    mine = engine("mine.onnx", **fits)
    wrong: list[Engine] = [
        dataclasses.replace(mine, file=f"{name}.onnx", **{name: value})
        for name, value in {"version": "1.31.0", "target": "cpu-avx512", "precision": "fp16"}.items()
    ]
    foreign = [
        dataclasses.replace(mine, network="unet"),
        dataclasses.replace(mine, backend="tensorrt", target="sm_89"),
    ]
    found = optimised_graph([*wrong, *foreign, mine], NETWORK, "cpu-avx2", "1.32.0", "fp32")
    assert found.engine is mine
    assert [reason.split()[0] for reason in found.passed_over] == [one.file for one in wrong]
    none = optimised_graph([*wrong, *foreign], NETWORK, "cpu-avx2", "1.32.0", "fp32")
    assert none.engine is None
    assert len(none.passed_over) == 3  # a GPU's engine is not worth a word on the CPU


@pytest.mark.thorough
def test_a_bundle_with_engines_restores_the_same_bytes(
    golden_bundle: Path, golden_frames: list[np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Restorer(golden_bundle) as restorer:
        expected = list(restorer.restore(golden_frames[:2]))
    shutil.copytree(golden_bundle, tmp_path / "bundle")
    optimised(Bundle.open(tmp_path / "bundle"))
    with (
        caplog.at_level(logging.INFO, "vsr_trt.runtime.onnxruntime.cpu"),
        Restorer(tmp_path / "bundle") as restorer,
    ):
        got = list(restorer.restore(golden_frames[:2]))
    assert caplog.messages
    assert all("takes engines/" in message for message in caplog.messages)
    assert all(np.array_equal(one, other) for one, other in zip(got, expected, strict=True))
