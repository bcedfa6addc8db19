"""An engine of each library on a GPU, against ONNX Runtime, in memory of ours, as the runtime runs it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import pytest
from helpers.tiny_bundle import hashes, write_bundle, write_clip

from vsr_trt.engines.accuracy.calibrate import CalibrationRequest, calibrate
from vsr_trt.engines.accuracy.recording import read_clip
from vsr_trt.engines.accuracy.verify import verify
from vsr_trt.engines.tensorrt.builder import BuildOrder, compile_network
from vsr_trt.engines.tensorrt.library import load
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Engine, Profile
from vsr_trt.runtime.bundle.reading import read_manifest
from vsr_trt.runtime.errors import EngineError
from vsr_trt.runtime.machine import gpu


@pytest.mark.parametrize("backend", ["tensorrt_rtx", "tensorrt"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_agrees_with_onnx_runtime(
    tmp_path: Path, backend: Literal["tensorrt_rtx", "tensorrt"], precision: Literal["fp32", "fp16"]
) -> None:
    try:
        library = load(backend)
    except EngineError as error:
        pytest.skip(f"not run: {error}")
    found = gpu.detect()
    assert found is not None
    if library.targets and found.capability not in library.targets:
        pytest.skip(f"not run: {library.title} does not build for {found}")
    bundle, clip = write_bundle(tmp_path / "bundle"), read_clip(write_clip(tmp_path / "clip"), 2)
    calibrate(CalibrationRequest(bundle, clip))
    manifest = read_manifest(bundle)
    graph = manifest.networks["encode"].graph(precision, "fp32")
    assert graph is not None
    profiles = {"image": Profile((1, 3, 8, 8), (1, 3, 16, 16), (1, 3, 32, 32))}
    (bundle / "engines").mkdir()
    plan = bundle / "engines" / "encode.engine"
    compile_network(library, BuildOrder("encode", bundle / graph, (found.capability,), profiles), plan)
    engine = Engine(
        network="encode",
        backend=backend,
        version=library.version,
        target=found.capability,
        targets=(found.capability,),
        device=None,
        precision=precision,
        profiles=profiles,
        flags=(),
        file="engines/encode.engine",
        report="prompt.npy",
        key="00",
    )
    dataclasses.replace(manifest, engines=(engine,), files=hashes(bundle)).write(bundle)
    report = verify(Bundle.open(bundle), clip, None)
    (compared,) = report.networks[1].engines
    assert compared.difference.quantile < (5e-3 if precision == "fp16" else 1e-3)  # TF32 has 11 bits too
    assert report.engines.startswith(f"1 of 1 run on {found}")
    assert not report.failures
