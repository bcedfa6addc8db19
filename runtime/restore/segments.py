"""Clips without end, for families that take whole clips through their steps: segment after segment.

Segments overlap; of the results for frames that two share, the first half is the earlier one's. A segment knows nothing
of what lies outside of it, so the result is another one than the whole clip's, with seams where segments meet; memory
and delay are those of a segment. Noise is the frame's own in both.
"""

from __future__ import annotations

from collections.abc import Iterator

from vsr_trt.runtime.bundle.manifest import Window
from vsr_trt.runtime.devices.windows import Gathered, Gatherer
from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.restore.restorer import Frame, Restorer


class Segments:
    """Takes a clip through a Restorer in segments.

    Args:
        restorer: of a family with phases; it is this object's alone meanwhile.
        frames: of a segment.
        overlap: frames that neighbouring segments share.

    Raises:
        InputError: the family takes frame after frame, or numbers that cannot be.
    """

    def __init__(self, restorer: Restorer, frames: int, overlap: int) -> None:
        if not restorer.manifest.phases:
            raise InputError("this bundle restores frame after frame, at any length; leave --segment out.")
        if frames < 2 or not 0 <= overlap <= frames // 2:
            raise InputError(
                f"segments of {frames} frames that share {overlap}: expected 2 or more, and half of them at most."
            )
        self._restorer = restorer
        self._gatherer = Gatherer(Window(frames, overlap))

    def push(self, frame: Frame) -> list[Frame]:
        """Takes the next frame; returns the results that are ready: with the frame behind a segment, that segment's."""
        ready = self._gatherer.push(frame.copy())
        return [result for segment in ready for result in self._restored(segment, len(segment.frames))]

    def drain(self) -> Iterator[Frame]:
        """Yields the results of the last segment."""
        for segment in self._gatherer.flush():
            # one of a clip that is shorter is filled up with its last frame, which nobody asks for
            yield from self._restored(segment, segment.results.stop)

    def _restored(self, segment: Gathered, count: int) -> Iterator[Frame]:
        """Results that are asked for of a segment's first `count` frames."""
        self._restorer.reset(segment.first)
        for frame in segment.frames[:count]:
            self._restorer.push(frame)
        for index, result in enumerate(self._restorer.drain()):
            if index in segment.results:
                yield result
