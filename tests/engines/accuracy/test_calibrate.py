"""Calibration: what stays in FP32, what is written where, and a bundle that is as it was after any failure."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from helpers.tiny_bundle import frames, hashes, read_json, tree, write_bundle, write_clip

from vsr_trt import build
from vsr_trt.engines import additions
from vsr_trt.engines.accuracy.calibrate import MAX_ERROR, CalibrationRequest, calibrate
from vsr_trt.engines.accuracy.recording import read_clip
from vsr_trt.engines.graphs import half
from vsr_trt.engines.graphs.half import write as write_half
from vsr_trt.engines.graphs.precision import Conversion, convert
from vsr_trt.export import network
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Engine, Manifest
from vsr_trt.runtime.bundle.reading import read_manifest
from vsr_trt.runtime.errors import OutputError, VerificationError, VsrError


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip")


def run(bundle: Path, clip: Path, *options: str) -> int:
    return build.main(["calibrate", str(bundle), "--clip", str(clip), *options])


def request(bundle: Path, clip: Path, **changes: Any) -> CalibrationRequest:
    return dataclasses.replace(CalibrationRequest(bundle, read_clip(clip, 2)), **changes)


def types(path: Path) -> dict[str, ir.DataType]:
    graph = ir.load(path).graph
    return {
        str(value.name): value.dtype for node in graph for value in node.outputs if value.dtype is not None
    }


# ---------------------------------------------------------------- what becomes of a bundle


def test_the_loud_node_and_its_reader_stay_in_fp32_and_nothing_else(
    bundle: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bundle, clip, "--json") == 0
    opened = Bundle.open(bundle, check=True)  # every hash is right
    networks = opened.manifest.networks
    assert {name: network.graphs.get("fp16") for name, network in networks.items()} == {
        "prepare": None,
        "encode": "onnx/encode.fp16.onnx",
        "refine": "onnx/refine.fp16.onnx",
        "finish": None,
    }
    assert networks["refine"].graph("fp16", "fp32") == "onnx/refine.fp16.onnx"
    assert (bundle / "onnx" / "refine.fp16.onnx.data").is_file()
    found = types(bundle / "onnx" / "refine.fp16.onnx")
    single = {
        name
        for name in ("mixed", "calm", "high", "loud", "soft", "joined")
        if found[name] == ir.DataType.FLOAT
    }
    assert single == {"loud", "soft"}
    printed = json.loads(capsys.readouterr().out)
    assert printed["networks"]["refine"]["nodes_fp16"] == 5
    assert [kept["op_type"] for kept in printed["networks"]["refine"]["kept_fp32"]] == ["Mul", "Mul"]


def test_the_record_has_every_tensor_every_node_and_the_clip(bundle: Path, clip: Path) -> None:
    assert run(bundle, clip, "--limit", "0.5", "--frames", "1") == 0
    calibration = Bundle.open(bundle).manifest.calibration
    assert calibration is not None
    assert (calibration.frames, calibration.limit, calibration.clip.name) == (1, 0.5, "clip")
    record = read_json(bundle / calibration.file)
    assert record["clip"]["path"] == str(clip)
    tensors = {entry["tensor"]: entry for entry in record["networks"]["refine"]["tensors"]}
    assert list(tensors) == ["latent", "mixed", "calm", "high", "loud", "soft", "joined", "refined"]
    assert tensors["loud"]["share"] == pytest.approx(tensors["loud"]["largest"] / 65504)
    assert tensors["loud"]["largest"] > 65504
    assert "loud" in record["networks"]["refine"]["kept_fp32"][0]["reason"]
    assert record["networks"]["encode"]["kept_fp32"] == []


def test_a_wider_range_than_the_limit_is_what_keeps_a_node(bundle: Path, clip: Path) -> None:
    assert run(bundle, clip, "--limit", "1e-9") == 0
    assert ir.DataType.FLOAT16 not in types(bundle / "onnx" / "encode.fp16.onnx").values()


def test_overwriting_drops_engines_of_the_old_graphs_and_keeps_the_others(bundle: Path, clip: Path) -> None:
    assert run(bundle, clip) == 0
    (bundle / "engines").mkdir()
    engines = []
    for precision in ("fp16", "fp32"):
        for suffix in ("engine", "json"):
            (bundle / "engines" / f"refine.{precision}.{suffix}").write_bytes(b"plan")
        name = f"engines/refine.{precision}"
        places = {"file": f"{name}.engine", "report": f"{name}.json", "key": "", "flags": (), "profiles": {}}
        engines.append(
            Engine("refine", "tensorrt", "11", "sm_89", ("sm_89",), None, precision, **places)  # type: ignore
        )
    manifest = read_manifest(bundle)
    dataclasses.replace(manifest, engines=tuple(engines), files=hashes(bundle)).write(bundle)
    assert run(bundle, clip, "--overwrite", "--frames", "1") == 0
    after = Bundle.open(bundle, check=True).manifest
    assert [engine.precision for engine in after.engines] == ["fp32"]
    assert not (bundle / "engines" / "refine.fp16.engine").exists()
    assert (bundle / "engines" / "refine.fp32.engine").exists()
    assert after.calibration is not None
    assert after.calibration.frames == 1


def test_the_manifest_is_valid_at_every_moment(
    bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(bundle, clip) == 0
    write, seen = Manifest.write, []

    def watched(manifest: Manifest, folder: Path) -> None:
        Bundle.open(folder, check=True)  # whoever is killed here leaves this
        write(manifest, folder)
        seen.append(manifest.calibration)

    monkeypatch.setattr(Manifest, "write", watched)
    assert run(bundle, clip, "--overwrite") == 0
    assert [calibration is None for calibration in seen] == [True, False]
    Bundle.open(bundle, check=True)


def test_what_others_wrote_into_the_manifest_meanwhile_is_kept(
    bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def writer(native: Path, target: Path, keep: Mapping[str, str]) -> Conversion:
        dataclasses.replace(read_manifest(bundle), kernels=("prompt.npy",)).write(bundle)
        return write_half(native, target, keep)

    monkeypatch.setattr(half, "write", writer)
    calibrate(request(bundle, clip))
    assert read_manifest(bundle).kernels == ("prompt.npy",)


# ---------------------------------------------------------------- failures leave the bundle alone


def ignoring(native: Path, target: Path, keep: Mapping[str, str]) -> Conversion:
    """Keeps nothing in FP32."""
    return write_half(native, target, {})


def full(native: Path, target: Path, keep: Mapping[str, str]) -> Conversion:
    write_half(native, target, keep)
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupted(native: Path, target: Path, keep: Mapping[str, str]) -> Conversion:
    write_half(native, target, keep)
    raise KeyboardInterrupt


def wrong(native: Path, target: Path, keep: Mapping[str, str]) -> Conversion:
    """Another network's weights."""
    model = ir.load(native)
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy() * 1.2, name=value.name)
    conversion = convert(model, keep)
    ir.save(model, target)
    return conversion


@pytest.mark.parametrize(
    ("writer", "error", "words"),
    [
        (ignoring, VerificationError, r"refine has numbers that are not finite in FP16.*loud"),
        (full, OutputError, "disk is full"),
        (interrupted, KeyboardInterrupt, "^$"),
        (wrong, VerificationError, "differs from FP32"),
    ],
)
def test_a_failure_while_converting(
    bundle: Path,
    clip: Path,
    monkeypatch: pytest.MonkeyPatch,
    writer: Callable[..., Conversion],
    error: type[BaseException],
    words: str,
) -> None:
    before = tree(bundle)
    monkeypatch.setattr(half, "write", writer)
    with pytest.raises(error, match=words):
        calibrate(request(bundle, clip))
    assert tree(bundle) == before


@pytest.mark.parametrize(("overwrite", "step"), [(False, 1), (True, 1), (True, 2)])
def test_a_failure_while_files_are_moved(
    bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool, step: int
) -> None:
    if overwrite:
        assert run(bundle, clip) == 0
    before, write, count = tree(bundle), Manifest.write, 0

    def failing(manifest: Manifest, folder: Path) -> None:
        nonlocal count
        count += 1
        if count == step:
            raise OSError(errno.EIO, "Input/output error")
        write(manifest, folder)

    monkeypatch.setattr(Manifest, "write", failing)
    with pytest.raises(OutputError, match="nothing was added"):
        calibrate(request(bundle, clip, overwrite=overwrite))
    assert tree(bundle) == before


def test_a_full_disk_is_refused_before_any_work(
    bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(additions.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 10))
    with pytest.raises(OutputError, match="the disk is full"):
        calibrate(request(bundle, clip))


# ---------------------------------------------------------------- refusals


def damage_fp16(bundle: Path) -> None:
    dataclasses.replace(read_manifest(bundle), precision="fp16").write(bundle)


def damage_old(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    networks = {
        name: dataclasses.replace(network, always_fp32=None) for name, network in manifest.networks.items()
    }
    dataclasses.replace(manifest, networks=networks).write(bundle)


def damage_all_fp32(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    networks = {
        name: dataclasses.replace(network, always_fp32="so") for name, network in manifest.networks.items()
    }
    dataclasses.replace(manifest, networks=networks).write(bundle)


def unchanged(bundle: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("damage", "options", "code", "words"),
    [
        (damage_fp16, (), 4, "is an FP16 bundle"),
        (damage_old, (), 4, "an older version made it"),
        (damage_all_fp32, (), 4, "no network with an FP16 form"),
        (unchanged, ("--limit", "0"), 2, "--limit is 0.0"),
        (unchanged, ("--limit", "1.5"), 2, "--limit is 1.5"),
        (unchanged, ("--limit", "nan"), 2, "--limit is nan"),
        (unchanged, ("--frames", "0"), 2, "--frames is 0"),
        (unchanged, ("--clip", "no-such.mp4"), 2, "no-such.mp4"),
    ],
)
def test_refusals_are_sentences(
    bundle: Path,
    clip: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    options: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    damage(bundle)
    before = tree(bundle)
    assert run(bundle, clip, *options) == code
    assert words in " ".join(capsys.readouterr().err.split())
    assert tree(bundle) == before


def test_a_second_calibration_needs_overwrite(
    bundle: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bundle, clip) == 0
    before = tree(bundle)
    assert run(bundle, clip) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert tree(bundle) == before


def test_numbers_that_are_not_finite_in_fp32_name_their_tensor(bundle: Path, clip: Path) -> None:
    model = ir.load(bundle / "onnx" / "encode.onnx")
    weight = model.graph.initializers["second"]
    array = np.array(weight.const_value.numpy())
    array[0, 0, 1, 1] = np.nan
    weight.const_value = ir.tensor(array, name="second")
    ir.save(model, bundle / "onnx" / "encode.onnx")
    dataclasses.replace(read_manifest(bundle), files=hashes(bundle)).write(bundle)
    with pytest.raises(VsrError, match=r"encode has numbers that are not finite in FP32.*latent"):
        calibrate(request(bundle, clip))


def test_errors_allowed_are_those_of_the_export() -> None:
    assert MAX_ERROR == network._FP16_TOLERANCE


# ---------------------------------------------------------------- conversion


def test_values_and_nodes_can_be_named_and_the_reason_is_handed_back(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "bundle") / "onnx" / "refine.onnx"
    model = ir.load(path)
    conversion = convert(model, {"calm": "as told"})
    assert {(kept.op_type, kept.reason) for kept in conversion.kept} == {
        ("Sigmoid", "as told"),
        ("Mul", "as told"),
    }
    names = [node.name or node.outputs[0].name for node in ir.load(path).graph if node.op_type == "Relu"]
    conversion = convert(ir.load(path), {str(names[0]): "that node"})
    assert [(kept.op_type, kept.reason) for kept in conversion.kept] == [("Relu", "that node")]
    assert convert(ir.load(path)).kept == ()


def test_frames_are_read_as_asked(clip: Path) -> None:
    found = read_clip(clip, 1)
    assert len(found.frames) == 1
    np.testing.assert_array_equal(found.frames[0], frames(1)[0])
    assert found.count == "1 frame"
    assert read_clip(clip, 9).count == "2 frames"
