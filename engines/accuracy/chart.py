"""The picture of a verification: error by network, room in FP16's range, PSNR of the final frames."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

from vsr_trt.engines.accuracy import gate

if TYPE_CHECKING:
    from vsr_trt.engines.accuracy.verify import VerifyReport

_COLOURS = {"fp16 from fp32": "#0072b2", "fp16 from torch": "#d55e00", "fp32 from torch": "#009e73"}
_LEAST = 1e-8  # errors below this are drawn here


def draw(report: VerifyReport) -> bytes:
    """A PNG: for each network a dot for the 99.9 % error and a line up to the largest one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(report.networks)
    figure = Figure(figsize=(11, 2.1 + 0.52 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    errors, shares = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1.3))
    _draw_errors(errors, report)
    _draw_shares(shares, report)
    errors.set_yticks(range(rows), [network.name for network in report.networks])
    errors.set_ylim(rows - 0.5, -0.5)
    figure.suptitle(_title(report), fontsize=11, x=0.01, ha="left")
    figure.legend(*errors.get_legend_handles_labels(), loc="upper right", fontsize=9, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _title(report: VerifyReport) -> str:
    verdict = "passed" if not report.failures else f"not passed ({len(report.failures)})"
    lines = [f"{report.bundle.name}, {report.clip.count} of {report.clip.path.name}: {verdict}"]
    for entry in report.chain:
        least = min(entry.psnr)
        shown = "the same bytes" if math.isinf(least) else f"{least:.1f} dB or more"
        lines.append(f"final frames, {entry.what.replace('fp', 'FP')}: {shown}")
    return "\n".join(lines)


def _draw_errors(axes: Any, report: VerifyReport) -> None:
    kinds = [kind for kind in _COLOURS if any(kind in network.differences for network in report.networks)]
    for index, kind in enumerate(kinds):
        offset = (index - (len(kinds) - 1) / 2) * 0.22
        colour = _COLOURS[kind]
        places, quantiles, largest = [], [], []
        for row, network in enumerate(report.networks):
            if (found := network.differences.get(kind)) is not None:
                places.append(row + offset)
                quantiles.append(_shown(found.quantile))
                largest.append(_shown(found.max))
        axes.hlines(places, quantiles, largest, color=colour, linewidth=1.5, alpha=0.6)
        axes.plot(quantiles, places, "o", color=colour, markersize=6, label=kind.replace("fp", "FP"))
        axes.plot(largest, places, "|", color=colour, markersize=8)
    for row, network in enumerate(report.networks):
        if network.integers and network.differences:
            right = max(_shown(found.max) for found in network.differences.values())
            axes.annotate(
                "u8: one level is 0.0039",
                (right, row),
                xytext=(0, 9),
                textcoords="offset points",
                fontsize=8,
                color="#888888",
                ha="center",
            )
    for value, colour, needed in (
        (gate.HALF_ERROR, _COLOURS["fp16 from fp32"], any(kind.startswith("fp16") for kind in kinds)),
        (gate.SINGLE_ERROR, _COLOURS["fp32 from torch"], "fp32 from torch" in kinds),
    ):
        if needed:
            _limit(axes, value, colour)
    axes.set_xscale("log")
    axes.set_xlabel("error in units of the largest value: ● 99.9 % of the numbers, | the largest", fontsize=9)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _limit(axes: Any, value: float, colour: str) -> None:
    axes.axvline(value, color=colour, linestyle="--", linewidth=1)
    axes.annotate(
        f"limit {value:g}",
        (value, 0),
        xycoords=("data", "axes fraction"),
        xytext=(-3, 4),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=colour,
    )


def _shown(value: float) -> float:
    return min(max(value, _LEAST), 10.0)


def _draw_shares(axes: Any, report: VerifyReport) -> None:
    for row, network in enumerate(report.networks):
        widest = network.widest_half
        if widest is None:
            note = "FP32 in every bundle" if network.always_fp32 else "no FP16 graph"
            axes.text(
                0.02,
                row,
                note,
                fontsize=8,
                color="#888888",
                va="center",
                transform=axes.get_yaxis_transform(),
            )
            continue
        share = min(max(widest.share, 1e-6), 1.0)
        axes.plot([share], [row], "o", color=_COLOURS["fp16 from fp32"], markersize=6)
        axes.annotate(
            f"{widest.share:.2%}",
            (share, row),
            xytext=(0, 7),
            textcoords="offset points",
            fontsize=8,
            ha="center",
        )
    _limit(axes, gate.SHARE, _COLOURS["fp16 from fp32"])
    axes.set_xscale("log")
    axes.set_xlim(1e-5, 1.5)
    axes.set_xlabel("widest FP16 tensor, share of FP16's range", fontsize=9)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
