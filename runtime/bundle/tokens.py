"""Texts as token ids, by the tokenizer that a bundle stores.

The file is what the `tokenizers` package saves; it cuts texts that are too long and fills up short ones by itself. Who
restores with the bundle's own prompt needs neither the file nor the package.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vsr_trt.runtime.errors import BundleError, DeviceError


def read_tokenizer(file: Path, length: int) -> Any:
    """A `tokenizers.Tokenizer` that gives so many ids of any text.

    Args:
        file: in the bundle.
        length: ids that are wanted, whatever the file says about it.

    Raises:
        BundleError: the file is damaged, or does not tell what fills texts up.
        DeviceError: the package is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise DeviceError(
            "prompts other than the bundle's need the package tokenizers, which is not installed. Install it with: "
            "pip install 'vsr-trt[prompt]'"
        ) from error
    with _refusing(file):
        tokenizer = Tokenizer.from_file(str(file))
        padding = tokenizer.padding
        if padding is None:
            raise ValueError("it does not tell what fills texts up")
        tokenizer.enable_truncation(length)
        filling = {name: padding[name] for name in ("direction", "pad_id", "pad_type_id", "pad_token")}
        tokenizer.enable_padding(**filling, length=length)
    return tokenizer


def encode(tokenizer: Any, text: str) -> tuple[np.ndarray, int]:
    """A text's token ids, (length,) int64, and how many tokens were cut off at its end.

    Raises:
        BundleError: the tokenizer cannot take texts.
    """
    with _refusing(None):
        encoding = tokenizer.encode(text)
        cut = sum(not special for rest in encoding.overflowing for special in rest.special_tokens_mask)
        return np.array(encoding.ids, np.int64), cut


def cut_note(what: str, cut: int) -> str:
    """A sentence about a text that was too long."""
    return f"the {what} is {cut} token{'' if cut == 1 else 's'} too long; its end was cut off"


@contextlib.contextmanager
def _refusing(file: Path | None) -> Iterator[None]:
    """Turns what the package raises into a BundleError. It is plain Exception, and for what its makers did not expect
    a class beside Exception, which has no name in Python."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise  # Ctrl-C
        what = "the tokenizer" if file is None else f"the tokenizer {file}"
        raise BundleError(f"{what} cannot be used: {error}. Copy the bundle again.") from error
