"""Filling torch modules with weights under their published names."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from vsr_trt.export.families.star.checkpoint import Checkpoint
from vsr_trt.export.families.star.denoiser import Denoiser
from vsr_trt.export.families.star.sizes import CONTROL
from vsr_trt.export.tensors import refuse_not_finite

M = TypeVar("M", bound=nn.Module)


def filled(build: Callable[[], M], weight: Callable[[str], Tensor], describe: Callable[[str], str]) -> M:
    """Builds a module and fills it, in FP32; a tensor comes off the disk at a time.

    Args:
        build: makes the module; it is called on the meta device.
        weight: reads the tensor for a name of the module; it may have more or fewer axes of size 1.
        describe: file and name of a weight, which begin a message.

    Raises:
        CheckpointError: NaN or infinity.
    """
    with torch.device("meta"):
        module = build()
    state = {}
    for name, expected in module.state_dict().items():
        tensor = weight(name).float()
        refuse_not_finite(tensor, describe(name))
        state[name] = tensor.reshape(expected.shape)
    module.load_state_dict(state, assign=True)
    return module.eval()


def denoiser(checkpoint: Checkpoint, slices: int = 1, batched: bool = True) -> Denoiser:
    """Both networks of a checkpoint in one module; for the arguments see `Denoiser`."""
    return filled(
        lambda: Denoiser(checkpoint.sizes, slices, batched),
        lambda name: checkpoint.weights[published(name)],
        lambda name: checkpoint.describe(published(name)),
    )


def published(name: str) -> str:
    """The checkpoint's name for one of `Denoiser`'s."""
    network, _, own = name.partition(".")
    return CONTROL + own if network == "control" else own
