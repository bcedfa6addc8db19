"""From `build.py engines` to the runtime: real plans, their records, the choice among them, the chain.

The plans are TensorRT-RTX's own, chosen by the runtime as on a machine with the GPU that they are for. Only what a GPU
would compute is computed by ONNX Runtime and numpy, in the memory and at the addresses that the device gives.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from helpers.building import build, copy_of, rtx, session_cache
from helpers.fake_gpu import FakeDriver, FakeTensorRT, array_at
from helpers.golden import psnr
from helpers.processes import GUARD

from vsr_trt.kernels.gated_topk.fold import FoldedAttention
from vsr_trt.kernels.gated_topk.reference import gated_topk_attention
from vsr_trt.runtime import Restorer
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.cuda import engines as loaded_engines
from vsr_trt.runtime.cuda import start
from vsr_trt.runtime.errors import EngineError
from vsr_trt.runtime.machine.gpu import Gpu
from vsr_trt.runtime.onnxruntime.cpu import CpuNetworks

RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", "sm_89", 24 << 30, "13.0")


def attend(
    current: int, previous: int, m: int, p: int, bias: int, heads: int, positions: int, k: int, fused: int
) -> None:
    side = int(positions**0.5)
    z, warped = (array_at(address, (1, 4, side, side), np.float32) for address in (current, previous))
    folded = FoldedAttention(
        array_at(m, (heads, 5, 5), np.float32),
        array_at(p, (heads, 4, 5), np.float32),
        array_at(bias, (4,), np.float32),
    )
    array_at(fused, (1, 4, side, side), np.float32)[...] = gated_topk_attention(z, warped, folded)


@pytest.mark.thorough
@rtx
@pytest.mark.parametrize("operator", ["inside", pytest.param("kernel", marks=pytest.mark.full_size)])
def test_engines_that_were_built_are_chosen_and_chained(
    golden_bundle_fp16: Path,
    golden_frames: list[np.ndarray],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    operator: str,
) -> None:
    bundle = copy_of(golden_bundle_fp16, tmp_path)
    build(bundle, session_cache(tmp_path_factory), operator=operator)
    opened = Bundle.open(bundle)
    plans = {
        hashlib.sha256(opened.file(record.file).read_bytes()).hexdigest(): record
        for record in opened.manifest.engines
    }

    def name_of(plan: bytes) -> str:
        return plans[hashlib.sha256(plan).hexdigest()].network

    driver = FakeDriver(kernels={"gated_topk_attention": attend})
    networks = CpuNetworks(opened)
    for network in opened.manifest.networks:
        networks.load(network)
    trt = FakeTensorRT(opened.manifest, networks, driver, name_of=name_of)
    loaded_engines._shared.clear()
    monkeypatch.setattr(start, "library", lambda backend: trt)
    monkeypatch.setattr(start, "bindings", lambda: driver)
    monkeypatch.setattr(start, "detect", lambda: RTX_4090)
    with (
        Restorer(
            bundle, backend="tensorrt_rtx", slots=2, engine_cache=tmp_path / "kept", timeout=GUARD
        ) as ours,
        Restorer(bundle, backend="onnxruntime-cpu") as cpu,
    ):
        frames = golden_frames[:3]
        for got, expected in zip(ours.restore(frames), cpu.restore(frames), strict=True):
            assert psnr(got, expected) > 55
        with pytest.raises(EngineError, match=r"no engine for sm_89 of .*--size 1280x720"):
            list(ours.restore([np.zeros((180, 320, 3), np.uint8)]))
    assert ("cfr" in trt.loaded) == (operator == "inside")
    assert ("cuLaunchKernel" in driver.names()) == (operator == "kernel")
    assert driver.live == []
    assert len(list((tmp_path / "kept").iterdir())) == 1
