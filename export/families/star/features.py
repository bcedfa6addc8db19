"""time and text: what the denoiser reads ready-made.

They change with the step and with the prompt, and with nothing else, so each has a small network of its own. Their
results are packed, so that the denoiser has one input for each:

| input | of | packed as |
|---|---|---|
| `time` (T,) | what the time adds to each residual block | channels of one block after the other |
| `text` (2,77,K) | keys and values of each spatial transformer | one after the other, key before value |

The ControlNet's layers come first, then the UNet's, each in the order in which they run (`Sizes.residual_layers`,
`Sizes.spatial_layers`). T is 32 blocks' channels, K twice the channels of 23 transformers: 29 760 and 36 480 for the
published sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vsr_trt.export.families.star.sampler import ROW, TIME
from vsr_trt.export.families.star.shapes import BOUNDS
from vsr_trt.export.families.star.sizes import CONTROL, TOKENS, Sizes
from vsr_trt.export.network import Input, NetworkSpec, Output

_NETWORKS = (True, False)  # the ControlNet, the UNet


class _Embedding(nn.Module):
    """One network's: sinusoids (n,c) -> what they add to its residual blocks, (n,T')."""

    def __init__(self, sizes: Sizes, control: bool) -> None:
        super().__init__()
        wide = sizes.embedding
        self.time_embed = nn.Sequential(nn.Linear(sizes.dim, wide), nn.SiLU(), nn.Linear(wide, wide))
        self.shifts = nn.Linear(wide, sum(channels for _, channels in sizes.residual_layers(control)))

    def forward(self, waves: Tensor) -> Tensor:
        """See the class."""
        return self.shifts(nn.functional.silu(self.time_embed(waves)))


class TimeFeatures(nn.Module):
    """table (s,12), the sampler's -> (s,T): what each step's time adds."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.networks = nn.ModuleList(_Embedding(sizes, control) for control in _NETWORKS)
        self.half = sizes.dim // 2

    @staticmethod
    def from_checkpoint(sizes: Sizes, weights: Mapping[str, Tensor]) -> TimeFeatures:
        """Takes `time_embed` and every `emb_layers` of both networks."""
        with torch.device("meta"):
            features = TimeFeatures(sizes)
        state = {}
        for index, control in enumerate(_NETWORKS):
            prefix = CONTROL if control else ""
            for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
                state[f"networks.{index}.time_embed.{name}"] = weights[f"{prefix}time_embed.{name}"].float()
            names = [f"{prefix}{name}.emb_layers.1" for name, _ in sizes.residual_layers(control)]
            for kind in ("weight", "bias"):
                rows = [weights[f"{name}.{kind}"].float() for name in names]
                state[f"networks.{index}.shifts.{kind}"] = torch.cat(rows)
        features.load_state_dict(state, assign=True)
        return features.eval()

    def forward(self, table: Tensor) -> Tensor:
        """See the class; cosines come before sines."""
        exponents = torch.arange(self.half, dtype=torch.float32) * (-math.log(10000) / self.half)
        angles = table[:, TIME] * exponents.exp()
        waves = torch.cat([angles.cos(), angles.sin()], 1).to(self.networks[0].shifts.weight.dtype)
        return torch.cat([network(waves) for network in self.networks], 1)


class TextFeatures(nn.Module):
    """prompts (n,77,c), embeddings -> (n,77,K): keys and values of n texts."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        layers = [layer for control in _NETWORKS for layer in sizes.spatial_layers(control)]
        self.keys = nn.Linear(sizes.context, 2 * sum(channels for _, channels in layers), bias=False)

    @staticmethod
    def from_checkpoint(sizes: Sizes, weights: Mapping[str, Tensor]) -> TextFeatures:
        """Takes `attn2.to_k` and `attn2.to_v` of every spatial transformer."""
        with torch.device("meta"):
            features = TextFeatures(sizes)
        names = [
            f"{CONTROL if control else ''}{name}.transformer_blocks.0.attn2.{kind}.weight"
            for control in _NETWORKS
            for name, _ in sizes.spatial_layers(control)
            for kind in ("to_k", "to_v")
        ]
        state = {"keys.weight": torch.cat([weights[name].float() for name in names])}
        features.load_state_dict(state, assign=True)
        return features.eval()

    def forward(self, prompts: Tensor) -> Tensor:
        """See the class."""
        return self.keys(prompts)


def time_spec(features: TimeFeatures) -> NetworkSpec:
    """The network as it is exported; it runs once for a clip."""
    width = sum(network.shifts.out_features for network in features.networks)

    def dummy_inputs(sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        """A table whose times are drawn."""
        table = torch.randn(sizes["s"], ROW, generator=generator)
        table[:, 0] = torch.randint(0, 1000, (sizes["s"],), generator=generator).float()
        return {"table": table}

    return NetworkSpec(
        name="time",
        module=features,
        inputs=(Input("table", torch.float32, ("s", ROW)),),
        outputs=(Output("time", torch.float32, ("s", width)),),
        bounds={"s": BOUNDS["s"]},
        dummy_inputs=dummy_inputs,
        traced={"s": 14},
        checked=({"s": 1}, {"s": 5}),
        always_fp32="times up to 999, whose sines need more than 11 bits; it runs once for a clip",
    )


def text_spec(features: TextFeatures) -> NetworkSpec:
    """The network as it is exported, for the two texts of the guidance; it runs once for a clip."""
    width, context = features.keys.out_features, features.keys.in_features

    def dummy_inputs(sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Embeddings of the size that the text encoder's layer norm gives."""
        return {"prompts": torch.randn(2, TOKENS, context, generator=generator)}

    return NetworkSpec(
        name="text",
        module=features,
        inputs=(Input("prompts", torch.float32, (2, TOKENS, context)),),
        outputs=(Output("text", torch.float32, (2, TOKENS, width)),),
        bounds={},
        dummy_inputs=dummy_inputs,
        traced={},
        checked=({},),
    )
