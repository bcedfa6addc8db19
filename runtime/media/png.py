"""Encoding one picture as PNG."""

from __future__ import annotations

from fractions import Fraction

import av
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from vsr_trt.runtime.media.source import Rgb


def encode_png(rgb: Rgb) -> bytes:
    """The bytes of a lossless PNG file of (H, W, 3) uint8 RGB."""
    encoder = av.CodecContext.create("png", "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = rgb.shape[1], rgb.shape[0], "rgb24"
    encoder.time_base = Fraction(1, 25)  # it asks for one; PNG has none
    encoder.thread_count = 1  # a picture in, a picture out: no delay
    packets = encoder.encode(VideoFrame.from_ndarray(rgb, format="rgb24"))
    return b"".join(bytes(packet) for packet in packets)
