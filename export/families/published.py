"""What is published of each family, by its name. Imports nothing heavy: it is read for `--help`."""

from __future__ import annotations

from vsr_trt.export.families.dloral import published as dloral
from vsr_trt.export.families.star import published as star
from vsr_trt.export.published import Part, Wanted

FAMILIES: dict[str, Wanted] = {"dloral": dloral.WANTED, "star": star.WANTED}


def parts() -> dict[str, tuple[Part, list[str]]]:
    """What bundles are made from besides a checkpoint: flag -> its part, and the families that need it."""
    found: dict[str, tuple[Part, list[str]]] = {}
    for name, wanted in FAMILIES.items():
        for part in wanted.parts:
            if part.flag:
                found.setdefault(part.flag, (part, []))[1].append(name)
    return found
