"""Where a frame's time goes, from the spans that a Restorer's observer heard."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from vsr_trt.runtime.bench.statistics import Series, covered
from vsr_trt.runtime.devices.timeline import Span

COMPUTE = frozenset({"network", "cut", "blend", "copy"})


def measured(spans: Sequence[Span], first: int, count: int) -> list[Span]:
    """Those of the frames that count, without the warm-up and without what was under way at the end."""
    return [span for span in spans if first <= span.frame < first + count]


def metrics(spans: Sequence[Span]) -> dict[str, Series]:
    """Returns the metrics of each frame, in trtexec's words; what a backend does not do is left out.

    - frame: from the beginning of its first step to the end of its last one.
    - enqueue: the host asks for its steps.
    - H2D, D2H: uploads and downloads between the host's memory and the device's.
    - compute: at least one network, cut, blend or copy of this frame is under way. On several lanes they overlap;
      the time counts once.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for frame in _frames(spans):
        values["frame"].append(max(s.end for s in frame) - min(s.start for s in frame))
        enqueue = math.fsum(span.enqueue for span in frame)
        if enqueue > 0:
            values["enqueue"].append(enqueue)
        for name, action in (("H2D", "upload"), ("D2H", "download")):
            if found := [span.end - span.start for span in frame if span.action == action]:
                values[name].append(math.fsum(found))
        if compute := [(span.start, span.end) for span in frame if span.action in COMPUTE]:
            values["compute"].append(covered(compute))
    order = ("frame", "enqueue", "H2D", "compute", "D2H")
    return {name: Series.of(values[name]) for name in order if name in values}


def stages(spans: Sequence[Span]) -> dict[str, Series]:
    """Returns for each stage the sum of its steps in each frame, in the order in which they first come."""
    values: dict[str, list[float]] = {}
    for frame in _frames(spans):
        sums: dict[str, float] = defaultdict(float)
        for span in sorted(frame, key=lambda span: span.start):
            sums[span.stage] += span.end - span.start
        for name, total in sums.items():
            values.setdefault(name, []).append(total)
    return {name: Series.of(samples) for name, samples in values.items()}


def _frames(spans: Sequence[Span]) -> list[list[Span]]:
    frames: dict[int, list[Span]] = defaultdict(list)
    for span in spans:
        frames[span.frame].append(span)
    return [frames[number] for number in sorted(frames)]
