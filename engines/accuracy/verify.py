"""FP16 against FP32 against torch: each network on the same inputs, and the whole chain on real frames."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vsr_trt.engines.accuracy import gate, gpu_check
from vsr_trt.engines.accuracy.gpu_check import EngineReport
from vsr_trt.engines.accuracy.metrics import Difference, difference, psnr
from vsr_trt.engines.accuracy.ranges import Measured, Range, measure
from vsr_trt.engines.accuracy.recording import (
    Calls,
    Clip,
    HalfNetworks,
    Recorder,
    file_source,
    read_clip,
    run_chain,
    stage_networks,
)
from vsr_trt.export.families.published import flags_of, weights_of
from vsr_trt.runtime import media
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.devices.actions import Buffers, Networks
from vsr_trt.runtime.errors import BundleError, InputError
from vsr_trt.runtime.onnxruntime.cpu import CpuNetworks

FRAMES = 4
Form = Literal["fp16", "fp32", "torch"]
FORMS: tuple[Form, ...] = ("fp16", "fp32", "torch")
Outputs = dict[str, dict[Form, list[Buffers]]]
Phase = Callable[[str], None]


@dataclass(frozen=True)
class NetworkReport:
    """What was found of one network.

    Attributes:
        name: the network.
        always_fp32: why it has no FP16 form, None if it has one.
        integers: whether its results are integers, which rounding alone moves by one.
        differences: "fp16 from fp32", "fp16 from torch", "fp32 from torch", those that were compared.
        ranges: form -> of every tensor, in graph order; only of networks with an FP16 form.
        engines: each engine of the bundle that was run.
    """

    name: str
    always_fp32: str | None
    integers: bool
    differences: dict[str, Difference]
    ranges: dict[str, tuple[Range, ...]] = field(default_factory=dict)
    engines: tuple[EngineReport, ...] = ()

    @property
    def not_finite(self) -> dict[str, Range | None]:
        """Form -> the first tensor in graph order with a NaN or Inf, None where there is none."""
        return {form: Measured(ranges, ()).first_not_finite for form, ranges in self.ranges.items()}

    @property
    def widest_half(self) -> Range | None:
        """The FP16 tensor that comes closest to the end of FP16's range."""
        halves = [entry for entry in self.ranges.get("fp16", ()) if entry.half]
        return max(halves, key=lambda entry: entry.share, default=None)


@dataclass(frozen=True)
class Chain:
    """PSNR of the final frames, in decibels, one for each; `what` as in `NetworkReport.differences`."""

    what: str
    psnr: tuple[float, ...]


@dataclass(frozen=True)
class VerifyReport:
    """The whole comparison.

    Attributes:
        bundle: the directory.
        clip: which frames.
        networks: in the order of the stages.
        chain: of the final frames.
        torch: how torch took part, or why not.
        engines: what ran engines, or why none were run.
        failures: a sentence for every threshold that was passed.
    """

    bundle: Path
    clip: Clip
    networks: tuple[NetworkReport, ...]
    chain: tuple[Chain, ...]
    torch: str
    engines: str
    failures: tuple[str, ...]


def forms(bundle: Bundle, torch: bool) -> tuple[Form, ...]:
    """What there is to compare, what is compared first, its reference after it.

    Raises:
        BundleError: only one thing.
    """
    manifest = bundle.manifest
    found: list[Form] = []
    if manifest.precision == "fp16" or any(
        "fp16" in network.graphs for network in manifest.networks.values()
    ):
        found.append("fp16")
    if manifest.precision == "fp32":
        found.append("fp32")
    if torch:
        found.append("torch")
    if len(found) < 2:
        if manifest.precision == "fp16":
            raise BundleError(
                f"{bundle.path} is an FP16 bundle: there is no FP32 in it to compare with. Give the weights that it "
                f"was made from: {weights_of(manifest.family)}"
            )
        raise BundleError(
            f"{bundle.path} has no FP16 graphs to compare with FP32. Add them with: vsr-build calibrate "
            f"{bundle.path} --clip VIDEO; or compare FP32 with torch: {weights_of(manifest.family)}"
        )
    return tuple(found)


def calibration_clip(bundle: Bundle, frames: int) -> Clip:
    """The first frames of the clip that a bundle was calibrated on.

    Raises:
        InputError: there is none, or it is gone or another one now.
    """
    calibration = bundle.manifest.calibration
    if calibration is None:
        raise InputError(
            f"{bundle.path} was not calibrated, so it names no clip to compare on; give --clip VIDEO."
        )
    try:
        record = json.loads(bundle.file(calibration.file).read_text(encoding="utf-8"))["clip"]
        path, start = Path(record["path"]), float(record["start"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{bundle.path}: {calibration.file} is damaged ({error}); calibrate again."
        ) from error
    if not path.exists():
        raise InputError(f"{path}, which {bundle.path} was calibrated on, is gone; give --clip VIDEO.")
    with media.open_source(path, start=start, frames=calibration.frames) as source:
        found = file_source(path.name, list(source.files))
    if found != calibration.clip:
        raise InputError(f"{path} has changed since {bundle.path} was calibrated on it; give --clip VIDEO.")
    return read_clip(path, frames, start)


def verify(
    bundle: Bundle, clip: Clip, torch: Networks | None, phase: Phase = lambda text: None
) -> VerifyReport:
    """Compares everything that `forms` finds.

    One form is in memory at a time: the FP32 networks run once, and what went in is kept for the others.

    Args:
        bundle: opened.
        clip: frames to compare on.
        torch: runs the torch modules, None to leave them out; closed afterwards.
        phase: is passed what is done now.

    Raises:
        BundleError: nothing to compare.
        DeviceError: a network fails.
    """
    found = forms(bundle, torch is not None)
    reference: Form = "fp32" if "fp32" in found else "fp16"
    recorder = Recorder(CpuNetworks(bundle) if reference == "fp32" else HalfNetworks(bundle))
    results = {reference: run_chain(bundle, recorder, clip.frames, _counter(phase, reference))}
    calls = recorder.calls
    names = stage_networks(bundle)
    single = {name for name in names if bundle.manifest.networks[name].always_fp32 is not None}
    # what the runtime's own graphs compute, which the CPU form may be one of
    outputs: Outputs = {
        name: {"fp32" if name in single else reference: [call.outputs for call in calls[name]]}
        for name in names
    }
    ranges: dict[str, dict[str, tuple[Range, ...]]] = {name: {} for name in names}
    for form in (form for form in found if form != "torch"):
        for name in (name for name in names if name not in single):
            measured = _measure(bundle, form, name, calls, phase)
            ranges[name][form] = measured.ranges
            outputs[name].setdefault(form, list(measured.outputs))
    if reference == "fp32" and "fp16" in found:
        counter = _counter(phase, "fp16")
        results["fp16"] = run_chain(bundle, HalfNetworks(bundle), clip.frames, counter)
    if torch is not None:
        for name in names:
            phase(f"torch: {name}")
            torch.load(name)
            outputs[name]["torch"] = [torch.run(name, call.inputs) for call in calls[name]]
        results["torch"] = run_chain(bundle, torch, clip.frames, _counter(phase, "torch"))
    phase("engines")
    engines, why = gpu_check.check(bundle, calls)
    networks = tuple(
        NetworkReport(
            name,
            bundle.manifest.networks[name].always_fp32,
            all("int" in tensor.dtype for tensor in bundle.manifest.networks[name].outputs),
            {
                f"{one} from {other}": difference(outputs[name][one], outputs[name][other])
                for one, other in _pairs(outputs[name])
            },
            ranges[name],
            engines.get(name, ()),
        )
        for name in names
    )
    chain = tuple(
        Chain(f"{one} from {other}", tuple(map(psnr, results[one], results[other])))
        for one, other in _pairs(results)
    )
    return VerifyReport(
        bundle.path,
        clip,
        networks,
        chain,
        "compared"
        if torch is not None
        else f"not compared: give {' and '.join(flags_of(bundle.manifest.family))}",
        why,
        tuple(gate.failures(networks, chain)),
    )


def _pairs(found: Iterable[Form]) -> list[tuple[Form, Form]]:
    """Each form with those that it is compared with: the less exact one first."""
    present = set(found)
    return [(one, other) for one, other in itertools.combinations(FORMS, 2) if {one, other} <= present]


def _measure(bundle: Bundle, form: Form, name: str, calls: Calls, phase: Phase) -> Measured:
    phase(f"{form}: measuring {name}")
    graph = bundle.manifest.networks[name].graph(form, bundle.manifest.precision)
    assert graph is not None  # `forms` found it
    return measure(bundle.file(graph), [call.inputs for call in calls[name]])


def _counter(phase: Phase, form: str) -> Phase:
    phase(f"{form}: loading the networks")
    return lambda done: phase(f"{form}: {done}")
