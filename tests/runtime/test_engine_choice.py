"""Which engines restore a size: the builder's shapes must be found again, and the best of several taken."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.examples import examples
from helpers.planned_bundle import WEIGHTS, engines, make
from helpers.stages import dloral_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsr_trt.engines.tensorrt.shapes import Layout, Size
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Engine, FileEntry, Kernel
from vsr_trt.runtime.bundle.options import Options, Statistics
from vsr_trt.runtime.errors import BundleError, EngineError, InputError
from vsr_trt.runtime.schedule.build import build
from vsr_trt.runtime.schedule.engine_choice import EngineChoice, Needs, built_for, choose_engines, needs
from vsr_trt.runtime.schedule.forms import Form

HD, FULL_HD, SMALL = Size(1280, 720), Size(1920, 1080), Size(512, 512)
TILES = Options(statistics="tile")
BUNDLE = Bundle(Path("B"), dloral_manifest())


def chosen(found: list[Engine], size: Size, options: Options | None = None, **tiles: int) -> EngineChoice:
    asked = dataclasses.replace(options or Options(), tiles=tiles)
    return choose_engines(BUNDLE, found, "sm_89", (size.width, size.height), asked)


@given(
    width=st.integers(48, 480).map(lambda n: 4 * n),
    height=st.integers(48, 360).map(lambda n: 4 * n),
    tile=st.integers(8, 24).map(lambda n: 8 * n),
    vae_tile=st.integers(4, 30).map(lambda n: 8 * n),
    batch=st.integers(1, 4),
    dynamic=st.booleans(),
    statistics=st.sampled_from(["shared", "tile"]),
)
@settings(max_examples=examples(25), deadline=None)
def test_what_was_built_for_a_size_restores_it(
    width: int, height: int, tile: int, vae_tile: int, batch: int, dynamic: bool, statistics: Statistics
) -> None:
    tiles = {"latent": tile, "vae": vae_tile}
    layout = Layout(Options(tiles=tiles, statistics=statistics), batch=batch, dynamic=dynamic)
    size = Size(width, height)
    found = engines(BUNDLE.manifest, [size], layout)
    asked = Options(statistics=statistics)
    choice = chosen(found, size, asked, **tiles)
    assert choice.options.tiles == tiles
    free = chosen(found, size, asked)
    assert set(free.engines) == set(Options().networks(BUNDLE.manifest))
    free.options.check(BUNDLE.manifest)
    assert all(1 <= count <= batch for count in free.batches.values())


def test_tiles_come_from_the_engines() -> None:
    manifest = BUNDLE.manifest
    usual = chosen(engines(manifest, [HD]), HD)
    assert usual.options.tiles["latent"] == 96
    assert usual.form == Form("whole", "the bundle has engines for it")
    tiles = Layout(Options(tiles={"latent": 128, "vae": 64}, statistics="tile"))
    other = chosen(engines(manifest, [FULL_HD], tiles), FULL_HD, TILES)
    assert other.form == Form("tiles", "--vae-statistics tile")
    assert other.options.tiles == {"latent": 128, "vae": 64}
    assert other.options.overlap(manifest, "vae") == 16


def test_the_usual_tile_goes_first_and_then_the_fewest_tiles() -> None:
    manifest = BUNDLE.manifest
    large = engines(
        manifest, [FULL_HD], Layout(Options(tiles={"latent": 128, "vae": 200}, statistics="tile"))
    )
    both = chosen([*large, *engines(manifest, [FULL_HD], Layout(Options(statistics="tile")))], FULL_HD, TILES)
    assert both.options.tiles["latent"] == 96, "a larger tile gives another picture"
    assert both.options.tiles["vae"] > 136, "the VAE in one piece"
    two = chosen(
        [*large, *engines(manifest, [FULL_HD], Layout(Options(tiles={"latent": 80}, statistics="tile")))],
        FULL_HD,
        TILES,
    )
    assert two.options.tiles["latent"] == 128


def test_whole_pictures_go_before_strips() -> None:
    manifest = BUNDLE.manifest
    whole = engines(manifest, [FULL_HD], key="whole")
    strips = [replace(e, key="strips", flags=("strips",)) for e in whole if e.network.startswith("vae")]
    taken = chosen([*strips, *whole], FULL_HD)
    assert taken.engines["vae_decoder"].key == "whole"
    asked = chosen([*strips, *whole], FULL_HD, vae=96)
    assert asked.engines["vae_decoder"].key == asked.engines["vae_encoder"].key == "strips"
    assert asked.form == Form("strips", "--tile vae=96")
    large = chosen([*strips, *whole], FULL_HD, vae=240)
    assert large.engines["vae_decoder"].key == "whole", "its 136x240 latents are no more than that"
    only = chosen([*strips, *(e for e in whole if not e.network.startswith("vae"))], FULL_HD)
    assert only.form is not None
    assert only.form.name == "strips", "better than none"


def test_strips_where_whole_pictures_do_not_fit(tmp_path: Path) -> None:
    manifest = dloral_manifest()
    whole = engines(manifest, [FULL_HD])
    strips = [
        replace(e, flags=("strips",), report=e.report.replace(".json", ".strips.json"))
        for e in whole
        if e.network.startswith("vae")
    ]
    bundle = make(tmp_path / "b", [*whole, *strips])
    for engine in strips:
        (bundle.path / engine.report).write_text('{"activations": 7, "weights": 1000}')
    for engine in whole:
        (bundle.path / engine.report).write_text('{"activations": 5000, "weights": 1000}')
    size = (FULL_HD.width, FULL_HD.height)
    weights = 7 * 1000
    fits = choose_engines(bundle, [*whole, *strips], "sm_89", size, Options(), memory=weights + 5000)
    assert fits.form == Form("whole", "the bundle has engines for it")
    # all other networks work in less than the VAE's halves
    for engine in whole:
        if not engine.network.startswith("vae"):
            (bundle.path / engine.report).write_text('{"activations": 6, "weights": 1000}')
    short = choose_engines(bundle, [*whole, *strips], "sm_89", size, Options(), memory=weights + 4999)
    assert short.form is not None
    assert short.form.name == "strips"
    assert "12.0 kB" in short.form.why


def test_a_wide_overlap_leaves_small_tiles_out() -> None:
    found = engines(BUNDLE.manifest, [FULL_HD], Layout(Options(tiles={"latent": 64})))
    assert chosen(found, FULL_HD).options.tiles["latent"] == 64
    with pytest.raises(EngineError, match="96x96 latents"):
        chosen(found, FULL_HD, Options(overlaps={"latent": 40}))


def test_batches_follow_the_engines() -> None:
    manifest = BUNDLE.manifest
    choice = chosen(engines(manifest, [FULL_HD], Layout(batch=4)), FULL_HD)
    assert choice.batches["unet"] == 4
    assert choice.batches["vae_decoder"] == 1
    few = chosen(engines(manifest, [HD], Layout(batch=4)), HD)
    assert few.batches["unet"] == 2, "there are no more tiles"
    schedule = build(manifest, 270, 480, choice.options, 1, choice.batches)
    assert [step.part for step in schedule.steps if step.network == "unet"] == [(0, 4), (4, 8)]


def test_the_best_of_several_engines() -> None:
    manifest = BUNDLE.manifest
    static = engines(manifest, [HD], Layout(batch=1))
    dynamic = engines(manifest, [HD, FULL_HD], Layout(dynamic=True), target="any")
    fp32 = engines(manifest, [HD], precision="fp32")
    taken = chosen([*fp32, *dynamic, *static], HD).engines
    assert all(engine in static for engine in taken.values())
    assert chosen([*fp32, *dynamic], HD).engines["unet"].target == "any"
    again = [replace(engine, key="again") for engine in static]
    assert chosen([*static, *again], HD).engines["unet"].key == "0", "the first of equals"
    many = engines(manifest, [HD], Layout(batch=2), key="many")
    assert chosen([*static, *many], HD).engines["unet"].key == "many"


def test_engines_that_a_target_runs() -> None:
    manifest = BUNDLE.manifest
    own = engines(manifest, [HD])
    portable = engines(manifest, [HD], target="portable", targets=("sm_80", "sm_86", "sm_89"))
    stripped = engines(manifest, [HD], flags=("strip",))
    trt = engines(manifest, [HD], backend="tensorrt", target="portable", targets=("sm_80",))
    host = engines(manifest, [HD], backend="onnxruntime", target="cpu-avx2", targets=())
    everything = [*portable, *stripped, *own, *trt, *host]
    assert built_for(everything, "sm_89") == [*portable, *own, *trt]
    assert chosen([*portable, *own], HD).engines["unet"] in own
    assert built_for(everything, "sm_120") == trt
    assert built_for(everything, "portable") == [*portable, *trt]
    assert built_for(everything, "sm_75") == []


def test_what_is_missing_is_named_with_the_command_that_builds_it() -> None:
    with pytest.raises(EngineError, match="B has no engines for sm_89") as refused:
        chosen([], FULL_HD)
    assert str(refused.value).endswith("vsr-build engines B --target sm_89 --size 1920x1080")
    with pytest.raises(EngineError) as refused:
        chosen([e for e in engines(BUNDLE.manifest, [SMALL]) if e.network != "cfr"], SMALL)
    assert "of cfr (64x64 latents)." in str(refused.value)
    with pytest.raises(EngineError) as refused:
        chosen(engines(BUNDLE.manifest, [HD], backend="tensorrt"), FULL_HD, vae=64)
    assert "preprocess (270x480 pixels), vae_encoder (136x240 latents)" in str(refused.value)
    assert "--backend tensorrt --target sm_89 --size 1920x1080 --tile vae=64" in str(refused.value)
    assert "unet" not in str(refused.value), "its tiles are those of 1280x720"
    with pytest.raises(EngineError, match=r"--size 1920x1080 --vae-statistics tile$"):
        chosen([], FULL_HD, TILES)


def test_only_the_chosen_variant_needs_an_engine() -> None:
    found = [e for e in engines(BUNDLE.manifest, [SMALL]) if e.network != "postprocess_adain"]
    assert "postprocess_none" in chosen(found, SMALL, Options({"color": "none"})).engines
    with pytest.raises(EngineError, match="postprocess_adain"):
        chosen(found, SMALL)


def with_kernel(folder: Path, targets: Sequence[str] = ("sm_89",)) -> Bundle:
    """`BUNDLE` with a kernel for cfr."""
    files = {}
    for target in targets:
        path = folder / f"k.{target}.json"
        content = {
            "schema_version": 1,
            "kernel": "k",
            "target": target,
            "grid": ["1", "1", "1"],
            "threads": 1,
        }
        content |= {
            "shared_memory": 0,
            "files": {"cubin": {"name": f"k.{target}.cubin"}, "ptx": {"name": f"k.{target}.cubin"}},
            "arguments": [],
        }
        path.write_text(json.dumps(content))
        (folder / f"k.{target}.cubin").write_bytes(b"")
        files |= {name.name: FileEntry.of(name) for name in (path, path.with_suffix(".cubin"))}
    networks = dict(BUNDLE.manifest.networks)
    launch = tuple(name for name in files if name.endswith(".json"))
    networks["cfr"] = replace(networks["cfr"], kernel=Kernel(launch, {}))
    manifest = replace(BUNDLE.manifest, networks=networks, files=BUNDLE.manifest.files | files)
    return Bundle(folder, manifest)


def test_a_kernel_computes_what_has_no_engine(tmp_path: Path) -> None:
    bundle = with_kernel(tmp_path)
    every = engines(bundle.manifest, [HD])
    few = [engine for engine in every if engine.network != "cfr"]
    found = choose_engines(bundle, few, "sm_89", (HD.width, HD.height), Options())
    assert "cfr" not in found.engines
    assert found.kernels == ("cfr",)
    assert found.batches["cfr"] == 2, "all tiles at once"
    assert choose_engines(bundle, every, "sm_89", (HD.width, HD.height), Options()).kernels == ()
    assert choose_engines(bundle, few, "portable", (HD.width, HD.height), Options()).kernels == ("cfr",)
    assert choose_engines(bundle, few, "sm_120", (HD.width, HD.height), Options()).kernels == ("cfr",), (
        "by PTX"
    )
    with pytest.raises(EngineError, match="no engine for sm_75 of cfr"):
        choose_engines(bundle, few, "sm_75", (HD.width, HD.height), Options())


def test_what_cannot_be_is_refused_before() -> None:
    with pytest.raises(InputError, match="--tile latent=100"):
        chosen([], SMALL, latent=100)
    with pytest.raises(InputError, match="end at"):
        chosen([], Size(20000, 1080))


def test_needs_are_read_from_reports(tmp_path: Path) -> None:
    records = engines(BUNDLE.manifest, [SMALL])
    bundle = make(tmp_path / "b", records, {"cfr": {"activations": None, "weights": 5}, "spynet": []})
    taken = {engine.network: engine for engine in records if engine.network in ("unet", "cfr", "spynet")}
    assert needs(bundle, taken) == Needs(
        {"unet": 300_000_000}, {"unet": WEIGHTS, "cfr": 5}, ("spynet", "cfr")
    )
    (bundle.path / taken["unet"].report).write_text("{")
    with pytest.raises(BundleError, match=r"cannot be read.*--network unet --force"):
        needs(bundle, taken)
