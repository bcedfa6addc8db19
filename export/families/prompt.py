"""Embedding a text with a bundle's own text encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def embed(text_encoder: Path, tokens: np.ndarray) -> np.ndarray:
    """Runs the exported text encoder: token ids (77,) -> embedding (77,c) float32."""
    import onnxruntime

    session = onnxruntime.InferenceSession(text_encoder, providers=["CPUExecutionProvider"])
    return session.run(None, {"tokens": tokens})[0]
