"""What a DLoRAL checkpoint holds, under the published names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vsr_trt.recipes.synthetic.tensors import (
    LazyTensor,
)

PARTS = ("encoder", "decoder", "others")
ADAPTERS = ("quality", "consistency")
STATE_DICTS = ("state_dict_unet", "state_dict_bpp")

# The published trainer's patterns, searched for in a parameter's name ("conv" alone takes every convolution).
LORA_PATTERNS = (
    "to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_in", "conv_shortcut", "conv_out",
    "proj_out", "proj_in", "ff.net.2", "ff.net.0.proj",
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """What a DLoRAL checkpoint holds: the two state dicts, and the plain entries (module lists, ranks)."""

    unet: Mapping[str, LazyTensor]
    bpp: Mapping[str, LazyTensor]
    plain: Mapping[str, Any]

    @property
    def state_dicts(self) -> dict[str, Mapping[str, LazyTensor]]:
        """The state dicts under their names in the file."""
        return {"state_dict_unet": self.unet, "state_dict_bpp": self.bpp}


def lora_modules(parameters: Sequence[str]) -> dict[str, list[str]]:
    """Sorts the UNet's parameter names into the modules that get an encoder, decoder or other adapter."""
    found: dict[str, list[str]] = {part: [] for part in PARTS}
    for name in parameters:
        if "bias" in name or "norm" in name or not any(pattern in name for pattern in LORA_PATTERNS):
            continue
        if "down_blocks" in name or "conv_in" in name:
            part = "encoder"
        elif "up_blocks" in name or "conv_out" in name:
            part = "decoder"
        else:
            part = "others"
        found[part].append(name.replace(".weight", ""))
    return found


def lora_shapes(weight: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of A and B of an adapter on a linear (O,I) or convolution (O,I,k,k) weight."""
    outputs, *inputs = weight
    return (rank, *inputs), (outputs, rank) if len(weight) == 2 else (outputs, rank, 1, 1)


def peft_state_dict(
    unet: Mapping[str, LazyTensor],
    modules: Mapping[str, list[str]],
    rank: int,
    adapter: Callable[[str, tuple[int, ...]], LazyTensor],
) -> dict[str, LazyTensor]:
    """The UNet's tensors under peft's names, with both adapters of every target module.

    `adapter` makes one: it gets the tensor's name in the file and its shape.
    """
    part_of = {module: part for part, names in modules.items() for module in names}
    result: dict[str, LazyTensor] = {}
    for name, tensor in unet.items():
        module, _, leaf = name.rpartition(".")
        if module not in part_of:
            result[name] = tensor
            continue
        result[f"{module}.base_layer.{leaf}"] = tensor
        if leaf == "weight":
            weight, part = tensor, part_of[module]
        if leaf == "bias" or f"{module}.bias" not in unet:
            for letter, shape in zip("AB", lora_shapes(weight.shape, rank), strict=True):
                for kind in ADAPTERS:
                    full = f"{module}.lora_{letter}.default_{part}_{kind}.weight"
                    result[full] = adapter(full, shape)
    return result


def plain_entries(modules: Mapping[str, list[str]], rank: int) -> dict[str, Any]:
    """The checkpoint's entries that are no tensors, in the order of the published file."""
    entries: dict[str, Any] = {
        f"unet_lora_{part}_modules_{kind}": list(modules[part]) for kind in ADAPTERS for part in PARTS
    }
    return entries | {f"lora_rank_unet_{kind}": rank for kind in ADAPTERS}


def bpp_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of `state_dict_bpp`: SpyNet, the CFR attention, and all that inference never uses."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, outputs: int, inputs: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
        shapes[f"{name}.bias"] = (outputs,)

    def residual_blocks(name: str, outputs: int, inputs: int, count: int) -> None:
        conv(f"{name}.main.0", outputs, inputs, 3)
        for block in range(count):
            conv(f"{name}.main.2.{block}.conv1", outputs, outputs, 3)
            conv(f"{name}.main.2.{block}.conv2", outputs, outputs, 3)

    residual_blocks("feat_extract", 64, 4, 5)
    shapes["spynet.mean"] = shapes["spynet.std"] = (1, 3, 1, 1)
    for level in range(6):
        for index, (inputs, outputs) in enumerate(((8, 32), (32, 64), (64, 32), (32, 16), (16, 2))):
            conv(f"spynet.basic_module.{level}.basic_module.{index}.conv", outputs, inputs, 7)
    for name in ("query_conv", "key_conv", "value_conv"):
        conv(f"cross_attn_module.{name}", 576, 4, 1)
    conv("cross_attn_module.proj_out", 4, 576, 1)
    shapes["cross_attn_module.threshold_fc.weight"] = (1, 64)
    shapes["cross_attn_module.threshold_fc.bias"] = (1,)
    residual_blocks("weight_predict", 64, 3, 5)
    residual_blocks("weight_predict_final", 1, 64, 1)
    residual_blocks("reconstruction_feat", 64, 64, 5)
    conv("conv_hr", 64, 64, 3)
    conv("conv_last", 4, 64, 3)
    return shapes
