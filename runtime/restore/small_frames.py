"""Frames too small for the networks: what enlarging them first costs, said before it is done."""

from __future__ import annotations

from vsr_trt.runtime.bundle.manifest import Manifest
from vsr_trt.runtime.errors import BundleError, InputError
from vsr_trt.runtime.plan import roofline
from vsr_trt.runtime.plan.cost import processor_rate
from vsr_trt.runtime.schedule.canvas import FrameShape

_WORTH_AN_ESTIMATE = 4  # times the work
_SECONDS = 0.2  # that the processor's rate is measured for


def note(manifest: Manifest, backend: str, height: int, width: int, frames: int | None) -> str | None:
    """A sentence about frames that are enlarged before the networks take them; None if they are large enough.

    Args:
        manifest: of the bundle.
        backend: what runs the networks; on the CPU the sentence has an estimate of the time where that grows much.
        height, width: of a frame.
        frames: how many there are, None if that is not known.
    """
    inside = FrameShape.of(manifest, height, width).given
    if inside == (height, width):
        return None
    times = inside[0] * inside[1] / (height * width)
    text = f"Frames of {width}x{height} {_what(manifest, inside)}: {times:.3g} times the pixels."
    if backend != "onnxruntime-cpu" or times < _WORTH_AN_ESTIMATE:
        return text
    scale = manifest.scale
    try:
        work = roofline.operations(manifest, scale * inside[1], scale * inside[0])
    except (
        BundleError,
        InputError,
    ):  # of an old bundle the work is not known; of a size beyond all, nor is it
        return text
    rate = processor_rate(_SECONDS)
    if rate is None:
        return text
    seconds = work / rate
    each = "" if frames == 1 else " a frame" + (f", {_duration(seconds * frames)} in all" if frames else "")
    return f"{text} That takes about {_duration(seconds)}{each}, estimated."


def _what(manifest: Manifest, inside: tuple[int, int]) -> str:
    size, least = f"{inside[1]}x{inside[0]}", manifest.canvas.least
    if manifest.canvas.small == "pad":
        why = "because the networks take certain sizes only"
        return f"stand on a canvas of {size}, whose border is cut off again, {why}"
    side = f"no side below {least[0]}" if least[0] == least[1] else f"nothing below {least[1]}x{least[0]}"
    return f"are enlarged to {size} first, and their results reduced again, because the networks take {side}"


def _duration(seconds: float) -> str:
    """Such as 8 s, 3 min or 2 h."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
