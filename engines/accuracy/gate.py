"""What `vsr-build verify` demands. The reasons for the numbers are in docs/precision.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vsr_trt.runtime.errors import VerificationError

if TYPE_CHECKING:
    from vsr_trt.engines.accuracy.verify import Chain, NetworkReport

# A network's outputs; errors in units of the reference's largest value.
HALF_ERROR = 2e-2  # FP16 from FP32 or torch, 99.9 % of the numbers
HALF_COSINE = 0.9999
SINGLE_ERROR = 2e-4  # FP32 from torch, 99.9 % of the numbers
LEVEL = 1.01 / 255  # the same of pictures in u8, where one level is rounding
ENGINE_ERROR = 2e-2  # an engine from ONNX Runtime on the graph that it was compiled from
# Of the FP16 graphs' own FP16 tensors: there must be room for other clips.
SHARE = 0.5
# Frames, in decibels.
HALF_PSNR = 35.0
SINGLE_PSNR = 55.0


def failures(networks: Sequence[NetworkReport], chain: Sequence[Chain]) -> list[str]:
    """A sentence for every threshold that was passed."""
    return [sentence for network in networks for sentence in _network(network)] + [
        f"the whole chain, {entry.what}: frame {index} has {value:.1f} dB, expected at least {least:.0f}"
        for entry in chain
        for least in [HALF_PSNR if "fp16" in entry.what else SINGLE_PSNR]
        for index, value in enumerate(entry.psnr)
        if not value >= least
    ]


def _network(report: NetworkReport) -> Iterator[str]:
    for precision, bad in report.not_finite.items():
        if bad is not None:
            yield (
                f"{report.name} in {precision.upper()}: {bad.tensor} ({bad.op_type}) is the first tensor with "
                "NaN or Inf"
            )
    for what, found in report.differences.items():
        most = HALF_ERROR if "fp16" in what else LEVEL if report.integers else SINGLE_ERROR
        if not found.quantile <= most:
            yield f"{report.name}, {what}: the 99.9 % error is {found.quantile:.2e}, allowed are {most:.0e}"
        if not found.cosine >= HALF_COSINE:
            yield f"{report.name}, {what}: the cosine is {found.cosine:.6f}, expected at least {HALF_COSINE}"
    for engine in report.engines:
        if not engine.difference.quantile <= ENGINE_ERROR:
            yield (
                f"{report.name}, engine {engine.file}: the 99.9 % error is {engine.difference.quantile:.2e}, "
                f"allowed are {ENGINE_ERROR:.0e}"
            )
    widest = report.widest_half
    if widest is not None and widest.share > SHARE:
        yield (
            f"{report.name}: the FP16 tensor {widest.tensor} ({widest.op_type}) reaches {widest.share:.0%} of FP16's "
            f"range, allowed are {SHARE:.0%}"
        )


def check(sentences: Sequence[str]) -> None:
    """Refuses a bundle that passed a threshold.

    Raises:
        VerificationError: with all of them.
    """
    if not sentences:
        return
    mend = "Build the bundle again with these library versions."
    if any("fp16" in sentence.lower() for sentence in sentences):
        mend = (
            "Calibrate it again on a clip like this one (vsr-build calibrate BUNDLE --clip VIDEO --overwrite, "
            "with a lower --limit where a tensor is too wide), or run it in FP32."
        )
    raise VerificationError(f"the bundle does not pass: {'; '.join(sentences)}. {mend}")
