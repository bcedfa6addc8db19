"""The report as one HTML page: tables, and a plot of what was measured. It loads nothing from elsewhere."""

from __future__ import annotations

import html as markup
import io
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; width: 100%; }
th, td { text-align: left; padding: .3em .8em; border-bottom: 1px solid #ddd; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.passed { color: #18794e; } .failed { color: #b4232a; font-weight: 600; } .not { color: #777; }
pre { background: #f5f5f5; padding: .8em; overflow-x: auto; font-size: 13px; }
svg { max-width: 100%; height: auto; }
"""
_SLOWEST = 8
_MACHINE = ("gpu", "driver", "backends", "system", "packages", "memory")


def html(steps: Sequence[Mapping[str, Any]], count: int) -> str:
    """The page.

    Args:
        steps: outcomes of the steps that were done, as JSON has them.
        count: of all steps.
    """
    states = [str(step["state"]) for step in steps]
    summary = ", ".join(f"{states.count(state)} {state}" for state in ("passed", "failed", "not run"))
    rest = "" if len(steps) == count else f" {count - len(steps)} steps are still to be done."
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>vsr-trt: GPU acceptance</title>",
        f"<style>{_STYLE}</style><h1>GPU acceptance</h1>",
        f"<p>{summary} of {count}.{rest} Networks are of full size with random weights: times and memory are those of "
        "trained ones, pictures are not.</p>",
        _machine(steps),
        _plot(steps),
        _predictions(steps),
        _layers(steps),
        _steps(steps),
        *(_details(step) for step in steps if step["said"]),
    ]
    return "\n".join(part for part in parts if part) + "\n"


def figures(result: Any) -> tuple[str, str]:
    """Frames a second and median latency in ms of a bench report, else nothing."""
    fps, latency = measured(result)
    return ("" if fps is None else f"{fps:.1f}", "" if latency is None else f"{latency:.1f}")


def measured(result: Any) -> tuple[float | None, float | None]:
    """The same as numbers."""
    modes = result.get("modes", {}) if isinstance(result, dict) else {}
    try:
        fps = float(modes["throughput"]["fps"])
    except (KeyError, TypeError, ValueError):
        fps = None
    try:
        latency = float(modes["latency"]["latency"]["summary"]["median"]) * 1e3
    except (KeyError, TypeError, ValueError):
        latency = None
    return fps, latency


def _machine(steps: Sequence[Mapping[str, Any]]) -> str:
    doctor = next((step["result"] for step in steps if step["name"] == "doctor"), None)
    if not isinstance(doctor, dict):
        return ""
    rows = [(name, _flat(doctor[name])) for name in _MACHINE if name in doctor]
    return "<h2>Machine</h2>" + _table(("", ""), rows)


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name} {_flat(inner)}" for name, inner in value.items())
    return ", ".join(map(_flat, value)) if isinstance(value, list) else str(value)


def _predictions(steps: Sequence[Mapping[str, Any]]) -> str:
    """What the roofline says of each stage, next to what was measured."""
    rows = []
    for step in steps:
        found = step["result"].get("roofline") if isinstance(step["result"], dict) else None
        for prediction in found["predictions"] if found else ():
            for stage in prediction["stages"]:
                rows.append((prediction["size"], stage["stage"], *_pair(stage)))
            whole = {"seconds": prediction["seconds"], "measured_seconds": prediction["measured_seconds"]}
            rows.append((prediction["size"], "all", *_pair(whole)))
    heads = ("size", "stage", "roofline, ms", "measured, ms", "of the roofline")
    return "<h2>Predicted and measured</h2>" + _table(heads, rows) if rows else ""


def _pair(values: Mapping[str, Any]) -> tuple[str, str, str]:
    predicted, measured = values["seconds"], values["measured_seconds"]
    if not measured:
        return f"{predicted * 1e3:.2f}", "", ""
    return f"{predicted * 1e3:.2f}", f"{measured * 1e3:.2f}", f"{predicted / measured:.0%}"


def _layers(steps: Sequence[Mapping[str, Any]]) -> str:
    """The slowest layers of each engine that was verified."""
    rows = []
    for step in steps:
        networks = step["result"].get("networks") if isinstance(step["result"], dict) else None
        for network in networks.values() if isinstance(networks, dict) else ():
            for engine in network.get("engines", ()):
                layers = sorted(engine.get("layers", {}).items(), key=lambda item: -item[1])
                total = sum(seconds for _, seconds in layers)
                size = str(step["name"]).removeprefix("verify ")
                rows += [
                    (size, engine["file"], name, f"{seconds * 1e3:.3f}", f"{seconds / total:.0%}")
                    for name, seconds in layers[:_SLOWEST]
                    if total
                ]
    heads = ("frames", "engine", "layer", "ms", "of the engine")
    return f"<h2>The {_SLOWEST} slowest layers of each engine</h2>" + _table(heads, rows) if rows else ""


def _steps(steps: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for step in steps:
        fps, latency = figures(step["result"])
        seconds = f"{step['seconds']:.0f}" if step["exit_code"] is not None else ""
        rows.append((step["name"], step["state"], seconds, fps, latency, _extra(step["result"])))
    return "<h2>Steps</h2>" + _table(("step", "", "seconds", "frames a second", "latency, ms", ""), rows)


def _extra(result: Any) -> str:
    """What a step's result says besides times."""
    if not isinstance(result, dict):
        return ""
    if "psnr" in result:
        return f"{min(result['psnr']):.1f} dB from the CPU's"
    if "not_run" in result:
        left = sum(result["not_run"].values())
        return f"tests: {result['passed']} passed, {len(result['failed'])} failed, {left} not run"
    if isinstance(result.get("load_seconds"), int | float):
        return f"loaded in {result['load_seconds']:.1f} s"
    return str(result["engines"]) if isinstance(result.get("engines"), str) else ""


def _details(step: Mapping[str, Any]) -> str:
    text = markup.escape("\n".join(map(str, step["said"])))
    name, command = markup.escape(step["name"]), markup.escape(step["command"])
    return f"<h3>{name}: {step['state']}</h3><p><code>{command}</code></p><pre>{text}</pre>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["<table><tr>", *(f"<th>{markup.escape(head)}</th>" for head in heads), "</tr>"]
    for row in rows:
        cells = []
        for cell in row:
            kind = cell.split()[0] if cell in ("passed", "failed", "not run") else ""
            kind = kind or ("number" if cell.replace(".", "", 1).isdigit() else "")
            cells.append(
                f"<td class='{kind}'>{markup.escape(cell)}</td>"
                if kind
                else f"<td>{markup.escape(cell)}</td>"
            )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "".join([*lines, "</table>"])


def _plot(steps: Sequence[Mapping[str, Any]]) -> str:
    """Frames a second and latency of every bench; nothing before the first is done."""
    found = [(str(step["name"]), *measured(step["result"])) for step in steps]
    return _drawn(tuple(one for one in found if one[1] is not None or one[2] is not None))


@cache  # the page is written after every step, and few of them are measurements
def _drawn(found: tuple[tuple[str, float | None, float | None], ...]) -> str:
    if not found:
        return ""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.35 * len(found)), layout="constrained")
    FigureCanvasSVG(figure)
    names = [name.removeprefix("bench ") for name, _, _ in found]
    for place, title in ((1, "frames a second"), (2, "latency, ms (median)")):
        axes = figure.add_subplot(1, 2, place)
        values = [one[place] or 0.0 for one in found]
        bars = axes.barh(names, values, color="#3b6fb6" if place == 1 else "#b6763b")
        axes.bar_label(bars, [f"{value:.1f}" if value else "" for value in values], padding=3)
        axes.set_title(title, loc="left", fontsize=10)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        if place == 2:
            axes.set_yticklabels([])
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return "<h2>Measured</h2>" + text[text.index("<svg") :]
