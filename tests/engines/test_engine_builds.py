"""Real engines by TensorRT-RTX, without a GPU: every network, static and dynamic, every target."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from helpers.building import build, copy_of, rtx, run, session_cache

from vsr_trt import build as build_script
from vsr_trt.engines import plan
from vsr_trt.engines import report as build_report
from vsr_trt.engines.cache import Cache
from vsr_trt.engines.jobs import BuildJob, Pool
from vsr_trt.engines.tensorrt import shapes
from vsr_trt.engines.tensorrt.builder import BuildOrder
from vsr_trt.engines.tensorrt.library import load
from vsr_trt.engines.tensorrt.targets import parse
from vsr_trt.runtime.bundle import engine_check
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Manifest, Profile
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.bundle.reading import read_manifest
from vsr_trt.runtime.bundle.symbols import dimension
from vsr_trt.runtime.errors import EngineError
from vsr_trt.runtime.schedule import engine_choice
from vsr_trt.runtime.schedule.shapes import frame_shapes

pytestmark = [rtx, pytest.mark.usefixtures("one_thread")]
NETWORKS = {
    "preprocess", "vae_encoder", "spynet", "warp", "cfr", "unet", "vae_decoder",
    "postprocess_adain", "postprocess_wavelet", "postprocess_none",
}  # fmt: skip
PORTABLE = {"preprocess", "cfr", "unet"}  # by default; all of them are built in the thorough tests


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return session_cache(tmp_path_factory)


@pytest.fixture(scope="module")
def built(golden_bundle_fp16: Path, cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model's engines for sm_89, and some for portable, one size, in a bundle."""
    bundle = copy_of(golden_bundle_fp16, tmp_path_factory.mktemp("built"))
    build_both(bundle, cache)
    return bundle


def build_both(bundle: Path, cache: Cache) -> set[str]:
    """Builds what `built` has; returns where it came from."""
    made = [*build(bundle, cache), *build(bundle, cache, ("portable",), networks=tuple(sorted(PORTABLE)))]
    assert len(made) == len(NETWORKS) + len(PORTABLE)
    return {one.origin for one in made}


def check_outputs(manifest: Manifest, report: dict, profile: dict[str, Profile]) -> None:
    """Shapes that the parser found, held against the manifest's symbolic ones at the profile's sizes."""
    network = manifest.networks[report["network"]]
    assert set(report["outputs"]) == {tensor.name for tensor in network.outputs}
    sizes: dict[str, tuple[int, int]] = {}
    for tensor in network.inputs:
        for size, low, high in zip(
            tensor.shape, profile[tensor.name].min, profile[tensor.name].max, strict=True
        ):
            factor, symbol = dimension(size)
            if symbol:
                sizes[symbol] = (low // factor, high // factor)
    for tensor in network.outputs:
        for size, found in zip(tensor.shape, report["outputs"][tensor.name], strict=True):
            factor, symbol = dimension(size)
            low, high = sizes.get(symbol, (None, None)) if symbol else (1, 1)
            # a size that is computed, or that the profile leaves open, the parser does not know
            assert found == -1 or low is None or found in (factor * low, factor * high)


def test_every_network_becomes_an_engine_that_the_manifest_names(built: Path) -> None:
    bundle = Bundle.open(built, check=True)  # every byte is the manifest's
    for target, networks in (("sm_89", NETWORKS), ("portable", PORTABLE)):
        engines = [engine for engine in bundle.manifest.engines if engine.target == target]
        assert {engine.network for engine in engines} == networks
        for engine in engines:
            report = json.loads(bundle.file(engine.report).read_text())
            assert report["bytes"] == bundle.file(engine.file).stat().st_size
            assert report["layers"] > 0
            assert report["activations"] > 0
            assert report["seconds"] > 0
            assert 0 < report["peak_memory"] < report["estimated_memory"]
            check_outputs(bundle.manifest, report, engine.profiles)
            heavy = engine.network in ("unet", "vae_encoder", "vae_decoder")
            assert engine.precision == ("fp16" if heavy else "fp32")


def test_the_unets_attentions_are_counted(built: Path) -> None:
    reports = build_report.read_all(built)
    report = reports["tensorrt_rtx-sm_89/unet.fp16.n1-64x64"]
    assert report["attentions"] == 8
    # heads of 8 channels are narrower than any fused kernel: some are split, and said to be
    assert report["fused_attentions"] + report["split_attentions"] == 8
    assert report["split_attentions"] == len(report["split"]) > 0
    assert all(layers > 1 for layers in report["split"].values())


def test_headers_name_version_size_and_targets(built: Path) -> None:
    bundle = Bundle.open(built)
    for engine in bundle.manifest.engines:
        header = engine_check.read_header(bundle.file(engine.file), engine.backend)
        assert header.version == load("tensorrt_rtx").version == engine.version
        assert header.bytes == bundle.file(engine.file).stat().st_size
        assert set(header.targets) == set(engine.targets)


def test_what_is_there_is_not_built_again(
    built: Path, cache: Cache, golden_bundle_fp16: Path, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*.engine")}
    assert build_both(built, cache) == {"bundle"}
    assert {path: path.stat().st_mtime_ns for path in built.rglob("*.engine")} == before
    other = copy_of(golden_bundle_fp16, tmp_path)  # another bundle of the same graphs
    assert {one.origin for one in build(other, cache)} == {"cache"}
    assert len(Bundle.open(other, check=True).manifest.engines) == len(NETWORKS)


@pytest.mark.parametrize(
    ("target", "networks"),
    [
        ("sm_75", {"vae_decoder", "cfr"}),
        pytest.param("portable", NETWORKS, marks=pytest.mark.thorough),
        *(
            pytest.param(target, NETWORKS, marks=pytest.mark.full_size)
            for target in ("sm_75", "sm_80", "sm_86", "sm_120", "sm_121")
        ),
    ],
)
def test_every_target_has_its_engines(
    golden_bundle_fp16: Path, cache: Cache, tmp_path: Path, target: str, networks: set[str]
) -> None:
    bundle = copy_of(golden_bundle_fp16, tmp_path)
    made = build(bundle, cache, (target,), networks=tuple(sorted(networks)))
    assert {one.engine.network for one in made} == networks
    for one in made:
        header = engine_check.read_header(bundle / one.engine.file, "tensorrt_rtx")
        assert set(header.targets) == set(one.engine.targets)
        assert target == "portable" or header.targets == (target,)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "networks", [{"unet", "warp"}, pytest.param(NETWORKS, marks=pytest.mark.full_size)], ids=["two", "all"]
)
def test_dynamic_engines_with_a_batch_of_tiles(
    golden_bundle_fp16: Path, cache: Cache, tmp_path: Path, networks: set[str]
) -> None:
    bundle = copy_of(golden_bundle_fp16, tmp_path)
    layout = shapes.Layout(batch=3, dynamic=True)
    wanted = tuple(sorted(networks))
    made = build(bundle, cache, sizes=("512x512", "1280x720"), layout=layout, networks=wanted)
    assert {one.engine.network for one in made} == networks  # one each, for both sizes
    manifest = read_manifest(bundle)
    for one in made:
        check_outputs(manifest, one.report, one.engine.profiles)
    (unet,) = (one.engine for one in made if one.engine.network == "unet")
    assert unet.profiles["fused"] == Profile((1, 4, 32, 32), (3, 4, 64, 64), (3, 4, 96, 96))


@pytest.mark.thorough
def test_an_fp32_bundle_compiles_in_fp32(golden_bundle: Path, cache: Cache, tmp_path: Path) -> None:
    bundle = copy_of(golden_bundle, tmp_path)
    (made,) = build(bundle, cache, networks=("unet",), precision="fp32")
    assert made.engine.precision == "fp32"
    with pytest.raises(
        EngineError, match=r"has FP32 graphs only, and --precision is fp16.*vsr-build calibrate"
    ):
        build(bundle, cache, networks=("unet",))


def test_fp32_for_turing_is_refused_before_it_is_built(
    golden_bundle: Path, cache: Cache, tmp_path: Path
) -> None:
    bundle = copy_of(golden_bundle, tmp_path)
    with pytest.raises(
        EngineError, match=r"no FP32 matrix product for sm_75, which unet needs.*--precision fp16"
    ):
        build(bundle, cache, ("sm_75",), networks=("unet",), precision="fp32")


def test_an_fp16_bundle_has_no_fp32_to_compile(
    golden_bundle_fp16: Path, cache: Cache, tmp_path: Path
) -> None:
    bundle = copy_of(golden_bundle_fp16, tmp_path)
    with pytest.raises(EngineError, match=r"has FP16 graphs only, and --precision is fp32"):
        build(bundle, cache, networks=("unet",), precision="fp32")


def test_the_vaes_attention_does_not_keep_its_scores(
    golden_bundle_fp16: Path, cache: Cache, tmp_path: Path
) -> None:
    """At 1920x1080 in one piece the scores alone would take 32640^2 numbers: 2.1 GB in FP16, 4.3 in FP32."""
    bundle = copy_of(golden_bundle_fp16, tmp_path)
    (made,) = build(bundle, cache, sizes=("1920x1080",), networks=("vae_decoder",))
    assert made.engine.profiles["latent"].opt == (1, 4, 136, 240)
    assert made.engine.flags == ()
    assert made.report["activations"] < 32640**2 * 2 / 2


@pytest.mark.thorough
@pytest.mark.parametrize("network", [pytest.param("vae_encoder", marks=pytest.mark.full_size), "vae_decoder"])
def test_strips_take_less_memory_for_the_same_shapes(
    golden_bundle_fp16: Path, cache: Cache, tmp_path: Path, network: str
) -> None:
    bundle = copy_of(golden_bundle_fp16, tmp_path)
    wanted = {"sizes": ("1920x1080",), "networks": (network,)}
    (whole,) = build(bundle, cache, **wanted)
    (strips,) = build(bundle, cache, layout=shapes.Layout(Options(tiles={"vae": 96})), **wanted)
    assert strips.engine.flags == ("strips",)
    assert strips.engine.file != whole.engine.file
    assert strips.engine.profiles == whole.engine.profiles
    assert strips.report["activations"] < 0.8 * whole.report["activations"]
    both = Bundle.open(bundle, check=True)
    size = (1920, 1080)
    own = [engine for engine in both.manifest.engines if engine.network == network]
    shape = next(s for s in frame_shapes(both.manifest, *size, Options()) if s.network == network)
    taken = [engine_choice._engine(both.manifest, own, "sm_89", [shape], asked) for asked in (False, True)]
    assert taken == [whole.engine, strips.engine]


def test_little_memory_builds_strips_by_itself(
    golden_bundle_fp16: Path, cache: Cache, tmp_path: Path
) -> None:
    bundle = Bundle.open(golden_bundle_fp16)
    for memory, flags in ((100_000_000_000, ()), (100_000_000, ("strips",))):
        request = plan.EngineRequest(
            targets=tuple(parse(["sm_89"], load("tensorrt_rtx"))),
            sizes=(shapes.Size(1920, 1080),),
            layout=shapes.Layout(memory=memory),
            networks=("vae_decoder",),
        )
        (item,) = plan.list_engines(bundle, request, load("tensorrt_rtx"), cache)
        assert item.order.flags == flags
        assert ("strips" in item.parts) == bool(flags)


def test_two_builds_are_compared(
    built: Path, cache: Cache, golden_bundle_fp16: Path, tmp_path: Path, capsys
) -> None:
    other = copy_of(golden_bundle_fp16, tmp_path)
    build(other, cache, networks=("unet",))
    report = next((other / "engines" / "tensorrt_rtx-sm_89").glob("unet*.json"))
    data = json.loads(report.read_text())
    report.write_text(json.dumps(data | {"layers": data["layers"] + 1, "bytes": data["bytes"] * 2}))
    manifest = read_manifest(other)
    name = report.relative_to(other).as_posix()
    entry = dataclasses.replace(manifest.files[name], bytes=report.stat().st_size)
    dataclasses.replace(manifest, files=manifest.files | {name: entry}).write(other)

    assert build_script.main(["diff", str(built), str(other), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(change["figure"], change["after"]) for change in found["changes"]] == [
        ("layers", data["layers"] + 1),
        ("bytes", data["bytes"] * 2),
    ]
    assert found["only_after"] == []
    assert len(found["only_before"]) == len(NETWORKS) + len(PORTABLE) - 1
    assert build_script.main(["diff", str(built), str(golden_bundle_fp16)]) == 2
    assert "has no engines" in capsys.readouterr().err


@pytest.mark.thorough
def test_onnxruntime_graphs_enter_the_bundle(golden_bundle: Path, tmp_path: Path) -> None:
    bundle = copy_of(golden_bundle, tmp_path)
    done = run(bundle, "--backend", "onnxruntime", "--network", "unet", "--json", cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    (engine,) = Bundle.open(bundle, check=True).manifest.engines
    assert (engine.backend, engine.network) == ("onnxruntime", "unet")
    assert engine.target.startswith("cpu-")
    assert json.loads(done.stdout)["engines"][0]["report"]["layers"] > 0
    refused = run(bundle, "--backend", "onnxruntime", "--size", "512x512", cache=tmp_path / "cache")
    assert refused.returncode == 2
    assert "--size has no meaning with --backend onnxruntime" in refused.stderr


def test_the_compilers_outputs_are_those_of_the_graph(built: Path, tmp_path: Path) -> None:
    """A static engine's outputs have sizes, all of them, where the graph fixes them."""
    report = build_report.read_all(built)["tensorrt_rtx-sm_89/vae_decoder.fp16.n1-64x64"]
    assert [size for size in report["outputs"]["image"] if size != -1] != []
    order = BuildOrder("unet", built / "onnx" / "unet.onnx", ("sm_89",), {}, attentions=())
    pool = Pool("tensorrt_rtx", 1, 1)
    (result,) = pool.run([BuildJob(order, tmp_path / "plan", 1)])
    assert result.done is None  # no profile for its inputs
