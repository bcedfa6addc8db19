"""The CUDA device without a GPU: its calls, its resources, and what they compute (see fake_gpu)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import fake_engines
from helpers.fake_gpu import (
    ALLOCATING,
    RELEASES,
    SYNCHRONISING,
    Cheap,
    FakeDriver,
    FakeTensorRT,
    array_at,
    blend,
)
from helpers.matrix import matrix
from helpers.processes import GUARD
from helpers.stages import dloral_manifest

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import FileEntry, Kernel
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.cuda import engines
from vsr_trt.runtime.cuda import lanes as module
from vsr_trt.runtime.cuda.device import CudaDevice
from vsr_trt.runtime.cuda.driver import CudaError, Driver
from vsr_trt.runtime.cuda.interop import DeviceArray
from vsr_trt.runtime.devices.in_order import Pipeline
from vsr_trt.runtime.devices.runner import Runner
from vsr_trt.runtime.devices.timeline import Span
from vsr_trt.runtime.errors import DeviceError, EngineError, FrameError, InputError
from vsr_trt.runtime.schedule.build import build
from vsr_trt.runtime.schedule.engine_choice import EngineChoice
from vsr_trt.runtime.schedule.events import derive
from vsr_trt.runtime.schedule.parts import Part

PROMPT = {"prompt": np.random.default_rng(0).standard_normal((77, 32)).astype(np.float32)}
TILED = Options(tiles={"latent": 64, "vae": 64}, overlaps={"latent": 16, "vae": 8}, statistics="tile")
SMALL, LARGE = (128, 128), (136, 200)


@pytest.fixture(autouse=True)
def _no_engines_of_other_tests() -> None:
    engines._shared.clear()
    engines._libraries.clear()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Engines that are the names of their networks, and the blend kernel's metadata for sm_89."""
    manifest = fake_engines.add(tmp_path, dloral_manifest(), ("sm_80", "sm_120"))
    return Bundle(tmp_path, manifest)


class Gpu:
    """A device on a fake GPU, opened for one size."""

    def __init__(
        self,
        bundle: Bundle,
        size: tuple[int, int] = SMALL,
        slots: int = 2,
        options: Options = TILED,
        observer: Any = None,
        batches: dict[str, int] | None = None,
        **settings: Any,
    ) -> None:
        fail = settings.pop("fail", None)
        free = settings.pop("free", 1 << 40)
        seed = settings.pop("seed", 0)
        self.driver = FakeDriver(fail, {"blend_tiles": blend}, free, seed=seed)
        self.trt = FakeTensorRT(bundle.manifest, Cheap(bundle.manifest), self.driver)
        self.schedule = build(bundle.manifest, *size, options, slots, batches)
        self.events = derive(self.schedule)
        self.device = CudaDevice(
            bundle, "tensorrt_rtx", self.trt, Driver(self.driver), "sm_89", choose(bundle), **settings
        )
        self.observer = observer

    def open(self) -> Runner:
        self.device.arrange(*SMALL, TILED).open(self.schedule, self.events, PROMPT, self.observer)
        return Runner(self.device, self.schedule.slots, timeout=GUARD)


def choose(bundle: Bundle) -> Any:
    def pick(height: int, width: int, options: Options, part: Part | None) -> EngineChoice:
        needed = set(options.networks(bundle.manifest))
        records = {record.network: record for record in bundle.manifest.engines if record.network in needed}
        return EngineChoice(options, records, {})

    return pick


def clip(size: tuple[int, int], count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]


def expected(bundle: Bundle, frames: list[np.ndarray], options: Options) -> list[np.ndarray]:
    pipeline = Pipeline(bundle.manifest, Cheap(bundle.manifest), options, PROMPT)
    return [pipeline.run(frame)[0] for frame in frames]


def run(runner: Runner, frames: list[np.ndarray]) -> list[np.ndarray]:
    return [result for frame in frames for result in runner.push(frame)] + runner.flush()


@pytest.mark.parametrize(
    ("size", "graphs", "slots"),
    matrix(
        [SMALL, LARGE],
        [False, True],
        [1, 2, 3],
        fast=lambda size, graphs, slots: (size == SMALL) == graphs or (slots == 2 and graphs),
    ),
)
def test_the_same_bytes_as_on_the_cpu(bundle: Bundle, size: tuple, graphs: bool, slots: int) -> None:
    """Addresses, parts of batches, cuts, blends, what passes from frame to frame, graphs."""
    gpu, frames = Gpu(bundle, size, slots, graphs=graphs), clip(size, 3 * slots + 1)
    results = run(gpu.open(), frames)
    for got, wanted in zip(results, expected(bundle, frames, TILED), strict=True):
        assert np.array_equal(got, wanted)
    assert ("cuGraphLaunch" in gpu.driver.names()) == graphs
    gpu.device.close()
    assert gpu.driver.live == []
    assert gpu.driver.pushed == 0


def test_batches_of_tiles_give_the_same(bundle: Bundle) -> None:
    frames = clip(LARGE, 3)
    gpu = Gpu(bundle, LARGE, 2, batches={"unet": 2, "vae_decoder": 3})
    results = run(gpu.open(), frames)
    for got, wanted in zip(results, expected(bundle, frames, TILED), strict=True):
        assert np.array_equal(got, wanted)


def test_a_steady_frame_allocates_nothing_and_waits_for_nothing_but_its_result(bundle: Bundle) -> None:
    gpu, frames = Gpu(bundle, LARGE, 2), clip(LARGE, 8)
    runner = gpu.open()
    for frame in frames[:5]:
        runner.push(frame)
    before = len(gpu.driver.calls)
    for frame in frames[5:]:
        runner.push(frame)
    asking = ("cuEventQuery", "cuCtxPushCurrent", "cuCtxPopCurrent")  # as often as it takes
    names = [name for name, _ in gpu.driver.calls[before:] if name not in asking]
    assert not set(names) & (ALLOCATING | SYNCHRONISING | set(RELEASES) | set(RELEASES.values()))
    (height, width), steady = LARGE, gpu.driver.calls[before:]
    uploads = [arguments[2] for name, arguments in steady if name == "cuMemcpyHtoDAsync"]
    downloads = [arguments[2] for name, arguments in steady if name == "cuMemcpyDtoHAsync"]
    assert uploads == [height * width * 3] * 3
    assert downloads == [4 * height * 4 * width * 3] * 3
    per_frame = names[: len(names) // 3]
    assert names == per_frame * 3, "every frame makes the same calls"
    waits = len([event for event in gpu.events if {event.before, event.after}.isdisjoint(HOST)])
    assert per_frame.count("cuStreamWaitEvent") == waits
    loose = {"preprocess", "postprocess_adain"}  # read and write what may be the caller's
    assert per_frame.count("cuGraphLaunch") >= 3
    assert per_frame.count("cuLaunchKernel") == 0, "kernels are in graphs"
    assert loose <= set(gpu.trt.loaded)


HOST = {"receive", "deliver"}


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.thorough) for seed in range(2, 6))]
)
def test_hostile_orders_of_streams_change_no_byte(bundle: Bundle, seed: int) -> None:
    gpu, frames = Gpu(bundle, SMALL, 3, seed=seed), clip(SMALL, 8)
    for got, wanted in zip(run(gpu.open(), frames), expected(bundle, frames, TILED), strict=True):
        assert np.array_equal(got, wanted)


def test_a_wait_that_is_left_out_changes_bytes(bundle: Bundle) -> None:
    """The fake GPU notices: each event of the schedule, not asked for, shows in some order."""
    frames = clip(SMALL, 6)
    wanted = expected(bundle, frames, TILED)
    own = [event for event in Gpu(bundle).events if {event.before, event.after}.isdisjoint(HOST)]
    for event in own:
        seen = False
        for seed in range(8):
            gpu = Gpu(bundle, SMALL, 2, seed=seed)
            gpu.events = tuple(other for other in gpu.events if other != event)
            results = run(gpu.open(), frames)
            seen = seen or not all(map(np.array_equal, results, wanted))
            gpu.device.close()
            if seen:
                break
        assert seen, f"nothing showed that {event} was missing"


def test_each_stream_does_what_its_lane_says(bundle: Bundle) -> None:
    """Who records and who waits: the events of the schedule, and no others."""
    gpu = Gpu(bundle, SMALL, 2, graphs=False)
    runner = gpu.open()
    streams = {int(stream): lane for lane, stream in gpu.device._opened._streams.items()}
    start = len(gpu.driver.calls)
    runner.push(clip(SMALL, 1)[0])
    recorded: dict[int, str] = {}
    waits = []
    for name, arguments in gpu.driver.calls[start:]:
        if name == "cuEventRecord":
            recorded[int(arguments[0])] = streams[int(arguments[1])]
        if name == "cuStreamWaitEvent":
            waits.append((recorded[int(arguments[1])], streams[int(arguments[0])]))
    lanes = {step.name: step.lane for step in gpu.schedule.steps}
    wanted = [
        (lanes[event.before], lanes[event.after])
        for event in gpu.events
        if {event.before, event.after}.isdisjoint(HOST)
    ]
    assert sorted(waits) == sorted(wanted)


class Idle(Cheap):
    """Networks that leave their results as they are."""

    def run(self, network: str, inputs: dict) -> dict:
        return {tensor.name: np.zeros(0) for tensor in self._manifest.networks[network].outputs}


@pytest.mark.thorough
@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.full_size)])
def test_whichever_call_fails_everything_is_given_back_once(
    bundle: Bundle, caplog: pytest.LogCaptureFixture, step: int
) -> None:
    """For every n, or each fifth: the n-th call fails; the error is told, and what was made is freed, each once."""
    calls = _whole_run(bundle, None)[0].names()
    total = len(calls)
    assert total > 150
    seldom = {index for index, name in enumerate(calls) if calls.count(name) <= 3}
    for number in sorted({*range(0, total, step), *seldom}):
        caplog.clear()
        driver, error, objects = _whole_run(bundle, number)
        name = driver.calls[number][0]
        failed = driver.calls[number][1]
        kept = [(RELEASES[name], int(failed[0]))] if name in RELEASES else []  # what it was to give back
        assert driver.live in ([], kept), f"call {number}, {name}: {driver.live}"
        assert not list(objects), f"call {number}, {name}: engines or contexts live on"
        if error is None and "CUDA graphs are not used" not in caplog.text:
            # while giving back it is logged; a query is made again at once, and a lost GPU answers so for ever
            assert name in {*RELEASES, "cuCtxPopCurrent", "cuStreamQuery", "cuEventQuery"}, (
                f"call {number}, {name}, failed and nobody was told"
            )


def _whole_run(bundle: Bundle, fail: int | None) -> tuple[FakeDriver, Exception | None, Any]:
    driver = FakeDriver(fail, {"blend_tiles": lambda *values: None})
    trt = FakeTensorRT(bundle.manifest, Idle(bundle.manifest), driver)
    schedule = build(bundle.manifest, *LARGE, TILED, 1)
    try:
        device = CudaDevice(bundle, "tensorrt_rtx", trt, Driver(driver), "sm_89", choose(bundle))
    except DeviceError as error:
        return driver, error, []
    told: Exception | None = None
    try:
        device.arrange(*LARGE, TILED).open(schedule, derive(schedule), PROMPT, None)
        run(Runner(device, 1, timeout=GUARD), [np.zeros((*LARGE, 3), np.uint8)] * 2)
    except DeviceError as error:
        told = error
    for _ in range(2):  # an error while closing is told; closing again must then be enough
        try:
            device.close()
        except DeviceError as error:
            told = told or error
    return driver, told, trt.objects  # while the error, and its traceback, are still held


def test_a_stage_that_does_not_start_is_named(bundle: Bundle) -> None:
    gpu, frames = Gpu(bundle, slots=3, graphs=False), clip(SMALL, 5)
    runner = gpu.open()
    results = runner.push(frames[0]) + runner.push(frames[1])
    gpu.trt.refuse = "vae_decoder"
    with pytest.raises(FrameError, match=r"frame 2: vae_decoder could not be started") as caught:
        runner.push(frames[2])
    assert caught.value.stage == "vae_decoder"
    assert len(results) + len(caught.value.results) == 2, "the frames before are delivered"


def test_a_frame_that_never_ends_is_timed_out(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = Gpu(bundle, slots=1)
    gpu.open()
    runner = Runner(gpu.device, 1, timeout=0.05)
    gpu.driver.stuck = True
    with pytest.raises(FrameError, match=r"frame 0: upload: it has not ended within 0.05 seconds"):
        runner.push(clip(SMALL, 1)[0])
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    gpu.device.close()  # a GPU that hangs is not waited for
    assert "its memory is lost" in caplog.text


def test_a_lost_gpu_is_told(bundle: Bundle) -> None:
    gpu = Gpu(bundle, slots=1)
    runner = gpu.open()
    query = gpu.driver.real.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    gpu.driver.cuEventQuery = lambda event: (query,)
    with pytest.raises(FrameError, match=r"the GPU was lost: CUDA answers CUDA_ERROR_ILLEGAL_ADDRESS"):
        runner.push(clip(SMALL, 1)[0])


def test_capture_that_fails_is_said_once_and_done_without(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    frames = clip(SMALL, 6)
    first = Gpu(bundle, slots=1)
    run(first.open(), frames)
    number = first.driver.names().index("cuGraphInstantiate")
    first.device.close()
    gpu = Gpu(bundle, slots=1, fail=number)
    results = run(gpu.open(), frames)
    assert all(map(np.array_equal, results, expected(bundle, frames, TILED)))
    assert gpu.driver.names().count("cuStreamBeginCapture") == 1
    assert "CUDA graphs are not used" in caplog.text
    assert caplog.text.count("CUDA graphs are not used") == 1


def test_too_little_memory_is_told_before_any_is_taken(bundle: Bundle) -> None:
    gpu = Gpu(bundle, free=1_000_000)
    with pytest.raises(DeviceError, match=r"GB of GPU memory are needed for 2 slots.*Use fewer slots"):
        gpu.open()
    assert "cuMemAlloc" not in gpu.driver.names()
    gpu.device.close()
    assert gpu.driver.live == []


def test_what_is_planned_is_what_is_allocated(bundle: Bundle) -> None:
    from vsr_trt.runtime.schedule.memory import add_up

    gpu = Gpu(bundle, LARGE, 3)
    gpu.open()
    told = add_up(gpu.schedule, dict.fromkeys(bundle.manifest.networks, 1000), {})
    allocated = sum(arguments[0] for name, arguments in gpu.driver.calls if name == "cuMemAlloc")
    pinned = sum(arguments[0] for name, arguments in gpu.driver.calls if name == "cuMemHostAlloc")
    assert pinned == told.pinned
    assert told.device <= allocated < told.device * 1.01 + 50_000, (
        "alignment and constants are all that is added"
    )


def test_another_size_takes_the_place_of_the_first(bundle: Bundle) -> None:
    gpu = Gpu(bundle, SMALL, 2)
    run(gpu.open(), clip(SMALL, 3))
    loaded, seconds = list(gpu.trt.loaded), dict(gpu.device.load_seconds)
    assert seconds.keys() == gpu.device._engines.keys()
    assert min(seconds.values()) > 0
    gpu.schedule = build(bundle.manifest, *LARGE, TILED, 2)
    gpu.events = derive(gpu.schedule)
    frames = clip(LARGE, 4)
    assert all(map(np.array_equal, run(gpu.open(), frames), expected(bundle, frames, TILED)))
    assert gpu.trt.loaded == loaded, "engines stay loaded"
    assert gpu.device.load_seconds == seconds
    gpu.device.close()
    assert gpu.driver.live == []


def test_nothing_waits_for_the_whole_context(bundle: Bundle) -> None:
    """What does is forbidden while anyone in the process captures a graph, and spoils that one's capture."""
    gpu = Gpu(bundle, SMALL, 2)
    run(gpu.open(), clip(SMALL, 3))
    gpu.device.close()
    waiting = {name for name in SYNCHRONISING if not name.startswith(("cuStream", "cuEvent"))}
    assert "cuCtxSynchronize" in waiting
    assert not waiting & set(gpu.driver.names())


def test_no_context_marks_its_layers_for_a_profiler(bundle: Bundle) -> None:
    """Ranges around every layer cost the host time in every frame."""
    gpu = Gpu(bundle, SMALL, 1)
    run(gpu.open(), clip(SMALL, 1))
    contexts = [found for found in gpu.trt.objects if hasattr(found, "execute_async_v3")]
    assert contexts
    assert all(found.nvtx_verbosity == gpu.trt.ProfilingVerbosity.NONE for found in contexts)
    gpu.device.close()


def test_two_devices_share_weights(bundle: Bundle) -> None:
    one = Gpu(bundle)
    one.open()
    two = Gpu(bundle)
    two.trt = one.trt
    two.device._trt = one.trt
    loaded = list(one.trt.loaded)
    two.open()
    assert one.trt.loaded == loaded
    assert one.device._engines["unet"][1] is two.device._engines["unet"][1]


def test_observed_steps_are_timed_on_their_streams(bundle: Bundle) -> None:
    spans: list[Span] = []
    gpu = Gpu(bundle, observer=spans.append)
    run(gpu.open(), clip(SMALL, 3))
    own = [step.name for step in gpu.schedule.steps if step.lane not in HOST]
    assert {span.step for span in spans} == set(own)
    assert all(span.end > span.start and span.enqueue > 0 for span in spans)
    assert {span.frame for span in spans} == {0, 1, 2}
    assert "cuGraphLaunch" not in gpu.driver.names()


def test_a_damaged_engine_is_told_with_its_reason(bundle: Bundle) -> None:
    (bundle.path / "engines" / "unet.engine").write_bytes(b"damaged")
    manifest = bundle.manifest
    files = manifest.files | {"engines/unet.engine": FileEntry(7, "other")}
    gpu = Gpu(Bundle(bundle.path, dataclasses.replace(manifest, files=files)))
    with pytest.raises(EngineError, match=r"unet\.engine cannot be loaded: magic tag does not match"):
        gpu.open()


def test_kernels_that_were_compiled_are_kept(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    named = tmp_path / "cache" / "kernels.bin"
    gpu = Gpu(bundle, cache=named)
    gpu.open()
    (file,) = named.parent.iterdir()  # before it is closed: a process that is killed keeps them
    assert (file.name[:8], file.suffix) == ("kernels-", ".bin")
    gpu.device.close()
    assert file.read_bytes() == b"compiled kernels"
    again = Gpu(bundle, cache=named)
    again.open()
    assert again.trt.caches == [b"compiled kernels"]
    changed = file.stat().st_mtime_ns
    again.device.close()
    assert file.stat().st_mtime_ns == changed, "nothing new, nothing written"
    file.write_bytes(b"cut")
    broken = Gpu(bundle, cache=named)
    broken.trt.damaged = True
    broken.open()  # what is refused, and said by the library as an error, stops no start
    broken.device.close()
    assert file.read_bytes() == b"compiled kernels"
    assert "it is thrown away and written again" in caplog.text


@pytest.mark.parametrize("status", ["CUDA_ERROR_INVALID_IMAGE", "CUDA_ERROR_NO_BINARY_FOR_GPU"])
def test_machine_code_that_the_driver_does_not_take_is_compiled_from_ptx(
    bundle: Bundle, status: str, caplog: pytest.LogCaptureFixture
) -> None:
    frames = clip(LARGE, 2)
    first = Gpu(bundle, LARGE, 1)
    first.open()
    number = first.driver.names().index("cuModuleLoadData")
    first.device.close()
    gpu = Gpu(bundle, LARGE, 1, fail=number)
    gpu.driver.status = status
    results = run(gpu.open(), frames)
    assert all(map(np.array_equal, results, expected(bundle, frames, TILED)))
    images = [arguments[0] for name, arguments in gpu.driver.calls if name == "cuModuleLoadData"]
    assert images == [b"machine code", b"text\0"]
    assert caplog.text.count("the driver does not take kernels/blend.cubin") == 1
    other = Gpu(bundle, LARGE, 1, fail=number)  # any other error is one
    with pytest.raises(CudaError, match="to cuModuleLoadData"):
        other.open()


def test_a_newer_gpu_gets_the_ptx(bundle: Bundle) -> None:
    gpu = Gpu(bundle, LARGE, 1)
    gpu.device._capability = "sm_130"
    gpu.open()
    images = [arguments[0] for name, arguments in gpu.driver.calls if name == "cuModuleLoadData"]
    assert images == [b"text\0"]


def test_other_engines_have_a_cache_of_their_own(bundle: Bundle, tmp_path: Path) -> None:
    """Two processes with other engines: none overwrites what the other has compiled."""
    named = tmp_path / "cache" / "kernels.bin"
    manifest = bundle.manifest
    file = next(engine.file for engine in manifest.engines if engine.network == "unet")
    files = manifest.files | {file: dataclasses.replace(manifest.files[file], sha256="0" * 64)}
    for one in (bundle, Bundle(bundle.path, dataclasses.replace(manifest, files=files))):
        gpu = Gpu(one, cache=named)
        gpu.open()
        gpu.device.close()
        engines._shared.clear()
    assert len(list(named.parent.iterdir())) == 2


def test_graphs_are_captured_before_the_first_frame(bundle: Bundle) -> None:
    gpu = Gpu(bundle, LARGE, 3)
    runner = gpu.open()
    captured = gpu.driver.names().count("cuStreamBeginCapture")
    assert captured == 3 * sum(segment.capture for segment in gpu.device._opened._segments)
    before = len(gpu.driver.calls)
    run(runner, clip(LARGE, 7))
    names = gpu.driver.names()[before:]
    assert "cuStreamBeginCapture" not in names
    assert names.count("cuGraphLaunch") == 7 * captured // 3
    gpu.device.close()
    released = [name for name in gpu.driver.names()[before:] if name.endswith(("Destroy", "Free"))]
    assert released.index("cuMemFree") > max(
        i for i, name in enumerate(released) if name == "cuGraphExecDestroy"
    )


def test_an_engine_that_cannot_be_captured_is_asked_first(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    frames = clip(SMALL, 4)
    gpu = Gpu(bundle, slots=2)
    gpu.trt.capturable = False
    results = run(gpu.open(), frames)
    assert all(map(np.array_equal, results, expected(bundle, frames, TILED)))
    assert "cuStreamBeginCapture" not in gpu.driver.names()
    assert "cannot be captured" in caplog.text


def test_an_enqueue_that_fails_in_a_capture_leaves_the_stream_as_it_was(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    frames = clip(LARGE, 3)
    first = Gpu(bundle, LARGE, 1)
    first.open()
    begin = first.driver.names().index("cuStreamBeginCapture")
    number = next(i for i, name in enumerate(first.driver.names()) if i > begin and name == "cuLaunchKernel")
    first.device.close()
    gpu = Gpu(bundle, LARGE, 1, fail=number)
    results = run(gpu.open(), frames)
    assert all(map(np.array_equal, results, expected(bundle, frames, TILED)))
    assert "CUDA graphs are not used" in caplog.text
    assert gpu.driver._capturing == {}


def test_engines_of_another_size_go_before_new_ones_come(bundle: Bundle) -> None:
    gpu = Gpu(bundle, SMALL, 1)
    gpu.open()
    manifest, alive = bundle.manifest, []
    other = "engines/other.engine"
    (bundle.path / other).write_bytes(b"unet")
    records = tuple(
        dataclasses.replace(record, file=other) if record.network == "unet" else record
        for record in manifest.engines
    )
    files = manifest.files | {other: FileEntry(4, "0" * 64)}
    loading = engines.share

    def share(*arguments: Any) -> Any:
        alive.append(sum(type(one).__name__ == "_Engine" for one in gpu.trt.objects))
        return loading(*arguments)

    former = {id(found[1]) for found in gpu.device._engines.values()}
    larger = Bundle(bundle.path, dataclasses.replace(manifest, files=files, engines=records))
    gpu.device._bundle, gpu.device._choose = larger, choose(larger)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vsr_trt.runtime.cuda.device.share", share)
        gpu.open()
    assert max(alive) <= len(former), "never one more than before"


MATRICES = np.arange(50, dtype=np.float32).reshape(2, 5, 5)


def with_kernel(bundle: Bundle, **changes: Any) -> Bundle:
    """The bundle with a kernel for the UNet, and without an engine of it."""
    manifest, files = bundle.manifest, dict(bundle.manifest.files)
    latent = ["pictures", 4, "positions"]
    shapes = {"a": latent, "b": latent, "text": ["tokens", "width"], "M": ["heads", 5, 5]}
    metadata = json.loads((bundle.path / manifest.kernels[0]).read_text()) | {
        "kernel": "mix",
        "grid": ["ceil(positions / 16)", "pictures", "1"],
        "shared_memory": 100_000,
        "arguments": [{"name": name, "type": "pointer", "shape": shape} for name, shape in shapes.items()]
        + [{"name": name, "type": "int32"} for name in ("heads", "pictures", "positions", "k")]
        + [{"name": "out", "type": "pointer", "shape": latent}],
    }
    np.save(bundle.path / "M.npy", MATRICES)
    (bundle.path / "kernels" / "mix.json").write_text(json.dumps(metadata))
    for name in ("M.npy", "kernels/mix.json"):
        files[name] = FileEntry.of(bundle.path / name)
    record = Kernel(
        ("kernels/mix.json",),
        {"a": "warped", "b": "fused", "text": "prompt", "out": "denoised"},
        {"M": "M.npy"},
        {"k": ("positions", 5000)},
    )
    networks = dict(manifest.networks)
    networks["unet"] = dataclasses.replace(networks["unet"], kernel=dataclasses.replace(record, **changes))
    engines = tuple(engine for engine in manifest.engines if engine.network != "unet")
    kernels = (*manifest.kernels, "kernels/mix.json")
    return Bundle(
        bundle.path,
        dataclasses.replace(manifest, networks=networks, engines=engines, files=files, kernels=kernels),
    )


class Mixing(Cheap):
    """What the kernel computes, as a network."""

    def run(self, network: str, inputs: dict) -> dict:
        if network != "unet":
            return super().run(network, inputs)
        return {"denoised": inputs["warped"] + inputs["prompt"].mean() * inputs["fused"]}


@pytest.mark.parametrize(
    ("graphs", "batch"),
    matrix([False, True], [1, 2, None], fast=lambda graphs, batch: graphs == (batch == 2)),
)
def test_a_network_without_an_engine_is_a_launch_of_its_kernel(
    bundle: Bundle, batch: int | None, graphs: bool
) -> None:
    """Constants come from the bundle, sizes from shapes, addresses from the tiles' part, the grid from the metadata."""
    bundle, launches = with_kernel(bundle), []
    frames = clip(LARGE, 3)
    tiles = sum(step.network == "unet" for step in build(bundle.manifest, *LARGE, TILED, 1).steps)
    gpu = Gpu(bundle, LARGE, 1, graphs=graphs, batches={"unet": batch or tiles})

    def mix(a: int, b: int, text: int, m: int, *rest: int) -> None:
        heads, pictures, positions, k, out = rest
        launches.append((heads, pictures, positions, k))
        assert np.array_equal(array_at(m, (2, 5, 5), np.float32), MATRICES)
        shape = (pictures, 4, 64, 64)
        x, y, target = (array_at(address, shape, np.float32) for address in (a, b, out))
        target[...] = x + array_at(text, (77, 32), np.float32).mean() * y

    gpu.driver.kernels["mix"] = mix
    results = run(gpu.open(), frames)
    pipeline = Pipeline(bundle.manifest, Mixing(bundle.manifest), TILED, PROMPT)
    for got, frame in zip(results, frames, strict=True):
        assert np.array_equal(got, pipeline.run(frame)[0])
    pictures = [count for _, count, _, _ in launches]
    assert sum(pictures) == (3 + 1) * tiles, "of the clip, and of the frame that makes ready"
    assert max(pictures) == (batch or tiles)
    assert {(heads, positions, k) for heads, _, positions, k in launches} == {(2, 64 * 64, 64 * 64)}
    grids = [arguments[1:8] for name, arguments in gpu.driver.calls if name == "cuLaunchKernel"]
    assert (256, pictures[0], 1, 128, 1, 1, 100_000) in grids
    assert "cuFuncSetAttribute" in gpu.driver.names(), "more shared memory than a kernel gets without asking"


def test_numbers_of_a_kernel_have_a_limit(bundle: Bundle) -> None:
    ks = []
    gpu = Gpu(with_kernel(bundle, numbers={"k": ("positions", 30)}), LARGE, 1, graphs=False)
    gpu.driver.kernels["mix"] = lambda *values: ks.append(values[-2])
    run(gpu.open(), clip(LARGE, 1))
    assert set(ks) == {30}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"operands": {"a": "warped", "b": "fused", "text": "denoised", "out": "prompt"}},
            r"kernel of unet does not fit it: .* is \(.*Build the bundle again",
        ),
        ({"constants": {}}, "the kernel of unet asks for M, which nothing gives"),
        ({"numbers": {}}, "the kernel of unet asks for k, which nothing gives"),
    ],
)
def test_a_kernel_that_does_not_fit_its_network_is_refused(
    bundle: Bundle, changes: dict, message: str
) -> None:
    gpu = Gpu(with_kernel(bundle, **changes), LARGE, 1)
    with pytest.raises(EngineError, match=message):
        gpu.open()
    gpu.device.close()
    assert gpu.driver.live == []


def test_frames_on_the_gpu_are_read_where_they_lie(bundle: Bundle) -> None:
    frames = clip(LARGE, 6)
    gpu = Gpu(bundle, LARGE, 2, stream=0x999, device_results=True)
    runner, results = gpu.open(), []
    start = len(gpu.driver.calls)
    for frame in frames:
        held = frame.copy()
        array = DeviceArray(held.ctypes.data, held.shape, held)
        results += [array_at(r.address, r.shape, np.uint8).copy() for r in runner.push(array)]
    results += [array_at(r.address, r.shape, np.uint8).copy() for r in runner.flush()]
    for got, wanted in zip(results, expected(bundle, frames, TILED), strict=True):
        assert np.array_equal(got, wanted)
    calls = gpu.driver.calls[start:]
    names = [name for name, _ in calls]
    assert not {"cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync"} & set(names), "nothing crosses the bus"
    met = [arguments for name, arguments in calls if name == "cuEventRecord" and int(arguments[1]) == 0x999]
    assert len(met) == len(frames), "every frame waits for what the caller's stream was asked before"
    with pytest.raises(InputError, match=r"must have the shape \(136, 200, 3\)"):
        runner.push(DeviceArray(1, (4, 4, 3), None))


def test_no_driver_is_a_sentence() -> None:
    from cuda.bindings import driver

    with pytest.raises(DeviceError, match="no CUDA driver"):
        Driver(driver).call("cuInit", 0)


def test_errors_of_the_driver_name_the_call() -> None:
    driver = FakeDriver(0, status="CUDA_ERROR_OUT_OF_MEMORY")
    with pytest.raises(CudaError, match=r"CUDA_ERROR_OUT_OF_MEMORY to cuMemAlloc.*fewer slots"):
        Driver(driver).call("cuMemAlloc", 4)
