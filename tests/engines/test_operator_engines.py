"""Networks that a kernel of the bundle computes: they get an engine as all others do, or are left to the kernel."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from helpers import processes
from helpers.building import build, command, copy_of, rtx

from vsr_trt.engines import plan
from vsr_trt.engines.build import forget_engines
from vsr_trt.engines.cache import Cache
from vsr_trt.engines.tensorrt import shapes
from vsr_trt.engines.tensorrt.library import CompilerLibrary, load
from vsr_trt.engines.tensorrt.targets import Target
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.reading import read_manifest
from vsr_trt.runtime.errors import EngineError, InputError
from vsr_trt.runtime.machine import gpu
from vsr_trt.runtime.machine.gpu import Gpu

SMALL = (shapes.Size(512, 512),)


@pytest.fixture(scope="module")
def bundle(golden_bundle_fp16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = copy_of(golden_bundle_fp16, tmp_path_factory.mktemp("operator"))
    if read_manifest(bundle).networks["cfr"].kernel is None:
        pytest.skip("the kernel cannot be compiled here: no Triton")
    return bundle


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


@rtx
def test_networks_with_a_kernel_get_no_engine_where_they_are_left_to_it(bundle: Path, cache: Cache) -> None:
    opened, library = Bundle.open(bundle), load("tensorrt_rtx")
    target = Target("sm_86", ("sm_86",))
    found = {}
    for operator in ("inside", "kernel"):
        request = plan.EngineRequest((target,), SMALL, operator=operator)  # type: ignore[arg-type]
        found[operator] = [item.order.network for item in plan.list_engines(opened, request, library, cache)]
    assert "cfr" in found["inside"]
    assert found["kernel"] == [name for name in found["inside"] if name != "cfr"]
    request = plan.EngineRequest((target,), SMALL, networks=("cfr",), operator="kernel")
    with pytest.raises(InputError, match="--network cfr is left to its kernel by --operator kernel"):
        plan.list_engines(opened, request, library, cache)


@pytest.mark.thorough
@rtx
def test_engines_of_what_is_left_to_kernels_go(
    golden_bundle_fp16: Path, cache: Cache, tmp_path: Path
) -> None:
    """On the command line, because the choice holds for the bundle: an engine that is there would be used."""
    bundle = copy_of(golden_bundle_fp16, tmp_path)
    build(bundle, cache, networks=("cfr", "warp"))
    (engine,) = (e for e in read_manifest(bundle).engines if e.network == "cfr")
    assert (bundle / engine.file).exists()
    arguments = [
        bundle,
        "--target",
        "sm_89",
        "--size",
        "512x512",
        "--network",
        "warp",
        "--operator",
        "kernel",
    ]
    dry = processes.run(command(*arguments, "--dry-run", cache=cache.folder))
    assert dry.returncode == 0, dry.stderr
    assert "cfr: left to the bundle's kernel" in dry.stderr
    assert len(read_manifest(bundle).engines) == 2
    run = processes.run(command(*arguments, cache=cache.folder))
    assert run.returncode == 0, run.stderr
    opened = Bundle.open(bundle, check=True)
    assert [e.network for e in opened.manifest.engines] == ["warp"]
    assert not (bundle / engine.file).exists()
    assert not (bundle / engine.report).exists()
    (again,) = build(bundle, cache, networks=("cfr",))
    assert again.origin == "cache"
    forget_engines(Bundle.open(bundle), ("cfr",), "tensorrt_rtx", {"sm_120"})
    assert len(read_manifest(bundle).engines) == 2, "of another target"


@rtx
def test_a_bundle_without_kernels_is_refused(bundle: Path, cache: Cache, tmp_path: Path) -> None:
    without = copy_of(bundle, tmp_path)
    manifest = read_manifest(without)
    networks = manifest.networks | {"cfr": dataclasses.replace(manifest.networks["cfr"], kernel=None)}
    dataclasses.replace(manifest, networks=networks).write(without)
    with pytest.raises(EngineError, match=r"has no GPU kernel for any network .*without --no-kernels"):
        build(without, cache, networks=("warp",), operator="kernel")


@rtx
def test_tensorrt_gets_the_kernel_as_a_plugin(
    bundle: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "detect", lambda: Gpu("NVIDIA L4", "sm_89", 24 << 30, "13.0"))
    library = CompilerLibrary("tensorrt", object(), "11.0.0.1")  # type: ignore[arg-type]
    target = Target("sm_89", ("sm_89",), "NVIDIA L4", "13.0")
    request = plan.EngineRequest((target,), SMALL, networks=("cfr", "warp"))
    warp, cfr = plan.list_engines(Bundle.open(bundle), request, library, cache)
    assert (warp.order.network, warp.order.plugin) == ("warp", None)
    assert (cfr.order.network, cfr.order.plugin) == ("cfr", "sm_89")
    assert len(cfr.parts["plugin"]) == 1
