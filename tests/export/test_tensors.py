"""Tensors of every kind that files hold: taken as plain numbers, or refused by name before anything is exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.checkpoints import CFR, UNET, assert_same, tiny, write
from helpers.golden import GOLDEN
from helpers.matrix import matrix
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from build import main as build_main
from vsr_trt.export import bundle as bundles
from vsr_trt.export.bundle import BundleRequest, Progress, build
from vsr_trt.export.families.dloral import bundle as dloral_bundle
from vsr_trt.export.families.dloral.checkpoint import load
from vsr_trt.export.families.dloral.family import DLoRAL
from vsr_trt.export.families.dloral.lora import adapter_weights, merge_into
from vsr_trt.export.families.stable_diffusion.base_model import BaseModel
from vsr_trt.export.network import Exported, NetworkSpec, Precision
from vsr_trt.export.tensors import common_prefix, is_within
from vsr_trt.runtime.bundle.manifest import Network
from vsr_trt.runtime.errors import CheckpointError, OutputError

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # torch's on what will be deprecated
]
CONV, TO_Q, NORM = "conv_in.base_layer.weight", "mid.to_q.base_layer.weight", "mid.norm.weight"
LORA_A = "mid.to_q.lora_A.default_others_quality.weight"
SPYNET = "spynet.basic_module.2.basic_module.1.conv.weight"
QUERY = "cross_attn_module.query_conv.weight"
Edit = Callable[[Tensor], Any]


def refusal(act: Callable[[], object], place: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        act()
    message = str(caught.value)
    assert message.startswith(str(place))
    assert message.endswith(".")
    assert "\n" not in message
    return message.removeprefix(str(place))


def golden_content() -> dict[str, Any]:
    return torch.load(GOLDEN / "model.pkl", weights_only=True)


@pytest.fixture
def sd(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "sd", tmp_path / "sd"))


# ---------------------------------------------------------------- kinds

TAKEN: dict[str, Edit] = {
    "parameter": nn.Parameter,
    "parameter without gradient": lambda tensor: nn.Parameter(tensor, requires_grad=False),
    "parameter with a state of its own": lambda tensor: with_state(nn.Parameter(tensor)),
    "buffer": nn.Buffer,
    "gradient": lambda tensor: tensor.clone().requires_grad_(),
    "view": lambda tensor: torch.stack([tensor, tensor], dim=-1)[..., 0],
    "negative view": lambda tensor: torch._neg_view(-tensor),
}


def with_state(parameter: nn.Parameter) -> nn.Parameter:
    parameter.note = "of its own"  # type: ignore[attr-defined]
    return parameter


@pytest.mark.parametrize("kind", TAKEN)
def test_what_holds_plain_numbers_is_taken_as_those(tmp_path: Path, kind: str) -> None:
    content = tiny()
    plain = load(write(content, tmp_path / "plain.pkl"))
    for part in (UNET, CFR):
        content[part] = {name: TAKEN[kind](tensor) for name, tensor in content[part].items()}
    read = load(write(content, tmp_path / "model.pkl"))
    assert_same(read, plain)
    for tensor in (*read.base.values(), *read.cfr.values()):
        assert type(tensor) is Tensor
        assert not tensor.requires_grad
        tensor.numpy()  # which torch refuses for a tensor with a gradient


def test_a_checkpoint_of_parameters_gives_the_same_merged_weights(tmp_path: Path) -> None:
    content = golden_content()
    for part in (UNET, CFR):
        content[part] = {name: nn.Parameter(tensor) for name, tensor in content[part].items()}
    torch.save(content, tmp_path / "model.pkl")
    assert isinstance(
        torch.load(tmp_path / "model.pkl", weights_only=True)[CFR][SPYNET], nn.Parameter
    )  # so they are saved as such
    base = BaseModel.open(GOLDEN / "sd")
    hashes = []
    for path in (GOLDEN / "model.pkl", tmp_path / "model.pkl"):
        model = DLoRAL(base, load(path), adapter_weights("both"), None)
        for name in ("unet", "spynet", "cfr"):  # the latter two failed after the first was exported
            model.spec(name)
        hashes.append(model.merged_sha256)
    assert hashes[0] == hashes[1] != ""


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_a_bin_file_of_parameters_is_taken(sd: Path, part: str) -> None:
    (old,) = (sd / part).glob("*.safetensors")
    weights = load_file(old)
    old.unlink()
    name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    torch.save({name: nn.Parameter(tensor.float()) for name, tensor in weights.items()}, sd / part / name)
    model = BaseModel.open(sd)
    module = model.vae() if part == "vae" else model.text_encoder()
    assert not any(parameter.requires_grad for parameter in module.state_dict().values())


REFUSED: dict[str, tuple[Edit, str]] = {
    "sparse": (lambda tensor: tensor.float().to_sparse(), "sparse (sparse_coo)"),
    "sparse rows": (lambda tensor: tensor.float().flatten(1).to_sparse_csr(), "sparse (sparse_csr)"),
    "quantised": (lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8), "quantised (qint8)"),
    "meta": (lambda tensor: tensor.to("meta"), "on the device meta, without its numbers"),
    "nested": (lambda tensor: torch.nested.nested_tensor([tensor, tensor]), "a nested tensor"),
    "integer": (lambda tensor: tensor.to(torch.int8), "of type int8"),
    "boolean": (lambda tensor: tensor > 0, "of type bool"),
    "complex": (lambda tensor: tensor.to(torch.complex64), "of type complex64"),
}


@pytest.mark.parametrize("name", [CONV, LORA_A, NORM, QUERY])
@pytest.mark.parametrize("kind", REFUSED)
def test_other_kinds_are_refused_by_name(tmp_path: Path, kind: str, name: str) -> None:
    content, (edit, words) = tiny(), REFUSED[kind]
    part = CFR if name == QUERY else UNET
    tensor = content[part][name]
    content[part][name] = edit(tensor if kind != "sparse rows" or tensor.ndim > 1 else tensor[:, None])
    path = write(content, tmp_path / "model.pkl")
    expected = f": {part}.{name} is {words}, expected an ordinary tensor of floating-point numbers."
    assert refusal(lambda: load(path), path).startswith(expected)


def test_integers_in_safetensors_are_refused_by_name(tmp_path: Path) -> None:
    content = tiny()
    content[UNET][NORM] = content[UNET][NORM].to(torch.int32)
    path = write(content, tmp_path / "model.safetensors")
    assert refusal(lambda: load(path), path).startswith(
        f": {UNET}.{NORM} is of type I32, expected an ordinary"
    )


def test_tensors_of_the_cross_frame_module_that_nothing_uses_may_be_of_any_kind(tmp_path: Path) -> None:
    content = tiny()
    content[CFR]["feat_extract.steps"] = torch.tensor([3])
    content[CFR]["feat_extract.weight"] = torch.tensor([torch.nan])
    for name in ("model.pkl", "model.safetensors"):
        load(write(content, tmp_path / name))


@pytest.mark.parametrize("kind", ["sparse", "quantised", "meta", "integer"])
@pytest.mark.parametrize(
    ("part", "name"), [("vae", "decoder.conv_in.bias"), ("text_encoder", "text_model.final_layer_norm.bias")]
)
def test_other_kinds_in_a_bin_file_are_refused_by_name(sd: Path, part: str, name: str, kind: str) -> None:
    (old,) = (sd / part).glob("*.safetensors")
    weights = {
        "text_model." * (part != "vae") + n.removeprefix("text_model."): t for n, t in load_file(old).items()
    }
    old.unlink()
    edit, words = REFUSED[kind]
    path = sd / part / ("pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin")
    torch.save(weights | {name: edit(weights[name])}, path)
    model = BaseModel.open(sd)
    message = refusal(model.vae if part == "vae" else model.text_encoder, path)
    assert message.startswith(f": {name} is {words}, expected")


# ---------------------------------------------------------------- NaN and infinity


def spoiled(tensor: Tensor, value: float) -> Tensor:
    """A copy whose last number is `value`."""
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    tensor.view(-1)[-1] = value
    return tensor


MERGED = [
    "conv_in.base_layer.weight",
    "conv_norm_out.bias",
    "time_embedding.linear_1.weight",
    "conv_in.lora_A.default_encoder_quality.weight",
    "conv_in.lora_B.default_encoder_consistency.weight",
]
NOT_FINITE = [torch.nan, torch.inf, -torch.inf]


@pytest.mark.parametrize(
    ("value", "name"),
    matrix(
        NOT_FINITE,
        MERGED,
        fast=lambda value, name: (
            [str(found) for found in NOT_FINITE].index(str(value)) == MERGED.index(name) % 3
        ),
    ),
)
def test_a_weight_that_is_not_finite_is_refused_while_it_is_merged(
    tmp_path: Path, name: str, value: float
) -> None:
    content = golden_content()
    content[UNET][name] = spoiled(content[UNET][name], value)
    if "lora_A" in name:  # as training begins: some libraries skip zeros, and would skip the NaN with them
        content[UNET][name.replace("lora_A", "lora_B")].zero_()
    path = tmp_path / "model.pkl"
    torch.save(content, path)
    unet, checkpoint = BaseModel.open(GOLDEN / "sd").empty_unet(), load(path)
    message = refusal(lambda: merge_into(unet, checkpoint, adapter_weights("both")), path)
    count = content[UNET][name].numel()
    assert message.startswith(f": {UNET}.{name} has 1 of {count} numbers that are NaN or infinite; expected")


def test_adapters_that_are_not_merged_may_hold_anything(tmp_path: Path) -> None:
    content, name = golden_content(), "conv_in.lora_A.default_encoder_quality.weight"
    content[UNET][name] = spoiled(content[UNET][name], torch.nan)
    torch.save(content, tmp_path / "model.pkl")
    base = BaseModel.open(GOLDEN / "sd")
    weights = adapter_weights("consistency")
    hashes = [
        merge_into(base.empty_unet(), load(path), weights)
        for path in (GOLDEN / "model.pkl", tmp_path / "model.pkl")
    ]
    assert hashes[0] == hashes[1]


def test_adapters_that_lead_out_of_fp32_are_told_apart_from_damage() -> None:
    base, checkpoint = BaseModel.open(GOLDEN / "sd"), load(GOLDEN / "model.pkl")
    weights = adapter_weights("both", {"default_encoder_quality": 1e42})
    message = refusal(lambda: merge_into(base.empty_unet(), checkpoint, weights), checkpoint.path)
    assert message == (
        f": {UNET}.conv_in.base_layer.weight leaves FP32's range when its adapters are merged into it; give them "
        "smaller weights (--adapter NAME=W)."
    )


@pytest.mark.parametrize("form", ["pkl", "safetensors"])
@pytest.mark.parametrize(
    "name", [SPYNET, SPYNET.replace("weight", "bias"), QUERY, "cross_attn_module.proj_out.bias"]
)
def test_the_cross_frame_modules_weights_are_looked_at_when_they_are_opened(
    tmp_path: Path, name: str, form: str
) -> None:
    content = tiny()
    content[CFR][name] = spoiled(content[CFR][name], torch.nan)
    path = write(content, tmp_path / f"model.{form}")
    assert refusal(lambda: load(path), path).startswith(f": {CFR}.{name} has 1 of ")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("part", "name"),
    [("vae", "encoder.conv_in.weight"), ("text_encoder", "embeddings.token_embedding.weight")],
)
def test_the_directorys_weights_are_looked_at(
    sd: Path, part: str, name: str, dtype: torch.dtype, value: float
) -> None:
    (path,) = (sd / part).glob("*.safetensors")
    weights = {n.removeprefix("text_model."): tensor.to(dtype) for n, tensor in load_file(path).items()}
    save_file(weights | {name: spoiled(weights[name], value)}, path)
    model = BaseModel.open(sd)
    message = refusal(model.vae if part == "vae" else model.text_encoder, path)
    assert message.startswith(f": {name} has 1 of {weights[name].numel()} numbers that are NaN or infinite")


def test_a_number_beyond_fp32_is_infinite(sd: Path) -> None:
    (path,) = (sd / "vae").glob("*.safetensors")
    weights, name = load_file(path), "decoder.conv_out.bias"
    save_file(weights | {name: spoiled(weights[name].double(), 1e300)}, path)
    assert f": {name} has 1 of 3 numbers" in refusal(BaseModel.open(sd).vae, path)


def test_looking_needs_no_second_copy() -> None:
    assert is_within(torch.zeros(0))
    assert not is_within(torch.tensor([1.0, torch.nan]))
    numbers = torch.tensor([65504.0, -65504.0])
    assert is_within(numbers, "FP16")
    assert not is_within(numbers * 1.001, "FP16")
    assert is_within(numbers * 1.001)


# ---------------------------------------------------------------- before anything is exported


class _ExportedError(Exception):
    """The first export begins."""


def first_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **changes: Any) -> None:
    """A build up to its first export, which is the UNet's."""

    def stop(*_: object) -> None:
        raise _ExportedError

    monkeypatch.setattr(bundles, "export", stop)
    notes = changes.pop("notes", [])
    defaults = {"checkpoint": GOLDEN / "model.pkl", "out": tmp_path / "bundle"}
    if "sd" in changes:
        changes["parts"] = {"sd": changes.pop("sd")}
    defaults["parts"] = {"sd": GOLDEN / "sd"}
    try:
        build(BundleRequest(**(defaults | changes)), progress=Progress(note=notes.append))
    finally:
        assert not (tmp_path / "bundle").exists()
        assert not list(tmp_path.glob(".bundle*"))


def test_good_weights_reach_the_first_export(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for precision in ("fp32", "fp16"):
        with pytest.raises(_ExportedError):
            first_step(monkeypatch, tmp_path, precision=precision)


@pytest.mark.parametrize("part", ["unet", "cross-frame", "vae", "text_encoder"])
def test_nothing_is_exported_before_every_weight_was_looked_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sd: Path, part: str
) -> None:
    content = golden_content()
    path, name = (
        tmp_path / "model.pkl",
        {"unet": "conv_out.base_layer.bias", "cross-frame": SPYNET}.get(part, ""),
    )
    if name:
        state = content[UNET if part == "unet" else CFR]
        state[name] = spoiled(state[name], torch.inf)
    else:
        (path,) = (sd / part).glob("*.safetensors")
        weights = load_file(path)
        name = sorted(weights)[-1]
        save_file(weights | {name: spoiled(weights[name], torch.inf)}, path)
    torch.save(content, tmp_path / "model.pkl")
    with pytest.raises(CheckpointError, match=f"{name} has 1 of .* NaN or infinite") as caught:
        first_step(monkeypatch, tmp_path, sd=sd, checkpoint=tmp_path / "model.pkl")
    assert str(path) in str(caught.value)


def test_a_text_encoder_that_lacks_a_tensor_is_found_before_the_first_export(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sd: Path
) -> None:
    (path,) = (sd / "text_encoder").glob("*.safetensors")
    weights = load_file(path)
    save_file(dict(list(weights.items())[1:]), path)
    with pytest.raises(CheckpointError, match=" lacks "):
        first_step(monkeypatch, tmp_path, sd=sd)


def test_attention_weights_that_overflow_when_folded_are_refused() -> None:
    checkpoint = load(GOLDEN / "model.pkl")
    cfr = {name: tensor.float() for name, tensor in checkpoint.cfr.items()}
    for part in ("query", "key"):
        cfr[f"cross_attn_module.{part}_conv.weight"] *= 1e30
    changed = type(checkpoint)(checkpoint.path, checkpoint.layout, checkpoint.base, checkpoint.adapters, cfr)
    model = DLoRAL(BaseModel.open(GOLDEN / "sd"), changed, adapter_weights("both"), None)
    assert "cross_attn_module are too large for FP32" in refusal(model.check, checkpoint.path)


# ---------------------------------------------------------------- beyond FP16


def family(sd: Path, checkpoint: Path, precision: Precision) -> DLoRAL:
    weights = adapter_weights("both")
    return DLoRAL(BaseModel.open(sd), load(checkpoint), weights, None, precision=precision)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("conv_out.base_layer.weight", "conv_out.base_layer.weight reaches 7e+04"),
        ("conv_norm_out.bias", "conv_norm_out.bias reaches 7e+04"),
    ],
)
def test_a_merged_weight_beyond_fp16_is_named(tmp_path: Path, name: str, told: str) -> None:
    content, path = golden_content(), tmp_path / "model.pkl"
    content[UNET][name] = spoiled(content[UNET][name].float(), 7e4)
    torch.save(content, path)
    family(GOLDEN / "sd", path, "fp32").spec("unet")  # which FP32 can hold
    message = refusal(lambda: family(GOLDEN / "sd", path, "fp16").spec("unet"), path)
    assert message.startswith(f": {UNET}.{told} in the finished network; FP16 ends at 65504.")
    assert message.endswith("Use --precision fp32.")


def test_what_is_folded_away_need_not_fit_fp16(tmp_path: Path) -> None:
    content, name = golden_content(), "time_embedding.linear_1.bias"
    content[UNET][name] = spoiled(content[UNET][name].float(), -7e4)  # SiLU makes 0 of it
    torch.save(content, tmp_path / "model.pkl")
    family(GOLDEN / "sd", tmp_path / "model.pkl", "fp16").spec("unet")


def test_a_weight_of_the_vae_beyond_fp16_is_named(sd: Path) -> None:
    (path,) = (sd / "vae").glob("*.safetensors")
    weights, name = load_file(path), "decoder.conv_norm_out.bias"
    save_file(weights | {name: spoiled(weights[name].float(), -7e4)}, path)
    family(sd, GOLDEN / "model.pkl", "fp32").check()
    message = refusal(family(sd, GOLDEN / "model.pkl", "fp16").check, path)
    assert message.startswith(f": {name} reaches 7e+04 in the finished network; FP16 ends at 65504.")


# ---------------------------------------------------------------- prefixes

PREFIXES = [
    "module.",
    "_orig_mod.",
    "base_model.model.",
    "module._orig_mod.",
    "_orig_mod.module.base_model.model.",
]


def test_only_what_all_names_share_is_a_prefix() -> None:
    assert common_prefix(["module.a", "module.b.c"]) == "module."
    assert common_prefix(["module._orig_mod.a", "module._orig_mod.module.b"]) == "module._orig_mod."
    for names in (
        [],
        ["a", "b"],
        ["module.a", "b"],
        ["modules.a"],
        ["model.a"],
        ["amodule.a"],
        ["base_model.a"],
    ):
        assert common_prefix(names) == ""


def prefixed(content: dict[str, Any], prefix: str, parts: tuple[str, ...] = (UNET, CFR)) -> dict[str, Any]:
    changed = {part: {prefix + name: t for name, t in content[part].items()} for part in parts}
    return content | changed


@pytest.mark.parametrize("form", ["pkl", "safetensors"])
@pytest.mark.parametrize("parts", [(UNET,), (CFR,), (UNET, CFR)])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_wrappers_prefix_is_left_out(
    tmp_path: Path, prefix: str, parts: tuple[str, ...], form: str
) -> None:
    plain = load(write(tiny(), tmp_path / "plain.pkl"))
    read = load(write(prefixed(tiny(), prefix, parts), tmp_path / f"model.{form}"))
    assert_same(read, plain)
    assert read.prefixes == dict.fromkeys(parts, prefix)
    assert plain.prefixes == {}


@pytest.mark.parametrize("listed", ["", "module."])
def test_the_trainers_lists_are_obeyed_with_and_without_the_prefix(tmp_path: Path, listed: str) -> None:
    content = prefixed(tiny(), "module.")
    del content[UNET]["module.mid.to_q.lora_A.default_others_quality.weight"]
    del content[UNET]["module.mid.to_q.lora_B.default_others_quality.weight"]
    for half, shape in (("A", (2, 8, 3, 3)), ("B", (6, 2, 1, 1))):  # so that no adapter is missing altogether
        content[UNET][f"module.conv_in.lora_{half}.default_others_quality.weight"] = torch.zeros(shape)
    content["unet_lora_others_modules_quality"] = [f"{listed}mid.to_q"]
    path = write(content, tmp_path / "model.pkl")
    assert " lacks mid.to_q.lora_A.default_others_quality.weight, which its" in refusal(
        lambda: load(path), path
    )


@pytest.mark.parametrize("form", ["pkl", "safetensors"])
def test_more_than_a_prefix_is_refused_and_says_so(tmp_path: Path, form: str) -> None:
    content = prefixed(tiny(), "module._orig_mod.")
    del content[CFR][f"module._orig_mod.{QUERY}"]
    path = write(content, tmp_path / f"model.{form}")
    message = refusal(lambda: load(path), path)
    assert message.startswith(
        f" lacks {CFR}.{QUERY}. All names of {UNET} begin with 'module._orig_mod.', which a"
    )
    assert message.endswith("that prefix is not all that differs.")


def test_names_of_which_some_have_a_prefix_are_refused_and_said_so(tmp_path: Path) -> None:
    content = tiny()
    content[CFR][f"module.{QUERY}"] = content[CFR].pop(QUERY)
    path = write(content, tmp_path / "model.pkl")
    message = refusal(lambda: load(path), path)
    assert message == (
        f" lacks {CFR}.{QUERY}. Some names of {CFR} begin with 'module.', which a wrapper adds, and others do not; "
        "that prefix is not all that differs."
    )


def test_the_directorys_unet_may_differ_by_more_than_the_prefix(tmp_path: Path) -> None:
    content = prefixed(golden_content(), "module.")
    del content[UNET]["module.conv_norm_out.bias"]
    torch.save(content, tmp_path / "model.pkl")
    checkpoint, base = load(tmp_path / "model.pkl"), BaseModel.open(GOLDEN / "sd")
    message = refusal(
        lambda: merge_into(base.empty_unet(), checkpoint, adapter_weights("both")), tmp_path / "model.pkl"
    )
    assert message.startswith(
        f" lacks {UNET}.conv_norm_out.bias. All names of {UNET} begin with 'module.', which"
    )


def test_a_weight_that_is_not_finite_is_named_with_its_prefix(tmp_path: Path) -> None:
    content = prefixed(golden_content(), "module.")
    name = "module.conv_in.lora_B.default_encoder_quality.weight"
    content[UNET][name] = spoiled(content[UNET][name], torch.nan)
    path = tmp_path / "model.pkl"
    torch.save(content, path)
    base, checkpoint = BaseModel.open(GOLDEN / "sd"), load(path)
    message = refusal(lambda: merge_into(base.empty_unet(), checkpoint, adapter_weights("both")), path)
    assert message.startswith(f": {UNET}.{name} has 1 of")
    assert "prefix" not in message


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_the_directorys_weights_may_have_a_prefix_too(sd: Path, part: str, prefix: str) -> None:
    def read() -> dict[str, Tensor]:
        model = BaseModel.open(sd)
        return (model.vae() if part == "vae" else model.text_encoder()).state_dict()

    expected = read()
    (path,) = (sd / part).glob("*.safetensors")
    weights = load_file(path)
    save_file({prefix + name: tensor for name, tensor in weights.items()}, path)
    found = read()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert BaseModel.open(sd).prefixes() == {part: prefix}
    name = sorted(weights)[0]
    save_file({prefix + name: tensor for name, tensor in list(weights.items())[1:]}, path)
    assert refusal(read, path).endswith("that prefix is not all that differs.")
    save_file({prefix + n if n != name else n: tensor for n, tensor in weights.items()}, path)
    assert "and others do not; that prefix is not all that differs." in refusal(read, path)


def test_a_build_tells_of_every_prefix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sd: Path) -> None:
    torch.save(prefixed(golden_content(), "module.", (UNET,)), tmp_path / "model.pkl")
    (path,) = (sd / "vae").glob("*.safetensors")
    save_file({f"_orig_mod.{name}": tensor for name, tensor in load_file(path).items()}, path)
    notes: list[str] = []
    with pytest.raises(_ExportedError):
        first_step(monkeypatch, tmp_path, sd=sd, checkpoint=tmp_path / "model.pkl", notes=notes)
    assert notes == [
        f"'module.', which a wrapper had put before all names of {UNET}, was left out of them",
        "'_orig_mod.', which a wrapper had put before all names of vae, was left out of them",
    ]


@pytest.mark.thorough
def test_output_json_and_provenance_tell_of_a_prefix_and_the_hash_is_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the command line, with exports that write nothing of use."""

    def write_nothing(spec: NetworkSpec, folder: Path, *_: object) -> Exported:
        (folder / f"{spec.name}.onnx").write_bytes(b"")
        record = Network((), (), {}, {"native": f"onnx/{spec.name}.onnx"}, 0, 0)
        return Exported(spec.name, record, 0, 0.0, 0.0)

    monkeypatch.setattr(bundles, "export", write_nothing)
    monkeypatch.setattr(dloral_bundle, "embed", lambda *_: np.zeros((77, 32), np.float32))
    content, reports = golden_content(), []
    for prefix in ("", "module._orig_mod."):
        wrapped = prefixed(content, prefix)
        for part in (UNET, CFR):
            wrapped[part] = {name: nn.Parameter(tensor) for name, tensor in wrapped[part].items()}
        torch.save(wrapped, tmp_path / "model.pkl")
        out = tmp_path / f"bundle{len(reports)}"
        sources = ["--sd", str(GOLDEN / "sd"), "--checkpoint", str(tmp_path / "model.pkl"), "--out", str(out)]
        assert build_main(["bundle", *sources, "--no-kernels", "--json"]) == 0
        printed = capsys.readouterr()
        reports.append(json.loads(printed.out))
        expected = {UNET: prefix, CFR: prefix} if prefix else {}
        assert reports[-1]["stripped_prefixes"] == expected
        assert json.loads((out / "bundle.json").read_text())["provenance"]["stripped_prefixes"] == expected
        assert ("'module._orig_mod.', which a wrapper had put before all" in printed.err) == bool(prefix)
    assert reports[0]["merged_sha256"] == reports[1]["merged_sha256"]


def test_a_folder_of_links_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "blob").write_text("{}")
    (tmp_path / "bundle" / "bundle.json").symlink_to(tmp_path / "blob")
    request = BundleRequest(GOLDEN / "model.pkl", tmp_path / "bundle", {"sd": GOLDEN / "sd"}, overwrite=True)
    with pytest.raises(OutputError, match="is made of links, as in a hub's cache"):
        build(request)
