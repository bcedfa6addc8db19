"""Adding FP16 graphs to an FP32 bundle, with the nodes in FP32 whose numbers FP16 cannot hold on real frames."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vsr_trt.engines import additions
from vsr_trt.engines.accuracy.calibration import (
    FILE,
    Calibrated,
    as_json,
    half_graph,
    with_halves,
    without_halves,
)
from vsr_trt.engines.accuracy.metrics import difference
from vsr_trt.engines.accuracy.ranges import Measured, above, measure
from vsr_trt.engines.accuracy.recording import Call, Clip, Recorder, run_chain, stage_networks
from vsr_trt.engines.graphs import half
from vsr_trt.runtime.bundle.directory import Bundle, refuse_hub_cache
from vsr_trt.runtime.bundle.manifest import Calibration
from vsr_trt.runtime.errors import BundleError, InputError, VerificationError
from vsr_trt.runtime.onnxruntime.cpu import CpuNetworks

FRAMES = 4
LIMIT = 0.25
MAX_ERROR = 5e-2  # of the largest value, as the export allows FP16


@dataclass(frozen=True)
class CalibrationRequest:
    """What to calibrate, and with what.

    Attributes:
        bundle: an FP32 bundle.
        clip: frames that its networks were made for.
        limit: share of FP16's range; what is above stays in FP32.
        overwrite: replace an earlier calibration.
    """

    bundle: Path
    clip: Clip
    limit: float = LIMIT
    overwrite: bool = False


def check(bundle: Path, limit: float, overwrite: bool) -> Bundle:
    """Opens the bundle, and refuses what cannot be calibrated before any work is done.

    Raises:
        InputError: a limit that is no share, or FP16 graphs that are there already.
        BundleError: no bundle, an FP16 one, or one without a network that has an FP16 form.
        OutputError: a bundle in a hub's cache.
    """
    if not 0 < limit <= 1:
        raise InputError(f"--limit is {limit}; expected a share of FP16's range above 0 and up to 1.")
    opened = Bundle.open(bundle)
    refuse_hub_cache(bundle, "where no FP16 graphs may be added")
    manifest = opened.manifest
    if manifest.precision != "fp32":
        raise BundleError(
            f"{bundle} is an FP16 bundle: it has no FP32 networks to measure. Calibrate an FP32 one, made with: "
            "vsr-build bundle ... --precision fp32"
        )
    if manifest.calibration is not None and not overwrite:
        raise InputError(f"{bundle} is calibrated already; add --overwrite to do it again.")
    if not any(network.always_fp32 for network in manifest.networks.values()):
        raise BundleError(
            f"{bundle} does not say which networks must stay in FP32: an older version made it. Build it again with: "
            "vsr-build bundle"
        )
    if not convertible(opened):
        raise BundleError(f"{bundle} has no network with an FP16 form; every one says why it stays in FP32.")
    return opened


def convertible(bundle: Bundle) -> list[str]:
    """The networks of the chain that have an FP16 form."""
    networks = bundle.manifest.networks
    return [name for name in stage_networks(bundle) if networks[name].always_fp32 is None]


def calibrate(
    request: CalibrationRequest,
    phase: Callable[[str], None] = lambda text: None,
) -> list[Calibrated]:
    """Measures, converts, checks and adds the FP16 graphs; on any error the bundle is as it was.

    Args:
        request: what to do.
        phase: is passed what is done now.

    Raises:
        InputError, BundleError: see `check`.
        OutputError: the bundle is not writable, or the disk is full.
        VerificationError: a network's results are not finite, or differ too much in FP16.
        DeviceError: a network fails.
        ExportError: a graph cannot be converted.
    """
    bundle = check(request.bundle, request.limit, request.overwrite)
    networks = convertible(bundle)
    needed = sum(_weights(bundle, name) for name in networks) // 2
    with additions.staging(bundle.path, needed) as folder:
        calls = _record(bundle, request.clip, phase)
        (folder / "onnx").mkdir()
        done = []
        for name in networks:
            # what is not needed any more gives its memory back
            done.append(_convert(bundle, name, calls.pop(name), folder, request.limit, phase))
        phase("writing the manifest")
        text = json.dumps(as_json(request.clip, request.limit, done), indent=1, allow_nan=False)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")
        source, frames = request.clip.source, len(request.clip.frames)
        calibration = Calibration(source, frames, request.limit, FILE)
        additions.commit(
            bundle.path,
            folder,
            without_halves,
            lambda manifest: with_halves(manifest, networks, calibration),
        )
    return done


def _weights(bundle: Bundle, network: str) -> int:
    graph = bundle.manifest.networks[network].graphs["native"]
    entry = bundle.manifest.files.get(f"{graph}.data")
    return entry.bytes if entry else 0


def _record(bundle: Bundle, clip: Clip, phase: Callable[[str], None]) -> dict[str, list[Call]]:
    phase("loading the networks")
    recorder = Recorder(CpuNetworks(bundle))
    run_chain(bundle, recorder, clip.frames, lambda done: phase(f"through the FP32 networks: {done}"))
    return recorder.calls


def _convert(
    bundle: Bundle,
    name: str,
    calls: Sequence[Call],
    folder: Path,
    limit: float,
    phase: Callable[[str], None],
) -> Calibrated:
    native = bundle.file(bundle.manifest.networks[name].graphs["native"])
    feeds = [call.inputs for call in calls]
    phase(f"{name}: measuring")
    single = measure(native, feeds)
    _refuse_infinite(name, "FP32", single)
    phase(f"{name}: converting")
    path = folder / half_graph(name)
    conversion = half.write(native, path, above(single.ranges, limit))
    phase(f"{name}: checking")
    lowered = measure(path, feeds)
    _refuse_infinite(name, "FP16", lowered)
    error = difference(lowered.outputs, single.outputs)
    if not error.max <= MAX_ERROR:
        raise VerificationError(
            f"{name} in FP16 differs from FP32 by {error.max:.2e} of the largest value on this clip, allowed are "
            f"{MAX_ERROR:.0e}. Nothing was added; try a lower --limit, or leave the bundle in FP32."
        )
    return Calibrated(name, conversion.halves, tuple(conversion.kept), single.ranges, error)


def _refuse_infinite(name: str, precision: str, measured: Measured) -> None:
    if all(np.isfinite(value).all() for outputs in measured.outputs for value in outputs.values()):
        return
    first = measured.first_not_finite
    where = f"{first.tensor} ({first.op_type})" if first is not None else "an output"
    raise VerificationError(
        f"{name} has numbers that are not finite in {precision} on this clip, first in {where}. Nothing was added. "
        + (
            "Build the bundle again; its weights are damaged."
            if precision == "FP32"
            else "Try a lower --limit."
        )
    )
