"""Manifests of schema version 1, which knew one family: what its code took for granted is written out as data."""

from __future__ import annotations

from typing import Any

from vsr_trt.runtime.bundle.records import MisfitError

_TILINGS = {
    "latent": {"side": 96, "overlap": 32},
    "vae": {
        **{"side": 96, "overlap": 16, "window": "ramp", "square": False, "together": False},
        **{"share": 4, "exact": True, "engine_side": 136},
    },
}
_ENCODE = 3  # the stages that a frame goes through before its predecessor's latent is needed
_HELP = {"color": "align colours to the input's: by mean and deviation, by low frequencies, or not"}


def migrated(data: dict[str, Any]) -> dict[str, Any]:
    """The same manifest in schema version 2; what does not fit is left to be found there.

    Raises:
        MisfitError: a field that is needed for it is missing or of another type.
    """
    data = dict(data)
    try:
        multiple, scale = data.pop("frame_multiple"), data["scale"]
        data["canvas"] = {
            "least": [data.pop("minimum_side")] * 2,
            "multiple": multiple // scale,
            "small": "enlarge",
        }
        data.pop("window")
        stages = [dict(stage) for stage in data["stages"]]
        for index, stage in enumerate(stages):
            stage["lane"] = "encode" if index < _ENCODE else "decode"
        data["stages"] = stages
        used = {stage.get("tiling") for stage in stages}
        data["tilings"] = {name: tiling for name, tiling in _TILINGS.items() if name in used}
        variants = {stage["option"]: list(stage["variants"]) for stage in stages if stage.get("option")}
        data["options"] = {
            name: {
                **{"type": "choice", "default": default, "choices": variants[name]},
                "help": _HELP.get(name, "chosen among variants of a network"),
            }
            for name, default in data.pop("option_defaults").items()
        }
        data["inputs"] = {
            name: {"source": "frame"} if file is None else {"source": "file", "name": file}
            for name, file in data["inputs"].items()
        }
    except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError) as error:
        raise MisfitError(f"a field of schema version 1 is missing or of another type ({error})") from error
    data["schema_version"] = 2
    return data
