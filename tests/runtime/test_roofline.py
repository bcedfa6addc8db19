"""The roofline model: its arithmetic by hand, its figures, and that every output says what it is."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from helpers import clip_family
from helpers.manifests import minimal_manifest
from rich.console import Console

from vsr_trt.kernels.gpu.targets import TARGETS
from vsr_trt.runtime.bundle.manifest import Bound, Manifest, Network, Option, Stage, Tensor, Work
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.bundle.symbols import evaluate
from vsr_trt.runtime.errors import BundleError, InputError
from vsr_trt.runtime.plan import roofline
from vsr_trt.runtime.plan.roofline import NOTE, Machine
from vsr_trt.runtime.schedule.shapes import StageShape, clip_shapes, frame_shapes

T, G = 1e12, 1e9
MACHINE = Machine("toy", "Toy", 10 * T, 1 * T, 100 * G, "a data sheet")
OLD = dataclasses.replace(MACHINE, name="old", fp16=None)


def network(
    inputs: dict[str, tuple[int | str, ...]],
    outputs: dict[str, tuple[int | str, ...]],
    work: Work | None,
    always_fp32: str | None = None,
    longest: int = 2048,
) -> Network:
    sides = {"n": Bound(1, 32), "h": Bound(8, longest, 8), "w": Bound(8, longest, 8)}
    bounds = sides | {"lr_h": Bound(128, 4096), "lr_w": Bound(128, 4096)}
    tensors = [
        tuple(Tensor(name, "float32", shape) for name, shape in side.items()) for side in (inputs, outputs)
    ]
    return Network(tensors[0], tensors[1], bounds, {"native": "x.onnx"}, 1, 1, always_fp32, work)


KIND = Option("choice", "big", "which", ("big", "small"))


def manifest(**changes: Any) -> Manifest:
    """Three stages: one on the clip's pixels, one cut as the VAE is, one as the UNet is, with two variants."""
    picture, latent = ("n", 3, "8*h", "8*w"), ("n", 4, "h", "w")
    nets = {
        "pre": network(
            {"frame": ("n", "lr_h", "lr_w", 3)},
            {"image": picture},
            Work({}, 0, {"h*w": 192.0}, {"lr_h*lr_w": 3.0}),
            "integers",
        ),
        "encoder": network(
            {"image": picture},
            {"latent": latent},
            Work({"h*w": 5e5, "h*w*h*w": 10.0}, 1000, {"h*w": 1000.0}, {}),
        ),
        "unet": network(
            {"latent": latent},
            {"result": latent},
            Work({"h*w": 1e3}, 10**9, {"1": 50.0, "h*w": 10.0}, {}),
            longest=192,
        ),
        "other": network({"latent": latent}, {"result": latent}, Work({}, 1, {}, {}), longest=192),
    }
    stages = (
        Stage("pre", "pre", {"frame": "frame"}, {"image": "image"}),
        Stage("encoder", "encoder", {"image": "image"}, {"latent": "latent"}, tiling="vae"),
        Stage(
            "unet", "unet", {"latent": "latent"}, {"result": "result"}, tiling="latent",
            variants={"big": "unet", "small": "other"}, option="kind",
        ),
    )  # fmt: skip
    values = {
        "networks": nets,
        "stages": stages,
        "options": {"kind": Option("choice", "big", "which", ("big", "small"))},
    }
    return minimal_manifest(**(values | changes))


def test_shapes_of_a_frame_that_is_not_cut() -> None:
    assert frame_shapes(manifest(), 512, 512, Options()) == (
        StageShape("pre", "pre", 1, {"n": 1, "lr_h": 128, "lr_w": 128, "h": 64, "w": 64}),
        StageShape("encoder", "encoder", 1, {"n": 1, "lr_h": 128, "lr_w": 128, "h": 64, "w": 64}),
        StageShape("unet", "unet", 1, {"n": 1, "lr_h": 128, "lr_w": 128, "h": 64, "w": 64}),
    )


@pytest.mark.parametrize(
    ("size", "options", "pre", "vae", "latent"),
    [
        # padded to multiples of 64: 768 x 1280 and 1088 x 1920
        ((1280, 720), Options(), (96, 160), (1, 96, 160), (2, 96, 96)),
        ((1280, 720), Options(statistics="tile"), (96, 160), (2, 96, 96), (2, 96, 96)),
        ((1280, 720), Options(tiles={"vae": 64}), (96, 160), (1, 96, 160), (2, 96, 96)),
        ((1920, 1080), Options(), (136, 240), (1, 136, 240), (8, 96, 96)),
        (
            (1920, 1080),
            Options(tiles={"vae": 136}, statistics="tile"),
            (136, 240),
            (2, 136, 136),
            (8, 96, 96),
        ),
        (
            (1920, 1080),
            Options(tiles={"latent": 64}, overlaps={"latent": 0}),
            (136, 240),
            (1, 136, 240),
            (12, 64, 64),
        ),
        # 20 x 40 is enlarged to 128 x 256
        ((160, 80), Options(), (64, 128), (1, 64, 128), (1, 64, 128)),
    ],
)
def test_shapes_of_frames_that_are_cut(
    size: tuple[int, int],
    options: Options,
    pre: tuple[int, int],
    vae: tuple[int, int, int],
    latent: tuple[int, int, int],
) -> None:
    shapes = frame_shapes(manifest(), *size, options)
    assert [(s.sizes["h"], s.sizes["w"]) for s in shapes] == [pre, vae[1:], latent[1:]]
    assert [s.runs for s in shapes] == [1, vae[0], latent[0]]


def test_the_users_choice_decides_the_network() -> None:
    assert frame_shapes(manifest(), 512, 512, Options({"kind": "small"}))[2].network == "other"


@pytest.mark.parametrize(
    ("size", "options", "said"),
    [
        ((1281, 720), Options(), "multiples of 4, e.g. 1280x720"),
        ((0, 720), Options(), "multiples of 4"),
        ((512, 512), Options(tiles={"latent": 95}), "--tile latent=95: expected a multiple"),
        ((20000, 720), Options(), "lr_w of pre would be 5000; this bundle's networks end at 4096"),
    ],
)
def test_what_the_bundle_cannot_serve_is_refused(size: tuple[int, int], options: Options, said: str) -> None:
    with pytest.raises(InputError, match=said):
        frame_shapes(manifest(), *size, options)


def test_the_arithmetic_by_hand() -> None:
    found = roofline.predict(manifest(), MACHINE, 512, 512)
    pre, encoder, unet = found.stages
    # no multiply-adds: 64 x 64 latents of 192 FP32 numbers, and u8 pixels of the clip
    assert (pre.flop, pre.bytes) == (0, 192 * 4096 * 4 + 3 * 128 * 128)
    assert (pre.precision, pre.bound) == ("fp32", "memory")
    # FP16: 10 TFLOP/s
    assert encoder.flop == 2 * (5e5 * 4096 + 10 * 4096**2)
    assert encoder.bytes == 2 * (1000 + 1000 * 4096)
    assert (encoder.precision, encoder.bound) == ("fp16", "compute")
    assert encoder.seconds == encoder.compute == encoder.flop / 10e12
    # a billion weights of 2 bytes at 100 GB/s
    assert unet.bytes == 2 * (10**9 + 50 + 10 * 4096)
    assert (unet.bound, unet.seconds) == ("memory", unet.bytes / 100e9)
    assert found.seconds == pre.seconds + encoder.seconds + unet.seconds
    assert found.fps == 1 / found.seconds


def test_every_tile_reads_the_weights_and_does_its_own_work() -> None:
    unet = roofline.predict(manifest(), MACHINE, 1920, 1080).stages[2]
    assert unet.flop == 8 * 2 * 1e3 * 96 * 96
    assert unet.bytes == 8 * 2 * (10**9 + 50 + 10 * 96 * 96)


@pytest.fixture(scope="module")
def phased(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Frame by frame, then 4 steps over the clip in chunks, then groups of 3; every network has work."""
    found = clip_family.write(tmp_path_factory.mktemp("phased") / "bundle").manifest
    work = Work({"f*h*w": 10.0}, 100, {"f*h*w": 1.0}, {})
    frame = Work({"f*lr_h*lr_w": 10.0}, 100, {"f*lr_h*lr_w": 1.0}, {})
    networks = {
        name: dataclasses.replace(
            net,
            work=work
            if "h" in net.bounds
            else frame
            if "lr_h" in net.bounds
            else Work({"s": 1.0} if "s" in net.bounds else {}, 100, {}, {}),
        )
        for name, net in found.networks.items()
    }
    return dataclasses.replace(found, networks=networks)


def test_a_clip_in_phases_counts_every_window_step_and_chunk(phased: Manifest) -> None:
    shapes: dict[str, list[tuple[int, int]]] = {}
    for shape in clip_shapes(phased, 128, 96, Options({"window": 4}), 11):
        shapes.setdefault(shape.stage, []).append((shape.sizes.get("f", 0), shape.steps * shape.runs))
    steps = 4
    tiles = frame_shapes(phased, 128, 96, Options({"window": 4}))
    assert shapes["encode"] == [(1, 11)]
    assert shapes["decode"] == [(3, 3), (2, 1)]
    assert shapes["update"] == [(11, steps)]
    # 11 frames in chunks of 4 that share 2: [0,4) [2,6) [4,8) [6,11), the last one longer
    per_tile = next(shape.runs for shape in tiles if shape.stage == "predict")
    assert shapes["predict"] == [(4, 3 * steps * per_tile), (5, steps * per_tile)]


def test_a_frame_of_a_clip_takes_its_share(phased: Manifest) -> None:
    options = Options({"window": 4})
    found = roofline.predict(phased, MACHINE, 128, 96, options, frames=11)
    shapes = clip_shapes(phased, 128, 96, options, 11)
    assert found.frames == 11
    assert [stage.shape.stage for stage in found.stages] == [stage.name for stage in phased.stages]
    for stage in found.stages:
        own = [shape for shape in shapes if shape.stage == stage.shape.stage]
        work = phased.networks[stage.shape.network].work
        assert work is not None
        all_of_it = sum(2 * s.steps * s.runs * evaluate(work.multiply_adds, s.sizes) for s in own)
        assert stage.flop == pytest.approx(all_of_it / 11), stage.shape.stage
    total = roofline.operations(phased, 128, 96, options, 11)
    assert total == pytest.approx(sum(stage.flop for stage in found.stages))
    # nobody says how long: as long as a chunk
    assert roofline.predict(phased, MACHINE, 128, 96, options).frames == 4
    assert roofline.as_json([found])["predictions"][0]["clip_frames"] == 11


def test_precision_is_what_bundle_and_machine_have() -> None:
    def used(found: Manifest, machine: Machine, asked: Any = None) -> list[str]:
        return [s.precision for s in roofline.predict(found, machine, 512, 512, precision=asked).stages]

    fp32 = manifest(precision="fp32")
    assert used(manifest(), MACHINE) == ["fp32", "fp16", "fp16"]
    assert used(manifest(), OLD) == ["fp32"] * 3
    assert used(fp32, MACHINE) == ["fp32"] * 3
    assert used(fp32, MACHINE, "fp16") == ["fp32", "fp16", "fp16"]  # as if it were calibrated
    assert used(manifest(), MACHINE, "fp32") == ["fp32"] * 3
    networks = {
        name: dataclasses.replace(net, graphs={"native": "x", "fp16": "y"})
        for name, net in fp32.networks.items()
    }
    assert used(dataclasses.replace(fp32, networks=networks), MACHINE) == ["fp32", "fp16", "fp16"]
    with pytest.raises(InputError, match="old has no FP16 rate"):
        used(manifest(), OLD, "fp16")


def test_a_bundle_without_counts_names_the_command_that_mends_it() -> None:
    found = manifest()
    networks = {name: dataclasses.replace(net, work=None) for name, net in found.networks.items()}
    with pytest.raises(BundleError, match=r"encoder, pre, unet takes.*again with vsr-build bundle"):
        roofline.predict(dataclasses.replace(found, networks=networks), MACHINE, 512, 512)
    networks = found.networks | {"other": networks["other"]}  # a variant that is not chosen may lack it
    roofline.predict(dataclasses.replace(found, networks=networks), MACHINE, 512, 512)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("H100", ["H100"]),
        ("rtx4090, rtx-5090,RTX 3090", ["RTX4090", "RTX5090", "RTX3090"]),
        ("a100-40gb,A100", ["A100-40GB", "A100"]),
        ("l4,all", ["L4", *(name for name in roofline.MACHINES if name != "L4")]),
    ],
)
def test_machines_are_found_by_name(names: str, expected: list[str]) -> None:
    assert [machine.name for machine in roofline.find(names)] == expected


@pytest.mark.parametrize("names", ["H1000", "", "H100,,L4"])
def test_an_unknown_machine_is_refused_with_those_there_are(names: str) -> None:
    with pytest.raises(InputError, match=r"expected T4, A100, .*RTX5090, this-machine, all"):
        roofline.find(names)


def test_figures_are_plausible_and_cited() -> None:
    for machine in roofline.MACHINES.values():
        assert machine.source
        assert not machine.measured
        assert machine.fp16 is not None
        ratio = machine.fp16 / machine.fp32
        # dense, with FP32 sums: GeForce cards twice FP32, others 4 to 16 times
        assert ratio == pytest.approx(2, rel=0.01) if machine.name.startswith("RTX") else 3.9 < ratio < 17


def test_figures_do_not_contradict_those_of_the_kernels() -> None:
    by_card = {machine.card.removeprefix("Tesla "): machine for machine in roofline.MACHINES.values()}
    both = [t for t in TARGETS.values() if t.card.removeprefix("Tesla ") in by_card]
    assert len(both) >= 6
    for target in both:
        machine = by_card[target.card.removeprefix("Tesla ")]
        assert machine.bandwidth == pytest.approx(target.bandwidth)
        peak = 2 * target.multiprocessors * target.fp32_lanes * target.clock
        assert machine.fp32 == pytest.approx(peak, rel=0.01)


def test_this_machine_is_measured() -> None:
    machine = roofline.measure_here(seconds=0.02)
    assert machine.name == roofline.THIS_MACHINE
    assert machine.measured
    assert machine.fp16 is None
    assert 1e8 < machine.fp32 < 1e14
    assert 1e8 < machine.bandwidth < 1e13


def shown(predictions: Any) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    roofline.show(console, predictions)
    return console.export_text()


def test_the_table_says_that_it_is_a_model() -> None:
    text = shown(roofline.predict_all(manifest(), [MACHINE], [(512, 512), (1920, 1080)]))
    assert f"toy, 512x512: {NOTE}" in text
    assert f"milliseconds (frames a second): {NOTE}" in text
    assert "1920x1080" in text
    assert f"frames a second ({NOTE})" in text
    assert "published: a data sheet." in text
    row = next(line for line in text.splitlines() if line.startswith(" encoder"))
    assert row.split() == "encoder 1 of 64x64 fp16 0.004 0.01 0.44 0.08 0.44 compute".split()
    large = shown(roofline.predict_all(manifest(), [MACHINE], [(1920, 1080)]))
    assert "8 of 96x96" in large
    assert all(len(line) <= 80 for line in text.splitlines() if "│" in line or line.startswith(" "))


def test_measured_times_stand_beside_the_model() -> None:
    encoder = roofline.predict(manifest(), MACHINE, 512, 512).stages[1].seconds
    measured = {"pre": 0.001, "encoder": 2 * encoder, "unet": 0.03, "upload": 1.0}
    found = roofline.predict(manifest(), MACHINE, 512, 512, measured=measured)
    assert found.measured == pytest.approx(0.031 + 2 * encoder)
    text = shown([found])
    assert "measured times" in text
    row = next(line for line in text.splitlines() if line.startswith(" encoder"))
    assert row.split()[-2:] == ["0.89", "2.00"]
    part = roofline.predict(manifest(), MACHINE, 512, 512, measured={"unet": 0.03})
    assert part.measured is None
    assert next(line for line in shown([part]).splitlines() if line.startswith(" all")).split()[-2:] == [
        "-",
        "-",
    ]


def test_several_machines_are_compared_in_one_table() -> None:
    here = dataclasses.replace(OLD, measured=True)
    text = shown(roofline.predict_all(manifest(), [MACHINE, here], [(512, 512), (1280, 720)]))
    assert f"milliseconds (frames a second): {NOTE}" in text
    assert [line.split()[0] for line in text.splitlines() if line.startswith((" toy", " old"))] == [
        "toy",
        "old",
    ]
    assert "these two were measured here, the times are a model" in text


def test_json_says_that_it_is_a_model() -> None:
    data = json.loads(json.dumps(roofline.as_json(roofline.predict_all(manifest(), [MACHINE]))))
    assert data["kind"] == NOTE
    assert data["machines"]["toy"]["source"] == "a data sheet"
    assert [p["size"] for p in data["predictions"]] == ["512x512", "1280x720", "1920x1080"]
    for prediction in data["predictions"]:
        assert prediction["kind"] == NOTE
        assert prediction["seconds"] == pytest.approx(sum(s["seconds"] for s in prediction["stages"]))
    assert data["predictions"][2]["stages"][2]["runs"] == 8
    assert {s["bound"] for s in data["predictions"][0]["stages"]} == {"compute", "memory"}


def test_every_machine_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "roofline.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| `")}
    for machine in roofline.MACHINES.values():
        row = rows[f"`{machine.name}`"]
        assert machine.fp16 is not None
        for figure in (machine.fp16 / T, machine.fp32 / T, machine.bandwidth / G):
            assert f" {figure:g} " in row
