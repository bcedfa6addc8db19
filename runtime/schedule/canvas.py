"""The canvas that a frame is worked on: enlarged where it is too small for the networks. Pure maths."""

from __future__ import annotations


def enlarged_size(height: int, width: int, least: int) -> tuple[int, int]:
    """Height and width of a picture whose shorter side is made `least` pixels, if it has fewer."""
    if min(height, width) >= least:
        return height, width
    factor = least / min(height, width)
    return max(least, round(height * factor)), max(least, round(width * factor))
