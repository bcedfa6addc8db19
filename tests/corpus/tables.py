"""The corpus as data: which codec goes into which containers, and what can be odd about a clip.

Every name here is FFmpeg's own. The encoders are those of the ffmpeg program that `imageio-ffmpeg` brings.
"""

from __future__ import annotations

from dataclasses import dataclass

LEFT, CENTER = "left", "center"  # where chroma lies if the clip does not say; no difference in 4:4:4


@dataclass(frozen=True)
class Video:
    """A kind of video: `formats` are pixel formats, `suffixes` those of the files that can hold it."""

    encoder: str
    formats: str
    suffixes: str
    options: str = ""
    siting: str = LEFT
    size: str = ""  # the only one it takes
    even: bool = False  # only even sizes
    rate: str = ""  # the only one it takes

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [(pixel, suffix) for pixel in self.formats.split() for suffix in self.suffixes.split()]


_MP4 = ".mp4 .mov .mkv"
_X264, _X265 = "-preset ultrafast -crf 12", "-preset ultrafast -crf 14 -x265-params log-level=none"
_YUV_10 = "yuv420p10le yuv422p10le yuv444p10le"

VIDEOS = [
    Video(
        "libx264",
        "yuv420p",
        ".mp4 .mov .mkv .avi .ts .m2ts .flv .3gp .m4v .nut .h264 .mpg .wtv .f4v",
        _X264,
        even=True,
    ),
    Video(
        "libx264", f"yuv422p yuv444p gray {_YUV_10} gray10le nv12 nv16", ".mp4 .mkv .mov", _X264, even=True
    ),
    Video("libx264", "yuvj420p yuvj422p yuvj444p", ".mp4 .mkv .avi", _X264, even=True),
    Video("libx264", "yuv420p", ".mxf", _X264, even=True, rate="25"),
    Video("libx264rgb", "rgb24 bgr24", ".mp4 .mkv .mov", _X264),
    Video("libopenh264", "yuv420p", ".mp4 .mkv", even=True),
    Video("libx265", "yuv420p", ".mp4 .mov .mkv .ts .hevc .nut", _X265, even=True),
    Video(
        "libx265",
        f"yuv422p yuv444p gray gbrp {_YUV_10} yuv420p12le gbrp10le gray12le",
        ".mp4 .mkv",
        _X265,
        even=True,
    ),
    Video("libx265", "yuva420p", ".mp4 .mov", _X265, even=True),
    Video("libkvazaar", "yuv420p", ".mp4 .mkv", "-kvazaar-params preset=ultrafast", even=True, size="64x64"),
    Video(
        "libsvtav1",
        "yuv420p yuv420p10le",
        ".mp4 .mkv .webm .obu .ivf",
        "-preset 12 -svtav1-params lp=1",
        even=True,
    ),
    Video(
        "libaom-av1",
        f"yuv420p yuv422p yuv444p gbrp gray {_YUV_10} yuv420p12le",
        ".mp4 .mkv .webm",
        "-cpu-used 8",
    ),
    Video("librav1e", "yuv420p yuv444p yuv422p10le", ".mp4 .mkv", "-speed 10", size="64x64"),
    Video("libvpx", "yuv420p", ".webm .mkv .ivf .avi .nut", "-deadline realtime", CENTER),
    Video("libvpx", "yuva420p", ".webm .mkv", "-deadline realtime -auto-alt-ref 0", CENTER),
    Video(
        "libvpx-vp9",
        f"yuv420p yuv422p yuv444p gbrp {_YUV_10} yuv420p12le",
        ".webm .mkv .mp4 .ivf",
        "-deadline realtime -cpu-used 8",
    ),
    Video("libvpx-vp9", "yuv440p", ".webm .mkv", "-deadline realtime -cpu-used 8"),
    Video("libvpx-vp9", "yuva420p", ".webm .mkv", "-deadline realtime -cpu-used 8"),
    Video("mpeg1video", "yuv420p", ".mpg .ts .mkv .avi .vob .mp4 .mov .nut .m1v", "-q:v 2", CENTER),
    Video(
        "mpeg2video", "yuv420p yuv422p", ".mpg .ts .m2ts .vob .mkv .mp4 .mov .avi .m2v .wtv .nut", "-q:v 2"
    ),
    Video("mpeg2video", "yuv420p yuv422p", ".mxf .gxf", "-q:v 2", size="720x576", rate="25"),
    Video("mpeg4", "yuv420p", ".mp4 .avi .mkv .mov .3gp .ts .nut .m4v .wtv", "-q:v 2"),
    Video("mpeg4", "yuv420p", ".avi .mkv", "-q:v 2 -vtag XVID -bf 2"),
    Video("libxvid", "yuv420p", ".avi .mkv .mp4", "-q:v 2", even=True),
    Video("msmpeg4", "yuv420p", ".avi .mkv .wmv .asf", "-q:v 2"),
    Video("msmpeg4v2", "yuv420p", ".avi .mkv .asf", "-q:v 2"),
    Video("h261", "yuv420p", ".avi .mkv .mov", "-q:v 2", CENTER, size="176x144"),
    Video("h263", "yuv420p", ".3gp .avi .mov .mkv", "-q:v 2", CENTER, size="128x96"),
    Video("h263p", "yuv420p", ".avi .mkv .mov", "-q:v 2", CENTER, size="64x48"),
    Video("flv", "yuv420p", ".flv .swf .avi .mkv", "-q:v 2", CENTER),
    Video("wmv1", "yuv420p", ".wmv .avi .mkv .asf", "-q:v 2", even=True),
    Video("wmv2", "yuv420p", ".wmv .avi .mkv .asf", "-q:v 2", even=True),
    Video("rv10", "yuv420p", ".rm", "-q:v 2", CENTER, size="176x144"),
    Video("rv20", "yuv420p", ".rm", "-q:v 2", CENTER, size="176x144"),
    Video("mjpeg", "yuvj420p yuvj422p yuvj444p", ".avi .mov .mkv .mp4 .nut .mjpeg .asf", "-q:v 2", CENTER),
    Video("ljpeg", "yuvj420p yuvj444p bgr24", ".avi .mkv .mov", "", CENTER),
    Video("jpegls", "rgb24 bgr24 gray", ".avi .mkv .mov"),
    Video("jpeg2000", "rgb24 yuv420p yuv444p yuv422p10le gray rgba yuva444p", ".mov .mkv .avi .mp4"),
    Video("png", "rgb24 rgba gray ya8 rgb48be rgba64be gray16be pal8 monob", ".mov .mkv .avi"),
    Video("apng", "rgb24 rgba gray", ".apng", "-plays 0"),
    Video("tiff", "rgb24 gray rgba", ".mkv .mov", "-compression_algo packbits"),
    Video("tiff", "yuv420p", ".mkv .mov", "-compression_algo packbits", CENTER, even=True),
    Video("bmp", "bgr24 bgra rgb565le rgb555le gray", ".avi"),
    Video("gif", "rgb8 bgr8 pal8 gray", ".gif", rate="25"),
    Video("ffv1", "yuv420p yuv422p yuv444p yuv440p yuv411p yuv410p bgr0 bgra gray", ".mkv .avi .mov .nut"),
    Video(
        "ffv1",
        f"{_YUV_10} yuv420p16le gray16le gray10le gbrp10le gbrp12le gbrp16le rgb48le ya8",
        ".mkv .nut",
        "-level 3",
    ),
    Video("ffv1", "yuva420p yuva422p yuva444p yuva444p10le rgba64le gbrap10le gbrap16le", ".mkv", "-level 3"),
    Video("ffv1", "yuv420p9le yuv422p12le yuv444p14le yuv440p12le gray14le yuv422p16le", ".mkv", "-level 3"),
    Video(
        "ffvhuff",
        "yuv420p yuv422p yuv444p gbrp rgb24 bgra yuv420p12le gray16le yuva444p16le",
        ".avi .mkv",
        even=True,
    ),
    Video("huffyuv", "yuv422p rgb24 bgra", ".avi .mkv .mov", even=True),
    Video("utvideo", "yuv420p yuv422p yuv444p gbrp gbrap", ".avi .mkv .mov", even=True),
    Video("magicyuv", "yuv420p yuv422p yuv444p gbrp gbrap yuva444p", ".avi .mkv", even=True),
    Video("rawvideo", "yuv420p yuv422p uyvy422 yuyv422 gray nv12 yuv411p yuv410p", ".avi .mkv .nut"),
    Video("rawvideo", "rgb24 bgra argb uyvy422", ".mov"),
    Video(
        "rawvideo",
        "rgb24 bgr24 bgra rgb565le rgb555le bgr565le gbrp yuv444p nv21 monow rgb48le yuv420p10le",
        ".nut",
    ),
    Video("wrapped_avframe", "yuv420p", ".y4m", "", CENTER),
    Video("wrapped_avframe", "yuv422p yuv444p yuv411p gray", ".y4m"),
    Video("qtrle", "rgb24 rgb555be argb gray", ".mov"),
    Video("prores_ks", "yuv422p10le yuv444p10le yuva444p10le", ".mov .mkv", "-qscale:v 8"),
    Video("prores_aw", "yuv422p10le yuv444p10le", ".mov .mkv", even=True),
    Video("prores", "yuv422p10le", ".mov"),
    Video("dnxhd", "yuv422p", ".mov .mkv .mxf", "-profile:v dnxhr_lb", size="256x128"),
    Video("dnxhd", "yuv422p10le", ".mov", "-profile:v dnxhr_hqx", size="256x128"),
    Video("dnxhd", "yuv444p10le gbrp10le", ".mov", "-profile:v dnxhr_444", size="256x128"),
    Video("cfhd", "yuv422p10le gbrp12le gbrap12le", ".mov .avi .mkv", size="64x48"),
    Video("cinepak", "rgb24 gray", ".avi .mov .mkv", size="64x48"),
    Video("svq1", "yuv410p", ".mov", "-q:v 2", CENTER),
    Video("snow", "yuv420p yuv410p yuv444p gray", ".avi .mkv", "-strict -2 -q:v 2"),
    Video("dvvideo", "yuv420p", ".dv .avi .mov .mkv", "", "topleft", size="720x576", rate="25"),
    Video("dvvideo", "yuv422p", ".dv .avi .mov .mkv", size="720x576", rate="25"),
    Video("dvvideo", "yuv411p", ".dv .avi .mov .mkv", size="720x480", rate="30000/1001"),
    Video("asv1", "yuv420p", ".avi .asf", "-q:v 2"),
    Video("asv2", "yuv420p", ".avi", "-q:v 2"),
    Video("zmbv", "pal8 rgb555le rgb565le bgr0", ".avi .mkv"),
    Video("flashsv", "bgr24", ".flv .avi .mkv"),
    Video("flashsv2", "bgr24", ".flv"),
    Video("roqvideo", "yuvj444p", ".roq", size="64x64", rate="30"),
    Video("amv", "yuvj420p", ".avi", "", CENTER, size="64x48"),
    Video("targa", "bgr24 bgra gray", ".avi .mkv .mov"),
    Video("sgi", "rgb24 rgba gray", ".mov .mkv"),
    Video("dpx", "rgb24 gray gbrp10le", ".mkv .mov"),
    Video("hap", "rgba", ".mov .avi .mkv", size="64x48"),
    Video("libtheora", "yuv420p yuv422p yuv444p", ".ogv .mkv .ogg", "-q:v 9", CENTER),
    Video("v210", "yuv422p10le", ".mov .avi .mkv", even=True),
    Video("r210", "gbrp10le", ".mov .mkv"),
    Video("r10k", "gbrp10le", ".mov"),
    Video("y41p", "yuv411p", ".avi", size="64x48"),
    Video("cljr", "yuv411p", ".avi .mov", size="64x48"),
    Video("msvideo1", "rgb555le", ".avi .mkv", size="64x48"),
    Video("msrle", "pal8", ".avi .mkv"),
    Video("rpza", "rgb555be", ".mov .mkv", size="64x48"),
    Video("smc", "pal8", ".mov", size="64x48"),
    Video("vc2", "yuv420p yuv422p yuv444p yuv422p10le", ".mov .mkv .ts", "-strict -2", size="256x128"),
    Video("speedhq", "yuv420p yuv422p yuv444p", ".avi .mkv", "", CENTER, size="64x48"),
    Video("libvvenc", "yuv420p10le", ".mp4 .mkv .ts", "-preset faster", size="64x64"),
]
# Pairs that this ffmpeg cannot write, or cannot read again, are not listed.


@dataclass(frozen=True)
class Sound:
    """A kind of sound, and the containers that can bring it."""

    encoder: str
    suffixes: str
    options: str = ""
    rate: int = 44100
    channels: int = 2


_PCM = ".mkv .avi .mov .nut .wtv"
SOUNDS = [
    Sound("aac", ".mp4 .mov .mkv .ts .m2ts .flv .3gp .m4v .avi .nut .f4v .wtv", "", 48000),
    Sound("aac", ".mp4 .mkv .mov", "", 22050, 1),
    Sound("libmp3lame", ".mp4 .mkv .avi .mov .ts .mpg .flv .nut .swf .asf .wmv .wtv"),
    Sound("mp2", ".mpg .ts .vob .mkv .mp4 .avi .mov .m2ts .nut .wtv", "", 48000),
    Sound("ac3", ".mkv .mp4 .ts .m2ts .mpg .vob .avi .mov .nut .rm .wtv", "", 48000),
    Sound("eac3", ".mkv .mp4 .ts .mov", "", 48000),
    Sound("dca", ".mkv .ts .mpg .mp4 .avi .mov .m2ts .vob", "-strict -2", 48000),
    Sound("truehd", ".mkv", "-strict -2", 48000),
    Sound("mlp", ".mkv", "-strict -2", 48000),
    Sound("flac", ".mkv .mp4 .nut .ogg .ogv .avi", "-strict -2"),
    Sound("alac", ".mov .mp4 .mkv", ""),
    Sound("libopus", ".webm .mkv .mp4 .ts .nut .ogg", "", 48000),
    Sound("libvorbis", ".webm .mkv .ogv .ogg .nut"),
    Sound("tta", ".mkv"),
    Sound("wavpack", ".mkv"),
    Sound("pcm_s16le", _PCM),
    Sound("pcm_s16be", ".mov .mkv .mpg .nut"),
    Sound("pcm_s24le", ".mkv .avi .mov .mxf", "", 48000),
    Sound("pcm_s24be", ".mov .mkv"),
    Sound("pcm_s32le", ".mkv .avi .mov"),
    Sound("pcm_f32le", ".mkv .avi .mov"),
    Sound("pcm_f32be", ".mov"),
    Sound("pcm_f64le", ".mkv .avi .mov"),
    Sound("pcm_u8", ".mkv .avi .mov"),
    Sound("pcm_s8", ".mov .nut"),
    Sound("pcm_alaw", ".avi .mov .mkv .nut .wmv"),
    Sound("pcm_mulaw", ".avi .mov .mkv .nut .flv"),
    Sound("pcm_bluray", ".m2ts .ts", "", 48000),
    Sound("pcm_dvd", ".vob .mpg", "", 48000),
    Sound("s302m", ".ts", "-strict -2", 48000),
    Sound("adpcm_ms", ".avi .mkv .wmv .nut"),
    Sound("adpcm_ima_wav", ".avi .mkv .nut"),
    Sound("adpcm_ima_qt", ".mov"),
    Sound("adpcm_swf", ".flv .avi"),
    Sound("adpcm_yamaha", ".avi .mkv"),
    Sound("wmav1", ".wmv .asf .avi .mkv", "-b:a 64k"),
    Sound("wmav2", ".wmv .asf .avi .mkv", "-b:a 64k"),
    Sound("nellymoser", ".flv", "", 22050, 1),
    Sound("g722", ".avi .mkv .mov", "", 16000, 1),
    Sound("g723_1", ".avi .mkv", "-b:a 6300", 8000, 1),
    Sound("g726", ".avi .mkv", "-b:a 32k", 8000, 1),
    Sound("libopencore_amrnb", ".3gp .mov .mkv", "-b:a 12.2k", 8000, 1),
    Sound("real_144", ".rm .mkv", "", 8000, 1),
    Sound("roq_dpcm", ".roq", "", 22050),
]

SUBTITLES = {  # encoder -> containers
    "srt": ".mkv",
    "ass": ".mkv",
    "webvtt": ".webm .mkv",
    "mov_text": ".mp4 .mov .m4v .3gp",
    "dvdsub": ".mkv .mpg .vob .mp4 .ts",
    "dvbsub": ".ts .mkv .m2ts",
    "ttml": ".mp4 .mov",
}
PICTURE_SUBTITLES = ("dvdsub", "dvbsub", "xsub")

# Sizes that any codec takes which is not said to be choosy; odd ones are enlarged by 4 to be written in 4:2:0.
SIZES = ["64x48", "64x48", "96x64", "64x64", "50x38", "63x47", "65x33", "33x17", "16x16", "98x18"]
EVEN_SIZES = ["64x48", "64x48", "96x64", "64x64", "98x70", "66x50", "130x34", "66x98"]
RATES = ["25", "25", "30", "30000/1001", "24000/1001", "50", "60000/1001", "15", "12", "10"]
