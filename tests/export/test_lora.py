"""Merging adapters: the results of peft with the adapters active, in FP32, one layer at a time."""

import hashlib
import json
import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from vsr_trt.export.families.dloral.checkpoint import (
    ADAPTERS,
    CONSISTENCY,
    QUALITY,
    Checkpoint,
    LowRank,
    load,
)
from vsr_trt.export.families.dloral.lora import ALPHA, adapter_weights, merge_into, merge_layer
from vsr_trt.export.families.stable_diffusion.base_model import BaseModel
from vsr_trt.recipes.synthetic.checkpoint_file import resave_as_safetensors
from vsr_trt.runtime.errors import CheckpointError, InputError

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),
]

GOLDEN = Path(__file__).parents[1] / "data/golden/case_a"


@pytest.fixture(scope="module")
def golden() -> Checkpoint:
    return load(GOLDEN / "model.pkl")


@pytest.fixture(scope="module")
def base_model() -> BaseModel:
    return BaseModel.open(GOLDEN / "sd")


# ---------------------------------------------------------------- one layer against peft


class Tiny(nn.Module):
    """One layer of either kind."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A linear layer or a convolution, and an input for it."""
    inputs, outputs = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    bias = draw(st.booleans())
    if draw(st.booleans()):
        return nn.Linear(inputs, outputs, bias=bias), torch.randn(3, inputs)
    convolution = nn.Conv2d(
        inputs,
        outputs,
        draw(st.sampled_from([1, 3])),
        stride=draw(st.integers(1, 2)),
        padding=draw(st.integers(0, 2)),
        bias=bias,
    )
    return convolution, torch.randn(2, inputs, draw(st.integers(3, 6)), draw(st.integers(3, 6)))


adapter_lists = st.lists(
    st.tuples(st.integers(1, 8), st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.floats(-3, 3, width=32))),
    min_size=1,
    max_size=4,
)


@settings(max_examples=examples(150), deadline=None)
@given(seed=st.integers(0, 2**32 - 1), data=st.data(), adapters=adapter_lists)
@torch.no_grad()
def test_a_merged_layer_gives_what_peft_gives(
    seed: int, data: st.DataObject, adapters: list[tuple[int, float]]
) -> None:
    torch.manual_seed(seed)
    layer, x = data.draw(layers())
    own = layer.weight.clone()
    model = Tiny(layer)
    names = [f"adapter_{index}" for index in range(len(adapters))]
    for name, (rank, _) in zip(names, adapters, strict=True):
        # as the published code: everything but rank and targets at peft's defaults
        config = LoraConfig(r=rank, init_lora_weights="gaussian", target_modules=["layer"])
        inject_adapter_in_model(config, model, adapter_name=name)
    wrapped = model.layer
    assert isinstance(wrapped, LoraLayer)
    updates = {}
    for name, (_, weight) in zip(names, adapters, strict=True):
        A, B = wrapped.lora_A[name].weight, wrapped.lora_B[name].weight
        nn.init.normal_(A)
        nn.init.normal_(B)  # a fresh one is zero
        updates[name] = LowRank(A.clone(), B.clone())
        wrapped.set_scale(name, weight)
    wrapped.set_adapter(names)
    expected = model(x)

    weights = {name: weight for name, (_, weight) in zip(names, adapters, strict=True)}
    layer.weight.copy_(merge_layer(own, updates, weights))
    tolerance = 1e-5 * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(layer(x), expected, atol=tolerance, rtol=0)


def test_pefts_default_scale_is_ours() -> None:
    assert LoraConfig().lora_alpha == ALPHA
    A, B = torch.ones(4, 3), torch.ones(2, 4)
    merged = merge_layer(torch.zeros(2, 3), {"a": LowRank(A, B)}, {"a": 1.0})
    assert torch.equal(merged, torch.full((2, 3), 4 * 8 / 4))  # rank 4: scale 2, not 1


def test_adapters_of_different_ranks_have_different_scales() -> None:
    updates = {str(r): LowRank(torch.ones(r, 3), torch.ones(2, r)) for r in (1, 4, 8)}
    for rank in (1, 4, 8):
        merged = merge_layer(torch.zeros(2, 3), updates, {str(rank): 1.0})
        assert torch.equal(merged, torch.full((2, 3), 8.0))  # r terms, each times 8 / r


def test_without_any_share_the_weight_is_copied_as_it_is() -> None:
    weight = torch.randn(5, 7).half()
    update = LowRank(torch.full((2, 7), torch.inf), torch.ones(5, 2))
    for weights in ({}, {"a": 0.0}, {"b": 1.0}):
        assert torch.equal(merge_layer(weight, {"a": update}, weights), weight.float())
    single = torch.randn(5, 7)
    merged = merge_layer(single, {}, {})
    merged.zero_()
    assert single.any()  # FP32 is copied too


def test_fp16_is_merged_in_fp32() -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 8, 3, 3, generator=random).half()
    updates = {
        name: LowRank(
            torch.randn(4, 8, 3, 3, generator=random).half(), torch.randn(6, 4, 1, 1, generator=random).half()
        )
        for name in "ab"
    }
    before = weight.clone()
    merged = merge_layer(weight, updates, {"a": 1.0, "b": 0.3})
    exact = weight.double()
    for name, share in (("a", 1.0), ("b", 0.3)):
        A, B = updates[name].A.double(), updates[name].B.double()
        exact += share * 2 * torch.einsum("or,rikl->oikl", B[:, :, 0, 0], A)
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged.double(), exact, atol=2e-6, rtol=0)  # in FP16: 4e-3
    assert torch.equal(weight, before)


# ---------------------------------------------------------------- which adapters, how much


def test_a_stage_takes_its_adapters_fully() -> None:
    assert adapter_weights("both") == dict.fromkeys(ADAPTERS, 1.0)
    assert adapter_weights("consistency") == dict.fromkeys(QUALITY, 0.0) | dict.fromkeys(CONSISTENCY, 1.0)
    assert all(type(weight) is float for weight in adapter_weights("both").values())


def test_single_adapters_override_the_stage() -> None:
    overrides = {QUALITY[0]: 0.5, CONSISTENCY[1]: -2.0}
    expected = dict.fromkeys(QUALITY, 0.0) | dict.fromkeys(CONSISTENCY, 1.0) | overrides
    assert adapter_weights("consistency", overrides) == expected
    assert adapter_weights("both", {}) == adapter_weights("both", None) == adapter_weights("both")


def test_an_adapter_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        adapter_weights("both", {"quality": 0.5})
    assert str(caught.value) == f"there is no adapter 'quality'; the checkpoint has {', '.join(ADAPTERS)}."


# ---------------------------------------------------------------- the whole UNet against peft


@pytest.fixture(scope="module")
def published() -> Any:
    """The UNet as the published code makes it: diffusers' own, six peft adapters, parameters copied in."""
    from diffusers import UNet2DConditionModel

    content = torch.load(GOLDEN / "model.pkl", weights_only=True)
    unet = UNet2DConditionModel.from_pretrained(GOLDEN / "sd/unet", torch_dtype=torch.float32)
    narrow = unet.conv_in
    unet.conv_in = nn.Conv2d(8, narrow.out_channels, narrow.kernel_size, narrow.stride, narrow.padding)
    unet.requires_grad_(False)
    for kind in ("quality", "consistency"):
        for part in ("encoder", "decoder", "others"):
            config = LoraConfig(
                r=content[f"lora_rank_unet_{kind}"],
                init_lora_weights="gaussian",
                target_modules=content[f"unet_lora_{part}_modules_{kind}"],
            )
            unet.add_adapter(config, adapter_name=f"default_{part}_{kind}")
    state = content["state_dict_unet"]
    names = {name for name, _ in unet.named_parameters()}
    assert names == set(state)
    for name, parameter in unet.named_parameters():
        parameter.data.copy_(state[name])
    return unet.eval()


def run(unet: nn.Module) -> Tensor:
    random = torch.Generator().manual_seed(7)
    sample = torch.randn(2, 8, 16, 24, generator=random)
    prompt = torch.randn(2, 77, 32, generator=random)
    with torch.no_grad():
        return unet(sample, 1, encoder_hidden_states=prompt, return_dict=False)[0]


OVERRIDE = {"default_decoder_quality": 0.25, "default_encoder_consistency": -0.5}


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [("both", {}), ("consistency", {}), ("both", OVERRIDE), ("consistency", OVERRIDE)],
)
def test_the_merged_unet_gives_what_the_published_code_gives(
    published: Any, golden: Checkpoint, base_model: BaseModel, stage: Any, overrides: dict[str, float]
) -> None:
    if overrides:
        active = (ADAPTERS if stage == "both" else CONSISTENCY) + tuple(overrides)
        weights = {name: overrides.get(name, 1.0) for name in dict.fromkeys(active)}
        published.set_adapters(list(weights), list(weights.values()))
    else:
        published.set_adapters(list(ADAPTERS), [1.0] * len(ADAPTERS))  # undoes the other cases' weights
        published.set_adapter(list(ADAPTERS if stage == "both" else CONSISTENCY))
    expected = run(published)
    unet = base_model.empty_unet()
    merge_into(unet, golden, adapter_weights(stage, overrides))
    merged = run(unet)
    scale = float(expected.abs().max())
    torch.testing.assert_close(merged, expected, atol=1e-5 * max(1.0, scale), rtol=0)
    if stage != "both" or overrides:  # the case is one that the default would fail
        merge_into(other := base_model.empty_unet(), golden, adapter_weights("both"))
        assert (run(other) - expected).abs().max() > 1e-2 * scale


def test_the_merged_unet_is_fp32_frozen_and_whole(golden: Checkpoint, base_model: BaseModel) -> None:
    unet = base_model.empty_unet()
    merge_into(unet, golden, adapter_weights("both"))
    for parameter in unet.parameters():
        assert (parameter.dtype, parameter.device.type) == (torch.float32, "cpu")
        assert not parameter.requires_grad
        assert parameter.is_contiguous()
        assert parameter.isfinite().all()
    bias, norm = "conv_in.bias", "conv_norm_out.weight"
    for name in (bias, norm):  # not adapted: as in the file
        assert torch.equal(unet.state_dict()[name], golden.base[name].float())


# ---------------------------------------------------------------- the hash


def merged_hash(base_model: BaseModel, checkpoint: Checkpoint, **overrides: float) -> str:
    return merge_into(base_model.empty_unet(), checkpoint, adapter_weights("both", overrides))


@pytest.fixture(scope="module")
def golden_hash(golden: Checkpoint, base_model: BaseModel) -> str:
    return merged_hash(base_model, golden)


def test_the_hash_is_over_names_shapes_and_bytes(
    golden: Checkpoint, base_model: BaseModel, golden_hash: str
) -> None:
    unet = base_model.empty_unet()
    assert merge_into(unet, golden, adapter_weights("both")) == golden_hash
    digest = hashlib.sha256()
    for name, tensor in unet.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    assert golden_hash == digest.hexdigest()


def test_the_hash_is_that_of_the_weights_not_of_the_file(
    tmp_path: Path, base_model: BaseModel, golden_hash: str
) -> None:
    resaved = resave_as_safetensors(GOLDEN / "model.pkl", tmp_path / "model.safetensors")
    assert merged_hash(base_model, load(resaved)) == golden_hash
    content = torch.load(GOLDEN / "model.pkl", weights_only=True)
    unet = content["state_dict_unet"]
    variants = {
        "legacy": unet,
        "reversed": dict(reversed(unet.items())),
        "fp32": {name: tensor.float() for name, tensor in unet.items()},
        "channels-last": {
            name: tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
            for name, tensor in unet.items()
        },
    }
    assert any(not tensor.is_contiguous() for tensor in variants["channels-last"].values())
    for name, variant in variants.items():
        path = tmp_path / f"{name}.pkl"
        torch.save(
            content | {"state_dict_unet": variant}, path, _use_new_zipfile_serialization=name != "legacy"
        )
        assert merged_hash(base_model, load(path)) == golden_hash, name
    single = resave_as_safetensors(tmp_path / "fp32.pkl", tmp_path / "fp32.safetensors")
    assert merged_hash(base_model, load(single)) == golden_hash


def test_the_hash_differs_for_any_other_weights(
    golden: Checkpoint, base_model: BaseModel, golden_hash: str
) -> None:
    hashes = {golden_hash, merged_hash(base_model, golden, default_encoder_quality=0.999)}
    hashes.add(merge_into(base_model.empty_unet(), golden, adapter_weights("consistency")))
    for name in ("conv_norm_out.bias", "conv_in.weight"):
        changed = golden.base[name].clone()
        changed.view(-1)[-1] += 1
        hashes.add(merged_hash(base_model, replace(golden, base={**golden.base, name: changed})))
    adapters = {layer: dict(updates) for layer, updates in golden.adapters.items()}
    update = adapters["conv_out"]["default_decoder_quality"]
    adapters["conv_out"]["default_decoder_quality"] = LowRank(update.A, update.B * 1.5)
    hashes.add(merged_hash(base_model, replace(golden, adapters=adapters)))
    assert len(hashes) == 6


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda base: base.pop("mid_block.resnets.0.norm1.weight"),
            " lacks state_dict_unet.mid_block.resnets.0.norm1.weight.",
        ),
        (
            lambda base: base.update({"conv_in.weight": torch.zeros(32, 4, 3, 3)}),
            ": state_dict_unet.conv_in.weight has shape (32, 4, 3, 3), the UNet of the "
            "Stable Diffusion directory expects (32, 8, 3, 3).",
        ),
        (
            lambda base: base.update({"time_embedding.linear_1.bias": torch.zeros(())}),
            ": state_dict_unet.time_embedding.linear_1.bias has shape (), the UNet of the",
        ),
        (
            lambda base: base.update({"conv_in.lora_magnitude_vector.default.weight": torch.zeros(32)}),
            ": the UNet of the Stable Diffusion directory has no conv_in.lora_magnitude_vector.default.weight.",
        ),
    ],
    ids=["missing", "shape", "number", "unknown"],
)
def test_the_first_difference_from_the_directorys_unet_is_named(
    golden: Checkpoint, base_model: BaseModel, change: Any, expected: str
) -> None:
    base = dict(golden.base)
    change(base)
    unet = base_model.empty_unet()
    with pytest.raises(CheckpointError) as caught:
        merge_into(unet, replace(golden, base=base), adapter_weights("both"))
    assert str(caught.value).removeprefix(str(golden.path)).startswith(expected)
    assert all(parameter.is_meta for parameter in unet.parameters())  # refused before anything is merged


def test_an_unknown_tensor_in_the_file_is_refused(tmp_path: Path, base_model: BaseModel) -> None:
    content = torch.load(GOLDEN / "model.pkl", weights_only=True)
    content["state_dict_unet"]["add_embedding.linear_1.bias"] = torch.zeros(4)
    torch.save(content, tmp_path / "model.pkl")
    checkpoint = load(tmp_path / "model.pkl")
    with pytest.raises(CheckpointError, match=r"directory has no add_embedding\.linear_1\.bias\."):
        merge_into(base_model.empty_unet(), checkpoint, adapter_weights("both"))


def test_a_directory_of_another_size_is_refused(tmp_path: Path, golden: Checkpoint) -> None:
    sd = Path(shutil.copytree(GOLDEN / "sd", tmp_path / "sd"))
    config = json.loads((sd / "unet/config.json").read_text())
    (sd / "unet/config.json").write_text(json.dumps(config | {"block_out_channels": [32, 96]}))
    with pytest.raises(CheckpointError, match=r"state_dict_unet\.\S+ has shape \(\d+, .* expects \("):
        merge_into(BaseModel.open(sd).empty_unet(), golden, adapter_weights("both"))


# ---------------------------------------------------------------- memory


class OnLoan(Mapping[str, Tensor]):
    """Gives a fresh copy of a tensor at each read, and counts those that are still alive."""

    def __init__(self, source: Mapping[str, Tensor], at_read: Callable[[], None]) -> None:
        self.source = source
        self.at_read = at_read
        self.alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
        self.pointers: set[int] = set()
        self.most = 0
        self.reads: list[str] = []

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.source[name].float()
        self.alive.add(tensor)
        self.most = max(self.most, len(self.alive))
        self.reads.append(name)
        self.at_read()
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self.source

    def __iter__(self) -> Iterator[str]:
        return iter(self.source)

    def __len__(self) -> int:
        return len(self.source)


def test_the_merge_holds_one_layer_beside_the_unet(golden: Checkpoint, base_model: BaseModel) -> None:
    unet = base_model.empty_unet()
    names = list(unet.state_dict())
    shape_reads = len(names)  # a mapping in memory is asked for each shape first
    done_at_read = []

    def at_read() -> None:
        if len(loan.reads) > shape_reads:
            parameters = dict(unet.named_parameters())
            done_at_read.append([name for name in names if not parameters[name].is_meta])

    loan = OnLoan(golden.base, at_read)
    result = merge_into(unet, replace(golden, base=loan), adapter_weights("both"))
    assert result == merged_hash(base_model, golden)
    assert loan.most <= 2  # the layer, and the one before it that is about to go
    assert not loan.alive  # nothing is kept, not even as the UNet's own parameter
    assert loan.reads[shape_reads:] == names  # each once, in order
    assert done_at_read == [names[:index] for index in range(len(names))]  # nothing is read ahead
