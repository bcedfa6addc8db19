"""Between the YUV samples of a video and 8-bit RGB: matrix, range and orientation.

swscale does the arithmetic. It is given the matrix and the range of both sides on every call, because
what it assumes on its own (BT.601, limited) is wrong for most HD clips. The tests compare its results
with the matrices of the standards.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.container
import av.filter
import av.logging
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from vsr_trt.runtime.errors import InputError

# Code points of ITU-T H.273, as FFmpeg's AVColorSpace / Primaries / Transfer / Range number them.
MATRIX_RGB = 0
MATRIX_BT709 = 1
MATRIX_BT470BG = 5
MATRIX_SMPTE170M = 6
UNSPECIFIED = 2
PRIMARIES_BT709 = 1
PRIMARIES_BT470BG = 5
PRIMARIES_SMPTE170M = 6
PRIMARIES_BT2020 = 9
TRANSFER_BT709 = 1
TRANSFER_PQ = 16
TRANSFER_HLG = 18
FULL_RANGE = 2
LIMITED_RANGE = 1

WRITTEN_SITING = "left"  # of chroma samples: what players expect of everything that is written
# FFmpeg's decoders whose chroma lies between the pixels where nothing is said
_CENTRED = frozenset(
    (
        *("mjpeg", "mjpegb", "ljpeg", "amv", "mpeg1video", "h261", "h263", "h263p", "h263i", "flv", "flv1"),
        *("rv10", "rv20", "theora", "vp3", "vp4", "vp5", "vp6", "vp6f", "vp6a", "vp8", "svq1", "svq3"),
        "tiff",
    )
)
_SITINGS = ("left", "center", "topleft", "top", "bottomleft", "bottom")
_log_level = threading.Lock()  # it is the whole process's
_RESERVED = (0, 3)  # of primaries and transfers: no meaning, treated as unspecified
_BT2020_MATRICES = (9, 10)
# AVColorSpace -> the number by which swscale knows the same coefficients
_SWS_COEFFICIENTS = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7}
_HD_LINES = 720
_RGB = "RGB"
_CHROMA = {  # pixels across and down that share one sample of colour
    _RGB: (1, 1),
    "4:4:4": (1, 1),
    "4:4:0": (1, 2),
    "4:2:2": (2, 1),
    "4:2:0": (2, 2),
    "4:1:1": (4, 1),
    "4:1:0": (4, 4),
}

# Full chroma interpolation and accurate rounding: without them swscale takes shortcuts worth 3-4 levels.
_QUALITY = (
    Interpolation.BICUBIC
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.ACCURATE_RND
)


_EXPAND = ((np.arange(256) - 16) * 255 / 219).round().clip(0, 255).astype(np.uint8)  # limited to full


@dataclass(frozen=True, slots=True)
class ColorTags:
    """What YUV samples mean, in the code points of ITU-T H.273. Never unspecified in matrix or range."""

    matrix: int
    primaries: int
    transfer: int
    full_range: bool


RGB_PICTURE = ColorTags(MATRIX_BT709, PRIMARIES_BT709, TRANSFER_BT709, full_range=False)


def tags_of(frame: VideoFrame, primaries: int, transfer: int) -> ColorTags:
    """The tags of a decoded frame, guessed as players guess where the clip says nothing.

    `primaries` and `transfer` are the decoder's. What is untagged is BT.601 below 720 lines and BT.709 from
    there on, limited range. RGB formats get the tags that their YUV output shall have. InputError for high
    dynamic range and for matrices that cannot be converted.
    """
    refuse_hdr(frame.colorspace, primaries, transfer)
    if _is_rgb(frame.format):
        return RGB_PICTURE
    primaries = UNSPECIFIED if primaries in _RESERVED else primaries
    transfer = UNSPECIFIED if transfer in _RESERVED else transfer
    matrix = frame.colorspace
    if matrix in (UNSPECIFIED, MATRIX_RGB, 3):
        matrix = MATRIX_BT709 if frame.height >= _HD_LINES else MATRIX_SMPTE170M
    if matrix not in _SWS_COEFFICIENTS:
        raise InputError(
            f"the colours are coded with matrix {matrix} of ITU-T H.273, which cannot be converted; "
            "convert the clip to BT.709 first."
        )
    full = frame.color_range == FULL_RANGE or frame.format.name.startswith("yuvj")
    if primaries == UNSPECIFIED:
        primaries = _guess_primaries(frame.height, matrix)
    if transfer == UNSPECIFIED:
        transfer = TRANSFER_BT709  # the same curve in BT.601
    return ColorTags(matrix, primaries, transfer, full)


def _guess_primaries(height: int, matrix: int) -> int:
    """The primaries that players assume for an untagged clip of this height; they decide by size, too."""
    if matrix != MATRIX_BT709 and height in (576, 288):
        return PRIMARIES_BT470BG
    if matrix != MATRIX_BT709 and height in (480, 486, 240):
        return PRIMARIES_SMPTE170M
    return PRIMARIES_BT709


def refuse_hdr(matrix: int, primaries: int, transfer: int) -> None:
    """InputError if these tags mean high dynamic range or the BT.2020 gamut."""
    if transfer in (TRANSFER_PQ, TRANSFER_HLG):
        what = "HDR video (" + ("PQ" if transfer == TRANSFER_PQ else "HLG") + ")"
    elif primaries == PRIMARIES_BT2020 or matrix in _BT2020_MATRICES:
        what = "wide-gamut video (BT.2020)"
    else:
        return
    raise InputError(
        f"this is {what}; only SDR in BT.709 or BT.601 can be restored without spoiling its colours. "
        "Tone-map it first: ffmpeg -i IN -vf zscale=t=linear:npl=100,tonemap=hable,"
        "zscale=p=bt709:t=bt709:m=bt709:r=tv,format=yuv420p OUT"
    )


def _is_rgb(pixel_format: av.VideoFormat) -> bool:
    """Whether the samples are RGB already, so that no matrix applies."""
    return pixel_format.is_rgb or pixel_format.has_palette


def bit_depth(frame: VideoFrame) -> int:
    """Bits of the deepest component of the frame's format."""
    return max(component.bits for component in frame.format.components)


def has_alpha(frame: VideoFrame) -> bool:
    """Whether the frame's format has an alpha channel."""
    return any(component.is_alpha for component in frame.format.components)


def is_transparent(frame: VideoFrame) -> bool:
    """Whether any pixel of the frame is not opaque; decoders of WebP invent an alpha channel."""
    return has_alpha(frame) and bool((frame.to_ndarray(format="rgba")[..., 3] < 255).any())


def _is_gray(pixel_format: av.VideoFormat) -> bool:
    # not by `is_chroma`, which PyAV denies of the full-size chroma of 4:4:4
    return not _is_rgb(pixel_format) and sum(not part.is_alpha for part in pixel_format.components) == 1


def chroma_of(pixel_format: av.VideoFormat) -> str | None:
    """How densely a format samples colour: "4:2:0" and the like, or "RGB"; None for grey."""
    if _is_rgb(pixel_format):
        return _RGB
    if _is_gray(pixel_format):
        return None
    shared = 16 // pixel_format.chroma_width(16), 16 // pixel_format.chroma_height(16)
    return next((name for name, pixels in _CHROMA.items() if pixels == shared and name != _RGB), None)


def is_coarser(chroma: str | None, other: str | None) -> bool:
    """Whether more pixels share a sample of colour in `chroma` than in `other`; never if one is None."""
    if chroma is None or other is None:
        return False
    return any(a > b for a, b in zip(_CHROMA[chroma], _CHROMA[other], strict=True))


def _through(frame: VideoFrame, name: str, arguments: str) -> VideoFrame:
    """What one of FFmpeg's filters makes of the frame; samples are not copied."""
    graph = av.filter.Graph()
    unit = frame.time_base or Fraction(1, 1000)
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=unit)
    step, end = graph.add(name, arguments), graph.add("buffersink")
    source.link_to(step)
    step.link_to(end)
    graph.configure()
    graph.push(frame)
    result = graph.pull()
    assert isinstance(result, VideoFrame)
    return result


def sited(frame: VideoFrame, siting: str) -> VideoFrame:
    """The frame, with its chroma samples said to lie at `siting`: swscale takes what is unsaid for the centre.

    siting: as FFmpeg names it: "left", "center", "topleft" ...
    """
    return _through(frame, "setparams", f"chroma_location={siting}")


def siting_unsaid(codec: str, pixel_format: av.VideoFormat) -> str | None:
    """Where the chroma samples of a codec lie when a clip does not say; None if it makes no difference.

    Between the pixels in the codecs and formats that take after JPEG and MPEG-1, else with the left ones, as everything
    since MPEG-2 has it and as players show it.
    """
    if chroma_of(pixel_format) in (None, _RGB, "4:4:4", "4:4:0"):
        return None
    return "center" if codec in _CENTRED or pixel_format.name.startswith("yuvj") else "left"


def siting_of(container: av.container.InputContainer, video: VideoStream) -> str | None:
    """What a clip says about where its chroma samples lie, as FFmpeg names it; None if it says nothing.

    PyAV does not hand it on; FFmpeg's description of the streams has it, at a level of its log that only it looks at.
    """
    with _log_level:
        before = av.logging.get_level()
        av.logging.set_level(av.logging.VERBOSE)  # of PyAV's handler, and of FFmpeg itself
        av.logging.set_libav_level(av.logging.VERBOSE)
        try:
            lines = container.dumps_format().splitlines()  # type: ignore[attr-defined]
        finally:
            av.logging.set_libav_level(av.logging.INFO)
            av.logging.set_level(before)
    mark = re.compile(rf"\s*Stream #\d+:{video.index}(?!\d).*?: Video: ")
    line = next((line for line in lines if mark.match(line)), "")
    words = re.search(rf"\b{re.escape(video.codec_context.pix_fmt or '?')}\(([^)]*)\)", line)
    said = [word.strip() for word in words[1].split(",")] if words else []
    return next((word for word in said if word in _SITINGS), None)


def to_rgb(
    reformatter: VideoReformatter, frame: VideoFrame, tags: ColorTags, siting: str | None = None
) -> np.ndarray:
    """`frame`, in any format, as (H, W, 3) uint8 full-range RGB, C-contiguous. Alpha is dropped.

    siting: where its chroma samples lie, None if the frame says it. InputError if swscale cannot read the
    frame's format.
    """
    if siting is not None:
        frame = sited(frame, siting)
    try:
        if _is_rgb(frame.format) or _is_gray(frame.format):
            out = reformatter.reformat(frame, format="rgb24", interpolation=_QUALITY)
        else:
            out = reformatter.reformat(
                frame,
                format="rgb24",
                src_colorspace=_SWS_COEFFICIENTS[tags.matrix],
                src_color_range=ColorRange.JPEG if tags.full_range else ColorRange.MPEG,
                dst_color_range=ColorRange.JPEG,
                interpolation=_QUALITY,
            )
    except av.FFmpegError as error:
        raise InputError(
            f"frames stored as {frame.format.name} cannot be converted to RGB ({error})."
        ) from error
    rgb = out.to_ndarray()
    if _is_gray(frame.format) and frame.color_range == LIMITED_RANGE:
        rgb = _EXPAND[rgb]  # swscale takes all grey for full range, and so it is unless tagged otherwise
    return np.ascontiguousarray(rgb)


def from_rgb(
    reformatter: VideoReformatter, rgb: np.ndarray, pixel_format: str, tags: ColorTags
) -> VideoFrame:
    """(H, W, 3) uint8 RGB as a frame in `pixel_format` coded and tagged as `tags` says, chroma at `WRITTEN_SITING`."""
    frame = sited(VideoFrame.from_ndarray(rgb, format="rgb24"), WRITTEN_SITING)
    if av.VideoFormat(pixel_format).is_rgb:
        return reformatter.reformat(frame, format=pixel_format, interpolation=_QUALITY)
    return reformatter.reformat(
        frame,
        format=pixel_format,
        src_color_range=ColorRange.JPEG,
        dst_colorspace=_SWS_COEFFICIENTS[tags.matrix],
        dst_color_range=ColorRange.JPEG if tags.full_range else ColorRange.MPEG,
        interpolation=_QUALITY,
    )


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a stored picture is turned to be upright: the 2x2 part of a display matrix, signs only.

    A point (x, y) of the stored picture is shown at (a x + c y, b x + d y), x to the right, y down.
    """

    a: int = 1
    b: int = 0
    c: int = 0
    d: int = 1

    @property
    def swaps(self) -> bool:
        """Whether width and height change places."""
        return self.a == 0

    def turned(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of a picture of this size when it is upright."""
        return (height, width) if self.swaps else (width, height)

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """The (H, W, 3) picture turned upright, C-contiguous."""
        if self.swaps:
            picture = picture.swapaxes(0, 1)
        # after the swap, columns run with x' and rows with y'
        horizontal, vertical = (self.c, self.b) if self.swaps else (self.a, self.d)
        if horizontal < 0:
            picture = picture[:, ::-1]
        if vertical < 0:
            picture = picture[::-1]
        return np.ascontiguousarray(picture)


_MOST_KINDS = 64  # of side data in a frame


def _display_matrix(frame: VideoFrame) -> bytes | None:
    """Side data of a kind that PyAV has no name for, such as EXIF, hides all the others; it is taken away first."""
    for _ in range(_MOST_KINDS):
        try:
            items: Any = frame.side_data  # PyAV's annotation is not what it yields
            return next((bytes(item) for item in items if item.type.name == "DISPLAYMATRIX"), None)
        except ValueError as error:
            kind = re.match(r"\d+", str(error))
            if kind is None:
                break
            frame = _through(frame, "sidedata", f"mode=delete:type={kind[0]}")
    return None


def orientation_of(frame: VideoFrame) -> Orientation | None:
    """The orientation that the frame's display matrix asks for, upright if it has none.

    None if the matrix turns by something else than quarter turns and mirrors.

    Not from the frame itself: PyAV (18.1, `SideData` in av/sidedata/sidedata.py; not reported there so far) takes the
    metadata of each piece of side data for its own and frees it, and then FFmpeg frees it, too: the process dies.
    Colour profiles of PNG are the ones that have some, their names (FFmpeg 8, pngdec.c), also in a MOV or MKV.
    """
    frame = _through(frame, "sidedata", "mode=delete:type=ICC_PROFILE")
    matrix = _display_matrix(frame)
    if matrix is None:
        return Orientation()
    # 16.16 fixed point; x' = a x + c y, y' = b x + d y with a, b at 0, 1 and c, d at 3, 4
    values = np.frombuffer(matrix, dtype=np.int32)
    a, b, c, d = (round(int(values[i]) / 65536) for i in (0, 1, 3, 4))
    if (abs(a) + abs(b), abs(c) + abs(d), abs(a * d - b * c)) != (1, 1, 1):
        return None
    return Orientation(a, b, c, d)
