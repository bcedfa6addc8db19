"""The codecs and containers that a restored video is written in."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import av

from vsr_trt.runtime.errors import InputError


@dataclass(frozen=True, slots=True)
class Codec:
    """An encoder and how it is asked for the quality that a restored clip deserves.

    encoder: FFmpeg's name. crf: its default constant rate factor, None if it has none. crf_max: the
    largest. options: what else it is given. tag: four letters by which Apple's players know it in MP4.
    limited_only: its stream cannot say "full range".
    """

    encoder: str
    pixel_format: str = "yuv420p"
    crf: int | None = None
    crf_max: int = 51
    options: dict[str, str] = field(default_factory=dict)
    tag: str | None = None
    limited_only: bool = False


CODECS: dict[str, Codec] = {
    "h264": Codec("libx264", crf=17, options={"preset": "medium"}),
    "hevc": Codec(
        "libx265", crf=19, options={"preset": "medium", "x265-params": "log-level=error"}, tag="hvc1"
    ),
    "av1": Codec("libsvtav1", crf=24, crf_max=63, options={"preset": "6"}),
    "vp9": Codec(
        "libvpx-vp9", crf=22, crf_max=63, options={"deadline": "good", "cpu-used": "2", "row-mt": "1"}
    ),
    # lossless, in RGB: nothing is lost in a conversion either
    "ffv1": Codec("ffv1", pixel_format="bgr0", options={"level": "3", "slicecrc": "1", "slices": "4"}),
    "prores": Codec("prores_ks", pixel_format="yuv422p10le", options={"profile": "hq"}, limited_only=True),
}

CONTAINERS: dict[str, str] = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
}
_DEFAULTS = {"webm": "vp9"}
_DEFAULT = "h264"


def is_video_name(path: Path) -> bool:
    """Whether the suffix of `path` is that of a video container that can be written."""
    return path.suffix.lower() in CONTAINERS


def pick(container: str, name: str | None) -> Codec:
    """The codec called `name`, or the container's default; InputError if it is unknown or not built in."""
    name = name or _DEFAULTS.get(container, _DEFAULT)
    codec = CODECS.get(name.lower())
    if codec is None:
        raise InputError(f"there is no codec '{name}'; choose one of {', '.join(CODECS)}.")
    if codec.encoder not in av.codecs_available:
        raise InputError(f"this FFmpeg has no encoder {codec.encoder} for {name}; choose another codec.")
    return codec


def crf_option(name: str | None, codec: Codec, crf: int | None) -> dict[str, str]:
    """The encoder option for the quality; InputError if `crf` is out of range or has no meaning here."""
    if codec.crf is None:
        if crf is not None:
            raise InputError(f"crf has no meaning for {name}, whose quality is fixed; leave it out.")
        return {}
    if crf is not None and not 0 <= crf <= codec.crf_max:
        raise InputError(f"crf {crf} is out of range; {codec.encoder} takes 0 (best) to {codec.crf_max}.")
    return {"crf": str(codec.crf if crf is None else crf)}


def holders(codec: Codec) -> list[str]:
    """The suffixes of the containers that can hold `codec`."""
    return [suffix for suffix, container in CONTAINERS.items() if holds(container, codec)]


def holds(container: str, codec: Codec) -> bool:
    """Whether the muxer named `container` takes the codec."""
    with av.open(io.BytesIO(), "w", format=container) as probe:
        try:
            probe.add_stream(codec.encoder)
        except ValueError:
            return False
    return True
