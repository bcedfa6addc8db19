"""Tiny checkpoints in the published layout."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vsr_trt.export.families.dloral.checkpoint import Checkpoint

UNET, CFR = "state_dict_unet", "state_dict_bpp"
Content = dict[str, Any]

LAYERS = {  # layer -> its weight's shape, the part whose adapters it has
    "conv_in": ((6, 8, 3, 3), "encoder"),
    "mid.to_q": ((5, 7), "others"),
    "conv_out": ((4, 6, 1, 1), "decoder"),
}


def cfr_shapes(rows: int = 6, width: int = 3) -> dict[str, tuple[int, ...]]:
    """SpyNet's convolutions at their size, an attention of `rows` / `width` heads."""
    shapes: dict[str, tuple[int, ...]] = {}
    for level in range(6):
        for index, (inputs, outputs) in enumerate(((8, 32), (32, 64), (64, 32), (32, 16), (16, 2))):
            name = f"spynet.basic_module.{level}.basic_module.{index}.conv"
            shapes |= {f"{name}.weight": (outputs, inputs, 7, 7), f"{name}.bias": (outputs,)}
    for part in ("query_conv", "key_conv", "value_conv"):
        shapes |= {f"{part}.weight": (rows, 4, 1, 1), f"{part}.bias": (rows,)}
    shapes |= {"proj_out.weight": (4, rows, 1, 1), "proj_out.bias": (4,)}
    shapes |= {"threshold_fc.weight": (1, width), "threshold_fc.bias": (1,)}
    return {
        name if name.startswith("spynet") else f"cross_attn_module.{name}": shape
        for name, shape in shapes.items()
    }


def tiny(rank: int = 2) -> Content:
    """A checkpoint of three adapted layers; the CFR's values share one number, so the file is small."""
    random = torch.Generator().manual_seed(0)
    unet: OrderedDict[str, torch.Tensor] = OrderedDict()
    lists: Content = {
        f"unet_lora_{part}_modules_{kind}": [layer for layer, (_, own) in LAYERS.items() if own == part]
        for kind in ("quality", "consistency")
        for part in ("encoder", "decoder", "others")
    }
    for layer, (shape, part) in LAYERS.items():
        unet[f"{layer}.base_layer.weight"] = torch.randn(shape, generator=random).half()
        unet[f"{layer}.base_layer.bias"] = torch.randn(shape[:1], generator=random).half()
        for kind in ("quality", "consistency"):
            adapter = f"default_{part}_{kind}"
            ones = [1] * (len(shape) - 2)
            unet[f"{layer}.lora_A.{adapter}.weight"] = torch.randn(rank, *shape[1:], generator=random).half()
            unet[f"{layer}.lora_B.{adapter}.weight"] = torch.randn(
                shape[0], rank, *ones, generator=random
            ).half()
    unet["mid.norm.weight"] = torch.ones(7).half()
    number = torch.full((1,), 0.5).half()
    cfr = OrderedDict((name, number.expand(shape)) for name, shape in cfr_shapes().items())
    return {**lists, "lora_rank_unet_quality": rank, "lora_rank_unet_consistency": rank, UNET: unet, CFR: cfr}


def write(content: Content, path: Path) -> Path:
    """As the trainer saves it, or re-saved as safetensors, by the ending of `path`."""
    if path.suffix == ".pkl":
        torch.save(content, path)
    else:
        tensors = {f"{part}.{name}": t for part in (UNET, CFR) for name, t in content.get(part, {}).items()}
        plain = {name: json.dumps(value) for name, value in content.items() if name not in (UNET, CFR)}
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path, plain)
    return path


def assert_same(ours: Checkpoint, other: Checkpoint) -> None:
    for mine, its in ((ours.base, other.base), (ours.cfr, other.cfr)):
        assert set(mine) == set(its)
        for name, tensor in mine.items():
            assert tensor.dtype == its[name].dtype
            assert torch.equal(tensor, its[name])
    assert {layer: set(updates) for layer, updates in ours.adapters.items()} == {
        layer: set(updates) for layer, updates in other.adapters.items()
    }
    for layer, updates in ours.adapters.items():
        for adapter, update in updates.items():
            its_update = other.adapters[layer][adapter]
            assert torch.equal(update.A, its_update.A)
            assert torch.equal(update.B, its_update.B)
