"""What a bundle is asked to be made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vsr_trt.kernels.gpu.store import Store


@dataclass(frozen=True)
class BundleRequest:
    """What to make a bundle from.

    Attributes:
        checkpoint: of a family that is known, as published or as safetensors; its tensors' names tell which.
        out: the bundle's directory; it appears whole or not at all.
        parts: directories of what the family's bundles are made from besides, by the names that the family gives them.
        family: its name, None to recognise it.
        stage: which adapters count fully: all six, or the three for consistency.
        adapters: weights of single adapters that override the stage's.
        prompt: text that conditions the restoration, None for the family's own.
        canvas: least height and width that frames are worked on, in pixels of the result; None for the family's own,
            which is the only exact one.
        negative_prompt: text that it is led away from, None for the family's own.
        top_k: positions the cross-frame attention retrieves, None for all (the published weights).
        precision: storage and arithmetic of the heavy networks.
        kernels: compile the GPU kernels for every target; None to do so where Triton is installed, and to note
            it where not.
        kernel_store: where compiled kernels are looked for and kept, None to compile them in any case.
        plain: write each network's graph without local functions, too, for readers that know none.
        overwrite: replace an existing bundle.
        jobs: networks that are exported at once, 1 or 2; None for 2 where cores and memory allow.
    """

    checkpoint: Path
    out: Path
    parts: Mapping[str, Path] = field(default_factory=dict)
    family: str | None = None
    stage: Literal["both", "consistency"] = "both"
    adapters: Mapping[str, float] = field(default_factory=dict)
    prompt: str | None = None
    negative_prompt: str | None = None
    canvas: tuple[int, int] | None = None
    top_k: int | None = None
    precision: Literal["fp32", "fp16"] = "fp32"
    kernels: bool | None = None
    kernel_store: Store | None = None
    plain: bool = False
    overwrite: bool = False
    jobs: int | None = None
