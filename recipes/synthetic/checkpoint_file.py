"""Checkpoints in both forms that people have: as published, and saved again as safetensors."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import torch

from vsr_trt.recipes.synthetic.checkpoint import STATE_DICTS, Checkpoint
from vsr_trt.recipes.synthetic.safetensors_file import write_safetensors
from vsr_trt.recipes.synthetic.tensors import (
    held,
    no_advance,
)
from vsr_trt.recipes.synthetic.torch_file import write_pkl

log = logging.getLogger(__name__)

CHECKPOINT_FILE = {"pkl": "model.pkl", "safetensors": "model.safetensors"}


def write_checkpoint_safetensors(
    path: Path, checkpoint: Checkpoint, advance: Callable[[int], None] = no_advance
) -> None:
    """Writes the re-saved form of a DLoRAL checkpoint.

    Tensors are named `state_dict_unet.X` and `state_dict_bpp.X`; the plain entries are in the file's metadata
    under their own names, each as JSON text.
    """
    tensors = {
        f"{group}.{name}": tensor
        for group, members in checkpoint.state_dicts.items()
        for name, tensor in members.items()
    }
    metadata = {name: json.dumps(value) for name, value in checkpoint.plain.items()}
    write_safetensors(path, tensors, metadata, advance)


def write_checkpoint(path: Path, checkpoint: Checkpoint, advance: Callable[[int], None] = no_advance) -> None:
    """Writes a checkpoint in the form that the ending of `path` names: `.pkl` or `.safetensors`."""
    if path.suffix == ".pkl":
        write_pkl(path, checkpoint, advance)
    elif path.suffix == ".safetensors":
        write_checkpoint_safetensors(path, checkpoint, advance)
    else:
        raise ValueError(f"a checkpoint is written as .pkl or .safetensors, not as {path.name}")


def resave_as_safetensors(pkl: Path, out: Path) -> Path:
    """Re-saves a DLoRAL checkpoint (`torch.save` form) as safetensors, values untouched. Returns `out`."""
    content = torch.load(pkl, map_location="cpu", weights_only=True, mmap=True)
    missing = [name for name in STATE_DICTS if not isinstance(content, dict) or name not in content]
    if missing:
        raise ValueError(
            f"{pkl} is not a DLoRAL checkpoint: no {' and no '.join(missing)} in it; expected the dict "
            "that the DLoRAL trainer saves (model.pkl)"
        )
    groups = {name: {key: held(tensor) for key, tensor in content.pop(name).items()} for name in STATE_DICTS}
    checkpoint = Checkpoint(groups["state_dict_unet"], groups["state_dict_bpp"], content)
    write_checkpoint_safetensors(out, checkpoint)
    log.info("re-saved %s as %s", pkl, out)
    return out
