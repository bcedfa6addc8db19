"""Our bicubic is Pillow's: in numpy for small frames, in the preprocess network for all others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.examples import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from vsr_trt.export.families.dloral.preprocess import Preprocess
from vsr_trt.runtime.media.resample import resize_bicubic


def pillow(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Across, then down, as Pillow always did; from version 13 it starts down where that is cheaper."""
    across = Image.fromarray(frame).resize((width, frame.shape[0]), Image.Resampling.BICUBIC)
    return np.array(across.resize((width, height), Image.Resampling.BICUBIC))


@settings(deadline=None, max_examples=examples(80))
@example(
    2, 8, 4, 1, 1, True
)  # a tie that went the other way in the first pass, and made two levels in the second
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(0, 99),
    st.booleans(),
)
def test_resize_is_pillows(
    height: int, width: int, new_height: int, new_width: int, seed: int, extreme: bool
) -> None:
    rng = np.random.default_rng(seed)
    frame = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if extreme:
        frame = (frame > 127).astype(np.uint8) * 255
    assert np.array_equal(resize_bicubic(frame, new_height, new_width), pillow(frame, new_height, new_width))


@settings(deadline=None, max_examples=examples(30))
@given(st.integers(3, 60), st.integers(3, 60), st.integers(0, 99), st.booleans())
def test_preprocess_is_pillows_x4_and_torchs_thumb(height: int, width: int, seed: int, extreme: bool) -> None:
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if extreme:
        frame = (frame > 127).astype(np.uint8) * 255
    image, thumb, reference = Preprocess()(torch.from_numpy(frame)[None])
    expected = pillow(frame, 4 * height, 4 * width)
    difference = np.abs(reference[0].permute(1, 2, 0).numpy().astype(int) - expected.astype(int))
    # at the border, renormalised weights leave ties to the last digit: in either direction, seldom in both
    assert difference.max() <= 2
    assert (difference > 1).mean() < 0.02
    inside = difference[8:-8, 8:-8]
    assert not inside.any()

    assert image.shape[2] % 64 == image.shape[3] % 64 == 0
    assert 0 <= image.shape[2] - 4 * height < 64
    assert 0 <= image.shape[3] - 4 * width < 64
    padding = ((0, image.shape[2] - 4 * height), (0, image.shape[3] - 4 * width))
    scaled = reference[0].numpy().astype(np.float32) / 127.5 - 1
    assert np.abs(image[0].numpy() - np.pad(scaled, ((0, 0), *padding), mode="edge")).max() < 1e-6
    expected_thumb = F.interpolate(image, scale_factor=0.125, mode="bicubic")
    assert (thumb - expected_thumb).abs().max() < 1e-5


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (5, 7)])
def test_tiny_pictures(size: tuple[int, int]) -> None:
    frame = np.full((*size, 3), 77, np.uint8)
    assert (resize_bicubic(frame, 128, 128) == 77).all()
