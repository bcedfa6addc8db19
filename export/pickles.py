"""Files of `torch.save`, read without executing anything."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import torch

from vsr_trt.runtime.errors import CheckpointError


def load_pickle(path: Path) -> object:
    """`torch.load` with `weights_only=True`, tensors mapped from the file where its format allows.

    Raises:
        CheckpointError: damaged, or holding code (which is not run).
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # damaged bytes make the unpickler fail in any way: IndexError, struct.error
        message = str(error)
        if forbidden := re.search(r"GLOBAL (\w[\w.]*\w) ", message):
            raise CheckpointError(
                f"{path} holds code ({forbidden[1]}) and was not loaded; nothing of it was executed. "
                "Expected tensors, lists and numbers only: re-save it that way, or as safetensors."
            ) from error
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in message:
            # not torch's own text: it recommends to load the file with its code
            raise CheckpointError(
                f"{path} is truncated or damaged, or no file of torch.save's; nothing of it was executed. "
                "Expected tensors, lists and numbers: download it again, or re-save it as safetensors."
            ) from error
        told = isinstance(error, (RuntimeError, OSError)) and message
        reason = message.splitlines()[0].rstrip(". ") if told else type(error).__name__
        raise CheckpointError(f"{path} is truncated or damaged: {reason}. Download it again.") from error
