"""A full-size STAR model with seeded random weights, every file in the published layout.

What it is for is what `random` is for; see there. The denoiser's shapes are those that the exporter knows, the VAE's
are diffusers' own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vsr_trt.export.families.star.sizes import Sizes
from vsr_trt.recipes.synthetic.random import (
    TEXT_CONFIG,
    Meter,
    seeded_all,
    text_encoder_shapes,
    with_vocabulary,
)
from vsr_trt.recipes.synthetic.safetensors_file import write_safetensors
from vsr_trt.recipes.synthetic.sd_folder import Json, refuse_to_overwrite, write_json, write_tokenizer
from vsr_trt.recipes.synthetic.tensors import LazyTensor, Progress, total_bytes
from vsr_trt.recipes.synthetic.torch_file import write_pkl

VAE_CONFIG: Json = {
    "_class_name": "AutoencoderKLTemporalDecoder",
    "_diffusers_version": "0.24.0",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "out_channels": 3,
    "sample_size": 768,
    "scaling_factor": 0.18215,
}


@dataclass(frozen=True)
class Shapes:
    """The sizes of a model: those of UNet and ControlNet, and the configurations of VAE and text encoder."""

    denoiser: Sizes = field(default_factory=Sizes)
    vae: Json = field(default_factory=lambda: dict(VAE_CONFIG))
    text_encoder: Json = field(default_factory=lambda: dict(TEXT_CONFIG))


@dataclass(frozen=True)
class Model:
    """Where a written model lies: the checkpoint, and the folders of VAE and text encoder."""

    checkpoint: Path
    vae: Path
    text_encoder: Path


@dataclass(frozen=True)
class _Saved:
    """What the checkpoint's file holds: groups of tensors, and nothing besides."""

    state_dicts: Mapping[str, Mapping[str, LazyTensor]]
    plain: Mapping[str, Any] = field(default_factory=dict)


def vae_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a VAE's parameters and buffers."""
    from diffusers import AutoencoderKLTemporalDecoder

    with torch.device("meta"):
        vae = AutoencoderKLTemporalDecoder.from_config(dict(config))
    return {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}


def write_model(
    out: Path,
    shapes: Shapes | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Model:
    """Writes a model with random weights: `light_deg.pt` (4.1 GB), `vae/` (0.2 GB), `text_encoder/` (0.7 GB), FP16.

    Args:
        out: folder for them.
        shapes: full size if left out.
        seed: of the values.
        progress: is called with the file's name and the share of all bytes written, 0 to 1.
        overwrite: replace files of an earlier run.
    """
    shapes = shapes or Shapes()
    refuse_to_overwrite(out, overwrite)
    model = Model(out / "light_deg.pt", out / "vae", out / "text_encoder")
    vae = seeded_all(seed, "vae", vae_shapes(shapes.vae))
    text = seeded_all(seed, "text_encoder", text_encoder_shapes(shapes.text_encoder))
    denoiser = seeded_all(seed, "star", shapes.denoiser.shapes())
    meter = Meter(sum(map(total_bytes, (vae, text, denoiser))), progress)

    write_json(model.vae / "config.json", shapes.vae)
    vocabulary = write_tokenizer(model.text_encoder, None)
    write_json(model.text_encoder / "config.json", with_vocabulary(shapes.text_encoder, vocabulary))
    for file, tensors in (
        (model.vae / "diffusion_pytorch_model.fp16.safetensors", vae),
        (model.text_encoder / "model.safetensors", text),
    ):
        meter.begin(file.relative_to(out).as_posix())
        write_safetensors(file, tensors, advance=meter.advance)
    meter.begin(model.checkpoint.name)
    write_pkl(model.checkpoint, _Saved({"state_dict": denoiser}), meter.advance)
    return model
