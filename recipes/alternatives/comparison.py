"""Every way in a process of its own, one after another, and what comes of it: `vsr-build alternatives`."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from vsr_trt.recipes.alternatives import IN_TORCH, LEAST, RUNTIME, child
from vsr_trt.runtime.bench import environment
from vsr_trt.runtime.bench.cautions import cautions
from vsr_trt.runtime.bench.nvml import Probe
from vsr_trt.runtime.bench.statistics import ratio_of_medians, summarize
from vsr_trt.runtime.bundle.manifest import MANIFEST_NAME, Manifest, sha256
from vsr_trt.runtime.bundle.options import Options, Settings
from vsr_trt.runtime.bundle.reading import read_manifest
from vsr_trt.runtime.bundle.symbols import evaluate
from vsr_trt.runtime.errors import BundleError, DeviceError, InputError, VsrError
from vsr_trt.runtime.plan.roofline import operations

KIND = "vsr-trt alternatives"
SCHEMA_VERSION = 1
_RATE = "from vsr_trt.runtime.plan.roofline import matrix_rate; print(matrix_rate())"
# However numpy multiplies matrices, it reads one of these when it is loaded.
_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

Record = dict[str, Any]
"""What `vsr-build time` printed, and what is said about it; or `not_run`, the reason."""


@dataclass(frozen=True)
class ComparisonRequest:
    """What to compare.

    Attributes:
        script: path of build.py.
        bundle: of the runtime and of ONNX Runtime.
        clip: a video or a folder of pictures.
        frames: that each way restores; one by one, the first is warm-up.
        clips: how often a clip is restored at once, or a network run.
        ways: in the order in which they run.
        weights: of the ways in torch, as options of the command line; empty where there are none.
        threads: of the CPU; None for each library's own choice.
        choices: the family's options.
        network, sizes: only this network, on random numbers of these sizes, `f=4,h=66,w=64`; None for clips.
        with_bundle: whether ways in torch get the bundle, too: of families whose stages only that knows.
    """

    script: Path
    bundle: Path
    clip: Path | None
    frames: int
    ways: tuple[str, ...]
    weights: tuple[str, ...] = ()
    threads: int | None = None
    choices: Mapping[str, str] = field(default_factory=dict)
    network: str | None = None
    sizes: str | None = None
    with_bundle: bool = False
    clips: int = LEAST

    def command(self, way: str) -> list[str]:
        """The command that times one way."""
        clip = [] if self.clip is None else ["--clip", self.clip]
        values: list[object] = [
            sys.executable,
            self.script,
            "time",
            way,
            *clip,
            "--frames",
            self.frames,
        ]
        if self.clips != LEAST:
            values += ["--clips", self.clips]
        for name, value in self.choices.items():
            values += ["--set", f"{name}={value}"]
        if self.network is not None:
            values += ["--network", self.network, "--at", self.sizes]
        if way in IN_TORCH:
            values += self.weights
        if way not in IN_TORCH or self.with_bundle:
            values += ["--bundle", self.bundle]
        if self.threads is not None:
            values += ["--threads", self.threads]
        return [str(value) for value in values]


class Watcher(Protocol):
    """Is called with how far things are; `said` from another thread."""

    def began(self, way: str) -> None:
        """A way's process is started."""

    def said(self, text: str) -> None:
        """It wrote a line."""

    def ended(self, way: str, record: Record) -> None:
        """It ended."""


def compare(order: ComparisonRequest, watcher: Watcher) -> dict[str, Any]:
    """Runs the ways one after another, so that none takes time or memory from another.

    A way other than the runtime that cannot run on this machine is recorded as such. After each, the machine's
    matrix products are timed as well: its speed may change in between, and then they tell.

    Returns:
        The report, for JSON.

    Raises:
        VsrError: the runtime failed, or a way refused what it was given: clip, bundle, weights, an option.
    """
    manifest = read_manifest(order.bundle)
    created, load = datetime.now(UTC).isoformat(timespec="seconds"), environment.load_average()
    records: dict[str, Record] = {}
    for way in order.ways:
        watcher.began(way)
        records[way] = _measured(order, way, watcher)
        watcher.ended(way, records[way])
    with Probe() as probe:
        machine = environment.describe(load, probe, None, sampled=False)
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "created": created,
        "settings": {
            "clip": None if order.clip is None else str(order.clip),
            "frames": order.frames,
            "threads": order.threads,
            "set": dict(order.choices),
            "network": order.network,
            "at": order.sizes,
        },
        "bundle": {
            "path": str(order.bundle),
            "sha256": sha256(order.bundle / MANIFEST_NAME),
            "family": manifest.family,
            "precision": manifest.precision,
            "scale": manifest.scale,
        },
        "machine": dataclasses.asdict(machine),
        "order": list(order.ways),
        "ways": _compared(records),
        "bound": _bound(order, manifest, records.get(RUNTIME)),
        "cautions": [dataclasses.asdict(caution) for caution in cautions({}, machine)],
    }


def _measured(order: ComparisonRequest, way: str, watcher: Watcher) -> Record:
    prefix = f"{way}: "  # of lines that tell how far it is; a library may say something as well

    def hear(line: str) -> None:
        if line.startswith(prefix):
            watcher.said(line.removeprefix(prefix))

    ended = child.run(order.command(way), {}, hear)
    if ended.code == 0:
        record: Record = json.loads(ended.output)
        watcher.said("matrix products, to compare")
        return record | {
            "summary": dataclasses.asdict(summarize(record["seconds"])),
            "matmul_flops": _matrix_rate(order),
        }
    code = ended.refusal[1] if ended.refusal is not None else DeviceError.exit_code
    if way == RUNTIME or code != DeviceError.exit_code:
        error = VsrError(f"{way}: {ended.reason}")
        error.exit_code = code
        raise error
    return {"way": way, "not_run": ended.reason}


def _matrix_rate(order: ComparisonRequest) -> float | None:
    """The machine's, now, on as many threads as the ways have; None where it cannot be measured."""
    threads = {} if order.threads is None else dict.fromkeys(_THREADS, str(order.threads))
    ended = child.run([sys.executable, "-c", _RATE], threads, lambda line: None)
    return float(ended.output) if ended.code == 0 else None


def _compared(records: dict[str, Record]) -> dict[str, Record]:
    """The records, those of other ways with what the runtime gains over them."""
    ours = records.get(RUNTIME)
    return {
        way: record if ours is None or way == RUNTIME or "not_run" in record else record | _gain(ours, record)
        for way, record in records.items()
    }


def _gain(ours: Record, other: Record) -> dict[str, Any]:
    share = (
        ours["peak_memory"] / other["peak_memory"] if ours["peak_memory"] and other["peak_memory"] else None
    )
    faster = ratio_of_medians(other["seconds"], ours["seconds"])
    return {"faster": dataclasses.asdict(faster), "memory_share": share}


def _bound(order: ComparisonRequest, manifest: Manifest, ours: Record | None) -> dict[str, Any] | None:
    """How near the runtime is to the machine's arithmetic; None without a measurement of both, or without counts."""
    if ours is None or ours["matmul_flops"] is None:
        return None
    try:
        flop = _operations(order, manifest, ours)
    except BundleError:
        return None
    seconds = statistics.median(ours["seconds"])
    rate = flop / seconds
    return {"flop": flop, "seconds": seconds, "flops": rate, "share": rate / ours["matmul_flops"]}


def _operations(order: ComparisonRequest, manifest: Manifest, ours: Record) -> float:
    """Floating point operations of what was timed: a frame, or a network's run.

    Raises:
        BundleError: the bundle was built without counts.
    """
    if order.network is not None and order.sizes is not None:
        work = manifest.networks[order.network].work
        if work is None:
            raise BundleError(f"the bundle does not say what {order.network} takes.")
        return 2 * evaluate(work.multiply_adds, read_sizes(order.sizes))
    width, height = (ours[side] * manifest.scale for side in ("width", "height"))
    options = Options.of(manifest, Settings(choices=order.choices))
    return operations(manifest, width, height, options, ours["frames"] if manifest.phases else None)


def read_sizes(text: str) -> dict[str, int]:
    """Reads `f=4,h=66,w=64`.

    Raises:
        InputError: it is none.
    """
    found = {}
    for part in text.split(","):
        name, equals, number = part.strip().partition("=")
        if not (name and equals and number.isdecimal()):
            raise InputError(f"--at {text}: expected sizes of the network, such as f=4,h=66,w=64.")
        found[name] = int(number)
    return found
