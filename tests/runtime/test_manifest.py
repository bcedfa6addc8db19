"""The manifest: strict in what it reads, published as a schema, and nothing leads out of a bundle."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from helpers.small_manifest import small

from vsr_trt.runtime.bundle.checks import is_inside
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import SCHEMA_VERSION, Canvas
from vsr_trt.runtime.bundle.reading import read_manifest
from vsr_trt.runtime.bundle.schema import json_schema
from vsr_trt.runtime.bundle.symbols import dimension, evaluate
from vsr_trt.runtime.errors import BundleError
from vsr_trt.runtime.schedule.canvas import canvas_size

PUBLISHED = Path(__file__).parents[2] / "runtime" / "bundle" / "bundle.schema.json"


def write(folder: Path, data: Any) -> Path:
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    (folder / "onnx" / "net.onnx").write_bytes(b"abc")
    (folder / "prompt.npy").write_bytes(b"")
    text = data if isinstance(data, str) else json.dumps(data)
    (folder / "bundle.json").write_text(text)
    return folder


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path, small()))
    manifest.write(tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert json.loads((tmp_path / "bundle.json").read_text()) == small()
    assert manifest.provenance.adapters == {"default_encoder_quality": 1.0}


def test_the_published_schema_is_current_and_accepts_what_we_write() -> None:
    assert json.loads(PUBLISHED.read_text()) == json_schema(), "vsr schema > runtime/bundle.schema.json"
    jsonschema.Draft202012Validator.check_schema(json_schema())
    jsonschema.validate(small(), json_schema())


def test_golden_bundle_follows_the_schema(golden_bundle: Path) -> None:
    jsonschema.validate(json.loads((golden_bundle / "bundle.json").read_text()), json_schema())


def _set(path: str, value: Any) -> Callable[[dict], None]:
    def change(data: dict) -> None:
        *parents, last = path.split("/")
        for name in parents:
            data = data[int(name)] if isinstance(data, list) else data[name]
        if value is _GONE:
            del data[last]
        elif isinstance(data, list):
            data[int(last)] = value
        else:
            data[last] = value

    return change


_GONE = object()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("family", _GONE), "lacks the field 'family'"),
        (_set("scale", "4"), "bundle.json.scale is '4', expected a value of type int"),
        (_set("scale", True), "bundle.json.scale is True"),
        (_set("surprise", 1), "unknown field 'surprise'"),
        (_set("precision", "fp8"), "expected one of 'fp32', 'fp16'"),
        (_set("networks/net/inputs/0/shape/2", "h*8"), "'h\\*8' is not a size"),
        (_set("networks/net/bounds/h", _GONE), "the dimension 'h' has no bounds"),
        (_set("networks/net/graphs", {"cpu": "onnx/net.onnx"}), "has no native graph"),
        (_set("networks/net/graphs/native", "onnx/other.onnx"), "used but not among the files"),
        (_set("stages/0/network", "nothing"), "runs 'nothing'"),
        (_set("stages/0/reads", {}), "does not feed the inputs"),
        (_set("stages/0/writes", {"other": "result"}), "does not compute"),
        (_set("stages/0/reads/x", "later"), "reads 'later' before it is written"),
        (_set("output", "nowhere"), "no stage writes the output"),
        (_set("stages/0/variants", {"a": "net"}), "variants but no option"),
        (_set("stages/0/option", "color"), "an option but no variants"),
        (lambda data: data["stages"].append(data["stages"][0]), "two stages have the same name"),
        (
            lambda data: data["stages"][0].update(variants={"a": "net"}, option="color"),
            "the choices of 'color' are not its variants",
        ),
        (_set("latent_scale", 0), "latent_scale is 0"),
        (_set("stages/0/lane", "deliver"), "the lane 'deliver', which is the host's own"),
        (_set("canvas/least", [0, 1]), "canvas.least is 0"),
        (_set("canvas/least", [1]), "canvas.least has 1 values, expected 2"),
        (_set("canvas/offset", [0, 16]), "canvas.offset is 16, expected 0 to 15"),
        (_set("canvas/border", 256), "canvas.border is 256, expected 0 to 255"),
        (_set("window/overlap", 1), "window.overlap is 1, expected 0 to 0"),
        (_set("stages/0/tiling", "latent"), "the tiling 'latent', which there is not"),
        (_set("stages/0/loop", "again"), "is of the loop 'again', which there is not"),
        (_set("loops", {"a": {"steps": 2, "carries": {}}}), "the stages of loop a do not stand together"),
        (_set("clip", ["memory"]), "no stage writes 'memory'"),
        (_set("inputs/prompt", {"source": "frame"}), "exactly one input is the frame"),
        (_set("inputs/prompt", {"source": "option", "name": "x"}), "'x' is no option with a number"),
        (_set("inputs/prompt", {"source": "file"}), "a file, option or noise needs a name"),
        (_set("options", {"x": {"type": "number", "default": "a", "help": ""}}), "option x: its default 'a'"),
        (_set("options", {"x": {"type": "choice", "default": "a", "help": ""}}), "option x: its default 'a'"),
        (
            _set("options", {"x": {"type": "integer", "default": 3, "help": "", "most": 2}}),
            "option x: its default 3",
        ),
        (
            _set("tilings", {"t": {"side": 8, "overlap": 5}}),
            r"tilings.t.overlap is 5, expected 0 to 4",
        ),
        (
            _set("networks/net/kernel/operands", {"a": "x", "b": "y"}),
            r"operands \['x', 'y'\], expected \['x', 'y', 'z'\]",
        ),
        (_set("networks/net/kernel/operands/c", "w"), r"operands \['w', 'x', 'y'\]"),
        (_set("networks/net/kernel/constants/a", "prompt.npy"), "the kernel of net is given 'a' twice"),
        (_set("networks/net/kernel/constants/M", "P.npy"), "'P.npy' is used but not among the files"),
        (_set("networks/net/kernel/launch", ["P.json"]), "'P.json' is used but not among the files"),
        (_set("networks/net/kernel/launch", []), "the kernel of net has no launch metadata"),
        (_set("networks/net/kernel/numbers/k", []), "or a number without a value"),
        (_set("stages/0/writes", {"y": "result"}), "has no buffer for all that the kernel of 'net' writes"),
        (_set("networks/net/work/activations", {"h+w": 1}), "its work: 'h\\+w' is not a product of sizes"),
        (_set("networks/net/work/activations", {"ceil(h,0)": 1}), "is not a product of sizes"),
        (_set("networks/net/work/multiply_adds", {"k": 1}), "its work: the dimension 'k' has no bounds"),
        (_set("networks/net/work/weights", 1.5), "expected a value of type int"),
    ],
)
def test_misfits_are_named(tmp_path: Path, change: Callable[[dict], None], message: str) -> None:
    data = copy.deepcopy(small())
    change(data)
    with pytest.raises(BundleError, match=message):
        read_manifest(write(tmp_path, data))


@pytest.mark.parametrize("version", [0, 6, "1", None])
def test_another_schema_version_is_refused(tmp_path: Path, version: Any) -> None:
    with pytest.raises(BundleError, match=r"schema version .*this runtime reads versions 1 to 5.*vsr-build"):
        read_manifest(write(tmp_path, small() | {"schema_version": version}))


def test_a_manifest_of_version_4_has_its_offset_on_both_sides(tmp_path: Path) -> None:
    data = copy.deepcopy(small()) | {"schema_version": 4}
    data["canvas"]["offset"] = 4
    del data["canvas"]["ample"]
    found = read_manifest(write(tmp_path, data))
    assert (found.canvas.offset, found.schema_version) == ((4, 4), SCHEMA_VERSION)
    data["canvas"]["offset"] = [4, 4]
    with pytest.raises(BundleError, match="offset"):
        read_manifest(
            write(tmp_path, data | {"schema_version": 3, "canvas": data["canvas"] | {"offset": "4"}})
        )


@pytest.mark.parametrize(
    ("frame", "canvas"),
    [
        ((1, 1), (180, 320)),
        ((180, 320), (180, 320)),
        ((181, 321), (196, 336)),
        ((196, 336), (212, 352)),
        ((195, 335), (196, 336)),
        ((270, 480), (276, 496)),
        ((180, 336), (180, 352)),
    ],
)
def test_an_ample_canvas_is_larger_than_what_fits(frame: tuple[int, int], canvas: tuple[int, int]) -> None:
    """Multiples of 64 in the result, 16 more in height: 1920x1080 goes onto 1984x1104."""
    record = Canvas((180, 320), 16, offset=(4, 0), ample=True)
    assert canvas_size(record, *frame) == canvas
    least = canvas_size(dataclasses.replace(record, ample=False), *frame)
    fits = all((side - offset) % 16 == 0 for side, offset in zip(frame, record.offset, strict=True))
    assert (least == frame) == (fits and frame >= (180, 320))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(BundleError):
        read_manifest(write(tmp_path, text))


@pytest.mark.parametrize("path", ["../evil", "/etc/passwd", "a/../../b", "", "C:\\x", "a\\..\\b", "a\0b"])
@pytest.mark.parametrize("where", ["files", "prompt", "graph", "input", "kernel", "constant"])
def test_a_path_that_leaves_the_bundle_is_refused(tmp_path: Path, path: str, where: str) -> None:
    data = small()
    if where == "files":
        data["files"][path] = {"bytes": 1, "sha256": ""}
    elif where == "prompt":
        data["prompt"]["file"] = path
    elif where == "kernel":
        data["kernels"] = [path]
    elif where == "constant":
        data["networks"]["net"]["kernel"]["constants"]["M"] = path
    elif where == "graph":
        data["networks"]["net"]["graphs"]["cpu"] = path
    else:
        data["inputs"]["prompt"]["name"] = path
        if not path:
            return  # an empty file name stands for no file
    assert not is_inside(path)
    with pytest.raises(BundleError, match="leaves the bundle"):
        read_manifest(write(tmp_path, data))


def test_a_link_out_of_the_bundle_is_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    outside.write_bytes(b"abc")
    folder = write(tmp_path / "bundle", small())
    (folder / "onnx" / "net.onnx").unlink()
    (folder / "onnx" / "net.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match=r"net\.onnx leads out of the bundle"):
        Bundle.open(folder)


def test_a_bundle_can_be_moved(tmp_path: Path) -> None:
    folder = write(tmp_path / "here", small())
    shutil.move(folder, tmp_path / "there")
    assert Bundle.open(tmp_path / "there", check=True).file("prompt.npy").exists()


def test_a_lost_file_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, small())
    (folder / "prompt.npy").unlink()
    with pytest.raises(BundleError, match=r"lost the file prompt\.npy"):
        Bundle.open(folder)


def test_a_file_of_another_size_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, small())
    (folder / "onnx" / "net.onnx").write_bytes(b"abcd")
    with pytest.raises(BundleError, match=r"onnx/net\.onnx was changed: it has 4 bytes, expected 3"):
        Bundle.open(folder)


def test_a_changed_file_of_the_same_size_is_named_when_checked(tmp_path: Path) -> None:
    folder = write(tmp_path, small())
    (folder / "onnx" / "net.onnx").write_bytes(b"abd")
    Bundle.open(folder)  # sizes only
    with pytest.raises(BundleError, match=r"onnx/net\.onnx was changed: its SHA-256"):
        Bundle.open(folder, check=True)


@pytest.mark.parametrize("where", ["missing", "file"])
def test_what_is_no_bundle_is_refused(tmp_path: Path, where: str) -> None:
    path = tmp_path / where
    if where == "file":
        path.write_text("x")
    with pytest.raises(BundleError, match=r"is not a bundle.*vsr-build bundle"):
        Bundle.open(path)


def test_dimension() -> None:
    assert [dimension(size) for size in (3, "h", "8*h", "4*lr_w")] == [
        (3, None),
        (1, "h"),
        (8, "h"),
        (4, "lr_w"),
    ]


def test_polynomials_are_evaluated() -> None:
    sizes = {"h": 40, "w": 3}
    assert evaluate({}, sizes) == 0
    assert evaluate({"1": 7, "h": 2, "h*w": 0.5}, sizes) == 7 + 80 + 60
    assert evaluate({"ceil(h,32)*ceil(w,4)*h": 1}, sizes) == 64 * 4 * 40


def test_a_bundle_from_before_work_was_counted_is_read(tmp_path: Path) -> None:
    data = small()
    del data["networks"]["net"]["work"]
    assert read_manifest(write(tmp_path, data)).networks["net"].work is None


def test_manifest_is_frozen(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path, small()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        manifest.scale = 2  # type: ignore[misc]
