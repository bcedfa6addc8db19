"""Prompts: a folder's tokenizer in the form that a bundle stores, and texts embedded by the bundle's own encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vsr_trt.export import pretrained

TOKENIZER = "tokenizer.json"
"""The tokenizer's name in a bundle."""


def open_tokenizer(folder: Path, length: int, pad: str, *, pad_is_a_word: bool = False) -> Any:
    """A folder's CLIP tokenizer as a `tokenizers.Tokenizer`, which cuts texts and fills them up to a length by itself.

    Args:
        folder: in transformers' layout, of any version.
        length: of what it gives, with the tokens that begin and end a text.
        pad: the token that fills up.
        pad_is_a_word: whether `pad` in a text is a word like others, as OpenCLIP has it. In transformers it is the
            token that fills up, wherever it stands.

    Raises:
        Exception: of any kind, on damaged files.
    """
    from tokenizers import Tokenizer
    from transformers import CLIPTokenizer

    with pretrained.quiet():
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True, pad_token=pad)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    if pad_is_a_word:
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != pad]
    own = Tokenizer.from_str(json.dumps(content))
    own.enable_truncation(length)
    own.enable_padding(length=length, pad_id=tokenizer.pad_token_id, pad_token=pad)
    return own


def embed(text_encoder: Path, tokens: np.ndarray) -> np.ndarray:
    """Runs the exported text encoder: token ids (77,) -> embedding (77,c) float32."""
    import onnxruntime

    session = onnxruntime.InferenceSession(text_encoder, providers=["CPUExecutionProvider"])
    return session.run(None, {"tokens": tokens})[0]
