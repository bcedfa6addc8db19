"""A full-size model with seeded random weights: Stable Diffusion 2.1 and a DLoRAL checkpoint.

What it is for: exporting, compiling and timing at the true size where no download is possible. Its pictures
are noise. The same seed gives the same bytes; each tensor has its own random stream, seeded by (seed, name),
so no tensor depends on the order of writing.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from vsr_trt.recipes.synthetic.checkpoint import (
    Checkpoint,
    bpp_shapes,
    lora_modules,
    peft_state_dict,
    plain_entries,
)
from vsr_trt.recipes.synthetic.checkpoint_file import CHECKPOINT_FILE, write_checkpoint
from vsr_trt.recipes.synthetic.safetensors_file import write_safetensors
from vsr_trt.recipes.synthetic.sd_folder import (
    Json,
    refuse_to_overwrite,
    write_frame_files,
    write_json,
    write_tokenizer,
)
from vsr_trt.recipes.synthetic.tensors import Block, LazyTensor, Progress, held, total_bytes

log = logging.getLogger(__name__)

CheckpointFormat = Literal["pkl", "safetensors"]

_BLOCK = 1 << 21  # values made at a time: 8 MB in FP32

UNET_CONFIG: Json = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.25.0",
    "act_fn": "silu",
    "attention_head_dim": [5, 10, 20, 20],
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 1024,
    "down_block_types": [
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "use_linear_projection": True,
}
VAE_CONFIG: Json = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.25.0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 768,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TEXT_CONFIG: Json = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 49406,
    "dtype": "float16",
    "eos_token_id": 49407,
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "pad_token_id": 1,
    "projection_dim": 512,
    "vocab_size": 49408,
}


@dataclass(frozen=True)
class Shapes:
    """The sizes of a model: the configurations as diffusers and transformers read them, the LoRA rank."""

    unet: Json = field(default_factory=lambda: dict(UNET_CONFIG))
    vae: Json = field(default_factory=lambda: dict(VAE_CONFIG))
    text_encoder: Json = field(default_factory=lambda: dict(TEXT_CONFIG))
    rank: int = 4


@dataclass(frozen=True)
class FullSize:
    """Where a written model lies: the Stable Diffusion directory and the DLoRAL checkpoint."""

    sd: Path
    checkpoint: Path


# ---------------------------------------------------------------- shapes, without weights


def unet_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a UNet's parameters, in the module's own order."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return _shapes(UNet2DConditionModel.from_config(dict(config)))


def vae_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a VAE's parameters, under the published file's names for the attention's layers."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        shapes = _shapes(AutoencoderKL.from_config(dict(config)))
    return {_published_vae_name(name): shape for name, shape in shapes.items()}


def _published_vae_name(name: str) -> str:
    # Stable Diffusion 2.1 was published before diffusers renamed these layers; it still reads the old names.
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
    return name


def text_encoder_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a text encoder's parameters, under the published files' names (`text_model.`)."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        shapes = _shapes(CLIPTextModel(CLIPTextConfig(**config)))
    # transformers 5 dropped the prefix from its own names, and still reads files with it.
    return {f"text_model.{name.removeprefix('text_model.')}": shape for name, shape in shapes.items()}


def _shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


# ---------------------------------------------------------------- seeded values


def _spread(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation that keep activations near 1 through any depth."""
    if name.endswith("bias"):
        return 0.0, 0.02
    if len(shape) == 1:  # the weight of a normalisation
        return 1.0, 0.05
    if "embedding.weight" in name:  # of tokens and positions, as CLIP starts them
        return 0.0, 0.02
    if ".lora_B." in name:  # with rank 4 and scale 2: changes a weight by about a tenth
        return 0.0, 0.025
    gain = 1.0
    if "spynet" in name:
        # The flow of a level is doubled five times on its way up: a small last layer keeps it within pixels.
        gain = 0.05 if ".basic_module.4.conv" in name else math.sqrt(2.0)
    return 0.0, gain / math.sqrt(math.prod(shape[1:]))


def seeded(seed: int, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float16) -> LazyTensor:
    """Normal values for the tensor `name`, from a random stream of its own."""
    mean, deviation = _spread(name, shape)
    size = math.prod(shape)

    def blocks() -> Iterator[Block]:
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
        for start in range(0, size, _BLOCK):
            values = generator.standard_normal(min(_BLOCK, size - start), dtype=np.float32)
            values *= np.float32(deviation)
            values += np.float32(mean)
            yield values

    return LazyTensor(shape, dtype, blocks)


def seeded_all(seed: int, part: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, LazyTensor]:
    """`seeded` for all of a part's tensors."""
    return {name: seeded(seed, f"{part}/{name}", shape) for name, shape in shapes.items()}


def seeded_checkpoint(seed: int, unet: Mapping[str, LazyTensor], rank: int) -> Checkpoint:
    """A DLoRAL checkpoint around the UNet: `conv_in` widened to both latents, six adapters, CFR module."""
    outputs, latent, *kernel = unet["conv_in.weight"].shape
    wide = seeded(seed, "checkpoint/conv_in.weight", (outputs, 2 * latent, *kernel))
    base = {**unet, "conv_in.weight": wide}
    modules = lora_modules(list(base))
    adapted = peft_state_dict(
        base, modules, rank, lambda name, shape: seeded(seed, f"checkpoint/{name}", shape)
    )
    constants = spynet_constants()
    bpp = {
        name: constants.get(name) or seeded(seed, f"checkpoint/{name}", shape)
        for name, shape in bpp_shapes().items()
    }
    return Checkpoint(adapted, bpp, plain_entries(modules, rank))


def spynet_constants() -> dict[str, LazyTensor]:
    """SpyNet's two constants, (1,3,1,1): the mean and the deviation of ImageNet's colours."""
    values = {"spynet.mean": (0.485, 0.456, 0.406), "spynet.std": (0.229, 0.224, 0.225)}
    return {
        name: held(torch.tensor(value, dtype=torch.float16).reshape(1, 3, 1, 1))
        for name, value in values.items()
    }


# ---------------------------------------------------------------- writing


class Meter:
    """Turns counts of bytes into calls of `progress`, at most one a percent."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.progress = total, progress
        self.done, self.told, self.file = 0, -1, ""

    def begin(self, file: str) -> None:
        """A file is begun."""
        self.file, self.told = file, -1
        self.advance(0)

    def advance(self, count: int) -> None:
        """So many bytes of it were written."""
        self.done += count
        percent = 100 * self.done // max(self.total, 1)
        if self.progress is not None and percent != self.told:
            self.told = percent
            self.progress(self.file, self.done / max(self.total, 1))


def write_model(
    out: Path,
    shapes: Shapes | None = None,
    *,
    seed: int = 0,
    tokenizer: Path | None = None,
    checkpoint_format: CheckpointFormat = "pkl",
    progress: Progress | None = None,
    overwrite: bool = False,
) -> FullSize:
    """Writes a model with random weights into `out`: `sd/`, and `model.pkl` or `model.safetensors`.

    `shapes` is full size if left out: all tensors are FP16 (unet 1.7 GB, text encoder 0.7 GB, VAE 0.2 GB,
    checkpoint 1.8 GB). `tokenizer` is a directory with CLIP's vocab.json and merges.txt; without it the prompt
    is split into bytes. `progress` is called with the file's name and the share of all bytes written, 0..1.
    """
    shapes = shapes or Shapes()
    refuse_to_overwrite(out, overwrite)
    unet = seeded_all(seed, "unet", unet_shapes(shapes.unet))
    networks = {
        "unet/diffusion_pytorch_model.safetensors": unet,
        "vae/diffusion_pytorch_model.safetensors": seeded_all(seed, "vae", vae_shapes(shapes.vae)),
        "text_encoder/model.safetensors": seeded_all(
            seed, "text_encoder", text_encoder_shapes(shapes.text_encoder)
        ),
    }
    checkpoint = seeded_checkpoint(seed, unet, shapes.rank)
    total = sum(map(total_bytes, [*networks.values(), *checkpoint.state_dicts.values()]))
    meter = Meter(total, progress)

    sd = out / "sd"
    written = FullSize(sd, out / CHECKPOINT_FILE[checkpoint_format])
    vocabulary = write_tokenizer(sd / "tokenizer", tokenizer)
    write_frame_files(sd)
    write_configs(sd, shapes.unet, shapes.vae, with_vocabulary(shapes.text_encoder, vocabulary))
    for file, tensors in networks.items():
        meter.begin(f"sd/{file}")
        write_safetensors(sd / file, tensors, advance=meter.advance)
    meter.begin(written.checkpoint.name)
    write_checkpoint(written.checkpoint, checkpoint, meter.advance)
    log.info("wrote a model of %.2f GB with random weights (seed %d) to %s", total / 1e9, seed, out)
    return written


def with_vocabulary(text_encoder: Json, vocabulary: Mapping[str, int]) -> Json:
    """The text encoder's configuration with the vocabulary's marks; its table may be longer, not shorter."""
    rows = text_encoder["vocab_size"]
    if len(vocabulary) > rows:
        raise ValueError(f"the vocabulary has {len(vocabulary)} words, the text encoder only {rows} rows")
    marks = {"bos_token_id": vocabulary["<|startoftext|>"], "eos_token_id": vocabulary["<|endoftext|>"]}
    return {**text_encoder, **marks}


def write_configs(sd: Path, unet: Json, vae: Json, text_encoder: Json) -> None:
    """Writes the three networks' config.json."""
    for part, config in (("unet", unet), ("vae", vae), ("text_encoder", text_encoder)):
        write_json(sd / part / "config.json", config)
