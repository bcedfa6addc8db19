"""The CUDA device on a GPU: engines of the golden model, chained; everything that no machine without one can show."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import processes
from helpers.golden import psnr

from vsr_trt.runtime import Restorer
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.cuda.driver import Context, Driver, bindings
from vsr_trt.runtime.cuda.start import BACKENDS, open_device
from vsr_trt.runtime.devices.runner import Runner
from vsr_trt.runtime.devices.timeline import Span
from vsr_trt.runtime.machine import gpu
from vsr_trt.runtime.media.resample import resize_bicubic
from vsr_trt.runtime.schedule.build import build
from vsr_trt.runtime.schedule.events import derive

SLACK = 64 * 2**20  # bytes that the driver takes for itself
ROOT = Path(__file__).parents[2]
SIZES = ("512x512", "1280x640")  # the second is cut into tiles


@pytest.fixture(
    scope="module",
    params=[
        (name, operator)
        for name in BACKENDS
        if importlib.util.find_spec(name)
        for operator in ("inside", "kernel")
    ],
    ids="-".join,
)
def engines(
    request: pytest.FixtureRequest, golden_bundle_fp16: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A bundle with engines for the GPU in this machine, and the backend that runs them."""
    backend, operator = request.param
    bundle = Path(shutil.copytree(golden_bundle_fp16, tmp_path_factory.mktemp(backend) / "bundle"))
    here = gpu.detect()
    assert here is not None
    sizes = [word for size in SIZES for word in ("--size", size)]
    command = [ROOT / "build.py", "engines", bundle, "--backend", backend.replace("_", "-"), *sizes]
    command += ["--operator", operator, "--cache-dir", tmp_path_factory.mktemp("cache")]
    if backend == "tensorrt_rtx":
        command += ["--target", here.capability]
    done = processes.run([sys.executable, *command])
    if done.returncode == 10 and "--target" in command:
        pytest.skip(f"not run: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return bundle, backend


@pytest.fixture(scope="module")
def wide(golden_frames: list[np.ndarray]) -> list[np.ndarray]:
    return [resize_bicubic(frame, 160, 320) for frame in golden_frames]


def test_the_picture_is_the_cpus(engines: tuple, golden_frames: list, wide: list) -> None:
    bundle, backend = engines
    for frames in (golden_frames, wide):
        with Restorer(bundle, backend=backend) as ours, Restorer(bundle, backend="onnxruntime-cpu") as cpu:
            for got, expected in zip(ours.restore(frames), cpu.restore(frames), strict=True):
                assert psnr(got, expected) >= 35


@pytest.mark.parametrize("slots", [2, 3])
def test_slots_change_no_byte(engines: tuple, golden_frames: list, wide: list, slots: int) -> None:
    bundle, backend = engines
    for frames in (golden_frames * 3, wide * 2):
        with Restorer(bundle, backend=backend) as one, Restorer(bundle, backend=backend, slots=slots) as many:
            for got, expected in zip(many.restore(frames), one.restore(frames), strict=True):
                assert np.array_equal(got, expected)


def test_graphs_change_no_byte(engines: tuple, wide: list) -> None:
    results = {}
    for graphs in (False, True):
        results[graphs] = _run(engines, wide * 3, graphs=graphs)
    assert all(map(np.array_equal, results[False], results[True]))


def _run(engines: tuple, frames: list, then: Callable = lambda device: None, **settings: object) -> list:
    path, backend = engines
    bundle = Bundle.open(path)
    device = open_device(bundle, backend, **settings)
    try:
        height, width = frames[0].shape[:2]
        arranged = device.arrange(height, width, Options())
        schedule = build(bundle.manifest, height, width, arranged.options, 2, arranged.batches)
        arranged.open(schedule, derive(schedule), bundle.constants(), None)
        runner = Runner(device, 2, 60)
        results = [result for frame in frames for result in runner.push(frame)] + runner.flush()
        then(device)
        return results
    finally:
        device.close()


def test_segments_are_captured(engines: tuple, wide: list) -> None:
    def look(device: object) -> None:
        assert device._opened._capture, "capture failed; the log says why"
        assert all(len(slot.graphs) >= 3 for slot in device._opened._slots)

    _run(engines, wide * 3, look)


def test_memory_does_not_grow(engines: tuple, wide: list) -> None:
    driver = Driver(bindings())
    bundle, backend = engines
    with Restorer(bundle, backend=backend, slots=2) as restorer:
        list(restorer.restore(wide * 2))
        before = free(driver)
        list(restorer.restore(wide * 20))
        assert free(driver) >= before - SLACK


def test_everything_is_given_back(engines: tuple, wide: list) -> None:
    driver = Driver(bindings())
    bundle, backend = engines
    context = Context(driver)  # it stays, with what the driver keeps in it
    try:
        with Restorer(bundle, backend=backend) as restorer:
            list(restorer.restore(wide[:1]))  # what libraries keep once
        before = free(driver)
        for _ in range(3):
            with Restorer(bundle, backend=backend, slots=2) as restorer:
                list(restorer.restore(wide))
        assert free(driver) >= before - SLACK
    finally:
        context.close()


def free(driver: Driver) -> int:
    """Bytes of the GPU that are free, in the context that Restorers use; it is current only while they are called."""
    context = Context(driver)
    try:
        with context.current():
            return int(driver.call("cuMemGetInfo")[0])
    finally:
        context.close()


def test_two_restorers_share_weights(engines: tuple, golden_frames: list) -> None:
    bundle, backend = engines
    with Restorer(bundle, backend=backend) as one, Restorer(bundle, backend=backend) as two:
        expected = list(one.restore(golden_frames))
        assert all(map(np.array_equal, two.restore(golden_frames), expected))
        assert all(one._device._engines[n][1] is two._device._engines[n][1] for n in one._device._engines)


@pytest.mark.usefixtures("torch_on_gpu")
def test_frames_of_torch_go_in_and_out_without_a_copy(engines: tuple, golden_frames: list) -> None:
    bundle, backend = engines
    with Restorer(bundle, backend=backend) as restorer:
        expected = list(restorer.restore(golden_frames))
    stream = torch.cuda.Stream()
    with (
        torch.cuda.stream(stream),
        Restorer(bundle, backend=backend, slots=2, stream=stream, device_results=True) as restorer,
    ):
        got = []
        frames = [torch.from_numpy(frame).cuda(non_blocking=True) for frame in golden_frames]
        for frame in frames:
            got += [torch.from_dlpack(result).clone() for result in restorer.push(frame)]
        got += [torch.from_dlpack(result).clone() for result in restorer.flush()]
        odd = torch.empty(frames[0].numel() + 3, dtype=torch.uint8, device="cuda")[3:].view(frames[0].shape)
        odd.copy_(frames[0])  # begins where engines cannot read
        restorer.reset()
        moved = [torch.from_dlpack(r).clone() for r in [*restorer.push(odd), *restorer.flush()]]
        assert torch.equal(moved[0], got[0])
        restorer.reset()
        again = [torch.as_tensor(r, device="cuda").clone() for r in restorer.push(frames[0])]
        again += [torch.as_tensor(r, device="cuda").clone() for r in restorer.flush()]
    stream.synchronize()
    assert all(np.array_equal(one.cpu().numpy(), other) for one, other in zip(got, expected, strict=True))
    assert len(again) == 1


@pytest.mark.skipif(importlib.util.find_spec("pycuda") is None, reason="not run: pycuda is not installed")
def test_pycuda_brings_context_stream_and_frames(engines: tuple, golden_frames: list) -> None:
    import pycuda.autoprimaryctx
    import pycuda.driver
    from pycuda import gpuarray

    bundle, backend = engines
    with Restorer(bundle, backend=backend) as restorer:
        expected = list(restorer.restore(golden_frames[:2]))
    stream = pycuda.driver.Stream()
    with Restorer(bundle, backend=backend, stream=stream) as restorer:
        got = [r for f in golden_frames[:2] for r in restorer.push(gpuarray.to_gpu(f))] + restorer.flush()
    assert all(map(np.array_equal, got, expected))


def test_steps_are_timed(engines: tuple, wide: list) -> None:
    bundle, backend = engines
    spans: list[Span] = []
    with Restorer(bundle, backend=backend, slots=2, observer=spans.append) as restorer:
        list(restorer.restore(wide))
        stages = {stage.name for stage in restorer.manifest.stages}
        assert all(set(clock) == stages and min(clock.values()) > 0 for clock in restorer.timings())
    assert all(span.end > span.start for span in spans)
    frames = {span.frame for span in spans}
    assert frames == set(range(len(wide)))


def test_bench_on_the_gpu(engines: tuple, tmp_path: Path) -> None:
    bundle, backend = engines
    file, trace = tmp_path / "bench.json", tmp_path / "trace.json"
    command = [
        "-m",
        "runtime",
        "bench",
        "--bundle",
        bundle,
        "--size",
        "512x512",
        "--slots",
        2,
        "--seconds",
        1,
    ]
    command += ["--backend", backend, "--json", file, "--trace", trace]
    done = processes.run([sys.executable, *command], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    json.loads(trace.read_text())
    again = processes.run(
        [sys.executable, *command[:-4], "--compare", file, "--max-regression", 50], cwd=ROOT
    )
    assert again.returncode == 0, again.stderr


def test_the_cache_of_compiled_kernels_is_kept(engines: tuple, golden_frames: list, tmp_path: Path) -> None:
    bundle, backend = engines
    if backend != "tensorrt_rtx":
        pytest.skip("not run: TensorRT compiles nothing at run time")
    for _ in range(2):
        with Restorer(bundle, backend=backend, engine_cache=tmp_path) as restorer:
            list(restorer.restore(golden_frames[:1]))
        assert [path.suffix for path in tmp_path.iterdir()] == [".kernels"]
