"""Reading a Stable Diffusion 2.1 directory: every form its weights have, and every directory it is not."""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vsr_trt.export.families.stable_diffusion.base_model import BaseModel
from vsr_trt.runtime.errors import CheckpointError

GOLDEN = Path(__file__).parents[1] / "data/golden/case_a"
PROMPT = json.loads((GOLDEN / "case.json").read_text())["prompt"]
Weights = dict[str, torch.Tensor]

FILES = {  # part -> its safetensors file and its .bin
    "vae": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "text_encoder": ("model.safetensors", "pytorch_model.bin"),
}
PREFIXES = ("", "text_model.")


def golden_weights(part: str) -> Weights:
    return load_file(GOLDEN / "sd" / part / FILES[part][0])


@pytest.fixture
def sd(tmp_path: Path) -> Path:
    """A copy of the golden directory."""
    return Path(shutil.copytree(GOLDEN / "sd", tmp_path / "sd"))


def rewrite(sd: Path, part: str, weights: Weights, name: str) -> Path:
    """Replaces a part's weight file by one called `name`, whose ending says in which form."""
    (sd / part / FILES[part][0]).unlink(missing_ok=True)
    path = sd / part / name
    if name.endswith(".bin"):
        torch.save(weights, path)
    else:
        save_file(weights, path)
    return path


def read(sd: Path, part: str) -> Weights:
    model = BaseModel.open(sd)
    module = model.vae() if part == "vae" else model.text_encoder()
    assert not module.training
    return module.state_dict()


def assert_golden(weights: Weights, part: str) -> None:
    expected = {name.removeprefix("text_model."): tensor for name, tensor in golden_weights(part).items()}
    assert {name.removeprefix("text_model.") for name in weights} == set(expected)
    for name, tensor in weights.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name.removeprefix("text_model.")].float()), name


def edit_config(sd: Path, part: str, **changes: Any) -> None:
    path = sd / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(act: Callable[[], object], place: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        act()
    message = str(caught.value)
    assert message.startswith(str(place))
    assert message.endswith(".")
    return message.removeprefix(str(place))


# ---------------------------------------------------------------- forms of the weights


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("variant", ["", ".fp16"])
@pytest.mark.parametrize("form", [0, 1], ids=["safetensors", "bin"])
@pytest.mark.parametrize("part", FILES)
def test_every_form_gives_the_same_tensors(
    sd: Path, part: str, form: int, variant: str, dtype: torch.dtype
) -> None:
    stem, _, suffix = FILES[part][form].rpartition(".")
    weights = {name: tensor.to(dtype) for name, tensor in golden_weights(part).items()}
    path = rewrite(sd, part, weights, f"{stem}{variant}.{suffix}")
    assert BaseModel.open(sd).weights_file(part) == path
    assert_golden(read(sd, part), part)


def test_safetensors_come_before_bin_and_whole_names_before_variants(sd: Path) -> None:
    model = BaseModel.open(sd)
    whole = model.weights_file("vae")
    stem = sd / "vae" / "diffusion_pytorch_model"
    for suffix in (".fp16.safetensors", ".bin", ".fp16.bin"):
        stem.with_name(stem.name + suffix).write_bytes(b"")
    assert model.weights_file("vae") == whole
    for suffix in (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin"):
        path = stem.with_name(stem.name + suffix)
        assert model.weights_file("vae") == path
        path.unlink()
    assert refusal(lambda: model.weights_file("vae"), sd / "vae").startswith(
        " has no weights; expected one of diffusion_pytorch_model.safetensors, diffusion_pytorch_model.fp16."
    )


def test_the_files_that_a_bundle_is_made_from_are_named(sd: Path) -> None:
    expected = [sd / part / names[0] for part, names in FILES.items()]
    assert BaseModel.open(sd).weight_files() == expected


@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.parametrize("form", [0, 1], ids=["safetensors", "bin"])
def test_the_old_names_of_the_vaes_attention_are_read(sd: Path, form: int, convolutions: bool) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights: Weights = {}
    for name, tensor in golden_weights("vae").items():
        for new, before in old.items():
            if f".{new}." in name:
                name = name.replace(f".{new}.", f".{before}.")
                if convolutions and tensor.ndim == 2:
                    tensor = tensor[:, :, None, None].contiguous()
        weights[name] = tensor
    assert sum(name.split(".")[-2] in old.values() for name in weights) == 16
    rewrite(sd, "vae", weights, FILES["vae"][form])
    assert_golden(read(sd, "vae"), "vae")


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("form", [0, 1], ids=["safetensors", "bin"])
def test_the_text_encoder_is_read_with_and_without_its_prefix(
    sd: Path, form: int, prefix: str, positions: bool
) -> None:
    weights = {
        prefix + name.removeprefix("text_model."): tensor
        for name, tensor in golden_weights("text_encoder").items()
    }
    if positions:
        weights[f"{prefix}embeddings.position_ids"] = torch.arange(77)[None]
    rewrite(sd, "text_encoder", weights, FILES["text_encoder"][form])
    assert_golden(read(sd, "text_encoder"), "text_encoder")


# ---------------------------------------------------------------- what the networks make of them


@torch.no_grad()
def test_the_vae_agrees_with_diffusers_own() -> None:
    from diffusers import AutoencoderKL

    ours = BaseModel.open(GOLDEN / "sd").vae()
    theirs = AutoencoderKL.from_pretrained(GOLDEN / "sd/vae", torch_dtype=torch.float32).eval()
    picture = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latent = theirs.encode(picture).latent_dist.mode()
    torch.testing.assert_close(ours.encode(picture).latent_dist.mode(), latent, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours.decode(latent).sample, theirs.decode(latent).sample, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_the_text_encoder_agrees_with_transformers_own() -> None:
    from transformers import CLIPTextModel

    ours = BaseModel.open(GOLDEN / "sd").text_encoder()
    theirs = CLIPTextModel.from_pretrained(GOLDEN / "sd/text_encoder", dtype=torch.float32).eval()
    ids = torch.randint(0, 49408, (2, 77), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        ours(ids).last_hidden_state, theirs(ids).last_hidden_state, atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_the_prompts_embedding_is_the_golden_one() -> None:
    model = BaseModel.open(GOLDEN / "sd")
    ids, cut = model.tokenize(PROMPT)
    assert cut == 0
    embedding = model.text_encoder()(ids[None]).last_hidden_state
    with np.load(GOLDEN / "golden.npz") as golden:
        np.testing.assert_allclose(embedding.numpy(), golden["prompt_embeds"], atol=1e-5)


def test_a_prompt_is_padded_as_the_directory_says(sd: Path) -> None:
    ids, cut = BaseModel.open(sd).tokenize("a street")
    assert (ids.shape, ids.dtype, cut) == ((77,), torch.int64, 0)
    assert ids.tolist() == [49406, 320, 2012, 49407] + [0] * 73  # "!" is 0
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = sd / "tokenizer" / name
        path.write_text(path.read_text().replace('"pad_token": "!"', '"pad_token": "<|endoftext|>"'))
    assert BaseModel.open(sd).tokenize("a street")[0].tolist() == [49406, 320, 2012, 49407] + [49407] * 73


def test_a_long_prompts_end_is_cut_off_quietly() -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_warning()
    model = BaseModel.open(GOLDEN / "sd")
    said: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = said.append  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")  # it prints by itself and does not propagate
    logger.addHandler(handler)
    level = logger.level
    try:
        assert model.tokenize("tree " * 75)[1] == 0
        ids, cut = model.tokenize("tree " * 100)
    finally:
        logger.removeHandler(handler)
    assert cut == 25
    assert ids[0] == 49406
    assert ids[-1] == 49407
    assert len(set(ids[1:-1].tolist())) == 1
    assert not said
    assert logger.level == level


def test_the_empty_unet_is_widened_and_takes_no_memory() -> None:
    unet = BaseModel.open(GOLDEN / "sd").empty_unet()
    assert not unet.training
    assert all(parameter.is_meta for parameter in unet.parameters())
    published = load_file(GOLDEN / "sd/unet/diffusion_pytorch_model.safetensors")
    shapes = {name: tensor.shape for name, tensor in unet.state_dict().items()}
    assert shapes.pop("conv_in.weight") == (32, 8, 3, 3)
    assert published.pop("conv_in.weight").shape == (32, 4, 3, 3)
    assert shapes == {name: tensor.shape for name, tensor in published.items()}


# ---------------------------------------------------------------- directories that are refused


def test_a_path_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", GOLDEN / "model.pkl"):
        assert refusal(lambda path=path: BaseModel.open(path), path).startswith(
            " is no directory; expected Stable Diffusion 2.1 in diffusers' layout (with unet/, vae/,"
        )


def test_a_folder_too_high_says_which_to_give(sd: Path) -> None:
    with pytest.raises(CheckpointError, match=f"give that one: --sd {re.escape(str(sd))}"):
        BaseModel.open(sd.parent)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe", b"[]", b"3"])
def test_a_config_that_cannot_be_read_is_named(sd: Path, part: str, content: bytes | None) -> None:
    path = sd / part / "config.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    message = refusal(lambda: BaseModel.open(sd), path)
    assert message == " holds no object." or message.startswith(" cannot be read (")


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("unet", "block_out_channels", "wide"),
        ("unet", "down_block_types", ["NoSuchBlock"] * 4),
        ("unet", "norm_num_groups", 7),
        ("vae", "block_out_channels", [8, None]),
        ("vae", "up_block_types", 3),
        ("text_encoder", "num_hidden_layers", "many"),
        ("text_encoder", "num_attention_heads", 0),
    ],
)
def test_a_nonsensical_config_is_named(sd: Path, part: str, key: str, value: object) -> None:
    path = sd / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    def read() -> None:
        model = BaseModel.open(sd)
        {"unet": model.empty_unet, "vae": model.vae, "text_encoder": model.text_encoder}[part]()

    assert refusal(read, path).strip()


# what the published directories' config.json say
SD_XL = {
    "unet": {
        "addition_embed_type": "text_time",
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "block_out_channels": [320, 640, 1280],
    },
    "text_encoder": {"hidden_size": 768, "hidden_act": "quick_gelu"},
    "vae": {"scaling_factor": 0.13025},
}
SD_1_5: dict[str, dict[str, Any]] = {
    "unet": {"cross_attention_dim": 768, "attention_head_dim": 8, "use_linear_projection": None},
    "text_encoder": {"hidden_size": 768, "hidden_act": "quick_gelu"},
}


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        (
            SD_XL,
            "unet/config.json has addition_embed_type = 'text_time', expected None. "
            "This looks like SD-XL; pass stable-diffusion-2-1-base.",
        ),
        (
            SD_1_5,
            "unet/config.json has use_linear_projection = None, expected True. "
            "This looks like Stable Diffusion 1.x; pass stable-diffusion-2-1-base.",
        ),
        (
            SD_1_5 | {"unet": {"cross_attention_dim": 768}},
            "text_encoder/config.json has hidden_act = 'quick_gelu', expected 'gelu'. "
            "This looks like Stable Diffusion 1.x; pass stable-diffusion-2-1-base.",
        ),
        (
            {"unet": {"cross_attention_dim": 768}},
            "unet/config.json has cross_attention_dim = 768, expected 32. This looks like Stable Diffusion 1.x;",
        ),
        (
            {"unet": {"_class_name": "UNet3DConditionModel"}},
            "unet/config.json has _class_name = 'UNet3DConditionModel', expected 'UNet2DConditionModel'.",
        ),
        ({"unet": {"in_channels": 9}}, "unet/config.json has in_channels = 9, expected 4."),  # inpainting
        ({"unet": {"out_channels": 8}}, "unet/config.json has out_channels = 8, expected 4."),
        (
            {"text_encoder": {"hidden_size": 64}},
            "unet/config.json has cross_attention_dim = 32, expected 64.",
        ),
        (
            {"vae": {"_class_name": "AutoencoderTiny"}},
            "vae/config.json has _class_name = 'AutoencoderTiny', expected 'AutoencoderKL'.",
        ),
        ({"vae": {"latent_channels": 16}}, "vae/config.json has latent_channels = 16, expected 4."),
    ],
    ids=["xl", "1.x", "1.x-gelu", "width", "video", "inpainting", "out", "text", "tiny-vae", "latents"],
)
def test_another_model_is_refused_by_its_first_difference(
    sd: Path, changes: dict[str, dict[str, Any]], difference: str
) -> None:
    for part, values in changes.items():
        edit_config(sd, part, **values)
    assert refusal(lambda: BaseModel.open(sd), sd).startswith(f" is not Stable Diffusion 2.1: {difference}")


def test_keys_that_old_configs_lack_are_no_difference(sd: Path) -> None:
    path = sd / "unet/config.json"
    config = json.loads(path.read_text())
    del config["addition_embed_type"]
    path.write_text(json.dumps(config))
    assert BaseModel.open(sd).path == sd


# ---------------------------------------------------------------- tokenizers


def test_a_directory_without_vocabulary_is_refused(sd: Path) -> None:
    (sd / "tokenizer/vocab.json").unlink()
    assert refusal(lambda: BaseModel.open(sd), sd) == (
        " has no tokenizer/tokenizer.json and no tokenizer/vocab.json; copy the whole model directory."
    )


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("merges.txt", None),
        ("merges.txt", b"#version: 0.2\nq q zz\n"),
        ("vocab.json", b"[1]"),
        ("vocab.json", b'{"a": 0'),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"[]"),
    ],
)
def test_a_damaged_tokenizer_is_refused(sd: Path, file: str, content: bytes | None) -> None:
    path = sd / "tokenizer" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    model = BaseModel.open(sd)
    assert refusal(lambda: model.tokenize(PROMPT), sd / "tokenizer").startswith(" cannot be read: ")


# ---------------------------------------------------------------- weight files that are refused


@pytest.mark.parametrize("form", [0, 1], ids=["safetensors", "bin"])
@pytest.mark.parametrize(
    ("part", "name", "shape"),
    [
        ("vae", "decoder.conv_in.weight", (64, 5, 3, 3)),
        ("vae", "encoder.mid_block.attentions.0.to_q.weight", (64, 32, 1, 1)),
        ("text_encoder", "embeddings.position_embedding.weight", (64, 32)),
    ],
)
def test_a_missing_a_misshapen_and_an_unknown_tensor_are_named(
    sd: Path, part: str, name: str, shape: tuple[int, ...], form: int
) -> None:
    weights = golden_weights(part)
    removed = weights.pop(name)
    path = rewrite(sd, part, weights, FILES[part][form])
    assert refusal(lambda: read(sd, part), path) == f" lacks {name}."
    rewrite(sd, part, weights | {name: torch.zeros(shape)}, FILES[part][form])
    assert refusal(lambda: read(sd, part), path) == (
        f": {name} has shape {shape}, expected {tuple(removed.shape)}."
    )
    extra = {"attentions": torch.zeros(1), "zoo.query.weight": torch.zeros(1)}
    rewrite(sd, part, weights | {name: removed} | extra, FILES[part][form])
    assert refusal(lambda: read(sd, part), path) == (
        f" has attentions, which {part}/config.json does not account for."
    )


@pytest.mark.parametrize("form", [0, 1], ids=["safetensors", "bin"])
@pytest.mark.parametrize("part", FILES)
def test_a_truncated_weight_file_is_refused(sd: Path, part: str, form: int) -> None:
    path = rewrite(sd, part, golden_weights(part), FILES[part][form])
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 100, 5000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "truncated or damaged" in refusal(lambda: read(sd, part), path)


class Trap:
    """Makes a file where it is unpickled by a reader that runs code."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("part", FILES)
def test_code_in_a_bin_file_is_not_executed(sd: Path, part: str, legacy: bool) -> None:
    marker = sd / "marker"
    content = {**golden_weights(part), "hook": Trap(marker)}
    (sd / part / FILES[part][0]).unlink()
    path = sd / part / FILES[part][1]
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    message = refusal(lambda: read(sd, part), path)
    assert not marker.exists()
    assert "holds code (posix.system) and was not loaded; nothing of it was executed." in message
    torch.load(path, weights_only=False)
    assert marker.exists()  # the trap works


@pytest.mark.parametrize("content", [[1], {"state_dict": {}}, {1: torch.zeros(1)}, {"step": 3}])
def test_a_bin_file_of_something_else_is_refused(sd: Path, content: Any) -> None:
    path = rewrite(sd, "vae", content, "diffusion_pytorch_model.bin")
    assert refusal(lambda: read(sd, "vae"), path) == " holds no plain state dict."


# ---------------------------------------------------------------- shards


def shard(
    sd: Path, part: str, suffix: str = "safetensors", index: str = "{}.{}.index.json"
) -> tuple[Path, Path]:
    """Spreads a part's weights over two files, as the libraries do; returns the index and the first of the files."""
    weights, folder = golden_weights(part), sd / part
    (folder / FILES[part][0]).unlink()
    stem = FILES[part][suffix == "bin"].partition(".")[0]
    names, places = list(weights), {}
    for number, own in enumerate((names[::2], names[1::2]), 1):
        path = folder / f"{stem}-{number:05}-of-00002.{suffix}"
        held = {name: weights[name] for name in own}
        if suffix == "bin":
            torch.save(held, path)
        else:
            save_file(held, path)
        places |= dict.fromkeys(own, path.name)
    written = folder / index.format(stem, suffix)
    written.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return written, folder / f"{stem}-00001-of-00002.{suffix}"


@pytest.mark.parametrize(
    ("suffix", "index"),
    [
        ("safetensors", "{}.{}.index.json"),
        ("safetensors", "{}.{}.index.fp16.json"),
        ("safetensors", "{}.fp16.{}.index.json"),
        ("bin", "{}.{}.index.json"),
        ("bin", "{}.{}.index.fp16.json"),
    ],
)
@pytest.mark.parametrize("part", FILES)
def test_shards_give_the_same_tensors(sd: Path, part: str, suffix: str, index: str) -> None:
    path, first = shard(sd, part, suffix, index)
    model = BaseModel.open(sd)
    assert model.weights_file(part) == path
    assert_golden(read(sd, part), part)
    named = [file for file in model.weight_files() if file.parent.name == part]
    assert named == [path, first, first.with_name(first.name.replace("00001", "00002", 1))]


def test_shards_as_transformers_and_diffusers_save_them(sd: Path) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    for kind, part, size in (
        (CLIPTextModel, "text_encoder", "3MB"),
        (AutoencoderKL, "vae", "500KB"),
        (UNet2DConditionModel, "unet", "1MB"),
    ):
        kind.from_pretrained(GOLDEN / "sd" / part).save_pretrained(sd / "new" / part, max_shard_size=size)
        (sd / "new" / part / "config.json").unlink()
        for old in (sd / part).glob("*.safetensors"):
            old.unlink()
        for path in (sd / "new" / part).iterdir():
            path.rename(sd / part / path.name)
        assert len(list((sd / part).glob("*-of-*.safetensors"))) > 1
        assert len(list((sd / part).glob("*.safetensors.index.json"))) == 1
    for part in FILES:
        assert_golden(read(sd, part), part)
    assert BaseModel.open(sd).empty_unet().config.in_channels == 8  # of the UNet, nothing but that is read


def test_one_file_comes_before_shards(sd: Path) -> None:
    whole = (sd / "vae" / FILES["vae"][0]).read_bytes()
    shard(sd, "vae")
    (sd / "vae" / FILES["vae"][0]).write_bytes(whole)
    assert BaseModel.open(sd).weights_file("vae") == sd / "vae" / FILES["vae"][0]


PATHS = (
    "../vae/x.safetensors",
    "/etc/passwd",
    "deep/x.safetensors",
    "..",
    ".",
    "",
    "..\\x.safetensors",
    "C:x",
)


@pytest.mark.parametrize("place", [*PATHS, "a\0b", "\ud800", "a\nb", 3, None, ["x"]])
def test_an_index_names_files_beside_it_only(sd: Path, place: object) -> None:
    path, first = shard(sd, "text_encoder")
    index = json.loads(path.read_text())
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = place
    path.write_text(json.dumps(index))
    for folder in (sd / "text_encoder" / "deep", sd / "vae"):
        folder.mkdir(exist_ok=True)
        shutil.copyfile(first, folder / "x.safetensors")
    model = BaseModel.open(sd)
    for act in (model.text_encoder, model.weight_files):
        assert refusal(act, path) == (
            f" places {name} in {place!r}, expected the name of a file next to it; nothing was read there."
        )


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 10**5]
)
def test_an_index_of_another_kind_is_refused(sd: Path, content: str) -> None:
    path, _ = shard(sd, "vae")
    path.write_text(content)
    message = refusal(lambda: read(sd, "vae"), path)
    assert message.startswith((" cannot be read (", " is no index of shards: it has no 'weight_map'"))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_missing_shard_and_a_missing_tensor_are_named(sd: Path, suffix: str) -> None:
    path, first = shard(sd, "text_encoder", suffix)
    index = json.loads(path.read_text())
    names = [name for name, place in index["weight_map"].items() if place == first.name]
    changed = {name: place for name, place in index["weight_map"].items() if name != names[0]}
    path.write_text(json.dumps({"weight_map": changed}))
    assert refusal(lambda: read(sd, "text_encoder"), first).startswith(
        f" has {names[0]}, which {path.name} does not place there."
    )
    path.write_text(json.dumps({"weight_map": index["weight_map"] | {"another": first.name}}))
    assert refusal(lambda: read(sd, "text_encoder"), first).startswith(
        f" lacks another, which {path.name} places there."
    )
    path.write_text(json.dumps(index))
    first.unlink()
    assert refusal(lambda: read(sd, "text_encoder"), first) == (
        f" is missing, where {path.name} places {names[0]}; copy the whole directory."
    )
    path.write_text(json.dumps({"weight_map": {"x": "long" * 100}}))
    assert " is missing, where " in refusal(lambda: read(sd, "text_encoder"), sd / "text_encoder")
    path.write_text(json.dumps({"weight_map": {"\ud800": "x"}}))
    assert refusal(lambda: read(sd, "text_encoder"), path) == r" has '\ud800', which is no name of a tensor."


def test_a_tensor_that_no_shard_has_is_named_with_the_index(sd: Path) -> None:
    path, first = shard(sd, "vae")
    weights, index = load_file(first), json.loads(path.read_text())
    name = next(iter(weights))
    del weights[name], index["weight_map"][name]
    save_file(weights, first)
    path.write_text(json.dumps(index))
    assert refusal(lambda: read(sd, "vae"), path) == f" lacks {name}."


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_damage_and_code_in_a_shard_are_refused(sd: Path, suffix: str) -> None:
    _, first = shard(sd, "vae", suffix)
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    assert "truncated or damaged" in refusal(lambda: read(sd, "vae"), first)
    marker = sd / "marker"
    torch.save({"hook": Trap(marker)}, first)  # a pickle is not read under the name of a safetensors file
    refusal(lambda: read(sd, "vae"), first)
    assert not marker.exists()


# ---------------------------------------------------------------- tokenizers in one file

PROMPTS = (PROMPT, "  A  Street's 123 café ÀÉ\u3000日本 🎉 don't ! !!! x<|endoftext|>", "", "tree " * 100)


@pytest.fixture
def new_tokenizer(sd: Path) -> Path:
    """The directory's tokenizer as transformers 5 saves it."""
    from transformers import CLIPTokenizer

    folder = sd / "tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    shutil.rmtree(folder)
    tokenizer.save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    return folder


def assert_golden_tokens(sd: Path) -> None:
    ours, golden = BaseModel.open(sd), BaseModel.open(GOLDEN / "sd")
    for prompt in PROMPTS:
        ids, cut = ours.tokenize(prompt)
        expected, expected_cut = golden.tokenize(prompt)
        assert ids.tolist() == expected.tolist()
        assert cut == expected_cut


def test_a_tokenizer_of_transformers_5_gives_the_same_tokens(sd: Path, new_tokenizer: Path) -> None:
    assert_golden_tokens(sd)


@pytest.mark.thorough
def test_without_its_config_the_file_still_tells_what_fills_prompts_up(sd: Path, new_tokenizer: Path) -> None:
    (new_tokenizer / "tokenizer_config.json").unlink()
    assert_golden_tokens(sd)
    path = new_tokenizer / "tokenizer.json"
    content = json.loads(path.read_text())
    content["padding"] = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None}
    content["padding"] |= {"pad_id": 49407, "pad_type_id": 0, "pad_token": "<|endoftext|>"}
    path.write_text(json.dumps(content))
    assert BaseModel.open(sd).tokenize("a street")[0].tolist()[-1] == 49407


@pytest.mark.parametrize("config", [None, {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}])
def test_the_old_files_need_one_that_tells_what_fills_prompts_up(
    sd: Path, config: dict[str, Any] | None
) -> None:
    (sd / "tokenizer/tokenizer_config.json").unlink()
    if config is not None:
        (sd / "tokenizer/tokenizer_config.json").write_text(json.dumps(config))
    assert_golden_tokens(sd)  # special_tokens_map.json has it
    (sd / "tokenizer/special_tokens_map.json").unlink()
    model = BaseModel.open(sd)
    assert refusal(lambda: model.tokenize(PROMPT), sd / "tokenizer").startswith(
        " does not tell which token fills prompts up: tokenizer_config.json is missing, or has no pad_token."
    )


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"{}", b'{"model": {"type": "BPE"}}', b"[" * 10**5]
)
def test_a_damaged_file_is_refused(sd: Path, new_tokenizer: Path, content: bytes) -> None:
    (new_tokenizer / "tokenizer.json").write_bytes(content)
    model = BaseModel.open(sd)
    assert refusal(lambda: model.tokenize(PROMPT), new_tokenizer).startswith(" cannot be read: ")


def test_another_models_tokenizer_is_refused(sd: Path) -> None:
    edit_config(sd, "text_encoder", vocab_size=1000)
    model = BaseModel.open(sd)
    assert refusal(lambda: model.tokenize(PROMPT), sd / "tokenizer").startswith(
        " is not the text encoder's: it has a token 49407, and text_encoder/config.json a vocabulary of 1000."
    )


@pytest.mark.parametrize("factor", [0, -1, "0.2", None, True, float("nan"), float("inf")])
def test_a_scaling_factor_that_is_none_is_refused(sd: Path, factor: object) -> None:
    edit_config(sd, "vae", scaling_factor=factor)
    assert refusal(lambda: BaseModel.open(sd), sd / "vae/config.json").startswith(" has scaling_factor = ")
