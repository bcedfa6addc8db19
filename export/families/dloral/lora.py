"""Merging LoRA adapters into the UNet's weights.

For a layer W with adapters i: W + sum_i w_i * (alpha / r_i) * B_i A_i, where w_i is the weight asked for.
The published checkpoints were trained with peft's default alpha of 8, so at rank 4 the scale is 2.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from vsr_trt.export.families.dloral.checkpoint import ADAPTERS, CONSISTENCY, Checkpoint, LowRank
from vsr_trt.export.tensors import is_within, refuse_not_finite, shape_of
from vsr_trt.runtime.errors import CheckpointError, InputError

ALPHA = 8.0  # peft's default, which the published trainer left in place
Stage = Literal["both", "consistency"]


def adapter_weights(stage: Stage, overrides: Mapping[str, float] | None = None) -> dict[str, float]:
    """The weight of each adapter: 1 for those of the stage, else 0, then the overrides.

    Raises:
        InputError: an override names no adapter.
    """
    active = ADAPTERS if stage == "both" else CONSISTENCY
    weights = {name: float(name in active) for name in ADAPTERS}
    for name, weight in (overrides or {}).items():
        if name not in weights:
            raise InputError(f"there is no adapter {name!r}; the checkpoint has {', '.join(ADAPTERS)}.")
        weights[name] = weight
    return weights


def merge_layer(
    weight: Tensor, updates: Mapping[str, LowRank], weights: Mapping[str, float], alpha: float = ALPHA
) -> Tensor:
    """One layer's merged weight in FP32: a linear (out, in) or convolution (out, in, kh, kw) weight.

    Args:
        weight: the layer's own weight, any floating point type.
        updates: adapter -> its A (r, in, ...) and B (out, r, ...).
        weights: adapter -> how much of it to take; missing ones count as 0.
        alpha: numerator of the LoRA scale.
    """
    # contiguous: a checkpoint may hold its convolutions channels-last, and the hash is over plain bytes
    merged = weight.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    for name in sorted(updates):  # not in the file's order: each layout has its own, and sums depend on it
        update, share = updates[name], weights.get(name, 0.0)
        if share == 0:
            continue
        flat = update.B.float().flatten(1) @ update.A.float().flatten(1)
        merged.add_(flat.reshape(merged.shape), alpha=_in_fp32(share * alpha / update.rank))
    return merged


def _in_fp32(factor: float) -> float:
    """Infinite if FP32 cannot hold it: torch would raise, where the merged weight tells better what is wrong."""
    return factor if abs(factor) <= torch.finfo(torch.float32).max else math.copysign(math.inf, factor)


def merge_into(
    unet: nn.Module,
    checkpoint: Checkpoint,
    weights: Mapping[str, float],
) -> str:
    """Fills a UNet (made on the meta device) with the merged weights, layer by layer, in FP32.

    Tensors come off the disk one at a time: next to the UNet itself, one layer is in memory.

    Returns:
        SHA-256 over names, shapes and FP32 bytes of the merged tensors, in the UNet's order.

    Raises:
        CheckpointError: the first tensor that is missing, has another shape, or fits nowhere; before anything is
            merged. Or one with NaN or infinity, as soon as it is met.
    """
    expected = unet.state_dict()
    for name, tensor in expected.items():
        if name not in checkpoint.base:
            raise CheckpointError(f"{checkpoint.path} lacks state_dict_unet.{name}.{checkpoint.remark}")
        got = shape_of(checkpoint.base, name)
        if got != tuple(tensor.shape):
            raise CheckpointError(
                f"{checkpoint.path}: state_dict_unet.{name} has shape {got}, the UNet of the "
                f"Stable Diffusion directory expects {tuple(tensor.shape)}.{checkpoint.remark}"
            )
    if unknown := [name for name in checkpoint.base if name not in expected]:
        raise CheckpointError(
            f"{checkpoint.path}: the UNet of the Stable Diffusion directory has no {unknown[0]}.{checkpoint.remark}"
        )
    digest = hashlib.sha256()
    for name in expected:
        layer = name.removesuffix(".weight")
        updates = checkpoint.adapters.get(layer, {}) if name.endswith(".weight") else {}
        _refuse_updates(checkpoint, layer, updates, weights)
        merged = merge_layer(checkpoint.base[name], updates, weights)
        if not is_within(merged):
            refuse_not_finite(checkpoint.base[name], checkpoint.describe(name))
            raise CheckpointError(
                f"{checkpoint.describe(name)} leaves FP32's range when its adapters are merged into it; give them "
                "smaller weights (--adapter NAME=W)."
            )
        digest.update(f"{name}{tuple(merged.shape)}".encode())
        digest.update(merged.numpy().data)
        _assign(unet, name, merged)
    return digest.hexdigest()


def _refuse_updates(
    checkpoint: Checkpoint, layer: str, updates: Mapping[str, LowRank], weights: Mapping[str, float]
) -> None:
    """Refuses NaN and infinity in adapters that are about to be merged; others do not matter."""
    for adapter, update in updates.items():
        if weights.get(adapter, 0.0):
            for half, tensor in (("A", update.A), ("B", update.B)):
                refuse_not_finite(tensor, checkpoint.describe_half(layer, adapter, half))


def _assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
