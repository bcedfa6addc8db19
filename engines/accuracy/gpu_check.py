"""Each engine of a bundle that this machine's GPU can run, against ONNX Runtime on the graph it was made from.

An engine runs by the code that ships, in a process of its own (`python -m vsr_trt.engines.accuracy.gpu_check`): a
library that aborts takes the verification with it otherwise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vsr_trt.engines.accuracy import instrument, ranges
from vsr_trt.engines.accuracy.metrics import Difference, difference
from vsr_trt.engines.accuracy.recording import Call, Calls
from vsr_trt.runtime.bundle import engine_check
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Engine
from vsr_trt.runtime.cuda.driver import Driver, bindings
from vsr_trt.runtime.cuda.engines import library
from vsr_trt.runtime.cuda.single import run_engine
from vsr_trt.runtime.devices.actions import Buffers
from vsr_trt.runtime.errors import DeviceError, VsrError
from vsr_trt.runtime.machine import gpu

_BACKENDS = ("tensorrt", "tensorrt_rtx")
_SECONDS = 900  # TensorRT-RTX compiles kernels when a plan runs for the first time


@dataclass(frozen=True)
class EngineReport:
    """An engine that was run: its file, the difference from ONNX Runtime, and the seconds of each of its layers."""

    file: str
    backend: str
    precision: str
    difference: Difference
    layers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ran:
    """What an engine computed, and the seconds of each of its layers; none where the library does not time them."""

    results: list[Buffers]
    layers: dict[str, float]


def check(bundle: Bundle, calls: Calls) -> tuple[dict[str, tuple[EngineReport, ...]], str]:
    """Runs the engines that fit the GPU on the recorded inputs.

    Returns:
        Reports by network, and a sentence on what was run or why nothing was.

    Raises:
        DeviceError: an engine that should run does not.
    """
    engines = [engine for engine in bundle.manifest.engines if engine.backend in _BACKENDS]
    if not engines:
        return {}, "not run (the bundle has no GPU engines)"
    found = gpu.detect()
    if found is None:
        return {}, f"not run (no GPU: {gpu.why_none()})"
    reports: dict[str, list[EngineReport]] = defaultdict(list)
    skipped = []
    for engine in engines:
        fitting = [call for call in calls.get(engine.network, []) if takes(engine, call.inputs)]
        installed = engine_check.installed_version(engine.backend)
        if (reason := engine_check.why_not(bundle, engine, found, installed)) is not None:
            skipped.append(f"{engine.file}: {reason}")
        elif not fitting:
            skipped.append(f"{engine.file}: made for other sizes than this clip's")
        else:
            reports[engine.network].append(_compare(bundle, engine, fitting))
    count = sum(map(len, reports.values()))
    said = f"{count} of {len(engines)} run on {found}"
    return {name: tuple(of) for name, of in reports.items()}, "; ".join([said, *skipped])


def takes(engine: Engine, inputs: Buffers) -> bool:
    """Whether the engine's profiles admit these shapes."""
    for name, profile in engine.profiles.items():
        shape = inputs[name].shape
        bounds = zip(profile.min, shape, profile.max, strict=True)
        if len(shape) != len(profile.min) or any(not least <= size <= most for least, size, most in bounds):
            return False
    return True


def _compare(bundle: Bundle, engine: Engine, calls: Sequence[Call]) -> EngineReport:
    network = bundle.manifest.networks[engine.network]
    graph = network.graph(engine.precision, bundle.manifest.precision) or network.graphs["native"]
    path = bundle.file(graph)
    names = [tensor.name for tensor in network.outputs]
    with ranges.refused(path):
        session = ranges.open_session(instrument.prepare(path))
        references = [dict(zip(names, session.run(names, call.inputs), strict=True)) for call in calls]
    del session
    feeds = [{name: call.inputs[name] for name in engine.profiles} for call in calls]
    ran = run_apart(bundle.file(engine.file), engine.backend, engine.network, feeds, references)
    found = difference(ran.results, references)
    return EngineReport(engine.file, engine.backend, engine.precision, found, ran.layers)


def run_apart(
    plan: Path, backend: str, network: str, feeds: Sequence[Buffers], like: Sequence[Buffers]
) -> Ran:
    """Runs an engine in a process of its own: a library that aborts takes nothing with it.

    Args:
        plan: the engine's file.
        backend: the library that built it.
        network: that it computes.
        feeds: its inputs.
        like: for each of them, arrays of its outputs' shapes and dtypes.

    Raises:
        DeviceError: with the library's first error.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
        shapes = [{name: (array.shape, array.dtype.str) for name, array in one.items()} for one in like]
        np.savez(inputs, **_flat(feeds), shapes=np.array(json.dumps(shapes)))  # type: ignore[arg-type]
        command = [
            sys.executable,
            "-m",
            "vsr_trt.engines.accuracy.gpu_check",
            *(str(plan.absolute()), backend, network),
            *(str(inputs), str(outputs)),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise DeviceError(f"the engine {plan} did not finish in {_SECONDS} s; build it again.") from error
        if done.returncode != 0:
            raise DeviceError(
                f"the engine {plan} does not run ({backend}, exit code {done.returncode}): "
                f"{_reason(done.stderr)}. Build it again for this machine: vsr-build engines"
            )
        with np.load(outputs) as arrays:
            flat = dict(arrays)
        layers = json.loads(str(flat.pop("layers")))
        return Ran(_nested(flat, len(feeds)), layers)


def _reason(log: str) -> str:
    """The last line: what this module says of an error, or a library that aborts."""
    lines = [line.strip() for line in log.splitlines() if line.strip()] or ["no message"]
    return lines[-1].removeprefix("error: ").rstrip(".")


def _flat(feeds: Sequence[Buffers]) -> Buffers:
    return {f"{index}/{name}": array for index, feed in enumerate(feeds) for name, array in feed.items()}


def _nested(arrays: Buffers, count: int) -> list[Buffers]:
    nested: list[Buffers] = [{} for _ in range(count)]
    for key, array in arrays.items():
        index, _, name = key.partition("/")
        nested[int(index)][name] = array
    return nested


def _run_here(plan: Path, backend: str, network: str, inputs: Path, outputs: Path) -> None:
    """The other process: runs a plan on every set of inputs, as the runtime does, and writes the outputs."""
    with np.load(inputs) as arrays:
        flat = dict(arrays)
    shapes = json.loads(str(flat.pop("shapes")))
    wanted = [{name: (tuple(shape), dtype) for name, (shape, dtype) in one.items()} for one in shapes]
    feeds = _nested(flat, len(wanted))
    layers: dict[str, float] = {}
    trt, driver = library(backend), Driver(bindings())
    results = run_engine(trt, driver, plan.read_bytes(), network, feeds, wanted, layers)
    np.savez(outputs, **_flat(results), layers=np.array(json.dumps(layers)))  # type: ignore[arg-type]


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m vsr_trt.engines.accuracy.gpu_check", description=__doc__)
    for name, kind in (
        ("plan", Path),
        ("backend", str),
        ("network", str),
        ("inputs", Path),
        ("outputs", Path),
    ):
        parser.add_argument(name, type=kind)
    try:
        _run_here(**vars(parser.parse_args()))
    except VsrError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main())
