"""Verification: the three forms side by side, the gate, the report, and the whole on the golden bundle."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from helpers import clip_family
from helpers.golden import GOLDEN, real_clip
from helpers.tiny_bundle import hashes, read_json, tree, write_bundle, write_clip
from PIL import Image

from vsr_trt import build
from vsr_trt.engines.accuracy import gate, gpu_check, report
from vsr_trt.engines.accuracy.calibrate import CalibrationRequest, calibrate
from vsr_trt.engines.accuracy.metrics import Difference
from vsr_trt.engines.accuracy.recording import Recorder, read_clip, run_chain
from vsr_trt.engines.accuracy.verify import NetworkReport, verify
from vsr_trt.engines.graphs import half
from vsr_trt.export import torch_device
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Canvas, Engine, Profile
from vsr_trt.runtime.bundle.reading import read_manifest
from vsr_trt.runtime.errors import CheckpointError, DeviceError
from vsr_trt.runtime.machine.gpu import Gpu
from vsr_trt.runtime.onnxruntime.cpu import CpuNetworks
from vsr_trt.runtime.restore.restorer import Restorer


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip")


@pytest.fixture
def bundle(tmp_path: Path, clip: Path) -> Path:
    """Calibrated."""
    path = write_bundle(tmp_path / "bundle")
    calibrate(CalibrationRequest(path, read_clip(clip, 1)))
    return path


def run(bundle: Path, *options: str) -> int:
    return build.main(["verify", str(bundle), "--frames", "1", *options])


def reported(bundle: Path) -> dict:
    return read_json(bundle.with_name("bundle-verify") / "verify.json")


def convert_again(bundle: Path, network: str, keep: Mapping[str, str]) -> None:
    """Replaces a network's FP16 graph."""
    path = bundle / "onnx" / f"{network}.fp16.onnx"
    path.unlink()
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)
    half.write(bundle / "onnx" / f"{network}.onnx", path, keep)
    dataclasses.replace(read_manifest(bundle), files=hashes(bundle)).write(bundle)


class Doubles:
    """Stands in for torch: ONNX Runtime, with the outputs of one network scaled."""

    name = "torch"

    def __init__(self, bundle: Path, network: str = "", factor: float = 1.0) -> None:
        self._bundle, self._network, self._factor = bundle, network, factor
        self.closed = False

    def load(self, network: str) -> None:
        pass

    def run(self, network: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        session = onnxruntime.InferenceSession(self._bundle / "onnx" / f"{network}.onnx")
        (name,) = [output.name for output in session.get_outputs()]
        (result,) = session.run(None, inputs)
        return {name: result * np.float32(self._factor) if network == self._network else result}

    def close(self) -> None:
        self.closed = True


# ---------------------------------------------------------------- what is compared


def test_a_calibrated_bundle_passes_and_the_report_says_what_was_compared(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(bundle)
    assert run(bundle) == 0
    assert tree(bundle) == before
    found = reported(bundle)
    assert found["passed"]
    assert found["torch"] == "not compared: give --checkpoint"  # a family of the tests: no folders
    assert found["engines"].startswith("not run")
    assert found["networks"]["prepare"] | {"differences": {}} == found["networks"]["prepare"]
    assert list(found["networks"]) == ["prepare", "encode", "refine", "finish"]
    assert 0 < found["networks"]["refine"]["differences"]["fp16 from fp32"]["quantile"] < 1e-2
    assert [entry["what"] for entry in found["chain"]] == ["fp16 from fp32"]
    tensors = found["networks"]["refine"]["tensors"]
    assert {entry["precision"] for entry in tensors["fp32"]} == {"fp32"}
    assert {entry["tensor"]: entry["precision"] for entry in tensors["fp16"]}["loud"] == "fp32"
    assert {entry["tensor"]: entry["precision"] for entry in tensors["fp16"]}["high"] == "fp16"
    shown = capsys.readouterr().err
    assert "every threshold was kept" in shown
    assert "loud" in shown  # among the largest
    with Image.open(bundle.with_name("bundle-verify") / "verify.png") as picture:
        assert picture.width > 800
        assert len(picture.convert("L").getcolors()) > 20


def test_each_form_is_compared_with_torch_and_the_device_is_closed(bundle: Path, clip: Path) -> None:
    torch = Doubles(bundle, "encode", 1.5)
    found = verify(Bundle.open(bundle), read_clip(clip, 1), torch)
    networks = {network.name: network for network in found.networks}
    assert set(networks["encode"].differences) == {"fp16 from fp32", "fp16 from torch", "fp32 from torch"}
    assert networks["encode"].differences["fp32 from torch"].max == pytest.approx(1 / 3, rel=1e-3)
    assert networks["refine"].differences["fp32 from torch"].max < 1e-5  # on the same inputs
    assert set(networks["prepare"].differences) == {"fp32 from torch"}
    assert [entry.what for entry in found.chain] == ["fp16 from fp32", "fp16 from torch", "fp32 from torch"]
    assert torch.closed
    assert any(
        sentence.startswith("encode, fp32 from torch: the 99.9 % error is") for sentence in found.failures
    )


def test_an_fp16_bundle_is_compared_with_torch_alone(bundle: Path, clip: Path) -> None:
    manifest = read_manifest(bundle)
    networks = {
        name: dataclasses.replace(
            network, graphs={"native": network.graphs.get("fp16", network.graphs["native"])}
        )
        for name, network in manifest.networks.items()
    }
    dataclasses.replace(manifest, precision="fp16", calibration=None, networks=networks).write(bundle)
    found = verify(Bundle.open(bundle), read_clip(clip, 2), Doubles(bundle))
    compared = {network.name: set(network.differences) for network in found.networks}
    assert compared == {
        "prepare": {"fp32 from torch"},
        "encode": {"fp16 from torch"},
        "refine": {"fp16 from torch"},
        "finish": {"fp32 from torch"},
    }
    assert [(entry.what, len(entry.psnr)) for entry in found.chain] == [("fp16 from torch", 2)]
    assert found.failures == ()


# ---------------------------------------------------------------- the gate


def test_the_first_tensor_that_is_not_finite_is_named_and_the_exit_code_is_9(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert_again(bundle, "refine", {})
    assert run(bundle) == 9
    found = reported(bundle)
    assert found["networks"]["refine"]["first_not_finite"]["fp16"]["tensor"] == "loud"
    assert found["networks"]["refine"]["first_not_finite"]["fp32"] is None
    assert found["networks"]["refine"]["differences"]["fp16 from fp32"]["max"] is None  # JSON has no infinity
    shown = " ".join(capsys.readouterr().err.split())
    assert "refine in FP16: loud (Mul) is the first tensor with NaN or Inf" in shown
    assert "calibrate" in shown.lower()


def test_a_damaged_weight_is_found(bundle: Path) -> None:
    path = bundle / "onnx" / "encode.fp16.onnx"
    model = onnx.load(path)
    (weight,) = [tensor for tensor in model.graph.initializer if tensor.name.startswith("second")]
    array = onnx.numpy_helper.to_array(weight) * np.float16(1.1)
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(model, path)
    dataclasses.replace(read_manifest(bundle), files=hashes(bundle)).write(bundle)
    assert run(bundle) == 9
    assert any(sentence.startswith("encode, fp16 from fp32") for sentence in reported(bundle)["failures"])


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("threshold", "value", "words"),
    [
        ("HALF_ERROR", 1e-9, "99.9 % error"),
        ("HALF_COSINE", 1.1, "the cosine is"),
        ("SHARE", 1e-9, "of FP16's range, allowed are"),
        ("HALF_PSNR", 1e9, "the whole chain, fp16 from fp32: frame 0"),
    ],
)
def test_every_threshold_counts_and_json_is_one_document(
    bundle: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    threshold: str,
    value: float,
    words: str,
) -> None:
    monkeypatch.setattr(gate, threshold, value)
    assert run(bundle, "--json") == 9
    printed = json.loads(capsys.readouterr().out)
    assert not printed["passed"]
    assert any(words in sentence for sentence in printed["failures"])
    assert (printed["kind"], printed["exit_code"]) == ("VerificationError", 9)
    assert printed["thresholds"][threshold.lower()] == value


def test_one_level_of_u8_is_rounding_two_are_not() -> None:
    def network(levels: float, integers: bool) -> NetworkReport:
        error = levels / 255
        return NetworkReport("n", "u8", integers, {"fp32 from torch": Difference(error, error, error, 1.0)})

    assert gate.failures([network(1, True)], []) == []
    assert len(gate.failures([network(2, True)], [])) == 1
    assert len(gate.failures([network(1, False)], [])) == 1


# ---------------------------------------------------------------- refusals


def test_what_has_nothing_to_be_compared_with_is_refused(
    tmp_path: Path, bundle: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write_bundle(tmp_path / "plain"), "--clip", str(clip)) == 4
    assert "vsr-build calibrate" in " ".join(capsys.readouterr().err.split())
    dataclasses.replace(read_manifest(bundle), precision="fp16").write(bundle)
    assert run(bundle) == 4
    assert "made from: --checkpoint FILE" in " ".join(capsys.readouterr().err.split())
    assert not bundle.with_name("bundle-verify").exists()


def test_without_a_clip_the_calibrations_is_taken_if_it_is_still_there(
    bundle: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = clip / "0000.png"
    Image.new("RGB", (16, 16), "red").save(picture)
    assert run(bundle) == 2
    assert "has changed" in capsys.readouterr().err
    shutil.rmtree(clip)
    assert run(bundle) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "is gone" in shown
    assert "--clip VIDEO" in shown


def test_an_earlier_report_is_kept(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = bundle.with_name("bundle-verify")
    folder.mkdir()
    (folder / "verify.json").write_text("mine")
    assert run(bundle) == 3
    assert "--overwrite" in capsys.readouterr().err
    assert (folder / "verify.json").read_text() == "mine"
    assert run(bundle, "--overwrite") == 0
    assert reported(bundle)["passed"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--sd", "somewhere"), 2, "belong together"),
        (("--frames", "0"), 2, "--frames is 0"),
        (("--report", "no/such/folder"), 3, "mkdir -p"),
    ],
)
def test_refusals_are_sentences(
    bundle: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], code: int, words: str
) -> None:
    assert run(bundle, *options) == code
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_report_that_cannot_be_written_leaves_nothing(bundle: Path, clip: Path, tmp_path: Path) -> None:
    found = verify(Bundle.open(bundle), read_clip(clip, 1), None)
    (tmp_path / "out" / "verify.json").mkdir(parents=True)  # a folder in its place
    with pytest.raises(report.OutputError, match=r"verify\.json"):
        report.write(found, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["verify.json"]


# ---------------------------------------------------------------- engines


def engine(**changes: object) -> Engine:
    return dataclasses.replace(
        Engine(
            network="encode",
            backend="tensorrt_rtx",
            version="1.0",
            target="sm_89",
            targets=("sm_86", "sm_89"),
            device=None,
            precision="fp16",
            profiles={"image": Profile((1, 3, 8, 8), (1, 3, 16, 16), (1, 3, 32, 32))},
            flags=("compatible",),
            file="engines/encode.engine",
            report="engines/encode.json",
            key="00",
        ),
        **changes,  # type: ignore[arg-type]
    )


def test_engines_run_on_the_shapes_that_they_take() -> None:
    for sides, fits in (((8, 8), True), ((32, 20), True), ((40, 16), False), ((16, 4), False)):
        assert gpu_check.takes(engine(), {"image": np.zeros((1, 3, *sides), np.float32)}) == fits


def test_without_a_gpu_the_report_says_so(bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check.gpu, "detect", lambda: None)
    monkeypatch.setattr(gpu_check.gpu, "why_none", lambda: "no CUDA driver")
    manifest = dataclasses.replace(read_manifest(bundle), engines=(engine(),))
    found, said = gpu_check.check(Bundle(bundle, manifest), {})
    assert (found, said) == ({}, "not run (no GPU: no CUDA driver)")


def test_an_engine_is_compared_with_the_graph_it_was_made_from(
    bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check.gpu, "detect", lambda: Gpu("NVIDIA L4", "sm_89", 24 << 30, "13.0"))

    def run_apart(
        plan: Path,
        backend: str,
        network: str,
        feeds: list[dict[str, np.ndarray]],
        like: list[dict[str, np.ndarray]],
    ) -> gpu_check.Ran:
        assert (plan.name, backend, network) == ("encode.engine", "tensorrt_rtx", "encode")
        assert [set(one) for one in like] == [{"latent"}] * len(feeds)
        exact = onnxruntime.InferenceSession(bundle / "onnx" / "encode.onnx")
        results = [{"latent": exact.run(None, feed)[0] * np.float32(1.1)} for feed in feeds]
        return gpu_check.Ran(results, {"conv": 0.002})

    def why_not(bundle: Bundle, engine: Engine, gpu: Gpu, installed: str | None) -> str | None:
        return None if gpu.capability in engine.targets else f"it is for {engine.targets[0]}"

    monkeypatch.setattr(gpu_check, "run_apart", run_apart)
    monkeypatch.setattr(gpu_check.engine_check, "why_not", why_not)
    manifest = dataclasses.replace(read_manifest(bundle), engines=(engine(), engine(targets=("sm_120",))))
    found = verify(Bundle(bundle, manifest), read_clip(clip, 1), None)
    (compared,) = found.networks[1].engines
    assert compared.difference.max == pytest.approx(0.1, rel=0.05)
    assert found.engines.startswith(
        "1 of 2 run on NVIDIA L4 (sm_89); engines/encode.engine: it is for sm_120"
    )
    assert any("engine engines/encode.engine: the 99.9 % error" in sentence for sentence in found.failures)
    (written,) = report.as_json(found)["networks"]["encode"]["engines"]
    assert (written["backend"], written["layers"]) == ("tensorrt_rtx", {"conv": 0.002})


def test_a_plan_that_does_not_run_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "net.engine").write_bytes(b"no plan")
    feeds = [{"x": np.zeros(1, np.float32)}]
    # without a driver already the first call of it fails; with one, the plan does
    with pytest.raises(
        DeviceError, match=r"net\.engine does not run \(tensorrt_rtx, exit code \d+\): .*(driver|loaded)"
    ):
        gpu_check.run_apart(tmp_path / "net.engine", "tensorrt_rtx", "net", feeds, feeds)


# ---------------------------------------------------------------- the golden bundle, with torch


@pytest.mark.thorough
def test_the_golden_bundle_calibrated_and_verified_with_torch(
    golden_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(golden_bundle, bundle)
    weights = ("--sd", str(GOLDEN / "sd"), "--checkpoint", str(GOLDEN / "model.pkl"))
    assert build.main(["calibrate", str(bundle), "--clip", str(GOLDEN / "in"), "--frames", "1"]) == 0
    Bundle.open(bundle, check=True)
    for name in ("unet", "vae_encoder", "vae_decoder"):
        types = {
            value.dtype
            for node in ir.load(bundle / "onnx" / f"{name}.fp16.onnx").graph
            for value in node.outputs
        }
        assert ir.DataType.FLOAT16 in types
    capsys.readouterr()
    assert run(bundle, "--json", *weights) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["torch"] == "compared"
    differences = {name: network["differences"] for name, network in found["networks"].items()}
    assert set(differences["unet"]) == {"fp16 from fp32", "fp16 from torch", "fp32 from torch"}
    assert all(
        of["fp32 from torch"]["mean"] < 1e-5
        for name, of in differences.items()
        if name != "postprocess_adain"
    )
    # FP16 has 11 bits: an error of nothing would mean that nothing was rounded
    assert all(
        differences[name]["fp16 from fp32"]["mean"] > 1e-5 for name in ("unet", "vae_encoder", "vae_decoder")
    )
    chain = {entry["what"]: entry["psnr"][0] for entry in found["chain"]}
    assert chain["fp32 from torch"] > 55 > chain["fp16 from fp32"] > 35
    assert found["networks"]["cfr"]["always_fp32"]


def test_a_family_in_phases_is_calibrated_and_verified_through_all_of_them(tmp_path: Path) -> None:
    """Every step, chunk and group of a clip, as the runtime takes them."""
    bundle = clip_family.write(tmp_path / "bundle")
    halves = ("predict", "decode")
    networks = {
        name: dataclasses.replace(network, always_fp32=None) if name in halves else network
        for name, network in bundle.manifest.networks.items()
    }
    dataclasses.replace(bundle.manifest, networks=networks).write(bundle.path)
    clip = tmp_path / "clip"
    clip.mkdir()
    for index, level in enumerate((60, 120, 180, 90, 30)):
        picture = np.random.default_rng(index).integers(level - 30, level + 30, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(picture).save(clip / f"{index}.png")
    assert build.main(["calibrate", str(bundle.path), "--clip", str(clip), "--frames", "5"]) == 0
    folder = tmp_path / "report"
    assert build.main(["verify", str(bundle.path), "--frames", "5", "--report", str(folder)]) == 0
    found = json.loads((folder / "verify.json").read_text())
    (chain,) = found["chain"]
    assert chain["what"] == "fp16 from fp32"
    assert len(chain["psnr"]) == 5
    assert all(value > 40 for value in chain["psnr"])
    assert 0 < found["networks"]["predict"]["differences"]["fp16 from fp32"]["max"] < 5e-2
    opened = Bundle.open(bundle.path)
    recorder = Recorder(CpuNetworks(opened))
    steps: list[str] = []
    results = run_chain(opened, recorder, read_clip(clip, 5).frames, steps.append)
    with Restorer(bundle.path, backend="onnxruntime-cpu") as restorer:
        expected = list(restorer.restore(read_clip(clip, 5).frames))
    assert all(np.array_equal(one, other) for one, other in zip(results, expected, strict=True))
    # 4 steps; 5 frames in chunks of 3 that share 1: [0,3) [2,5); each of two tiles
    assert len(recorder.calls["predict"]) == 4 * 2 * 2
    assert [len(recorder.calls[name]) for name in ("encode", "features", "update", "decode")] == [5, 1, 4, 2]
    assert "frame 5 of 5" in steps
    assert any(step.startswith("sample, 3 of ") for step in steps)


def test_other_weights_than_the_bundles_are_refused(golden_bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(golden_bundle)
    other = tmp_path / "model.pkl"
    other.write_bytes((GOLDEN / "model.pkl").read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match=r"model\.pkl is not the file that the bundle was made from"):
        torch_device.open_networks(manifest, other, {"sd": GOLDEN / "sd"})
    with pytest.raises(CheckpointError, match="cannot be read"):
        torch_device.open_networks(manifest, tmp_path / "none.pkl", {"sd": GOLDEN / "sd"})
    base = tmp_path / "sd"
    shutil.copytree(GOLDEN / "sd", base)
    vae = base / "vae" / "diffusion_pytorch_model.safetensors"
    vae.write_bytes(vae.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="is not the file that the bundle was made from"):
        torch_device.open_networks(manifest, GOLDEN / "model.pkl", {"sd": base})


def test_a_clip_of_one_size_too_small_is_enlarged(bundle: Path) -> None:
    manifest = dataclasses.replace(read_manifest(bundle), canvas=Canvas((200, 200), 1, "enlarge"))
    manifest.write(bundle)
    clip = read_clip(real_clip("carphone_pristine.mp4"), 1)  # 176x144
    found = verify(Bundle.open(bundle), clip, None)
    assert found.networks[1].ranges["fp32"][0].tensor == "image"
    assert not any(network.differences["fp16 from fp32"].cosine < 0.9999 for network in found.networks[1:3])
