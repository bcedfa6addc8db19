"""Engines by TensorRT on a GPU: the same builder, and what only a GPU allows."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from vsr_trt.engines import plan
from vsr_trt.engines.build import Built, build_engines
from vsr_trt.engines.cache import Cache
from vsr_trt.engines.tensorrt import shapes
from vsr_trt.engines.tensorrt.library import CompilerLibrary, load
from vsr_trt.engines.tensorrt.refit import refit
from vsr_trt.engines.tensorrt.targets import parse
from vsr_trt.runtime import doctor
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import COMPATIBLE, STRIP
from vsr_trt.runtime.errors import EngineError


@pytest.fixture(
    scope="session"
)  # of the widest scope: where it is not installed, no bundle is built for nothing
def library() -> CompilerLibrary:
    try:
        return load("tensorrt")
    except EngineError as error:
        pytest.skip(f"not run: {error}")


@pytest.fixture
def bundle(golden_bundle_fp16: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden_bundle_fp16, tmp_path / "bundle"))


def build(library: CompilerLibrary, bundle: Path, cache: Cache, **changed: object) -> list[Built]:
    opened = Bundle.open(bundle)
    values: dict[str, object] = {"targets": tuple(parse([], library)), "sizes": (shapes.Size(512, 512),)}
    request = plan.EngineRequest(**(values | changed))  # type: ignore[arg-type]
    items = plan.list_engines(opened, request, library, cache)
    return build_engines(opened, items, library.backend, cache, 1, 1 << 34)


def run(library: CompilerLibrary, content: bytes, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Runs a plan with torch's memory; the plugin's kernel is inside, and nothing of it is imported."""
    import torch

    module = library.module
    engine = module.Runtime(module.Logger(module.Logger.WARNING)).deserialize_cuda_engine(content)
    context = engine.create_execution_context()
    tensors = {name: torch.from_numpy(array).cuda() for name, array in inputs.items()}
    for name, tensor in tensors.items():
        assert context.set_input_shape(name, tuple(tensor.shape))
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    for name in names:
        if name not in tensors:
            kind = torch.from_numpy(np.empty(0, module.nptype(engine.get_tensor_dtype(name)))).dtype
            tensors[name] = torch.empty(tuple(context.get_tensor_shape(name)), dtype=kind, device="cuda")
        context.set_tensor_address(name, tensors[name].data_ptr())
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    assert context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    return {name: tensors[name].cpu().numpy() for name in names if name not in inputs}


def inputs_of(one: Built) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(profile.opt, dtype=np.float32)
        for name, profile in one.engine.profiles.items()
    }


def test_every_network_builds_runs_here_and_fills_the_timing_cache(
    library: CompilerLibrary, bundle: Path, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache")
    built = build(library, bundle, cache)
    assert len(built) == 10
    assert all(verdict.why_not is None for verdict in doctor.judge_engines(Bundle.open(bundle)))
    assert all(one.engine.device is not None for one in built)
    assert list((tmp_path / "cache" / "timing").glob("*.cache"))


@pytest.mark.usefixtures("torch_on_gpu")
@pytest.mark.parametrize("network", ["unet", "vae_decoder", "warp", "cfr"])
def test_an_engine_gives_what_onnxruntime_gives(
    library: CompilerLibrary, bundle: Path, tmp_path: Path, network: str
) -> None:
    import onnxruntime

    (one,) = build(library, bundle, Cache(tmp_path / "cache"), networks=(network,))
    inputs = inputs_of(one)
    got = run(library, (bundle / one.engine.file).read_bytes(), inputs)
    session = onnxruntime.InferenceSession(one.item.order.graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for name, expected in zip(names, session.run(names, inputs), strict=True):
        assert np.abs(got[name] - expected).max() <= 2e-2 * np.abs(expected).max()


@pytest.mark.usefixtures("torch_on_gpu")
def test_a_stripped_plan_is_small_and_refits_to_the_same_results(
    library: CompilerLibrary, bundle: Path, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache")
    (whole,) = build(library, bundle, cache, networks=("unet",))
    (stripped,) = build(library, bundle, cache, networks=("unet",), flags=(STRIP,))
    content = (bundle / stripped.engine.file).read_bytes()
    assert len(content) < whole.report["bytes"]
    refitted = refit(library, Bundle.open(bundle), stripped.engine)
    inputs = inputs_of(whole)
    expected = run(library, (bundle / whole.engine.file).read_bytes(), inputs)["denoised"]
    got = run(library, refitted, inputs)["denoised"]
    assert np.abs(got - expected).max() <= 2e-2 * np.abs(expected).max()


def test_version_compatible_plans(library: CompilerLibrary, bundle: Path, tmp_path: Path) -> None:
    (one,) = build(library, bundle, Cache(tmp_path / "cache"), networks=("preprocess",), flags=(COMPATIBLE,))
    assert one.engine.flags == (COMPATIBLE,)


def test_this_gpu_of_tensorrt_rtx_deserialises_here(bundle: Path, tmp_path: Path) -> None:
    try:
        library = load("tensorrt_rtx")
        targets = tuple(parse(["this-gpu"], library))
    except EngineError as error:
        pytest.skip(f"not run: {error}")
    built = build(library, bundle, Cache(tmp_path / "cache"), targets=targets)
    assert all(verdict.why_not is None for verdict in doctor.judge_engines(Bundle.open(bundle)))
    module = library.module
    runtime = module.Runtime(module.Logger(module.Logger.WARNING))
    for one in built:
        assert runtime.deserialize_cuda_engine((bundle / one.engine.file).read_bytes()) is not None
