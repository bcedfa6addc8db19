"""Reading a Stable Diffusion 2.1 directory in diffusers' layout.

Of the UNet only the configuration is read: a DLoRAL checkpoint holds the whole UNet. Weights are read
from safetensors, or from .bin without executing anything, in FP32 or FP16; from one file, or from shards and
their index.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vsr_trt.export import pretrained, shards
from vsr_trt.export.families.prompt import open_tokenizer
from vsr_trt.export.families.stable_diffusion.text_encoder import TOKENS
from vsr_trt.export.tensors import common_prefix, named_in_refusals
from vsr_trt.runtime.bundle.tokens import encode
from vsr_trt.runtime.errors import CheckpointError

INPUT_CHANNELS = 8  # of DLoRAL's widened conv_in: the warped and the fused latent
_CONSTANT = "embeddings.position_ids"  # of the text encoder, which old versions saved
_DEPRECATED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class BaseModel:
    """A recognised directory; weights are read by the methods."""

    path: Path

    @staticmethod
    def open(path: Path) -> BaseModel:
        """Recognises the directory.

        Raises:
            CheckpointError: the first thing that differs from Stable Diffusion 2.1's layout.
        """
        if not path.is_dir():
            raise CheckpointError(
                f"{path} is no directory; expected Stable Diffusion 2.1 in diffusers' layout "
                "(with unet/, vae/, text_encoder/ and tokenizer/). This gets it: vsr-build fetch dloral --to weights."
            )
        if not (path / "unet").exists():
            for inner in sorted(entry for entry in path.iterdir() if (entry / "unet").is_dir()):
                raise CheckpointError(
                    f"{path} is not Stable Diffusion 2.1 in diffusers' layout, and {inner} in it may be; give that "
                    f"one: --sd {inner}."
                )
        model = BaseModel(path)
        unet, vae, text = (model.config(part) for part in ("unet", "vae", "text_encoder"))
        expectations = (
            ("unet", unet, "_class_name", "UNet2DConditionModel"),
            ("unet", unet, "addition_embed_type", None),  # "text_time" is SD-XL's
            ("unet", unet, "in_channels", 4),
            ("unet", unet, "out_channels", 4),
            ("unet", unet, "cross_attention_dim", text.get("hidden_size")),
            ("unet", unet, "use_linear_projection", True),  # Stable Diffusion 1.x: convolutions
            ("text_encoder", text, "hidden_act", "gelu"),  # Stable Diffusion 1.x: quick_gelu
            ("vae", vae, "_class_name", "AutoencoderKL"),
            ("vae", vae, "latent_channels", 4),
        )
        for part, config, key, expected in expectations:
            if config.get(key) != expected:
                raise CheckpointError(
                    f"{path} is not Stable Diffusion 2.1: {part}/config.json has {key} = "
                    f"{config.get(key)!r}, expected {expected!r}.{_other_model(unet)}"
                )
        model.scaling_factor()
        if not any((path / "tokenizer" / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise CheckpointError(
                f"{path} has no tokenizer/tokenizer.json and no tokenizer/vocab.json; copy the whole model directory."
            )
        return model

    def config(self, part: str) -> dict[str, Any]:
        """`<part>/config.json`."""
        path = self.path / part / "config.json"
        config = pretrained.read_config(path, "expected Stable Diffusion 2.1 in diffusers' layout")
        if not isinstance(config, dict):
            raise CheckpointError(f"{path} holds no object.")
        return config

    def scaling_factor(self) -> float:
        """Scaling factor of the VAE's latents, 0.18215 where the configuration does not tell.

        Raises:
            CheckpointError: it is no number above 0.
        """
        factor = self.config("vae").get("scaling_factor", 0.18215)
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
            raise CheckpointError(
                f"{self.path / 'vae' / 'config.json'} has scaling_factor = {factor!r}, expected a number above 0."
            )
        return factor

    def weights_file(self, part: str) -> Path:
        """The weight file of a part, or the index of its shards.

        safetensors come before .bin, full names before fp16 variants, one file before shards.
        """
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        binary = "pytorch_model" if part == "text_encoder" else stem
        return shards.find(self.path / part, stem, binary)

    def weight_files(self) -> list[Path]:
        """Every weight file that a bundle is made from, indices and shards among them."""
        return [file for part in ("vae", "text_encoder") for file in shards.files(self.weights_file(part))]

    def prefixes(self) -> dict[str, str]:
        """Part -> what a wrapper had put before all of its tensors' names; parts without are left out."""
        found = {
            part: common_prefix(shards.open_weights(self.weights_file(part)))
            for part in ("vae", "text_encoder")
        }
        return {part: prefix for part, prefix in found.items() if prefix}

    def empty_unet(self) -> Any:
        """diffusers' UNet2DConditionModel with DLoRAL's widened conv_in, on the meta device."""
        from diffusers import UNet2DConditionModel

        with torch.device("meta"), self._building("unet"):
            return UNet2DConditionModel.from_config(
                self.config("unet") | {"in_channels": INPUT_CHANNELS}
            ).eval()

    def vae(self) -> Any:
        """diffusers' AutoencoderKL in FP32."""
        from diffusers import AutoencoderKL

        with torch.device("meta"), self._building("vae"):
            vae = AutoencoderKL.from_config(self.config("vae")).eval()
        tensors = shards.open_weights(self.weights_file("vae"))
        weights = {_modern(name): tensor for name, tensor in self._in_fp32("vae", tensors)}
        for name, tensor in vae.state_dict().items():
            # the oldest conversions kept the attention's linear layers as 1x1 convolutions
            if name in weights and weights[name].squeeze().shape == tensor.shape:
                weights[name] = weights[name].reshape(tensor.shape)
        self._load(vae, weights, "vae", tensors)
        return vae

    def text_encoder(self) -> Any:
        """transformers' CLIPTextModel in FP32."""
        from transformers import CLIPTextConfig, CLIPTextModel

        with self._building("text_encoder"):
            config = CLIPTextConfig.from_dict(self.config("text_encoder"))
            config._attn_implementation = "eager"  # causal mask as plain arithmetic in the graph
            model = CLIPTextModel(config).eval()
        # published files say text_model.X, transformers 5 dropped the prefix; both name the same tensors
        wanted = {name.removeprefix("text_model."): name for name in model.state_dict()}
        weights = {}
        tensors = shards.open_weights(self.weights_file("text_encoder"))
        for name, tensor in self._in_fp32("text_encoder", tensors):
            name = name.removeprefix("text_model.")
            weights[wanted.get(name, name)] = tensor
        self._load(model, weights, "text_encoder", tensors)
        return model

    def _building(self, part: str) -> contextlib.AbstractContextManager[None]:
        return pretrained.building(self.path / part / "config.json")

    def tokenizer(self) -> Any:
        """The directory's tokenizer as a bundle stores it; it fills texts up as the directory says.

        Raises:
            CheckpointError: it is damaged, or another model's.
        """
        folder = self.path / "tokenizer"
        try:
            tokenizer = open_tokenizer(folder, TOKENS, _pad(folder))
        except CheckpointError:
            raise
        except Exception as error:  # the tokenizers library raises plain Exception on damaged files
            raise CheckpointError(f"{folder} cannot be read: {error}.") from error
        largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
        known = self.config("text_encoder").get("vocab_size")
        if isinstance(known, int) and largest >= known:
            raise CheckpointError(
                f"{folder} is not the text encoder's: it has a token {largest}, and text_encoder/config.json a "
                f"vocabulary of {known}. Copy the whole model directory."
            )
        return tokenizer

    def tokenize(self, text: str) -> tuple[Tensor, int]:
        """Token ids (77,) int64 of a prompt, padded as the directory's tokenizer says.

        Returns:
            The ids, and how many tokens were cut off at the end because the prompt is too long.
        """
        ids, cut = encode(self.tokenizer(), text)
        return torch.from_numpy(ids), cut

    def _in_fp32(self, part: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Names without a wrapper's prefix, and tensors in FP32, which come off the disk one at a time.

        Raises:
            CheckpointError: a tensor of another kind, NaN or infinity.
        """
        path, prefix = self.weights_file(part), common_prefix(tensors)
        for name in tensors:
            short = name.removeprefix(prefix)
            if part == "text_encoder" and short.removeprefix("text_model.") == _CONSTANT:
                continue
            yield short, pretrained.in_fp32(tensors[name], f"{path}: {name}")

    def _load(
        self, module: torch.nn.Module, weights: dict[str, Tensor], part: str, names: Iterable[str]
    ) -> None:
        path = self.weights_file(part)
        expected = module.state_dict()
        with named_in_refusals({part: names}):
            for name, tensor in expected.items():
                if name not in weights:
                    raise CheckpointError(f"{path} lacks {name}.")
                if weights[name].shape != tensor.shape:
                    raise CheckpointError(
                        f"{path}: {name} has shape {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}."
                    )
            if unknown := sorted(set(weights) - set(expected)):
                raise CheckpointError(
                    f"{path} has {unknown[0]}, which {part}/config.json does not account for."
                )
        module.load_state_dict(weights, assign=True)


def _pad(tokenizer: Path) -> str:
    """The token that fills prompts up. CLIP's own default is another one than Stable Diffusion 2.1's.

    Raises:
        CheckpointError: no file tells.
        ValueError: a damaged file.
    """
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        pad = _json_object(tokenizer / name).get("pad_token")
        pad = pad.get("content") if isinstance(pad, dict) else pad
        if isinstance(pad, str):
            return pad
    content = _json_object(tokenizer / "tokenizer.json")
    padding = content.get("padding")
    if isinstance(padding, dict) and isinstance(padding.get("pad_token"), str):
        return padding["pad_token"]
    # what is special besides the ends of a prompt is there to fill it up
    added = content.get("added_tokens")
    tokens = [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    special = [str(token.get("content")) for token in tokens if token.get("special") is True]
    filling = [token for token in special if token not in ("<|startoftext|>", "<|endoftext|>")]
    if len(filling) != 1:
        raise CheckpointError(
            f"{tokenizer} does not tell which token fills prompts up: tokenizer_config.json is missing, or has no "
            "pad_token. Copy the whole model directory."
        )
    return filling[0]


def _json_object(path: Path) -> dict[str, Any]:
    """The file's object, an empty one where there is no such file."""
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no object")
    return content


def _modern(name: str) -> str:
    """Old diffusers' names of the VAE's attention, as in the published directory -> today's."""
    parts = name.split(".")
    if "attentions" in parts[:-2] and parts[-2] in _DEPRECATED:
        return ".".join([*parts[:-2], _DEPRECATED[parts[-2]], parts[-1]])
    return name


def _other_model(unet: dict[str, Any]) -> str:
    if unet.get("addition_embed_type") == "text_time":
        return " This looks like SD-XL; pass stable-diffusion-2-1-base."
    if unet.get("cross_attention_dim") == 768:
        return " This looks like Stable Diffusion 1.x; pass stable-diffusion-2-1-base."
    return ""
