"""The bundle that the exporters write: what its graphs are made of, and what its manifest says of them."""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import json
import multiprocessing
import sys
from collections import Counter, deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.golden import GOLDEN, PROMPT

from vsr_trt import kernels
from vsr_trt.engines.graphs.cpu import Lowered
from vsr_trt.export import bundle as bundles
from vsr_trt.export import network
from vsr_trt.export.bundle import BundleRequest, build
from vsr_trt.export.families.dloral import bundle as dloral_bundle
from vsr_trt.export.families.dloral import cfr, checkpoint
from vsr_trt.export.families.dloral import unet as unet_network
from vsr_trt.export.families.registry import family_of
from vsr_trt.export.helper import Helper
from vsr_trt.export.network import Exported, export
from vsr_trt.kernels.gpu import launch
from vsr_trt.kernels.gpu.targets import TARGETS
from vsr_trt.runtime.bundle.manifest import Manifest
from vsr_trt.runtime.bundle.reading import read_manifest
from vsr_trt.runtime.errors import CheckpointError, ExportError, OutputError

NETWORKS = {
    "preprocess",
    "vae_encoder",
    "spynet",
    "warp",
    "cfr",
    "unet",
    "vae_decoder",
    "text_encoder",
    "postprocess_adain",
    "postprocess_wavelet",
    "postprocess_none",
}


@pytest.fixture(scope="module")
def manifest(golden_bundle: Path) -> Manifest:
    return read_manifest(golden_bundle)


def graph(bundle: Path, name: str) -> onnx.ModelProto:
    return onnx.load(bundle / "onnx" / f"{name}.onnx", load_external_data=False)


def operators(bundle: Path, name: str) -> Counter[str]:
    return Counter(node.op_type for node in graph(bundle, name).graph.node)


def test_all_networks_are_there(manifest: Manifest) -> None:
    assert set(manifest.networks) == NETWORKS
    assert [stage.name for stage in manifest.stages] == [
        *("preprocess", "vae_encoder", "spynet", "warp", "cfr", "unet", "vae_decoder", "postprocess")
    ]


def test_every_file_is_listed_with_its_hash(golden_bundle: Path, manifest: Manifest) -> None:
    on_disk = {p.relative_to(golden_bundle).as_posix() for p in golden_bundle.rglob("*") if p.is_file()}
    assert on_disk == set(manifest.files) | {"bundle.json"}
    assert "onnx/unet.onnx.data" in manifest.files  # weights lie next to the graph
    for name, entry in manifest.files.items():
        content = (golden_bundle / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry.bytes, entry.sha256)


def test_provenance(manifest: Manifest) -> None:
    provenance = manifest.provenance
    content = (GOLDEN / "model.pkl").read_bytes()
    assert provenance.checkpoint.sha256 == hashlib.sha256(content).hexdigest()
    assert provenance.checkpoint_layout == "dloral-pkl"
    assert {source.name.split("/")[0] for source in provenance.base_model} == {"vae", "text_encoder"}
    assert len(provenance.adapters) == 6
    assert set(provenance.adapters.values()) == {1.0}
    assert {"torch", "onnx", "onnxscript", "vsr-trt"} <= set(provenance.tools)
    assert manifest.prompt.text == PROMPT


def test_the_native_unet_keeps_attention_and_normalisation_as_single_nodes(golden_bundle: Path) -> None:
    native = operators(golden_bundle, "unet")
    assert native["Attention"] == 8
    assert native["GroupNormalization"] == 21
    assert native["Softmax"] == native["InstanceNormalization"] == 0
    assert native["Sin"] == native["Cos"] == native["Range"] == 0  # the timestep is folded


def test_the_native_vae_has_its_attention_as_a_local_function(golden_bundle: Path) -> None:
    for name in ("vae_encoder", "vae_decoder"):
        native = operators(golden_bundle, name)
        assert native["SoftmaxAttention"] == 1
        assert native["Attention"] == native["Softmax"] == 0
        assert [function.name for function in graph(golden_bundle, name).functions] == ["SoftmaxAttention"]
        assert native["GroupNormalization"] > 10


def test_the_cpu_forms_are_lowered_and_share_the_weights(golden_bundle: Path) -> None:
    strips = {f"{half}.cpu_strips": 0 for half in ("vae_encoder", "vae_decoder")}
    for file, attentions in {"unet.cpu": 8, "vae_encoder.cpu": 0, "vae_decoder.cpu": 0, **strips}.items():
        name = file.partition(".")[0]
        lowered = operators(golden_bundle, file)
        assert lowered["MultiHeadAttention"] == attentions
        assert lowered["Attention"] == lowered["Softmax"] == lowered["GroupNormalization"] == 0
        assert lowered["SoftmaxAttention"] == 0
        assert lowered["Scan"] > 0 or name == "unet"
        locations = {
            entry.value
            for tensor in graph(golden_bundle, file).graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        assert locations == {f"{name}.onnx.data"}
    scans = [f for f in graph(golden_bundle, "cfr.cpu").functions if f.name == kernels.OPERATOR]
    assert "Scan" in {node.op_type for node in scans[0].node}


def test_the_retrieval_is_one_node_with_a_function_behind_it(golden_bundle: Path) -> None:
    model = graph(golden_bundle, "cfr")
    (call,) = [node for node in model.graph.node if node.domain == kernels.DOMAIN]
    assert call.op_type == kernels.OPERATOR
    (function,) = [f for f in model.functions if f.domain == kernels.DOMAIN]
    assert "Scan" not in {node.op_type for node in function.node}  # compilers do not parse it
    assert {node.domain for node in function.node} == {""}


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_initialiser_is_used(golden_bundle: Path, name: str) -> None:
    model = graph(golden_bundle, name)
    used = {value for node in model.graph.node for value in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= used


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_tensors_are_those_of_the_manifest(golden_bundle: Path, manifest: Manifest, name: str) -> None:
    record = manifest.networks[name]
    for form in record.graphs.values():
        session = onnxruntime.InferenceSession(golden_bundle / form, providers=["CPUExecutionProvider"])
        got = [(t.name, list(t.shape)) for t in (*session.get_inputs(), *session.get_outputs())]
        assert got == [(t.name, list(t.shape)) for t in (*record.inputs, *record.outputs)]


def test_fp16_stores_heavy_weights_in_half(golden_bundle: Path, golden_bundle_fp16: Path) -> None:
    for name in ("unet", "vae_decoder", "vae_encoder"):
        sizes = [
            (b / "onnx" / f"{name}.onnx.data").stat().st_size for b in (golden_bundle, golden_bundle_fp16)
        ]
        assert sizes[1] < 0.6 * sizes[0]
    kept = {t.data_type for t in graph(golden_bundle_fp16, "spynet").graph.initializer}
    assert onnx.TensorProto.FLOAT16 not in kept
    assert read_manifest(golden_bundle_fp16).precision == "fp16"


@pytest.mark.thorough
@pytest.mark.parametrize("k", [1, 30])
def test_top_k_reaches_the_graph(tmp_path: Path, k: int) -> None:
    weights = checkpoint.load(GOLDEN / "model.pkl").cfr
    exported = network.export(cfr.spec(weights, k), tmp_path, "fp32")
    rng = np.random.default_rng(0)
    latent, previous = (rng.standard_normal((1, 4, 32, 32)).astype(np.float32) for _ in range(2))
    feeds = {"latent": latent, "warped": previous}
    folded = kernels.fold(cfr.attention_weights(weights)).astype(np.float32)
    expected = kernels.gated_topk_attention(latent, previous, folded, k)
    everything = kernels.gated_topk_attention(latent, previous, folded)
    for form in exported.record.graphs.values():
        session = onnxruntime.InferenceSession(tmp_path / Path(form).name, providers=["CPUExecutionProvider"])
        (fused,) = session.run(None, feeds)
        assert np.abs(fused - expected).max() < 1e-3 * np.abs(expected).max()
    assert np.abs(expected - everything).max() > 1e-2 * np.abs(expected).max()


def test_a_prompt_that_is_too_long_is_cut_with_a_note() -> None:
    from vsr_trt.export.families.stable_diffusion.base_model import BaseModel

    ids, cut = BaseModel.open(GOLDEN / "sd").tokenize("street " * 100)
    assert ids.shape == (77,)
    assert cut == 100 + 2 - 77


def test_folding_the_timestep_changes_nothing() -> None:
    from diffusers import UNet2DConditionModel

    config = json.loads((GOLDEN / "sd" / "unet" / "config.json").read_text())
    torch.manual_seed(0)
    model = UNet2DConditionModel.from_config(config | {"in_channels": 8}).eval()
    sample, text = torch.randn(1, 8, 16, 16), torch.randn(1, 77, config["cross_attention_dim"])
    with torch.no_grad():
        expected = model(sample, 1, encoder_hidden_states=text).sample
        other = model(sample, 500, encoder_hidden_states=text).sample
        unet_network.fold_timestep(model)
        folded = model(sample, 1, encoder_hidden_states=text).sample
    assert (folded - expected).abs().max() < 1e-5
    assert (other - expected).abs().max() > 1e-3


class _StopError(Exception):
    """Ends a build as soon as the part under test is reached."""


@pytest.mark.parametrize("error", [_StopError(), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_a_build_that_fails_leaves_the_old_bundle_and_nothing_else(
    golden_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "bundle.json").write_bytes((golden_bundle / "bundle.json").read_bytes())

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(bundles, "export", fail)
    request = BundleRequest(GOLDEN / "model.pkl", out, {"sd": GOLDEN / "sd"}, overwrite=True)
    with pytest.raises(OutputError if isinstance(error, OSError) else type(error)) as raised:
        build(request)
    if isinstance(error, OSError):
        assert "disk is full" in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert [path.name for path in out.iterdir()] == ["bundle.json"]


@pytest.mark.thorough
def test_an_export_that_disagrees_with_torch_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = cfr.spec(checkpoint.load(GOLDEN / "model.pkl").cfr, None)

    def spoil(native: Path, in_strips: bool, narrow_from: int | None) -> list[Lowered]:
        assert not in_strips
        assert narrow_from is None
        model = onnx.load(native)
        for tensor in model.graph.initializer:
            if tensor.name == "bias":
                array = onnx.numpy_helper.to_array(tensor) + 1
                tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), "bias"))
        spoiled = native.with_suffix(".cpu.onnx")
        onnx.save(model, spoiled)
        return [Lowered("cpu", spoiled, None, 0.0)]

    monkeypatch.setattr(network, "lower", spoil)
    with pytest.raises(network.ExportError, match=r"cfr\.cpu\.onnx differs from torch"):
        network.export(spec, tmp_path, "fp32")


# -- GPU kernels ---------------------------------------------------------------------------------------


def compiled(request: BundleRequest, folder: Path, progress: bundles.Progress) -> tuple[str, ...]:
    """The kernels of a bundle, with as much of a model as compiles them."""
    model = SimpleNamespace(_request=request)
    model.kernels = functools.partial(dloral_bundle.BundleModel.kernels, model)
    return bundles._kernels(request, model, folder, progress)


@pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux only")
def test_the_kernels_are_there_for_every_target(golden_bundle: Path, manifest: Manifest) -> None:
    found = [launch.read(golden_bundle / path) for path in manifest.kernels]
    for kernel in (launch.ATTENTION, launch.BLENDING):
        assert [info.target for info in found if info.kernel == kernel] == list(TARGETS)
    for info in found:
        assert (info.dtype, info.top_k) == ("fp32", manifest.top_k is not None)
        for file in info.files.values():
            assert manifest.files[f"kernels/{file['name']}"].sha256 == file["sha256"]
    assert "triton" in manifest.provenance.tools
    kernel = manifest.networks["cfr"].kernel
    assert kernel is not None
    assert len(kernel.launch) == len(TARGETS)
    assert all("gated_topk_attention" in path for path in kernel.launch)
    assert kernel.numbers == {"k": ("positions",)}


def test_the_operands_are_the_graphs_and_give_its_result(golden_bundle: Path, tmp_path: Path) -> None:
    """What a host of the kernel gets from the bundle, through the reference in numpy, against the whole graph."""
    (tmp_path / "kernels").mkdir()
    kernel = dloral_bundle._attention(checkpoint.load(GOLDEN / "model.pkl"), 30, (), tmp_path)
    files = kernel.constants
    assert kernel.numbers == {"k": (30, "positions")}
    assert files == {name: f"kernels/attention_{name}.npy" for name in ("M", "P", "bias")}
    operands = {name: np.load(tmp_path / file, allow_pickle=False) for name, file in files.items()}
    constants = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in graph(golden_bundle, "cfr").graph.initializer
    }
    for name, operand in operands.items():
        assert operand.dtype == np.float32
        assert operand.flags.c_contiguous
        assert np.array_equal(operand, constants[name])
    assert [operand.shape for operand in operands.values()] == [(9, 5, 5), (9, 4, 5), (4,)]

    rng = np.random.default_rng(0)
    feeds = {
        name: rng.standard_normal((1, 4, 48, 40), dtype=np.float32)
        for name in (kernel.operands["current"], kernel.operands["previous"])
    }
    session = onnxruntime.InferenceSession(
        golden_bundle / "onnx" / "cfr.onnx", providers=["CPUExecutionProvider"]
    )
    (result,) = session.run([kernel.operands["fused"]], feeds)
    current, previous = feeds.values()
    folded = kernels.FoldedAttention(**operands)
    fused = kernels.gated_topk_attention(current, previous, folded)
    assert np.abs(fused - result).max() <= 1e-5 * np.abs(fused).max()
    assert np.abs(fused - current).max() > 1e-2 * np.abs(fused).max()  # something was retrieved


def request(tmp_path: Path, **options: Any) -> BundleRequest:
    return BundleRequest(GOLDEN / "model.pkl", tmp_path / "bundle", {"sd": GOLDEN / "sd"}, **options)


def test_kernels_can_be_left_out(tmp_path: Path) -> None:
    said: list[str] = []
    progress = bundles.Progress(note=said.append)
    assert compiled(request(tmp_path, kernels=False), tmp_path, progress) == ()
    assert not said
    assert not list(tmp_path.iterdir())


def test_without_triton_the_bundle_says_that_it_has_no_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles.gpu_kernel, "is_available", lambda: False)
    said: list[str] = []
    assert compiled(request(tmp_path), tmp_path, bundles.Progress(note=said.append)) == ()
    assert "no GPU kernels" in said[0]
    assert "pip install triton" in said[0]


def test_kernels_asked_for_without_triton_are_refused_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles.gpu_kernel, "is_available", lambda: False)
    with pytest.raises(ExportError, match="cannot be compiled without Triton"):
        build(request(tmp_path, kernels=True))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux only")
def test_a_bundle_of_top_k_gets_the_kernel_that_reads_k(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "TARGETS", {"sm_89": TARGETS["sm_89"]})
    paths = compiled(request(tmp_path, top_k=32), tmp_path, bundles.Progress())
    attention, blending = (launch.read(tmp_path / path) for path in paths)
    assert (attention.kernel, attention.top_k) == (launch.ATTENTION, True)
    assert blending.kernel == launch.BLENDING


# -- two processes ---------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_another_process_exports_the_same(tmp_path: Path) -> None:
    request = BundleRequest(GOLDEN / "model.pkl", tmp_path / "out", {"sd": GOLDEN / "sd"})
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    found: list[Exported] = []
    names = deque(["warp", "postprocess_none"])
    with Helper(request, names, there, found.append) as helper:
        helper.finish()
    assert [exported.name for exported in found] == ["warp", "postprocess_none"]
    model = family_of(request).open(request, lambda phase: None)
    for exported in found:
        assert export(model.spec(exported.name), here, "fp32").record == dataclasses.replace(
            exported.record,
            graphs={form: path.replace("there/", "here/") for form, path in exported.record.graphs.items()},
        )
        name = f"{exported.name}.onnx"
        assert (there / name).read_bytes() == (here / name).read_bytes()
        assert set(exported.phases) >= {"reference", "trace", "write", "check"}


@pytest.mark.thorough
def test_another_process_that_fails_or_dies_is_a_sentence(tmp_path: Path) -> None:
    request = BundleRequest(GOLDEN / "nothing.pkl", tmp_path / "out", {"sd": GOLDEN / "sd"})
    with (
        pytest.raises(CheckpointError, match=r"nothing\.pkl"),
        Helper(request, deque(["warp"]), tmp_path, lambda exported: None) as helper,
    ):
        helper.finish()
    with (
        pytest.raises(ExportError, match=r"has died.*--jobs 1"),
        Helper(request, deque(["warp"]), tmp_path, lambda exported: None) as helper,
    ):
        helper._process.kill()
        helper.finish()
    assert multiprocessing.active_children() == []


@pytest.mark.full_size
def test_a_bundle_by_two_processes_is_the_same(golden_bundle: Path, tmp_path: Path) -> None:
    request = BundleRequest(
        GOLDEN / "model.pkl", tmp_path / "out", {"sd": GOLDEN / "sd"}, prompt=PROMPT, jobs=2
    )
    manifest = build(request)
    files = {name: entry.sha256 for name, entry in manifest.files.items()}
    one = {name: entry.sha256 for name, entry in read_manifest(golden_bundle).files.items()}
    assert {name for name in one if files[name] != one[name]} == set()
