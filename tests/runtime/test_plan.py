"""`vsr plan`: what it tells, what it refuses, what it draws. Its bundles hold nothing to be loaded."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from helpers.planned_bundle import SCRATCH, WEIGHTS, engines, make
from helpers.stages import dloral_manifest

from vsr_trt.engines.tensorrt.shapes import Layout, Size
from vsr_trt.runtime.bundle.manifest import Network, Work
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.cli.main import main
from vsr_trt.runtime.cli.values import parse_memory
from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.machine import gpu
from vsr_trt.runtime.machine.gpu import Gpu
from vsr_trt.runtime.plan import plan as planning
from vsr_trt.runtime.plan.plan import PlanRequest
from vsr_trt.runtime.schedule import memory
from vsr_trt.runtime.schedule.build import build
from vsr_trt.runtime.schedule.drawing import draw
from vsr_trt.runtime.schedule.events import Order, derive
from vsr_trt.runtime.schedule.folding import fold
from vsr_trt.runtime.schedule.sketch import sketch

SVG = "{http://www.w3.org/2000/svg}"
SMALL, FULL_HD = Size(512, 512), Size(1920, 1080)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "detect", lambda: None)


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Plans with a bundle that has engines for sm_89, 512x512 and 1920x1080."""
    records = {
        engine.file: engine
        for size in (SMALL, FULL_HD)
        for engine in engines(dloral_manifest(), [size], Layout(batch=1))
    }
    bundle = make(tmp_path / "bundle", list(records.values()))

    def run(*arguments: str, size: str = "512x512") -> tuple[int, str, str]:
        code = main(["plan", "--bundle", str(bundle.path), "--size", size, *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_json_is_the_whole_schedule(run: Run) -> None:
    code, out, err = run("--slots", "2", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    schedule = build(dloral_manifest(), 128, 128, Options(), 2)
    assert [lane["name"] for lane in told["lanes"]] == list(schedule.lanes)
    assert [step["name"] for step in told["steps"]] == [step.name for step in schedule.steps]
    assert told["steps"][2]["writes"] == {"image": "image", "thumb": "thumb", "reference": "reference"}
    assert told["events"] == [dataclasses.asdict(event) for event in derive(schedule)]
    buffers = {buffer["name"]: buffer for buffer in told["buffers"]}
    assert buffers["latent"] == {
        "name": "latent",
        "shape": [1, 4, 64, 64],
        "dtype": "float32",
        "kind": "slot",
        "bytes": 65536,
        "copies": 2,
    }
    assert buffers["latent[n-1]"]["copies"] == 1
    assert told["memory"]["scratch"] is told["memory"]["weights"] is None
    each = sum(b["bytes"] for b in told["buffers"] if b["kind"] == "slot")
    once = sum(b["bytes"] for b in told["buffers"] if b["kind"] in ("state", "constant"))
    assert told["memory"]["device"] == 2 * each + once


def test_memory_of_engines_comes_from_their_reports(run: Run) -> None:
    told = json.loads(run("--target", "sm_89", "--slots", "2", "--json")[1])
    found = told["memory"]
    assert found["unknown"] is None
    assert found["scratch"] == {
        "scratch of encode": SCRATCH["vae_encoder"],
        "scratch of decode": SCRATCH["vae_decoder"],
    }
    assert set(found["weights"].values()) == {WEIGHTS}
    assert len(found["weights"]) == 7
    total = 2 * found["slot"] + found["shared"] + sum(SCRATCH.values()) - SCRATCH["unet"] + 7 * WEIGHTS
    assert found["device"] == total
    assert told["engines"]["vae_decoder"].endswith("vae_decoder.fp16.n1-64x64.engine")
    one = json.loads(run("--target", "sm_89", "--json")[1])
    assert one["slots"] == 1
    assert one["memory"]["scratch"] == {"scratch": SCRATCH["vae_decoder"]}


def test_tiles_are_those_of_the_engines(run: Run) -> None:
    told = json.loads(run("--target", "sm_89", "--json", size="1920x1080")[1])
    assert told["options"]["tiles"] == {"latent": 96}
    assert told["vae"] == {"form": "whole", "why": "the bundle has engines for it", "estimated_memory": None}
    assert sum(step["stage"] == "vae_decoder" and step["action"] == "network" for step in told["steps"]) == 1
    tiles = ("--vae-statistics", "tile", "--vae-tile", "96", "--json")
    cpu = json.loads(run(*tiles, size="1920x1080")[1])
    assert cpu["options"]["tiles"]["vae"] == 96
    assert cpu["vae"]["form"] == "tiles"
    assert sum(step["stage"] == "vae_decoder" and step["action"] == "network" for step in cpu["steps"]) == 6


@pytest.mark.parametrize("width", ["80", "200"])
def test_tables_fit_80_columns(run: Run, monkeypatch: pytest.MonkeyPatch, width: str) -> None:
    monkeypatch.setenv("COLUMNS", width)
    code, out, _ = run("--target", "sm_89", "--memory", "16GB", "--slots", "3", size="1920x1080")
    assert code == 0
    assert all(len(line.rstrip()) <= int(width) for line in out.splitlines())
    assert re.search(r"unet\[0\.\.7\] +decode +network x 8 +cfr\.warped, cfr\.fused, prompt ->", out)
    assert "cfr[0] waits for spynet[7] of the same frame" in out
    assert "receive waits for deliver of the frame 3 before" in out
    assert "weights of vae_encoder" in out
    assert re.search(r"\d+ slots would fit into 16.0 GB", out)


def test_without_engines_it_says_so_and_how_to_build_them(run: Run) -> None:
    code, out, _ = run("--target", "sm_86")
    assert code == 0
    assert "scratch and weights are not in this sum" in out
    assert "--target sm_86 --size 512x512" in out
    _, out, _ = run("--target", "sm_89", size="1280x720")
    assert "has no engine for sm_89 of preprocess (180x320 pixels)" in out


def test_reports_that_do_not_tell(tmp_path: Path) -> None:
    records = engines(dloral_manifest(), [SMALL])
    bundle = make(tmp_path / "b", records, {"unet": {"weights": 5, "activations": None}})
    plan = planning.make(bundle, PlanRequest(512, 512, 1, "sm_89", Options()))
    assert plan.unknown == "the reports of its engines of unet do not tell all of it"
    assert plan.memory.weights["unet"] == 5


@pytest.mark.parametrize(
    ("arguments", "size", "said"),
    [
        # 990 MB of scratch and weights more for each lane's own scratch
        (
            ["--slots", "9", "--memory", "1.5GB"],
            "512x512",
            r"What fits at most: --slots [2-8], with 1\.\d+ GB\.$",
        ),
        (["--slots", "2", "--memory", "1GB"], "512x512", r"What fits at most: --slots 1, with 978 MB\.$"),
        (
            ["--slots", "2", "--memory", "900MB"],
            "512x512",
            r"One slot needs 978 MB\. Restore a smaller picture",
        ),
        (
            ["--slots", "1", "--memory", "900MB"],
            "1920x1080",
            r"have it in strips, which is the same picture, because vae_decoder alone works in 900 MB: vsr-build "
            r"engines \S+ --target sm_89 --size 1920x1080 --tile vae=120$",
        ),
    ],
)
def test_what_does_not_fit_is_refused(run: Run, arguments: list[str], size: str, said: str) -> None:
    code, out, err = run("--target", "sm_89", *arguments, size=size)
    assert (code, out) == (7, "")
    assert re.search(said, err.strip())
    code, out, _ = run("--target", "sm_89", *arguments, "--json", size=size)
    assert json.loads(out)["kind"] == "DeviceError"


def test_what_is_known_is_enough_to_refuse(run: Run) -> None:
    code, _, err = run("--target", "sm_86", "--slots", "4", "--memory", "20MB")
    assert code == 7
    assert re.search(r"needs at least 3\d\.\d MB of device memory, and --memory allows 20\.0 MB", err)
    assert "--slots 2, with at least" in err


def test_the_gpu_in_the_machine_is_the_default(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "detect", lambda: Gpu("Toy", "sm_89", 10**9, "13.0"))
    code, _, err = run("--slots", "2")
    assert code == 7
    assert "and Toy (sm_89) has 1.00 GB" in err
    told = json.loads(run("--memory", "2GB", "--json")[1])
    assert (told["target"], told["slots"], told["available"]) == ("sm_89", 1, 2 * 10**9)


@pytest.mark.parametrize(
    ("arguments", "size", "said"),
    [
        ([], "513x512", "--size 513x512"),
        ([], "20000x512", "end at 4096"),
        (["--slots", "0"], "512x512", "--slots is 0"),
        (["--tile", "100"], "512x512", "--tile latent=100"),
        (["--overlap", "49"], "512x512", "--overlap latent=49"),
        (["--target", "gtx"], "512x512", "--target gtx"),
        (["--memory", "much"], "512x512", "--memory much"),
        (["--draw", "schedule.png"], "512x512", r"a name that ends in \.svg"),
        (["--measured", "bench.json"], "512x512", "--measured stands next to a model"),
        (["--roofline", "abacus"], "512x512", "no figures of 'abacus'"),
    ],
)
def test_options_that_cannot_be(run: Run, arguments: list[str], size: str, said: str) -> None:
    code, _, err = run(*arguments, size=size)
    assert code == 2
    assert re.search(said, err)


@pytest.mark.parametrize(
    ("text", "size"),
    [("16GB", 16 * 10**9), ("16 GiB", 16 << 30), ("12000mb", 12 * 10**9), ("0.5gib", 1 << 29), ("7B", 7)],
)
def test_amounts_of_memory(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "16", "GB", "-1GB", "0GB", "16TB", "1e9B", "nan GB", "٤GB"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(InputError, match="expected a number and MB"):
        parse_memory(text)


@pytest.mark.parametrize("slots", [1, 2, 3, 7])
def test_slots_are_counted_as_they_would_be_built(tmp_path: Path, slots: int) -> None:
    bundle = make(tmp_path / "b", engines(dloral_manifest(), [FULL_HD]))
    plan = planning.make(bundle, PlanRequest(1920, 1080, 2, "sm_89", Options()))
    schedule = build(bundle.manifest, 270, 480, plan.options, slots)
    assert plan.with_slots(slots) == memory.add_up(schedule, plan.needs.scratch, plan.needs.weights)
    exact = plan.with_slots(slots).device
    assert plan.largest_slots(exact) == slots
    assert plan.largest_slots(exact - 1) == slots - 1


def test_roofline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def counted(network: Network) -> Network:
        sized = {"h*w": 1e3} if "h" in network.bounds else {"1": 1e3}
        return dataclasses.replace(network, work=Work(sized, network.parameters, sized, {}))

    networks = {name: counted(network) for name, network in dloral_manifest().networks.items()}
    bundle = make(tmp_path / "b", networks=networks)
    command = ["plan", "--bundle", str(bundle.path), "--size", "512x512", "--roofline", "T4", "h100"]
    assert main(command) == 0
    assert "model, not measured" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["roofline"]
    assert list(told["machines"]) == ["T4", "H100"]
    assert main([*command[:3], "--size", "512x512", "--roofline", "T4", "--slots", "0"]) == 2


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("side", [(128, 128), (270, 480), (540, 960)])
def test_a_drawing_has_every_lane_frame_and_event(side: tuple[int, int], slots: int) -> None:
    schedule = build(dloral_manifest(), *side, Options(), slots)
    events = derive(schedule)
    root = ElementTree.fromstring(draw(schedule, events, "a <title> & more"))
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert texts[0] == "a <title> & more"
    assert [name for name in texts if name in schedule.lanes][: len(schedule.lanes)] == list(schedule.lanes)
    assert [e.get("class") for e in root.iter(f"{SVG}g")].count("lane") == len(schedule.lanes)
    arrows = [path for path in root.iter(f"{SVG}path") if path.get("class") == "event"]
    assert len(arrows) == sum(slots + 1 - event.frames for event in events)
    for frame in range(slots + 1):
        assert f"frame {frame}, slot {frame % slots}" in texts
    boxes = sum(
        group.runs_for(first) * (1 if first else slots) for group in fold(schedule) for first in (True, False)
    )
    assert [e.get("class") for e in root.iter(f"{SVG}g")].count("box") == boxes
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for box in root.iter(f"{SVG}rect"):
        left, top = float(box.get("x", 0)), float(box.get("y", 0))
        assert 0 <= left <= left + float(box.get("width", 0)) <= width
        assert 0 <= top <= top + float(box.get("height", 0)) <= height


def test_what_is_sketched_is_in_order_and_overlaps() -> None:
    schedule = build(dloral_manifest(), 270, 480, Options(), 2)
    events = derive(schedule)
    found = sketch(schedule, events, 4)
    for wait in found.waits:
        assert wait.before.end <= wait.after.start
    order = Order(schedule, events)
    for one in found.boxes:
        for other in found.boxes:
            if one.frame <= other.frame and order.holds(
                one.group.steps[-1].name, other.group.steps[0].name, other.frame - one.frame
            ):
                assert one.end <= other.start
    encoded = next(b for b in found.boxes if b.frame == 1 and b.group.name == "vae_encoder")
    busy = [b for b in found.boxes if b.frame == 0 and b.group.lane == "decode"]
    assert any(b.start < encoded.end and encoded.start < b.end for b in busy)
    receives = [b.start for b in found.boxes if b.group.name == "receive"]
    assert receives[2] >= next(b.end for b in found.boxes if b.group.name == "deliver" and b.frame == 0)


def test_batches_fold_too() -> None:
    schedule = build(dloral_manifest(), 270, 480, Options(), 1, {"unet": 3, "spynet": 8})
    names = {group.name: len(group.steps) for group in fold(schedule)}
    assert names["unet[0..7]"] == 3
    assert names["spynet[0..7]"] == 1
    assert names["keep latent"] == 1


def test_a_drawing_is_written_whole_or_not_at_all(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "schedule.svg"
    assert run("--draw", str(path), "--slots", "2")[0] == 0
    drawn = path.read_text()
    assert "dloral, 512x512, 2 slots" in drawn
    code, _, err = run("--draw", str(path), "--slots", "3")
    assert code == 3
    assert "--overwrite" in err
    assert path.read_text() == drawn
    assert run("--draw", str(path), "--slots", "3", "--overwrite")[0] == 0
    assert "3 slots" in path.read_text()
    assert run("--draw", str(tmp_path / "none" / "x.svg"))[0] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "schedule.svg"]


def test_the_drawing_in_the_documents_is_up_to_date() -> None:
    schedule = build(dloral_manifest(), 128, 128, Options(), 2)
    documented = Path(__file__).parents[2] / "docs" / "schedule.svg"
    expected = draw(schedule, derive(schedule), "dloral, 512x512, 2 slots")
    assert documented.read_text(encoding="utf-8") == expected, (
        "draw it again: vsr plan --bundle GOLDEN --size 512x512 --slots 2 --draw docs/schedule.svg --overwrite"
    )


def test_measured_stages_stand_beside_the_model(tmp_path: Path) -> None:
    from vsr_trt.runtime.bench.compare import median_stages

    report = {
        "kind": "vsr-trt bench",
        "schema_version": 2,
        "settings": {"size": "512x512"},
        "modes": {"latency": {"observed": {"stages": {"unet": {"summary": {"median": 0.25}}}}}},
    }
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(report))
    assert median_stages(file, 512, 512) == {"unet": 0.25}
    with pytest.raises(InputError, match=r"--measured .*it is of 512x512, and the plan of 1280x720"):
        median_stages(file, 1280, 720)
    file.write_text(json.dumps(report | {"modes": {"throughput": {"observed": None}}}))
    with pytest.raises(InputError, match="it has no stages"):
        median_stages(file, 512, 512)
    file.write_text(json.dumps(report | {"modes": {}}))
    with pytest.raises(InputError, match="the report is damaged"):
        median_stages(file, 512, 512)
