"""Frames one after another, each step in the schedule's own order, on the caller's thread.

The simplest way to execute a schedule: what verification records and tests compare with.
"""

from __future__ import annotations

import time
from collections import defaultdict

import numpy as np

from vsr_trt.runtime.bundle.manifest import Manifest
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.devices.actions import Buffers, Networks, perform
from vsr_trt.runtime.schedule.build import build
from vsr_trt.runtime.schedule.constants import constants
from vsr_trt.runtime.schedule.graph import Schedule
from vsr_trt.runtime.schedule.memory import slot_arrays

Clock = dict[str, float]


class Pipeline:
    """Takes frames through the stages, one after another.

    Args:
        manifest: of the bundle.
        networks: runs them; all that are needed are loaded here.
        options: checked here.
        files: the bundle's own constants, e.g. the prompt's embedding: `Bundle.constants`.
    """

    def __init__(self, manifest: Manifest, networks: Networks, options: Options, files: Buffers) -> None:
        options.check(manifest)
        self._manifest, self._networks, self._options = manifest, networks, options
        self._constants = files
        self._schedule: Schedule | None = None
        self._buffers: Buffers = {}
        self._first = True
        for network in options.networks(manifest):
            networks.load(network)

    def reset(self) -> None:
        """Forgets the previous frame: the next one is its own predecessor."""
        self._first = True

    def run(self, frame: np.ndarray) -> tuple[np.ndarray, Clock]:
        """Takes one frame (H,W,3) u8 through all stages, or one window of frames (F,H,W,3).

        Returns:
            The result (4H,4W,3) or (F,4H,4W,3) u8, and the seconds spent in each stage.
        """
        height, width = frame.shape[-3:-1]
        if self._schedule is None or self._buffers[self._schedule.frame].shape[1:3] != (height, width):
            self._schedule = build(self._manifest, height, width, self._options)
            known = constants(self._manifest, self._schedule, self._options, self._constants)
            [self._buffers] = slot_arrays(self._schedule, known)
        schedule, buffers = self._schedule, self._buffers
        clock: Clock = defaultdict(float)
        buffers[schedule.frame][...] = frame
        for step in schedule.steps:
            if schedule.lanes[step.lane].host or (step.first and not self._first):
                continue
            started = time.perf_counter()
            perform(step, buffers, self._networks)
            clock[step.stage] += time.perf_counter() - started
        self._first = False
        stages = (stage.name for stage in self._manifest.stages)
        result = buffers[schedule.result].copy()
        return result if frame.ndim > 3 else result[0], {name: clock[name] for name in stages}
