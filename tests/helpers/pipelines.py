"""Random pipelines of integer functions: every byte of a result tells what went into it, and in which order."""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np

from vsr_trt.runtime.devices.actions import Buffers
from vsr_trt.runtime.errors import DeviceError
from vsr_trt.runtime.schedule.graph import Buffer, Lane, Port, Schedule, Step

SIZE = 5


def random_schedule(seed: int, slots: int, lanes: int, stages: int) -> Schedule:
    """Stages on random lanes that read random earlier buffers, their own lane's scratch, and what was a frame ago."""
    chance = random.Random(seed)
    names = [f"lane {i}" for i in range(lanes)]
    shape = (1, SIZE)
    buffers = {
        "in": Buffer("in", shape, "uint8", "staging"),
        "out": Buffer("out", shape, "uint8", "staging"),
        "frame": Buffer("frame", shape, "uint8"),
        "constant": Buffer("constant", shape, "uint8", "constant"),
    }
    steps = [
        Step("receive", "receive", "receive", {}, {"frame": "in"}, "receive"),
        Step("upload", "upload", chance.choice(names), {"source": "in"}, {"target": "frame"}, "upload"),
    ]
    made = ["frame"]
    for i in range(stages):
        lane, target = chance.choice(names), chance.choice([f"b{i}", *made[1:]])
        sources = chance.sample(made, min(len(made), chance.randint(1, 3)))
        reads = {f"x{j}": source for j, source in enumerate(sources) if source != target}
        if chance.random() < 0.3:
            reads["c"] = "constant"
        if chance.random() < 0.4:  # what passes from frame to frame
            state = f"s{i}"
            buffers[state] = Buffer(state, shape, "uint8", "state")
            source = chance.choice(made)
            steps.append(
                Step(f"begin {i}", "copy", lane, {"source": source}, {"target": state}, "begin", first=True)
            )
            reads["s"] = state
        workspace = None
        if chance.random() < 0.5:
            workspace = chance.choice(["scratch", f"scratch of {lane}"])
            buffers[workspace] = Buffer(workspace, (0,), "uint8", "scratch")
        buffers.setdefault(target, Buffer(target, shape, "uint8"))
        steps.append(
            Step(
                f"n{i}", "network", lane, reads, {"y": target}, f"n{i}", network=f"n{i}", workspace=workspace
            )
        )
        if "s" in reads:
            keeper = chance.choice(names)
            steps.append(
                Step(f"keep {i}", "copy", keeper, {"source": source}, {"target": reads["s"]}, "keep")
            )
        if target not in made:
            made.append(target)
    last = chance.choice(names)
    steps.append(Step("download", "download", last, {"source": made[-1]}, {"target": "out"}, "download"))
    steps.append(Step("deliver", "deliver", "deliver", {"result": "out"}, {}, "deliver"))
    used = dict.fromkeys(step.lane for step in steps)
    table = {name: Lane(name, name in ("receive", "deliver")) for name in used}
    return Schedule(table, buffers, tuple(steps), slots, {"frame": Port("in")}, {"result": Port("out")})


class Mixing:
    """Networks that mix their inputs' bytes, each in its own way."""

    name = "mixing"

    def __init__(self) -> None:
        self.closed = False

    def load(self, network: str) -> None:
        pass

    def run(self, network: str, inputs: Buffers) -> Buffers:
        if self.closed:
            raise DeviceError("closed")
        total = np.full((1, SIZE), sum(network.encode()) % 251, np.uint32)
        for name in sorted(inputs):
            total = (total * 31 + inputs[name].astype(np.uint32) * 7 + sum(name.encode())) % 257
        return defaultdict(lambda: total.astype(np.uint8))

    def close(self) -> None:
        self.closed = True


CONSTANTS = {"constant": np.full((1, SIZE), 9, np.uint8)}


def frames(count: int) -> list[np.ndarray]:
    """Frames of a clip, each different."""
    rng = np.random.default_rng(3)
    return list(rng.integers(0, 256, (count, SIZE), dtype=np.uint8))


def in_order(schedule: Schedule, clip: list[np.ndarray]) -> list[bytes]:
    """The results of doing every step of every frame in the schedule's order, one frame after another."""
    from vsr_trt.runtime.devices.actions import perform
    from vsr_trt.runtime.schedule.memory import slot_arrays

    arrays = slot_arrays(schedule, CONSTANTS)
    networks, results = Mixing(), []
    for number, frame in enumerate(clip):
        buffers = arrays[number % schedule.slots]
        buffers[schedule.frame][0] = frame
        for step in schedule.steps:
            if schedule.lanes[step.lane].host or (step.first and number > 0):
                continue
            perform(step, buffers, networks)
        results.append(buffers[schedule.result][0].tobytes())
    return results
