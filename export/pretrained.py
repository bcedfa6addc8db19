"""Models in the layout of diffusers and transformers: a folder with `config.json` and weights."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from vsr_trt.export.quiet import only_errors
from vsr_trt.export.tensors import plain, refuse_not_finite
from vsr_trt.runtime.errors import CheckpointError


def quiet() -> contextlib.AbstractContextManager[None]:
    """diffusers and transformers report on the console by themselves."""
    return only_errors("diffusers", "transformers")


def read_config(file: Path, wanted: str) -> Any:
    """The content of a `config.json`.

    Args:
        file: its path.
        wanted: ends the message, e.g. `expected this layout`.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); {wanted}.") from error


@contextlib.contextmanager
def building(file: Path) -> Iterator[None]:
    """Turns what the libraries raise for a nonsensical `config.json` into a sentence.

    Raises:
        CheckpointError: the first line of the library's error.
    """
    try:
        with quiet():
            yield
    except Exception as error:  # of whatever kind; it depends on the field
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise CheckpointError(f"{file} describes no model that can be built ({reason[0]}).") from error


def in_fp32(tensor: Tensor, what: str, place: Tensor | None = None) -> Tensor:
    """A weight in FP32, off the disk.

    Args:
        tensor: the weight.
        what: file and name of it, which begin a message.
        place: where it goes, whose shape it must have; None where somebody else looks at that.

    Raises:
        CheckpointError: a tensor of another kind or shape, NaN or infinity.
    """
    found = plain(tensor, what).float()
    if place is not None and found.shape != place.shape:
        raise CheckpointError(f"{what} has shape {tuple(found.shape)}, expected {tuple(place.shape)}.")
    refuse_not_finite(found, what)
    return found
