"""Whether a clip fits into memory, for families that take whole clips through their steps.

Asked before the work begins: hours of it would be lost otherwise, for what a phase of many frames takes is known only
to whoever adds it up.
"""

from __future__ import annotations

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.errors import DeviceError
from vsr_trt.runtime.schedule import forms, memory
from vsr_trt.runtime.schedule.build import build
from vsr_trt.runtime.schedule.canvas import FrameShape
from vsr_trt.runtime.schedule.forms import Available
from vsr_trt.runtime.schedule.memory import amount
from vsr_trt.runtime.schedule.parts import clip_parts


def need(bundle: Bundle, height: int, width: int, frames: int, options: Options) -> int:
    """Bytes that a clip of frames (height, width, 3) takes on the CPU, at least.

    Weights, the hungriest phase's buffers and what its networks work in as far as that is known, and what is kept
    between phases.
    """
    manifest, most, rows = bundle.manifest, 0, 0
    given = FrameShape.of(manifest, height, width).given
    for part in clip_parts(manifest, frames):
        schedule = build(manifest, *given, options, 1, part=part)
        if not part.last:
            rows += memory.handed_on(schedule, part.frames)
        found = forms.estimate(bundle, *given, options, 1, in_strips=False, part=part)
        if found is None:
            buffers = memory.add_up(schedule, {}, {})
            networks = forms.weights_on_cpu(manifest, options.networks(manifest))
            found = forms.OWN + networks + buffers.device + buffers.pinned
        most = max(most, found)
    return most + rows * frames


def check(
    bundle: Bundle, height: int, width: int, frames: int, options: Options, available: Available
) -> None:
    """Refuses a clip that does not fit, of a family with phases; others take frame after frame.

    Raises:
        DeviceError: with how many frames would fit.
    """
    if available.bytes is None:
        return
    whole = need(bundle, height, width, frames, options)
    if whole <= available.bytes:
        return
    fits, too_many = 0, frames
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if need(bundle, height, width, middle, options) <= available.bytes:
            fits = middle
        else:
            too_many = middle
    scale = bundle.manifest.scale
    told = (
        f"{frames} frames of {width * scale}x{height * scale} go through this family's steps together and take about "
        f"{amount(whole)}, and {available}."
    )
    if fits:
        raise DeviceError(
            f"{told} What fits: --frames {fits}, the rest with --start; or --segment {fits}, with seams."
        )
    one = amount(need(bundle, height, width, 1, options))
    raise DeviceError(f"{told} One frame takes {one}: allow more, or restore a smaller picture.")
