"""Why the numbers of a benchmark may mislead: what trtexec warns of, and a few more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vsr_trt.runtime.bench.environment import Environment
from vsr_trt.runtime.bench.report import Caution, ModeResult
from vsr_trt.runtime.bench.statistics import Series, grouped, summarize

UNSTEADY = 0.025  # coefficient of variation
ENQUEUE_SHARE = 0.8  # of compute
P99_FRAMES = 100
_TINY = 0.01  # of a frame: a stage that small may vary as it likes


def cautions(modes: Mapping[str, ModeResult], environment: Environment) -> tuple[Caution, ...]:
    """All that apply, the machine's first."""
    found = list(_machine(environment))
    for name, mode in modes.items():
        found += _mode(name, mode)
    return tuple(found)


def _machine(environment: Environment) -> Iterator[Caution]:
    if environment.busy:
        yield Caution(
            "busy",
            f"other programs were at work: the load average was {environment.load:.1f} on {environment.cores} cores "
            "before the start. Stop them, or wait a minute after an earlier run.",
        )
    if environment.nvml is not None and environment.nvml.during is not None:
        reasons = environment.nvml.during.reasons
        if reasons:
            named = ", ".join(f"{name} in {share:.0%} of the samples" for name, share in reasons.items())
            yield Caution(
                "throttled",
                f"the GPU's clocks were held down: {named}. Where heat or power does it, numbers change with the "
                "weather: cool the GPU, or lock its clocks lower: nvidia-smi --lock-gpu-clocks=MHZ",
            )


def _mode(name: str, mode: ModeResult) -> Iterator[Caution]:
    if unsteady := list(_unsteady(name, mode)):
        yield Caution(
            "unsteady",
            f"{name}: times vary by more than {UNSTEADY:.1%} (coefficient of variation): {', '.join(unsteady)}. "
            "Lock clocks, stop other programs, or measure longer: --seconds",
        )
    metrics = mode.observed.metrics if mode.observed is not None else {}
    compute = metrics.get("compute")
    if compute is not None:
        yield from _bound(name, metrics, compute)
    if mode.frames < P99_FRAMES:
        yield Caution(
            "few",
            f"{name}: {mode.frames} frames are too few for a p99, which is then their maximum or next to it; "
            f"{P99_FRAMES} or more would tell. Measure longer: --seconds",
        )


def _unsteady(name: str, mode: ModeResult) -> Iterator[str]:
    varying: dict[str, float] = {}
    if name == "throughput":
        # Results may come in twos and threes, as slots finish: only whole rounds of them are alike. Stages are not
        # looked at, because they wait for other frames' steps, now more, now less.
        rounds = grouped(mode.interval.samples, mode.slots)
        varying["time for a frame"] = summarize(rounds).cv if rounds else 0.0
    else:
        varying["latency"] = mode.latency.summary.cv
        observed = mode.observed
        if observed is not None:
            least = _TINY * observed.latency.summary.median
            for stage, series in (observed.metrics | observed.stages).items():
                if stage in ("compute", *observed.stages) and series.summary.median >= least:
                    varying[stage] = series.summary.cv
    for what, share in varying.items():
        if share > UNSTEADY:
            yield f"{what} {share:.1%}"


def _bound(name: str, metrics: Mapping[str, Series], compute: Series) -> Iterator[Caution]:
    median = compute.summary.median
    others = {metric: series.summary.median for metric, series in metrics.items()}
    enqueue = others.get("enqueue", 0.0)
    if enqueue > ENQUEUE_SHARE * median:
        yield Caution(
            "enqueue-bound",
            f"{name}: the host takes {enqueue * 1e3:.3g} ms to ask for a frame's work and the device "
            f"{median * 1e3:.3g} ms to do it: the device may wait for the host.",
        )
    for metric, what in (("H2D", "to the device"), ("D2H", "from the device")):
        if metric in others and others[metric] >= median:
            yield Caution(
                "transfer-bound",
                f"{name}: copying {what} takes {others[metric] * 1e3:.3g} ms a frame and computing "
                f"{median * 1e3:.3g} ms: the device may wait for copies.",
            )
