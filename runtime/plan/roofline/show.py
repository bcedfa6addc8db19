"""Predictions for the person at the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vsr_trt.runtime.plan.roofline.machines import Machine
from vsr_trt.runtime.plan.roofline.model import NOTE, Prediction, StageTime

_LEGEND = (
    "Peak rates all the time, one stage after another, no transfers, no blending of tiles: a run takes longer, unless "
    "it gets by with less work than is counted. See docs/roofline.md."
)


def show(console: Console, predictions: Sequence[Prediction]) -> None:
    """The stages at the first size, where there is one machine; a table of all; and where the rates come from."""
    machines = {prediction.machine.name: prediction.machine for prediction in predictions}
    if len(machines) == 1:
        first = predictions[0]
        _title(console, f"{first.machine.name}, {first.width}x{first.height}")
        console.print(_stages(first))
        console.print(
            f"[bold]{_ms(first.seconds)} ms, {_significant(first.fps)} frames a second[/] ({NOTE}{_clip(first)})\n",
            highlight=False,
        )
    if len(predictions) > 1:
        _title(console, "milliseconds (frames a second)")
        console.print(_summary(predictions))
    for machine in machines.values():
        console.print(_rates(machine), highlight=False, soft_wrap=True)
    console.print(f"[dim]{_LEGEND}", highlight=False)


def _clip(prediction: Prediction) -> str:
    return f"; a frame's share of {prediction.frames} that look at each other" if prediction.frames else ""


def _title(console: Console, text: str) -> None:
    """Above a table, which may be narrower."""
    console.print(f"[italic]{escape(text)}: [bold]{NOTE}", highlight=False)


def _summary(predictions: Sequence[Prediction]) -> Table:
    sizes = list(dict.fromkeys((p.width, p.height) for p in predictions))
    table = _table()
    table.add_column("")
    for width, height in sizes:
        table.add_column(f"{width}x{height}", justify="right")
    for name in dict.fromkeys(p.machine.name for p in predictions):
        found = {(p.width, p.height): p for p in predictions if p.machine.name == name}
        cells = [
            f"{_ms(p.seconds)} ({_significant(p.fps)})" if (p := found.get(size)) else "-" for size in sizes
        ]
        table.add_row(name, *cells)
    return table


def _stages(prediction: Prediction) -> Table:
    """One row a stage. Measured times take the place of the model's two."""
    measured = any(stage.measured is not None for stage in prediction.stages)
    table = _table()
    for name in ("stage", "runs", ""):
        table.add_column(name)
    two = ("measured", "times") if measured else ("compute", "memory")
    for name in ("TFLOP", "GB", *(() if measured else two), "ms"):
        table.add_column(name, justify="right")
    table.add_column("bound")
    for name in two if measured else ():
        table.add_column(name, justify="right")
    for stage in prediction.stages:
        both = () if measured else (_ms(stage.compute), _ms(stage.memory))
        row = (
            escape(stage.shape.stage),
            _runs(stage),
            stage.precision,
            f"{stage.flop / 1e12:.3f}",
            f"{stage.bytes / 1e9:.2f}",
            *both,
            _ms(stage.seconds),
            stage.bound,
        )
        table.add_row(*row, *(_compared(stage.measured, stage.seconds) if measured else ()))
    flop, moved = (sum(getattr(stage, name) for stage in prediction.stages) for name in ("flop", "bytes"))
    both = () if measured else ("", "")
    row = ("all", "", "", f"{flop / 1e12:.3f}", f"{moved / 1e9:.2f}", *both, _ms(prediction.seconds), "")
    table.add_section()
    table.add_row(*row, *(_compared(prediction.measured, prediction.seconds) if measured else ()))
    return table


def _runs(stage: StageTime) -> str:
    """How often, and height and width of what the network sees: latents, or the clip's pixels."""
    sizes = stage.shape.sizes
    pair = ("h", "w") if "h" in sizes else ("lr_h", "lr_w")
    runs = stage.shape.runs * stage.shape.steps
    sides = "x".join(str(sizes[name]) for name in pair if name in sizes)
    return f"{runs} of {sides}" if sides else str(runs)


def _compared(measured: float | None, predicted: float) -> tuple[str, str]:
    """Milliseconds, and how many times the prediction they are."""
    if measured is None:
        return "-", "-"
    return _ms(measured), f"{measured / predicted:.2f}" if predicted else "-"


def _rates(machine: Machine) -> str:
    fp16 = f"{machine.fp16 / 1e12:g} TFLOP/s FP16, " if machine.fp16 is not None else ""
    how = "these two were measured here, the times are a model" if machine.measured else "published"
    return (
        f"{escape(machine.name)}, {escape(machine.card)}: {fp16}{machine.fp32 / 1e12:.4g} TFLOP/s FP32, "
        f"{machine.bandwidth / 1e9:.4g} GB/s; {how}: {escape(machine.source)}."
    )


def _ms(seconds: float) -> str:
    milliseconds = seconds * 1e3
    digits = 2 if milliseconds < 10 else 1 if milliseconds < 1000 else 0
    return f"{milliseconds:.{digits}f}"


def _significant(number: float) -> str:
    """Three digits, without an exponent: 0.00786, 8.82, 214."""
    return f"{number:.0f}" if number >= 1000 else f"{number:#.3g}".rstrip(".")


def _table() -> Table:
    """Plain, so that a row is one line on a terminal of 80 columns."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0))
