"""STAR's texts: what is added to a prompt, its tokens, and the encoder, OpenCLIP ViT-H-14 in transformers' layout.

STAR reads what the last block but one gives, after the final layer norm. So the encoder is built without its last
block, and is Stable Diffusion 2.1's in all else. That one's own folder, which comes without the block, will do, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vsr_trt.export import pretrained, shards
from vsr_trt.export.families import prompt
from vsr_trt.export.families.star.sizes import TOKENS
from vsr_trt.export.tensors import common_prefix
from vsr_trt.runtime.errors import CheckpointError

PROMPT = "a good video"
POSITIVE = (
    "Cinematic, High Contrast, highly detailed, taken using a Canon EOS R camera,   hyper detailed photo - realistic "
    "maximum detail, 32k, Color Grading, ultra HD, extreme meticulous detailing,  skin pore detailing, hyper "
    "sharpness, perfect without deformations."
)
"""What STAR's code puts behind every prompt, without a blank between."""
NEGATIVE = (
    "painting, oil painting, illustration, drawing, art, sketch, oil painting, cartoon, CG Style, 3D render, unreal "
    "engine, blurring, dirty, messy, worst quality, low quality, frames, watermark, signature, jpeg artifacts, "
    "deformed, lowres, over-smooth"
)
_WITHOUT_LAST = 23  # blocks that are stored where the last one is left out: Stable Diffusion 2.1's
_PAD = "!"  # has the id 0, with which OpenCLIP fills up
_PLAIN = (
    ("[\u02bc\u2018-\u201b]", "'"),
    ("[\u201c-\u201f]", '"'),
    ("\ufb00", "ff"),
    ("\ufb01", "fi"),
    ("\ufb02", "fl"),
    ("\ufb03", "ffi"),
    ("\ufb04", "ffl"),
    ("\ufb06", "st"),
)
"""What OpenCLIP, by ftfy's `fix_text`, makes of quotes and ligatures as word processors and telephones write them."""
_CONSTANT = "embeddings.position_ids"
_WANTED = "expected OpenCLIP ViT-H-14 in transformers' layout (laion/CLIP-ViT-H-14-laion2B-s32B-b79K)"


def caption(wish: str) -> str:
    """The text that a clip is restored with, of what was asked for."""
    return wish + POSITIVE


def open_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer as a bundle stores it: begin, tokens, end, zeros, 77 in all.

    Raises:
        CheckpointError: the folder is of another model, has no tokenizer, or a damaged one.
    """
    from tokenizers import Regex, normalizers

    known = _checked_config(folder).get("vocab_size", 49408)
    try:
        tokenizer = prompt.open_tokenizer(folder, TOKENS, _PAD, pad_is_a_word=True)
    except Exception as error:  # the tokenizers library raises plain Exception on damaged files
        raise CheckpointError(f"the tokenizer in {folder} cannot be read: {error}.") from error
    pad, largest = tokenizer.token_to_id(_PAD), max(tokenizer.get_vocab(with_added_tokens=True).values())
    if pad != 0 or largest >= known:
        raise CheckpointError(
            f"the tokenizer in {folder} is not the text encoder's: its '{_PAD}' is token {pad}, expected 0, and it has "
            f"a token {largest} with a vocabulary of {known}. Copy the whole folder."
        )
    plain = [normalizers.Replace(Regex(found), by) for found, by in _PLAIN]
    tokenizer.normalizer = normalizers.Sequence([*plain, *filter(None, [tokenizer.normalizer])])
    return tokenizer


def weight_files(folder: Path) -> list[Path]:
    """Every weight file that is read, indices and shards among them."""
    return shards.files(_weights(folder))


def _weights(folder: Path) -> Path:
    return shards.find(folder, "model", "pytorch_model")


def open_text_encoder(folder: Path) -> Any:
    """transformers' CLIPTextModel in FP32, whose last hidden state is what STAR reads.

    Raises:
        CheckpointError: another model, or weights that are missing, of another shape or not finite.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    config = _checked_config(folder)
    blocks = config.get("num_hidden_layers")
    if not isinstance(blocks, int) or blocks < 2:
        raise CheckpointError(f"{folder}/config.json has num_hidden_layers = {blocks!r}; {_WANTED}.")
    used = blocks if blocks == _WITHOUT_LAST else blocks - 1
    with pretrained.building(folder / "config.json"):
        settings = CLIPTextConfig.from_dict(config | {"num_hidden_layers": used})
        settings._attn_implementation = "eager"  # causal mask as plain arithmetic in the graph
        model = CLIPTextModel(settings).eval()
    file = _weights(folder)
    tensors = shards.open_weights(file)
    prefix = common_prefix(tensors)
    stored = {name.removeprefix(prefix).removeprefix("text_model."): name for name in tensors}
    weights = {}
    for name, place in model.state_dict().items():
        short = name.removeprefix("text_model.")
        if short not in stored:
            if short.endswith(_CONSTANT):
                weights[name] = place
                continue
            raise CheckpointError(f"{file} lacks text_model.{short}; {_WANTED}.")
        weights[name] = pretrained.in_fp32(tensors[stored[short]], f"{file}: {stored[short]}", place)
    model.load_state_dict(weights, assign=True)
    return model


def _checked_config(folder: Path) -> dict[str, Any]:
    config = _config(folder)
    if config.get("hidden_act") != "gelu":  # CLIP's own models have quick_gelu
        raise CheckpointError(
            f"{folder}/config.json has hidden_act = {config.get('hidden_act')!r}; {_WANTED}."
        )
    return config


def _config(folder: Path) -> dict[str, Any]:
    """The text model's part of `config.json`: of a whole CLIP, or the file itself."""
    file = folder / "config.json"
    content = pretrained.read_config(file, _WANTED)
    inner = content.get("text_config", content) if isinstance(content, dict) else None
    if not isinstance(inner, dict):
        raise CheckpointError(f"{file} holds no object; {_WANTED}.")
    return inner
