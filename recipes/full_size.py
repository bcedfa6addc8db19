"""What the full-size runs of all families have in common."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress

Model = TypeVar("Model")
Advance = Callable[[str, float], None]
"""Is passed a file's name and the share of all bytes written, 0 to 1."""


def write_weights(console: Console, write: Callable[[Advance], Model]) -> Model:
    """Writes random weights, and shows how far that is."""
    console.rule("1. random weights of full size, in the published layouts")
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("writing", total=1.0)
        return write(lambda file, share: progress.update(task, completed=share))


def has_compiler(console: Console) -> bool:
    """Whether TensorRT-RTX, which needs no GPU, is installed; says so where it is not."""
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        return True
    console.print("TensorRT-RTX is not installed: no engines are compiled (pip install 'vsr-trt[rtx]')")
    return False


def engines_line(made: Mapping[str, Any], what: str) -> str:
    """What `vsr-build engines --json` printed, in a sentence; `what` they are for."""
    reports = [engine["report"] for engine in made["engines"]]
    weights = sum(found["weights"] for found in reports)
    scratch = max(found["activations"] for found in reports)
    return (
        f"{len(reports)} engines for {what}, FP16: {made['seconds']:.0f} s, "
        f"{max(found['peak_memory'] for found in reports) / 1e9:.1f} GB of memory for the largest build; on a GPU "
        f"{weights / 1e9:.2f} GB of weights and {scratch / 1e9:.2f} GB of activations (as the builder reports it)"
    )


def say_stale(console: Console) -> None:
    """Says that the counts which are written down are of other networks."""
    console.print(
        "[bold red]error:[/] vsr doctor estimates by other networks than these; write theirs down from a bundle "
        "that was kept (--keep), as recipes/counts.py says"
    )
