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
from vsr_trt.runtime.schedule.graph import Schedule
from vsr_trt.runtime.schedule.memory import slot_arrays

Clock = dict[str, float]


class Pipeline:
    """Takes frames through the stages, one after another.

    Args:
        manifest: of the bundle.
        networks: runs them; all that are needed are loaded here.
        options: checked here.
        constants: buffers that never change, e.g. the prompt's embedding.
    """

    def __init__(self, manifest: Manifest, networks: Networks, options: Options, constants: Buffers) -> None:
        options.check(manifest)
        self._manifest, self._networks, self._options = manifest, networks, options
        self._constants = constants
        self._schedule: Schedule | None = None
        self._buffers: Buffers = {}
        self._first = True
        for network in options.networks(manifest):
            networks.load(network)

    def reset(self) -> None:
        """Forgets the previous frame: the next one is its own predecessor."""
        self._first = True

    def run(self, frame: np.ndarray) -> tuple[np.ndarray, Clock]:
        """Takes one frame (H,W,3) u8 through all stages.

        Returns:
            The result (4H,4W,3) u8, and the seconds spent in each stage.
        """
        height, width = frame.shape[:2]
        if self._schedule is None or self._buffers[self._schedule.frame].shape[1:3] != (height, width):
            self._schedule = build(self._manifest, height, width, self._options)
            [self._buffers] = slot_arrays(self._schedule, self._constants)
        schedule, buffers = self._schedule, self._buffers
        clock: Clock = defaultdict(float)
        buffers[schedule.frame][0] = frame
        for step in schedule.steps:
            if schedule.lanes[step.lane].host or (step.first and not self._first):
                continue
            started = time.perf_counter()
            perform(step, buffers, self._networks)
            clock[step.stage] += time.perf_counter() - started
        self._first = False
        stages = (stage.name for stage in self._manifest.stages)
        return buffers[schedule.result][0].copy(), {name: clock[name] for name in stages}
