"""What differs between model families at run time: which stages may run beside which."""

from __future__ import annotations

from collections.abc import Mapping

from vsr_trt.runtime.families import dloral

_LANES: dict[str, Mapping[str, str]] = {"dloral": dloral.LANES}


def lane(family: str, stage: str) -> str:
    """The lane that a stage runs on. A family that is not listed here has all its stages on one."""
    return _LANES.get(family, {}).get(stage, "compute")
