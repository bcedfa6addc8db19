"""What an application meets when something fails in mid-clip: on the simulated device, and on threads."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from helpers.pipelines import CONSTANTS, Mixing, frames, in_order, random_schedule
from helpers.processes import GUARD
from helpers.stages import dloral_manifest, shrunk

from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.devices.actions import Buffers
from vsr_trt.runtime.devices.protocol import Device, Ticket
from vsr_trt.runtime.devices.runner import Runner
from vsr_trt.runtime.devices.simulated import Faults, SimulatedDevice, any_move
from vsr_trt.runtime.devices.threads import ThreadedDevice
from vsr_trt.runtime.devices.timeline import Span
from vsr_trt.runtime.errors import DeviceError, FrameError
from vsr_trt.runtime.schedule.build import build
from vsr_trt.runtime.schedule.events import derive
from vsr_trt.runtime.schedule.graph import Schedule

PROMPT = {"prompt": CONSTANTS["constant"]}


def real(slots: int) -> Schedule:
    return shrunk(build(dloral_manifest(), 128, 128, Options(), slots))


def opened(device: Device, schedule: Schedule, timeout: float | None = None) -> Runner:
    device.open(schedule, derive(schedule), PROMPT, None)
    return Runner(device, schedule.slots, timeout)


def push_all(runner: Runner, clip: list[np.ndarray]) -> tuple[list[bytes], FrameError | None]:
    """The results that came out, and the error that ended it."""
    results: list[np.ndarray] = []
    try:
        for frame in clip:
            results += runner.push(frame)
        results += runner.flush()
    except FrameError as error:
        return [result.tobytes() for result in [*results, *error.results]], error
    return [result.tobytes() for result in results], None


def expected(schedule: Schedule, clip: list[np.ndarray]) -> list[bytes]:
    from helpers import pipelines

    pipelines.CONSTANTS.setdefault("prompt", CONSTANTS["constant"])
    return in_order(schedule, clip)


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize(
    ("kind", "told"), [("fail", "a fault was injected"), ("hang", "not ended in time"), ("lose", "lost")]
)
def test_frames_before_the_failure_are_delivered(slots: int, kind: str, told: str) -> None:
    schedule, clip = real(slots), frames(8)
    for step in ("upload", "vae_encoder", "unet", "download"):
        device = SimulatedDevice(Mixing(), any_move, 5, Faults(**{kind: (4, step)}))
        results, error = push_all(opened(device, schedule), clip)
        assert error is not None
        assert told in str(error)
        assert f"frame {error.frame}" in str(error)
        if kind == "lose":  # takes what was under way with it
            assert 4 - slots < error.frame <= 4
        else:
            assert error.frame == 4
            assert error.stage == step
            assert step in str(error)
        assert results == expected(schedule, clip)[: error.frame], "in order, none lost, none twice"
        device.close()
        assert device.live == 0


def test_after_a_failure_the_runner_refuses_and_a_new_one_works() -> None:
    schedule, clip = real(2), frames(6)
    device = SimulatedDevice(Mixing(), faults=Faults(fail=(2, "unet")))
    runner = opened(device, schedule)
    assert push_all(runner, clip)[1] is not None
    with pytest.raises(DeviceError, match=r"failed \(frame 2.*make a new one"):
        runner.push(clip[0])
    with pytest.raises(DeviceError, match="make a new one"):
        runner.flush()
    device.close()
    assert push_all(opened(SimulatedDevice(Mixing()), schedule), clip) == (expected(schedule, clip), None)


def test_memory_that_cannot_be_had_is_told_before_anything_is_kept() -> None:
    schedule = real(3)
    wanted = sum(schedule.copies(name) for name in schedule.buffers)
    for number in range(wanted):
        device = SimulatedDevice(Mixing(), faults=Faults(buffers=number))
        with pytest.raises(DeviceError, match="not enough memory"):
            opened(device, schedule)
        assert device.live == 0
    opened(SimulatedDevice(Mixing(), faults=Faults(buffers=wanted)), schedule)


def test_a_second_clip_begins_anew_while_the_first_is_under_way() -> None:
    schedule, clip = real(3), frames(5)
    device = SimulatedDevice(Mixing(), any_move, 2)
    runner = opened(device, schedule)
    results = [r.tobytes() for frame in clip for r in runner.push(frame)]
    runner.begin()
    results += [r.tobytes() for frame in clip for r in runner.push(frame)]
    results += [r.tobytes() for r in runner.flush()]
    assert results == expected(schedule, clip) * 2


class Slow(Mixing):
    """Networks that take their time, and may fail or hang in one call."""

    def __init__(self, before: Callable[[str], None] = lambda network: None) -> None:
        super().__init__()
        self.before = before

    def run(self, network: str, inputs: Buffers) -> Buffers:
        self.before(network)
        return super().run(network, inputs)


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_threads_give_the_same_bytes(slots: int) -> None:
    rng = np.random.default_rng(0)
    schedule, clip = real(slots), frames(12)
    device = ThreadedDevice(Slow(lambda network: time.sleep(rng.random() / 500)))
    assert push_all(opened(device, schedule), clip) == (expected(schedule, clip), None)
    device.close()


@pytest.mark.parametrize("seed", range(8))
def test_threads_give_the_same_bytes_for_any_pipeline(seed: int) -> None:
    schedule, clip = random_schedule(seed, 1 + seed % 3, 3, 7), frames(9)
    device = ThreadedDevice(Mixing())
    device.open(schedule, derive(schedule), CONSTANTS, None)
    runner = Runner(device, schedule.slots)
    results = [result.tobytes() for frame in clip for result in runner.push(frame)]
    results += [result.tobytes() for result in runner.flush()]
    assert results == in_order(schedule, clip)
    device.close()


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_a_thread_that_fails_tells_frame_and_stage(slots: int) -> None:
    schedule, clip, calls = real(slots), frames(9), []

    def fail(network: str) -> None:
        calls.append(network)
        if calls.count("unet") == 5 and network == "unet":
            raise DeviceError("unet is out of order.")

    device = ThreadedDevice(Slow(fail))
    results, error = push_all(opened(device, schedule), clip)
    assert error is not None
    assert (error.frame, error.stage) == (4, "unet")
    assert str(error) == "frame 4: unet is out of order."
    assert results == expected(schedule, clip)[:4]
    device.close()
    assert not [thread for thread in threading.enumerate() if thread.name in schedule.lanes]


def test_a_thread_that_hangs_is_timed_out_and_ends_when_cancelled() -> None:
    schedule, clip, go_on = real(2), frames(3), threading.Event()
    hanging = threading.Event()
    cancelled: list[bool] = []

    def hang(network: str) -> None:
        if network == "unet":
            hanging.set()
            cancelled.append(go_on.wait(GUARD))

    class Waiting(ThreadedDevice):
        def wait(self, ticket: Ticket, timeout: float | None) -> None:
            assert hanging.wait(GUARD), "the clock is started once it hangs, however slow the machine is"
            super().wait(ticket, timeout)

    device = Waiting(Slow(hang), go_on.set)
    _, error = push_all(opened(device, schedule, timeout=0.2), clip)
    assert error is not None
    assert "unet: it has not ended within 0.2 seconds" in str(error)
    device.close()
    assert cancelled
    assert all(cancelled), "closing cancels what is under way"
    assert not [thread for thread in threading.enumerate() if thread.name in schedule.lanes]


def test_lanes_really_overlap() -> None:
    """With two slots a frame is encoded while the one before is decoded; with one it is not."""

    def run(slots: int) -> list[Span]:
        schedule, spans = real(slots), []
        encoded = [threading.Event() for _ in range(7)]  # frame n + 1 is being encoded
        encodings, decodings = itertools.count(), itertools.count()

        def meet(network: str) -> None:
            if network == "vae_encoder":
                encoded[next(encodings)].set()
            if network == "vae_decoder" and slots > 1 and (frame := next(decodings)) < 5:
                encoded[frame + 1].wait(GUARD)

        device = ThreadedDevice(Slow(meet))
        device.open(schedule, derive(schedule), PROMPT, spans.append)
        runner = Runner(device, slots)
        for frame in frames(6):
            runner.push(frame)
        runner.flush()
        device.close()
        return spans

    def overlapping(spans: list[Span]) -> int:
        return sum(
            one.start < other.end and other.start < one.end
            for one in spans
            for other in spans
            if one.action == other.action == "network" and one.frame < other.frame
        )

    assert overlapping(run(1)) == 0
    assert overlapping(run(2)) >= 5
