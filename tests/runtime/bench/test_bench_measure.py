"""What is timed, and what is not: on a clock that the test turns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.bench_fakes import Fake, Maker, bundle

from vsr_trt.runtime.bench import measure, stages
from vsr_trt.runtime.bench.plan import Plan, clip
from vsr_trt.runtime.bundle.manifest import Manifest
from vsr_trt.runtime.bundle.options import Settings
from vsr_trt.runtime.bundle.reading import read_manifest
from vsr_trt.runtime.cli.values import parse_size
from vsr_trt.runtime.devices.timeline import Span
from vsr_trt.runtime.errors import DeviceError, InputError

FRAMES = clip(8, 6)


def silent(phase: str, frames: int, seconds: float) -> None:
    """Nobody watches."""


def latency(maker: Maker, warmup: float = 0.0, seconds: float = 0.0, **options) -> tuple[measure.Run, Fake]:
    fake = maker(None, slots=1, **options)
    return measure.latency(fake, FRAMES, warmup, seconds, maker.clock, silent), fake


def throughput(
    maker: Maker, slots: int, warmup: float = 0.0, seconds: float = 0.0
) -> tuple[measure.Run, Fake]:
    fake = maker(None, slots=slots)
    return measure.throughput(fake, FRAMES, warmup, seconds, maker.clock, silent), fake


@pytest.mark.parametrize("late", [False, True])
def test_latency_is_from_push_to_result_and_leaves_the_warm_up_out(late: bool) -> None:
    run, fake = latency(Maker(lambda n: 0.1 + n / 1000, late=late, load=50))
    assert run.first == 1
    assert run.latencies == pytest.approx([0.1 + n / 1000 for n in range(1, 11)])
    assert run.seconds == pytest.approx(sum(run.latencies))
    assert fake.pushed == 11


def test_warm_up_lasts_as_long_as_asked() -> None:
    runs = (
        latency(Maker(lambda n: 0.1), warmup=0.55)[0],
        throughput(Maker(lambda n: 0.1), slots=3, warmup=0.55)[0],
    )
    assert [run.first for run in runs] == [6, 6]
    assert [run.warmup for run in runs] == pytest.approx([0.6, 0.6])


@pytest.mark.parametrize(
    ("frame", "seconds", "expected"),
    [
        (0.1, 0.0, 10),
        (0.1, 2.05, 21),
        (0.1, 0.5, 10),
        (4.9, 1.0, 10),
        (6.0, 1.0, 3),
        (6.0, 29.0, 5),
        (5.0, 0, 10),
    ],
)
def test_at_least_the_seconds_and_ten_frames_or_three_slow_ones(
    frame: float, seconds: float, expected: int
) -> None:
    assert len(latency(Maker(lambda n: frame), seconds=seconds)[0].latencies) == expected
    assert len(throughput(Maker(lambda n: frame), 2, seconds=seconds)[0].latencies) == expected


def test_latency_refuses_a_restorer_that_loses_frames() -> None:
    maker = Maker()
    fake = maker(None, slots=1)
    fake.flush = lambda: []  # type: ignore[method-assign]
    maker.late = True
    with pytest.raises(DeviceError, match="0 results for one frame"):
        measure.latency(fake, FRAMES, 0, 0, maker.clock, silent)


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_throughput_counts_the_steady_state_only(slots: int) -> None:
    """Every frame takes 20 ms of the one resource; filling, loading and emptying must not show."""
    run, fake = throughput(Maker(lambda n: 0.02, load=3.0), slots, seconds=1.0)
    assert len(run.latencies) / run.seconds == pytest.approx(50)
    assert run.intervals == pytest.approx([0.02] * len(run.latencies))
    assert fake.waiting == []  # flushed, after the clock stopped
    assert run.first == 1


def test_latency_under_load_includes_waiting() -> None:
    run, _ = throughput(Maker(lambda n: 0.02), 3)
    assert run.latencies[5:] == pytest.approx([0.06] * (len(run.latencies) - 5))


def test_results_that_come_together_share_the_time() -> None:
    class Twos(Fake):
        def push(self, frame: np.ndarray) -> list[np.ndarray]:
            self.waiting.append(self.pushed)
            self.pushed += 1
            return [self._finish() for _ in range(2)] if len(self.waiting) == 2 else []

    maker = Maker(lambda n: 0.01 * (n % 2 + 1))
    run = measure.throughput(Twos(maker, {"slots": 2}), FRAMES, 0, 0, maker.clock, silent)
    assert run.intervals == pytest.approx([0.015] * len(run.intervals))
    assert sum(run.intervals) == pytest.approx(run.seconds)


def test_throughput_refuses_a_restorer_that_returns_nothing() -> None:
    maker = Maker()
    subject = maker(None, slots=2)
    subject.push = lambda frame: []  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match="2 slots and keeps 13 frames"):
        measure.throughput(subject, FRAMES, 0, 0, maker.clock, silent)


def test_watchers_are_told() -> None:
    maker, told = Maker(lambda n: 0.5), []
    measure.latency(maker(None, slots=1), FRAMES, 1.0, 0, maker.clock, lambda *what: told.append(what))
    assert told[:3] == [("warm-up", 1, 0.5), ("warm-up", 2, 1.0), ("measuring", 1, 0.5)]
    assert told[-1][:2] == ("measuring", 10)


def test_metrics_of_a_frame() -> None:
    spans = [
        Span(0, 0, "up", "up", "c", "upload", 0.0, 1.0, enqueue=0.1),
        Span(0, 0, "a", "a", "m", "network", 1.0, 4.0, enqueue=0.2),
        Span(0, 0, "b", "b", "s", "blend", 2.0, 5.0),  # next to a: counts once
        Span(0, 0, "a2", "a", "m", "network", 6.0, 7.0),
        Span(0, 0, "down", "down", "c", "download", 7.0, 9.0),
        Span(1, 0, "a", "a", "m", "network", 9.0, 11.0),
    ]
    found = stages.metrics(spans)
    assert {name: series.samples for name, series in found.items()} == {
        "frame": (9.0, 2.0),
        "enqueue": (pytest.approx(0.3),),
        "H2D": (1.0,),
        "compute": (5.0, 2.0),
        "D2H": (2.0,),
    }
    by_stage = {name: series.samples for name, series in stages.stages(spans).items()}
    assert by_stage == {"up": (1.0,), "a": (4.0, 2.0), "b": (3.0,), "down": (2.0,)}
    assert list(by_stage) == ["up", "a", "b", "down"]
    assert {span.frame for span in stages.measured(spans, 1, 5)} == {1}


def test_the_clip_moves_and_is_always_the_same() -> None:
    one, other = clip(40, 24), clip(40, 24)
    assert {(frame.shape, frame.dtype) for frame in one} == {((24, 40, 3), np.dtype(np.uint8))}
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert len({frame.tobytes() for frame in one}) == len(one) >= 2
    assert all(frame.std() > 20 for frame in one)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return read_manifest(bundle(tmp_path))


def test_sizes(manifest: Manifest) -> None:
    assert parse_size("1280x720", manifest) == (1280, 720)
    assert parse_size("512X512", manifest) == (512, 512)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1280", "expected WIDTHxHEIGHT"),
        ("1280x720p", "expected WIDTHxHEIGHT"),
        ("-4x8", "expected WIDTHxHEIGHT"),
        ("٤x8", "expected WIDTHxHEIGHT"),
        ("1281x720", "multiples of 4, e.g. 1280x720"),
        ("0x8", "e.g. 4x8"),
    ],
)
def test_sizes_refused(manifest: Manifest, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_size(text, manifest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": 0}, "--slots is 0"),
        ({"seconds": -1.0}, "--seconds is -1"),
        ({"seconds": float("nan")}, "--seconds is nan"),
        ({"seconds": float("inf")}, "--seconds is inf"),
        ({"warmup": -0.1}, "--warmup is -0.1"),
    ],
)
def test_plans_refused(tmp_path: Path, change: dict, message: str) -> None:
    values = {"slots": 1, "seconds": 1.0, "warmup": 0.0} | change
    with pytest.raises(InputError, match=message):
        Plan(tmp_path, 4, 4, ("latency",), given=Settings(), **values).check()
