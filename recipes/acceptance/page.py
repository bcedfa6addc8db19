"""The report as one HTML page: tables, and a plot of what was measured. It loads nothing from elsewhere."""

from __future__ import annotations

import html as markup
import io
import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; width: 100%; }
th, td { text-align: left; padding: .3em .8em; border-bottom: 1px solid #ddd; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.notice { background: #fff3cd; border: 1px solid #d9a400; padding: .6em 1em; font-weight: 600; }
.passed { color: #18794e; } .failed { color: #b4232a; font-weight: 600; } .not { color: #777; }
pre { background: #f5f5f5; padding: .8em; overflow-x: auto; font-size: 13px; }
svg { max-width: 100%; height: auto; }
"""
_SLOWEST = 8
_MACHINE = ("gpu", "system", "packages")
_WEIGHTS = {
    "random, of full size": "Networks are of full size with random weights: times and memory are those of trained "
    "ones, pictures are not.",
    "given": "Weights are the user's own; figures are those of networks of their size.",
}
_SOAK_POINTS = 600


def html(steps: Sequence[Mapping[str, Any]], count: int, about: Mapping[str, Any] | None = None) -> str:
    """The page.

    Args:
        steps: outcomes of the steps that were done, as JSON has them.
        count: of all steps.
        about: head of the report.
    """
    about = about or {}
    states = [str(step["state"]) for step in steps]
    summary = ", ".join(f"{states.count(state)} {state}" for state in ("passed", "failed", "not run"))
    rest = "" if len(steps) == count else f" {count - len(steps)} steps are still to be done."
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>vsr-trt: GPU acceptance</title>",
        f"<style>{_STYLE}</style><h1>GPU acceptance</h1>",
        _notice(about),
        f"<p>{summary} of {count}.{rest} {_WEIGHTS.get(about.get('weights', ''), '')}</p>",
        _machine(steps, about),
        _plot(steps),
        _graphs(steps),
        _memory(steps),
        _state(steps),
        _soak(steps),
        _kernels(steps),
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


def undrawn(why: str) -> str:
    """A page in place of one that could not be drawn."""
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>vsr-trt: GPU acceptance</title>"
        f"<h1>GPU acceptance</h1><p>The page cannot be drawn ({markup.escape(why)}); the JSON next to it "
        "has all of it.\n"
    )


def _notice(about: Mapping[str, Any]) -> str:
    stand_in = about.get("stand_in")
    if not stand_in:
        return ""
    return (
        f"<p class='notice'>No GPU was measured: {markup.escape(stand_in)} stood in for one. That the "
        "steps pass shows that the commands work; times, memory and clocks are no GPU's.</p>"
    )


def _machine(steps: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """What `doctor` and NVML, which benchmarks ask, say of it."""
    found = next((step["result"] for step in steps if step["name"] == "doctor"), None)
    rows = (
        [(name, _flat(found[name])) for name in _MACHINE if name in found] if isinstance(found, dict) else []
    )
    for _, result in _benches(steps):
        environment = result.get("environment", {})
        seen = environment.get("nvml")
        if seen:
            rows += [(name.replace("_", " "), _flat(value)) for name, value in seen["identity"].items()]
        else:
            rows.append(("NVML", environment.get("why_no_nvml", "")))
        break
    if isinstance(device := about.get("device"), dict):
        rows.append(("memory, GB", f"{device['memory'] / 1e9:.1f}"))
        rows.append(("CUDA, of the driver", str(device["driver"])))
    rows += [
        (name, _flat(about[name])) for name in ("version", "library", "extent", "created") if name in about
    ]
    return "<h2>Machine</h2>" + _table(("", ""), rows) if rows else ""


def _benches(steps: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Names and reports of the benchmarks."""
    return [
        (str(step["name"]).removeprefix("bench "), step["result"])
        for step in steps
        if isinstance(step["result"], dict) and isinstance(step["result"].get("modes"), dict)
    ]


def _graphs(steps: Sequence[Mapping[str, Any]]) -> str:
    """A frame's time with CUDA graphs, and without them, as it is when it is observed."""
    rows = [
        (
            name,
            title,
            str(mode["slots"]),
            f"{mode['latency']['summary']['median'] * 1e3:.1f}",
            f"{mode['observed']['latency']['summary']['median'] * 1e3:.1f}",
        )
        for name, result in _benches(steps)
        for title, mode in result["modes"].items()
        if mode.get("observed") and mode.get("slots")
    ]
    heads = ("benchmark", "mode", "slots", "with graphs, ms", "step by step, with events around each, ms")
    return "<h2>Graphs and slots: latency of a frame, median</h2>" + _table(heads, rows) if rows else ""


def _memory(steps: Sequence[Mapping[str, Any]]) -> str:
    """What was planned, what contexts and graphs took besides, and what NVML saw of the whole GPU."""
    rows = []
    for name, result in _benches(steps):
        seen = result.get("environment", {}).get("nvml") or {}
        during = seen.get("during") or {}
        for title, mode in result["modes"].items():
            planned = mode.get("memory") or {}
            rows.append(
                (
                    *(name, title),
                    *(_megabytes(planned.get(part)) for part in ("buffers", "contexts", "pinned")),
                    _megabytes((seen.get("before") or {}).get("memory_used")),
                    _megabytes(during.get("memory_used")),
                    _megabytes((seen.get("after") or {}).get("memory_used")),
                )
            )
    ours = ("planned and allocated", "contexts and graphs", "pinned, of the host")
    heads = ("benchmark", "mode", *ours, "GPU before", "at most", "after close")
    return "<h2>Memory, MB</h2>" + _table(heads, rows) if rows else ""


def _megabytes(count: Any) -> str:
    return "" if count is None else f"{count / 1e6:.1f}"


def _state(steps: Sequence[Mapping[str, Any]]) -> str:
    """Clocks, power and heat while it was measured, and what held the clocks down."""
    rows = []
    for name, result in _benches(steps):
        during = (result.get("environment", {}).get("nvml") or {}).get("during")
        if not during:
            continue
        ranges = [
            f"{found['min']:.0f} / {found['mean']:.0f} / {found['max']:.0f}" if found else ""
            for found in (during["sm_clock"], during["power"], during["temperature"])
        ]
        held = ", ".join(f"{reason} {share:.0%}" for reason, share in during["reasons"].items()) or "nothing"
        rows.append((name, str(during["samples"]), *ranges, held))
    heads = ("benchmark", "samples", "SM clock, MHz", "power, W", "degrees Celsius", "held the clocks down")
    return "<h2>The GPU while it was measured: least / mean / most</h2>" + _table(heads, rows) if rows else ""


def _soak(steps: Sequence[Mapping[str, Any]]) -> str:
    """Frames a second over the time of the longest benchmark of throughput."""
    found = [
        (name, tuple(result["modes"]["throughput"]["interval"]["samples"]))
        for name, result in _benches(steps)
        if result["modes"].get("throughput", {}).get("interval", {}).get("samples")
    ]
    if not found:
        return ""
    name, intervals = max(found, key=lambda one: sum(one[1]))
    return _drawn_soak(name, intervals)


@cache
def _drawn_soak(name: str, intervals: tuple[float, ...]) -> str:
    each = -(-len(intervals) // _SOAK_POINTS)
    times, rates, passed = [], [], 0.0
    for start in range(0, len(intervals), each):
        part = intervals[start : start + each]
        passed += sum(part)
        times.append(passed)
        rates.append(len(part) / sum(part) if sum(part) else 0.0)
    figure = _figure(9, 2.6)
    axes = figure.add_subplot()
    axes.plot(times, rates, color="#3b6fb6", linewidth=1, marker="." if len(times) < 50 else "")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds")
    axes.set_title(f"frames a second, {name}", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return "<h2>Without a break</h2>" + _svg(figure)


def _kernels(steps: Sequence[Mapping[str, Any]]) -> str:
    """The attention's forms."""
    rows = []
    for step in steps:
        found = step["result"].get("measured") if isinstance(step["result"], dict) else None
        for row in found if isinstance(found, list) else ():
            median = f"{statistics.median(row['seconds']) * 1e3:.3f}"
            rows.append((row["form"], f"{row['height']}x{row['width']}", median, f"{row['difference']:.1e}"))
    heads = ("form", "latents", "ms, median", "largest difference, relative")
    return "<h2>The attention's forms</h2>" + _table(heads, rows) if rows else ""


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name} {_flat(inner)}" for name, inner in value.items() if inner is not None)
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
    figure = _figure(9, 1.2 + 0.35 * len(found))
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
    return "<h2>Measured</h2>" + _svg(figure)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _svg(figure: Any) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
