"""Restores frames through the real cuda-python on the stub driver: run by tests/runtime/test_stub_driver.py."""

from __future__ import annotations

import hashlib
import json
import sys
import types
from pathlib import Path

import numpy as np
from cuda.bindings import driver
from helpers import fake_engines
from helpers.fake_gpu import Cheap, FakeTensorRT
from helpers.stages import dloral_manifest

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.cuda.device import CudaDevice
from vsr_trt.runtime.cuda.driver import Driver
from vsr_trt.runtime.devices.in_order import Pipeline
from vsr_trt.runtime.devices.runner import Runner
from vsr_trt.runtime.machine import gpu
from vsr_trt.runtime.schedule.build import build
from vsr_trt.runtime.schedule.engine_choice import EngineChoice
from vsr_trt.runtime.schedule.events import derive

OPTIONS = Options(tiles={"latent": 64, "vae": 64}, overlaps={"latent": 16, "vae": 8}, statistics="tile")
SIZE = (136, 200)


def main(folder: Path, graphs: bool) -> None:
    """Prints what the driver says of the GPU, and hashes of frames by the device and on the CPU."""
    bundle = Bundle(folder, fake_engines.add(folder, dloral_manifest()))
    records = {record.network: record for record in bundle.manifest.engines}
    networks = set(OPTIONS.networks(bundle.manifest))
    choice = EngineChoice(OPTIONS, {name: records[name] for name in networks}, {})
    at_once = types.SimpleNamespace(_work=lambda stream, work: work())
    trt = FakeTensorRT(bundle.manifest, Cheap(bundle.manifest), at_once)  # type: ignore[arg-type]
    prompt = {"prompt": np.random.default_rng(0).standard_normal((77, 32)).astype(np.float32)}
    device = CudaDevice(
        bundle, "tensorrt_rtx", trt, Driver(driver), "sm_89", lambda *_: choice, graphs=graphs
    )
    schedule = build(bundle.manifest, *SIZE, OPTIONS, 2)
    device.arrange(*SIZE, OPTIONS).open(schedule, derive(schedule), prompt, None)
    runner = Runner(device, 2, timeout=600)
    rng = np.random.default_rng(5)
    frames = [rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8) for _ in range(3)]
    results = [result for frame in frames for result in runner.push(frame)] + runner.flush()
    device.close()
    pipeline = Pipeline(bundle.manifest, Cheap(bundle.manifest), OPTIONS, prompt)
    expected = [pipeline.run(frame)[0] for frame in frames]
    hashes = [[hashlib.sha256(one.tobytes()).hexdigest() for one in many] for many in (results, expected)]
    print(json.dumps({"gpu": str(gpu.detect()), "got": hashes[0], "expected": hashes[1]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "graphs")
