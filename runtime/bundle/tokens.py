"""Texts as token ids, by the tokenizer that a bundle stores.

The file is what the `tokenizers` package saves; it cuts texts that are too long and fills up short ones by itself. Who
restores with the bundle's own prompt needs neither the file nor the package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vsr_trt.runtime.errors import BundleError, DeviceError


def read_tokenizer(file: Path) -> Any:
    """A `tokenizers.Tokenizer`.

    Raises:
        BundleError: the file is damaged.
        DeviceError: the package is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise DeviceError(
            "prompts other than the bundle's need the package tokenizers, which is not installed. Install it with: "
            "pip install 'vsr-trt[prompt]'"
        ) from error
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises plain Exception
        raise BundleError(f"the tokenizer {file} cannot be read: {error}. Copy the bundle again.") from error


def encode(tokenizer: Any, text: str) -> tuple[np.ndarray, int]:
    """A text's token ids, (length,) int64, and how many tokens were cut off at its end."""
    encoding = tokenizer.encode(text)
    cut = sum(not special for rest in encoding.overflowing for special in rest.special_tokens_mask)
    return np.array(encoding.ids, np.int64), cut


def cut_note(what: str, cut: int) -> str:
    """A sentence about a text that was too long."""
    return f"the {what} is {cut} tokens too long; its end was cut off"
