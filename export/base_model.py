"""Reading a Stable Diffusion 2.1 directory in diffusers' layout.

Of the UNet only the configuration is read: a DLoRAL checkpoint holds the whole UNet. Weights are read
from safetensors, or from .bin without executing anything, in FP32 or FP16.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from export.checkpoint import load_pickle
from export.quiet import only_errors
from runtime.errors import CheckpointError

INPUT_CHANNELS = 8  # of DLoRAL's widened conv_in: the warped and the fused latent
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
                "(with unet/, vae/, text_encoder/ and tokenizer/)."
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
        if not (path / "tokenizer" / "vocab.json").is_file():
            raise CheckpointError(f"{path} has no tokenizer/vocab.json; copy the whole model directory.")
        return model

    def config(self, part: str) -> dict[str, Any]:
        """`<part>/config.json`."""
        path = self.path / part / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}); expected Stable Diffusion 2.1 in diffusers' layout."
            ) from error
        if not isinstance(config, dict):
            raise CheckpointError(f"{path} holds no object.")
        return config

    def weights_file(self, part: str) -> Path:
        """The weight file of a part: safetensors before .bin, full names before fp16 variants."""
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        binary = "pytorch_model" if part == "text_encoder" else stem
        names = [f"{stem}.safetensors", f"{stem}.fp16.safetensors", f"{binary}.bin", f"{binary}.fp16.bin"]
        for name in names:
            if (self.path / part / name).is_file():
                return self.path / part / name
        raise CheckpointError(f"{self.path / part} has no weights; expected one of {', '.join(names)}.")

    def weight_files(self) -> list[Path]:
        """Every weight file that a bundle is made from."""
        return [self.weights_file(part) for part in ("vae", "text_encoder")]

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
        weights = {_modern(name): tensor.float() for name, tensor in self._tensors("vae").items()}
        expected = vae.state_dict()
        for name, tensor in expected.items():
            if name in weights and weights[name].shape != tensor.shape:
                # the oldest conversions kept the attention's linear layers as 1x1 convolutions
                if weights[name].squeeze().shape != tensor.shape:
                    raise CheckpointError(
                        f"{self.weights_file('vae')}: {name} has shape {tuple(weights[name].shape)}, "
                        f"expected {tuple(tensor.shape)}."
                    )
                weights[name] = weights[name].squeeze()
        self._load(vae, weights, "vae")
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
        for name, tensor in self._tensors("text_encoder").items():
            name = name.removeprefix("text_model.")
            if name != "embeddings.position_ids":  # a constant that old versions saved
                weights[wanted.get(name, name)] = tensor.float()
        self._load(model, weights, "text_encoder")
        return model

    @contextlib.contextmanager
    def _building(self, part: str) -> Iterator[None]:
        """Turns what the libraries raise for a nonsensical configuration into a sentence."""
        try:
            with _quiet():
                yield
        except Exception as error:  # of whatever kind; it depends on the field
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            raise CheckpointError(
                f"{self.path / part / 'config.json'} describes no model that can be built ({reason[0]})."
            ) from error

    def tokenize(self, text: str) -> tuple[Tensor, int]:
        """Token ids (77,) int64 of a prompt, padded as the directory's tokenizer says.

        Returns:
            The ids, and how many tokens were cut off at the end because the prompt is too long.
        """
        from transformers import CLIPTokenizer

        try:
            with _quiet():
                tokenizer = CLIPTokenizer.from_pretrained(self.path / "tokenizer", local_files_only=True)
                whole = tokenizer(text).input_ids
                ids = tokenizer(text, max_length=77, padding="max_length", truncation=True).input_ids
        except Exception as error:  # the tokenizers library raises plain Exception on damaged files
            raise CheckpointError(f"{self.path / 'tokenizer'} cannot be read: {error}.") from error
        return torch.tensor(ids, dtype=torch.int64), max(0, len(whole) - 77)

    def _tensors(self, part: str) -> dict[str, Tensor]:
        path = self.weights_file(part)
        if path.suffix == ".safetensors":
            try:
                return load_file(path)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{path} is truncated or damaged: {error}. Download it again."
                ) from error
        content = load_pickle(path)
        if not isinstance(content, dict) or not all(
            isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
        ):
            raise CheckpointError(f"{path} holds no plain state dict.")
        return content

    def _load(self, module: torch.nn.Module, weights: dict[str, Tensor], part: str) -> None:
        path = self.weights_file(part)
        expected = module.state_dict()
        for name, tensor in expected.items():
            if name not in weights:
                raise CheckpointError(f"{path} lacks {name}.")
            if weights[name].shape != tensor.shape:
                raise CheckpointError(
                    f"{path}: {name} has shape {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}."
                )
        if unknown := sorted(set(weights) - set(expected)):
            raise CheckpointError(f"{path} has {unknown[0]}, which {part}/config.json does not account for.")
        module.load_state_dict(weights, assign=True)


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


def _quiet() -> contextlib.AbstractContextManager[None]:
    """diffusers and transformers report on the console by themselves."""
    return only_errors("diffusers", "transformers")
