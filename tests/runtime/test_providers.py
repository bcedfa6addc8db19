"""GPU providers, as far as that goes without a GPU: options, refusals, sessions for one shape, the cache's folders.

`tests/gpu/test_providers_on_gpu.py` runs them.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from helpers.small_bundle import NETWORK, convolutions, make, picture, with_files

from vsr_trt.runtime import Restorer
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Bound, Network, Tensor
from vsr_trt.runtime.cli.main import main
from vsr_trt.runtime.errors import DeviceError, InputError, OutputError
from vsr_trt.runtime.onnxruntime import providers
from vsr_trt.runtime.onnxruntime.cpu import CpuNetworks
from vsr_trt.runtime.onnxruntime.gpu import ProviderNetworks, cache_key, free_dimensions
from vsr_trt.runtime.onnxruntime.providers import (
    CUDA,
    PROVIDERS,
    TENSORRT,
    TENSORRT_RTX,
    Provider,
    cache_folder,
    prepare,
    provider_options,
    versions,
)

# What onnxruntime-gpu 1.31.1's libraries parse, and the header in onnxruntime-ep-nv-tensorrt-rtx-cu13 0.5.0.
# A name that a provider does not know fails every session.
KNOWN = {
    CUDA: "arena_extend_strategy cudnn_conv_algo_search cudnn_conv_use_max_workspace device_id "
    "do_copy_in_default_stream enable_cuda_graph gpu_mem_limit prefer_nhwc use_tf32",
    TENSORRT: "device_id trt_auxiliary_streams trt_builder_optimization_level trt_context_memory_sharing_enable "
    "trt_cuda_graph_enable trt_engine_cache_enable trt_engine_cache_path trt_engine_cache_prefix "
    "trt_force_timing_cache trt_fp16_enable trt_max_workspace_size trt_timing_cache_enable trt_timing_cache_path",
    TENSORRT_RTX: "device_id enable_cuda_graph nv_max_workspace_size nv_persistent_context_memory "
    "nv_runtime_cache_path nv_weight_streaming_budget",
}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make(tmp_path / "bundle")


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any, Any]]:
    """The CUDA backend's device with the CPU's provider in it; returns what sessions are made of."""
    monkeypatch.setitem(PROVIDERS, CUDA, Provider("CPUExecutionProvider", "pip install something"))
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("not for standard output"))
    made: list[tuple[Any, Any, Any]] = []
    make_session = onnxruntime.InferenceSession

    def watch(path: Path, options: Any, providers: Any, **named: Any) -> Any:
        made.append((path, providers, named))
        return make_session(path, options, providers=["CPUExecutionProvider"], **named)

    monkeypatch.setattr(onnxruntime, "InferenceSession", watch)
    return made


@pytest.mark.parametrize("backend", PROVIDERS)
def test_options_are_known_strings(backend: str, tmp_path: Path) -> None:
    options = provider_options(backend, tmp_path / "net-1")
    assert set(options) <= set(KNOWN[backend].split())
    assert all(isinstance(value, str) for value in options.values())
    assert not {name for name in options if "fp16" in name or "profile" in name}


def test_what_is_compiled_is_kept_apart_and_what_was_timed_is_shared(tmp_path: Path) -> None:
    one, other = (provider_options(TENSORRT, tmp_path / name) for name in ("unet-1", "unet-2"))
    assert one["trt_engine_cache_path"] == str(tmp_path / "unet-1") != other["trt_engine_cache_path"]
    assert one["trt_timing_cache_path"] == other["trt_timing_cache_path"] == str(tmp_path)
    assert one["trt_engine_cache_enable"] == one["trt_timing_cache_enable"] == "1"
    assert provider_options(TENSORRT_RTX, tmp_path / "a")["nv_runtime_cache_path"] == str(tmp_path / "a")
    assert provider_options(CUDA, tmp_path)["use_tf32"] == "0"


@pytest.mark.parametrize(
    ("environment", "system", "expected"),
    [
        ({}, "linux", "home/.cache"),
        ({"XDG_CACHE_HOME": "/var/cache/me"}, "linux", "/var/cache/me"),
        ({"XDG_CACHE_HOME": "relative"}, "linux", "home/.cache"),
        ({"XDG_CACHE_HOME": ""}, "linux", "home/.cache"),
        ({"XDG_CACHE_HOME": "/x"}, "darwin", "home/Library/Caches"),
        ({"LOCALAPPDATA": "local"}, "win32", "local"),
        ({}, "win32", "home/AppData/Local"),
    ],
)
def test_the_users_cache_folder(environment: dict[str, str], system: str, expected: str) -> None:
    assert cache_folder(environment, system, Path("home")) == Path(expected) / "vsr-trt" / "providers"


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="the provider is here"
)
@pytest.mark.parametrize("backend", PROVIDERS)
def test_a_provider_that_is_not_installed_is_refused(
    bundle: Bundle, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DeviceError) as caught:
        Restorer(bundle.path, backend=backend)
    message = str(caught.value)
    assert f"{backend} needs ONNX Runtime's {PROVIDERS[backend].name}" in message
    assert f"Install it with: {PROVIDERS[backend].install}" in message
    assert message.endswith("Available here: onnxruntime-cpu.")
    if PROVIDERS[backend].plugin is None:  # the two packages must never be side by side
        assert "pip uninstall --yes onnxruntime && pip install 'onnxruntime-gpu" in message


def test_the_command_line_exits_with_its_code(bundle: Bundle, tmp_path: Path, capsys: Any) -> None:
    backend = "onnxruntime-tensorrt"
    if PROVIDERS[backend].name in onnxruntime.get_available_providers():
        pytest.skip("the provider is here")
    from PIL import Image

    Image.new("RGB", (16, 16)).save(tmp_path / "in.png")
    arguments = [
        tmp_path / "in.png",
        "-o",
        tmp_path / "out.png",
        "--bundle",
        bundle.path,
        "--backend",
        backend,
    ]
    assert main(["restore", *map(str, arguments), "--json"]) == 7
    assert "TensorrtExecutionProvider" in json.loads(capsys.readouterr().out)["error"]


def test_the_cpu_refuses_a_cache_that_it_would_not_use(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="onnxruntime-cpu compiles nothing; leave --engine-cache out"):
        Restorer(bundle.path, engine_cache=tmp_path)


def test_a_network_is_compiled_for_one_shape_at_a_time(
    bundle: Bundle, tmp_path: Path, on_cpu: list[Any], capsys: Any
) -> None:
    cache = tmp_path / "cache"
    host, device = CpuNetworks(bundle), ProviderNetworks(bundle, CUDA, threads=1, cache=cache)
    assert capsys.readouterr().out == ""
    host.load(NETWORK)
    on_cpu.clear()
    device.load(NETWORK)
    assert not on_cpu
    for size in ((32, 40), (32, 40), (48, 40), (32, 40)):
        got, expected = (one.run(NETWORK, picture(*size))["y"] for one in (device, host))
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    assert len(on_cpu) == 3  # the second of one shape costs nothing
    (session,) = (loaded.session for loaded in device._sessions.values())
    assert session.get_inputs()[0].shape == [1, 3, 32, 40]
    assert session.get_outputs()[0].shape == [1, 3, 32, 40]
    folders = [Path(folder) for folder in cache.glob(f"{CUDA}-{onnxruntime.__version__}/net-*")]
    assert len(folders) == 2
    assert on_cpu[0][2] == {"enable_fallback": 0}  # else Python's wrapper takes the CPU, and prints it
    device.close()
    assert not device._sessions


def test_the_graph_in_fp16_is_taken_where_there_is_one(
    bundle: Bundle, tmp_path: Path, on_cpu: list[Any]
) -> None:
    import onnx

    onnx.save(convolutions(seed=5), bundle.path / "onnx" / "net.fp16.onnx")
    record = bundle.manifest.networks[NETWORK]
    graphs = record.graphs | {"fp16": "onnx/net.fp16.onnx"}
    for always_fp32, expected in ((None, "net.fp16.onnx"), ("a reason", "net.onnx")):
        changed = dataclasses.replace(record, graphs=graphs, always_fp32=always_fp32)
        device = ProviderNetworks(
            with_files(bundle.path, networks={NETWORK: changed}), CUDA, cache=tmp_path / "c"
        )
        device.load(NETWORK)
        device.run(NETWORK, picture())
        assert on_cpu[-1][0].name == expected


def test_tensorrt_leaves_the_rest_to_cuda_and_that_to_the_cpu(
    bundle: Bundle, tmp_path: Path, on_cpu: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROVIDERS, TENSORRT, Provider("CPUExecutionProvider", "pip install something"))
    device = ProviderNetworks(bundle, TENSORRT, cache=tmp_path)
    device.load(NETWORK)
    device.run(NETWORK, picture())
    (tensorrt, options), (cuda, rest), cpu = on_cpu[-1][1]
    assert (tensorrt, cuda, cpu) == (PROVIDERS[TENSORRT].name, PROVIDERS[CUDA].name, "CPUExecutionProvider")
    assert Path(options["trt_engine_cache_path"]).is_dir()
    assert rest == provider_options(CUDA, tmp_path)


def test_a_provider_that_onnx_runtime_goes_on_without_is_refused(
    bundle: Bundle, tmp_path: Path, on_cpu: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # as with a cuDNN that is missing: the provider is listed, the session is made without it
    available = onnxruntime.get_available_providers()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*available, "CUDAExecutionProvider"])
    monkeypatch.setitem(PROVIDERS, CUDA, Provider("CUDAExecutionProvider", "pip install something"))
    device = ProviderNetworks(bundle, CUDA, cache=tmp_path)
    device.load(NETWORK)
    with pytest.raises(
        DeviceError, match=r"CUDAExecutionProvider could not be started.*pip install something"
    ):
        device.run(NETWORK, picture())


def test_a_cache_that_cannot_be_made_is_told(bundle: Bundle, tmp_path: Path, on_cpu: list[Any]) -> None:
    (tmp_path / "file").write_text("")
    device = ProviderNetworks(bundle, CUDA, cache=tmp_path / "file")
    device.load(NETWORK)
    with pytest.raises(OutputError, match=r"cannot be made: Not a directory.*--engine-cache"):
        device.run(NETWORK, picture())


def test_other_weights_or_another_shape_have_another_key(bundle: Bundle) -> None:
    manifest, graph, shapes = bundle.manifest, "onnx/net.onnx", {"x": (1, 3, 8, 8)}
    key = cache_key(manifest, graph, shapes)
    assert key == cache_key(Bundle.open(bundle.path).manifest, graph, dict(shapes))
    assert key != cache_key(manifest, graph, {"x": (1, 3, 8, 16)})
    data = bundle.path / "onnx" / "net.onnx.data"
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(content)
    assert key != cache_key(with_files(bundle.path).manifest, graph, shapes)
    # files of other networks do not matter, though their names begin alike
    (bundle.path / "onnx" / "network.onnx").write_bytes(b"")
    data.write_bytes(bytes([content[0] ^ 1]) + bytes(content[1:]))
    assert key == cache_key(with_files(bundle.path).manifest, graph, shapes)


def test_dimensions_are_named_as_the_graph_names_them() -> None:
    bounds = dict.fromkeys(("n", "h", "w"), Bound(1, 100))
    network = Network(
        inputs=(Tensor("image", "float32", ("n", 3, "8*h", "8*w")), Tensor("prompt", "float32", (77, 32))),
        outputs=(Tensor("z", "float32", ("n", 4, "h", "w")),),
        bounds=bounds,
        graphs={"native": "x.onnx"},
        nodes=1,
        parameters=1,
    )
    shapes = {"image": (2, 3, 64, 80), "prompt": (77, 32)}
    assert free_dimensions(network, shapes) == {"n": 2, "8*h": 64, "8*w": 80, "h": 8, "w": 10}


class _Library(types.SimpleNamespace):
    """Stands in for onnxruntime."""

    __hash__ = object.__hash__
    __version__ = "1.32.0"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Stands in for TensorRT-RTX's package."""
    name = PROVIDERS[TENSORRT_RTX].plugin
    assert name is not None
    module = types.ModuleType(name)
    module.__spec__ = providers.importlib.util.spec_from_loader(name, loader=None)
    module.get_ep_name = lambda: "NvTensorRTRTXExecutionProvider"  # type: ignore[attr-defined]
    module.get_library_path = lambda: "/plugin.so"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_the_plugin_is_registered_once_and_serves_its_first_gpu(plugin: types.ModuleType) -> None:
    registered: list[tuple[str, str]] = []
    devices = [
        types.SimpleNamespace(ep_name="CPUExecutionProvider"),
        types.SimpleNamespace(ep_name="NvTensorRTRTXExecutionProvider", number=0),
        types.SimpleNamespace(ep_name="NvTensorRTRTXExecutionProvider", number=1),
    ]
    library = _Library(
        register_execution_provider_library=lambda name, path: registered.append((name, path)),
        get_ep_devices=lambda: devices,
    )
    assert prepare(library, TENSORRT_RTX) == prepare(library, TENSORRT_RTX) == [devices[1]]
    assert registered == [("NvTensorRTRTXExecutionProvider", "/plugin.so")]
    devices[1:] = []
    with pytest.raises(DeviceError, match="finds no GPU that it serves"):
        prepare(library, TENSORRT_RTX)


def test_a_driver_that_is_missing_is_told(plugin: types.ModuleType) -> None:
    def refuse(name: str, path: str) -> None:
        raise RuntimeError("libcuda.so.1: cannot open shared object file")

    library = _Library(register_execution_provider_library=refuse)
    for _ in range(2):  # a failure is not remembered as a success
        with pytest.raises(DeviceError, match=r"libcuda\.so\.1.*needs an NVIDIA driver"):
            prepare(library, TENSORRT_RTX)


def test_versions_of_the_compiler_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"tensorrt-cu13": "10.15.1"}

    def version(name: str) -> str:
        if name not in installed:
            raise providers.importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(providers.importlib.metadata, "version", version)
    assert versions(_Library(), TENSORRT) == "onnxruntime-tensorrt-1.32.0-10.15.1"
    assert versions(_Library(), TENSORRT_RTX) == "onnxruntime-tensorrt-rtx-1.32.0"
    assert versions(_Library(), CUDA) == "onnxruntime-cuda-1.32.0"
