"""The list of recipes: every row of the tables once, then combinations at random. The same seed gives the same list.

A clip is put together by `Clip`; a twist is a function that makes it odd in one way, and says which containers it is
for. Rows come with a chance of twists, so that kinds of faults meet.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from corpus import pictures
from corpus.recipe import DAMAGED, REFUSED, SURVIVED, Recipe
from corpus.tables import (
    EVEN_SIZES,
    PICTURE_SUBTITLES,
    RATES,
    SIZES,
    SOUNDS,
    SUBTITLES,
    VIDEOS,
    Sound,
    Video,
)

_MPEG_RATES = ("25", "30", "24000/1001", "50")
_SHARE_OF_PICTURES = 0.25
_FRAMES = 10
# ffmpeg turns the picture before it makes RGB of it, and then takes the chroma to lie where it lay before; we do not
TURNED_TOLERANCE = 12.0
# colours that stay within their limits when chroma is shared between pixels, so that means tell something
PALER = "lutrgb=r=64+val/2:g=64+val/2:b=64+val/2"
CLEARER = ",format=rgba,colorchannelmixer=aa=0.5"


@dataclass
class Clip:
    """A clip under construction."""

    video: Video
    pixel: str
    suffix: str
    rng: random.Random
    size: str = ""
    rate: str = ""
    frames: int = _FRAMES
    sounds: list[Sound] = field(default_factory=list)
    subtitles: list[str] = field(default_factory=list)
    twists: list[str] = field(default_factory=list)
    filters: list[str] = field(default_factory=list)  # of the video
    options: list[str] = field(default_factory=list)  # of the encoders
    mux: list[str] = field(default_factory=list)
    after: list[list[str]] = field(default_factory=list)  # further steps; {in} and {out} are the file's names
    recipe: Recipe = field(default_factory=lambda: Recipe("", [], ""))

    def __post_init__(self) -> None:
        rng = self.rng
        self.size = self.video.size or rng.choice(EVEN_SIZES if self.video.even else SIZES)
        mpeg = self.video.encoder in ("mpeg1video", "mpeg2video")
        self.rate = self.video.rate or rng.choice(_MPEG_RATES if mpeg else RATES)
        if self.is_large:
            self.frames = 4

    @property
    def is_large(self) -> bool:
        return int(self.size.split("x")[1]) > 200

    @property
    def is_odd(self) -> bool:
        return any(int(side) % 2 for side in self.size.split("x"))

    def build(self) -> Recipe:
        """The recipe; files are numbered in the order in which the steps make them."""
        if self.video.encoder == "rawvideo" and self.suffix == ".mov" and self.after:
            self.pixel = "rgb24"  # of others, ffmpeg's copies do not say which they are
        steps: list[list[str]] = [["srt", "text.srt"]] if self.subtitles else []
        if any(codec in PICTURE_SUBTITLES for codec in self.subtitles):
            steps.append(["sup", "text.sup"])
        current = f"in{self.suffix}"
        steps.append(["ffmpeg", *self._inputs(), *self._encoding(), *self.mux, current])
        for number, step in enumerate(self.after, 1):
            made = f"step{number}{self.suffix}"
            steps.append([word.replace("{in}", current).replace("{out}", made) for word in step])
            current = made if "{out}" in step else current
        recipe = self.recipe
        recipe.steps, recipe.file = steps, current
        parts = [
            self.video.encoder,
            self.pixel,
            *(s.encoder for s in self.sounds),
            *self.subtitles,
            *self.twists,
        ]
        recipe.name = "-".join(parts) + f"-{self.size}{self.suffix}"
        recipe.siting = recipe.siting or self.video.siting
        if any("rotat" in name or "mirror" in name for name in self.twists) and "444" not in self.pixel:
            recipe.tolerance = TURNED_TOLERANCE
        return recipe

    def _inputs(self) -> list[str]:
        alpha = CLEARER if self.pixel in _WITH_ALPHA else ""
        inputs = ["-f", "lavfi", "-i", f"{pattern(self.size, self.rate)},{PALER}{alpha}"]
        for number, sound in enumerate(self.sounds):
            tone = f"sine=frequency={400 + 150 * number}:sample_rate={sound.rate}:samples_per_frame=512"
            inputs += ["-f", "lavfi", "-i", tone]
        if self.subtitles:
            inputs += ["-i", "text.sup" if self.subtitles[0] in PICTURE_SUBTITLES else "text.srt"]
        return inputs

    def _encoding(self) -> list[str]:
        seconds = self.frames / _number(self.rate)
        maps = ["-map", "0:v"]
        for number in range(len(self.sounds) + bool(self.subtitles)):
            maps += ["-map", str(number + 1)]
        words = [*maps, "-frames:v", str(self.frames)]
        if self.filters:
            words += ["-vf", ",".join(self.filters)]
        words += ["-c:v", self.video.encoder, "-pix_fmt", self.pixel, *self.video.options.split()]
        words += ["-fps_mode", "passthrough"]
        for number, sound in enumerate(self.sounds):
            words += [f"-c:a:{number}", sound.encoder, f"-ac:a:{number}", str(sound.channels)]
            pairs = sound.options.split()
            for key, value in zip(pairs[::2], pairs[1::2], strict=True):
                words += [f"{key}:{number}" if key == "-b:a" else key, value]
        if self.sounds:
            words += ["-shortest_buf_duration", "0", "-t", f"{seconds + 0.05:.3f}"]
        for codec in self.subtitles:
            words += ["-c:s", codec]
        return words + self.options


def pattern(size: str, rate: str) -> str:
    """A source for ffmpeg that makes other colours of every frame; testsrc2 itself has even sides only."""
    width, height = (int(side) for side in size.split("x"))
    even = f"{width + width % 2}x{height + height % 2}"
    return f"testsrc2=size={even}:rate={rate},hue=h=40*n,format=rgb24,crop={width}:{height}:0:0"


def _number(rate: str) -> float:
    above, _, below = rate.partition("/")
    return int(above) / int(below or 1)


_WITH_ALPHA = frozenset(
    "rgba argb bgra ya8 rgba64be rgba64le yuva420p yuva422p yuva444p yuva444p10le gbrap gbrap10le gbrap12le gbrap16le"
    " yuva444p16le".split()
)

# -- twists ---------------------------------------------------------------------------------------------------

Twist = Callable[[Clip], None]
TWISTS: dict[str, tuple[Twist, str, str]] = {}  # name -> function, containers, encoders ("" for all)

_ANY = ".mp4 .mov .mkv .m4v"
_UNEVEN = (
    "libx264 libx265 mpeg4 ffv1 libvpx libvpx-vp9 mjpeg png prores_ks rawvideo libaom-av1 flv wmv2 libtheora"
)


def twist(containers: str, encoders: str = "") -> Callable[[Twist], Twist]:
    """Registers a twist for clips in these containers, of these encoders."""

    def register(function: Twist) -> Twist:
        TWISTS[function.__name__] = function, containers, encoders
        return function

    return register


def _turn(angle: str, *more: str) -> Twist:
    def turned(clip: Clip) -> None:
        clip.after.append(
            [
                "ffmpeg",
                "-display_rotation",
                angle,
                *more,
                "-i",
                "{in}",
                "-map",
                "0",
                "-c",
                "copy",
                "-strict",
                "-2",
                "{out}",
            ]
        )

    return turned


for _angle in ("90", "180", "270"):
    TWISTS[f"rotated{_angle}"] = _turn(_angle), _ANY, ""
TWISTS["mirrored"] = _turn("0", "-display_hflip"), _ANY, ""
TWISTS["mirrored90"] = _turn("90", "-display_vflip"), _ANY, ""


@twist(_ANY)
def rotated33(clip: Clip) -> None:
    _turn("33")(clip)
    clip.recipe.reference.append("-noautorotate")
    clip.recipe.notes = "odd angle"


@twist(".mp4 .mkv .ts .mov", "libx264")
def rotated_in_the_stream(clip: Clip) -> None:
    clip.options += [
        "-bsf:v",
        f"h264_metadata=rotate={clip.rng.choice((90, 270))}:display_orientation=insert",
    ]


@twist(".mkv .mp4 .mov .webm .nut .ts", _UNEVEN)
def uneven(clip: Clip) -> None:
    clip.filters.append("settb=1/45000,setpts='(N*1800+mod(N*N,5)*307+gt(N,4)*10000)'")
    clip.options += ["-enc_time_base", "1/45000"]


@twist(".mp4 .mkv .mov .webm .ts .flv .nut")
def dropped_frames(clip: Clip) -> None:
    clip.frames += 6
    clip.filters.append("select='mod(n,4)'")


@twist(
    ".mp4 .mkv .mov .ts .avi .flv .m2ts .3gp .mpg .vob .h264 .m2v",
    "libx264 libx265 mpeg4 mpeg2video mpeg1video",
)
def b_frames(clip: Clip) -> None:
    clip.options += ["-bf", "2", "-g", "6"]
    if clip.suffix in (
        ".mpg",
        ".vob",
    ):  # of some keyframes it does not say when they are shown; ffmpeg shows them early
        clip.recipe.steady, clip.recipe.slack = clip.rate, 0.0001
    if clip.video.encoder == "libx264":
        clip.options += ["-x264-params", "b-adapt=0:b-pyramid=2"]


@twist(".mp4 .mkv .mov .ts", "libx264 libx265")
def open_gop(clip: Clip) -> None:
    key = {"libx264": "-x264-params", "libx265": "-x265-params"}[clip.video.encoder]
    value = "open-gop=1:bframes=2:keyint=4:min-keyint=2" + (":log-level=none" if "265" in key else "")
    clip.options += [key, value]


def _tag(clip: Clip, matrix: str, primaries: str, transfer: str, full: bool = False) -> None:
    """Codes the colours by these rules and says so; RGB stays as it is. ffmpeg takes all grey for full range."""
    clip.pixel = "yuv420p" if clip.pixel.startswith("gray") else clip.pixel
    extent = "pc" if full else "tv"
    coded = {"bt470bg": "bt601", "bt2020nc": "bt2020"}.get(matrix, matrix)
    said = f"setparams=colorspace={matrix}:color_primaries={primaries}:color_trc={transfer}:range={extent}"
    clip.filters += [f"scale=out_color_matrix={coded}:out_range={extent}", f"format={clip.pixel}", said]
    clip.options += ["-colorspace", matrix, "-color_primaries", primaries, "-color_trc", transfer]
    clip.options += ["-color_range", extent]


_TAGGED = "libx264 libx265 ffv1 mpeg2video libvpx-vp9 libaom-av1 prores_ks"


@twist(".mp4 .mkv .mov", _TAGGED)
def bt709(clip: Clip) -> None:
    _tag(clip, "bt709", "bt709", "bt709")


@twist(".mp4 .mkv .mov", "libx264 libx265 libaom-av1")
def full_range(clip: Clip) -> None:
    _tag(clip, "bt709", "bt709", "bt709", full=True)


@twist(".mp4 .mkv .mov", _TAGGED)
def bt470bg(clip: Clip) -> None:
    _tag(clip, "bt470bg", "bt470bg", "smpte170m")


@twist(".mp4 .mkv .mov", "libx264 libx265 ffv1")
def smpte240m(clip: Clip) -> None:
    _tag(clip, "smpte240m", "smpte240m", "smpte240m")


@twist(".mp4 .mkv .mov", "libx264 libx265")
def untagged_hd(clip: Clip) -> None:
    clip.size, clip.frames = "64x720", 4
    clip.recipe.matrix = "bt709"


@twist(".mp4 .mkv .mov .webm", "libx265 libaom-av1 libvpx-vp9")
def hdr(clip: Clip) -> None:
    clip.pixel = "yuv420p"  # RGB is written without tags
    _tag(clip, "bt2020nc", "bt2020", clip.rng.choice(("smpte2084", "arib-std-b67")))
    clip.recipe.expect, clip.recipe.words = REFUSED, "HDR"


@twist(".mp4 .mkv .mov", "libx264 libx265 ffv1")
def wide_gamut(clip: Clip) -> None:
    clip.pixel = "yuv420p"
    _tag(clip, "bt2020nc", "bt2020", "bt709")
    clip.recipe.expect, clip.recipe.words = REFUSED, "BT.2020"


for _place in ("left", "center", "topleft"):

    def _sited(clip: Clip, place: str = _place) -> None:
        clip.pixel = "yuv420p"  # H.264 and HEVC say it of 4:2:0 only
        clip.filters.append(f"scale=out_chroma_loc={place}")
        clip.options += ["-chroma_sample_location", place]
        clip.recipe.siting = place

    TWISTS[f"chroma_{_place}"] = _sited, ".mp4 .mkv .mov", "libx264 libx265"


@twist(".mp4 .mkv .mov .ts .avi .mpg .m2ts", "libx264 mpeg2video mpeg4 libx265 ffv1 prores_ks")
def wide_pixels(clip: Clip) -> None:
    clip.filters.append("setsar=16/11")


@twist(".mkv .mp4 .mov .ts .m2ts", "libx264 mpeg2video")
def interlaced(clip: Clip) -> None:
    clip.options += ["-flags", "+ildct+ilme"]
    clip.filters.append("setfield=tff")
    clip.recipe.notes = "interlaced"


@twist(".mp4 .mov .m4v .mkv", "libx264 libx265 mpeg4")
def cut_by_copy(clip: Clip) -> None:
    """Begins between two keyframes, which MP4 says with an edit list."""
    clip.frames = 20
    clip.options += ["-g", "5"]
    clip.after.append(["ffmpeg", "-ss", "0.15", "-i", "{in}", "-map", "0", "-c", "copy", "{out}"])


@twist(".mp4 .mov .mkv .ts .avi .flv")
def late_video(clip: Clip) -> None:
    _offset(clip, "0", "0.7")


@twist(".mp4 .mov .mkv .ts .avi .flv .mpg")
def late_sound(clip: Clip) -> None:
    _offset(clip, "0.4", "0")


def _offset(clip: Clip, sound: str, video: str) -> None:
    inputs = ["-itsoffset", video, "-i", "{in}", "-itsoffset", sound, "-i", "{in}"]
    clip.after.append(
        ["ffmpeg", *inputs, "-map", "0:v", "-map", "1:a?", "-c", "copy", "-strict", "-2", "{out}"]
    )


@twist(".mp4 .mov .mkv .ts .m2ts .mpg .nut .flv")
def late_clock(clip: Clip) -> None:
    clip.mux += ["-output_ts_offset", clip.rng.choice(("3.3", "100", "36000"))]


@twist(".ts .m2ts .mpg .vob")
def clock_that_wraps(clip: Clip) -> None:
    clip.mux += ["-output_ts_offset", "95443.5"]


@twist(".mp4 .mov")
def in_fragments(clip: Clip) -> None:
    clip.mux += [
        "-movflags",
        clip.rng.choice(("frag_keyframe+empty_moov", "frag_every_frame", "hybrid_fragmented")),
    ]


@twist(".mp4 .mov")
def index_first(clip: Clip) -> None:
    clip.mux += ["-movflags", "+faststart"]


@twist(".mp4 .mov", "libx264 libx265")
def negative_offsets(clip: Clip) -> None:
    b_frames(clip)
    clip.mux += ["-movflags", "+negative_cts_offsets"]


@twist(".mp4 .mov")
def odd_clock(clip: Clip) -> None:
    clip.mux += ["-video_track_timescale", clip.rng.choice(("600", "90000", "1000", "10007"))]


@twist(".mp4 .mov", "libx264 libx265 mpeg4")
def without_edit_lists(clip: Clip) -> None:
    b_frames(clip)
    clip.mux += ["-use_editlist", "0"]


@twist(".mkv .webm")
def live(clip: Clip) -> None:
    clip.mux += ["-live", "1"] if clip.suffix == ".mkv" else ["-cluster_time_limit", "100"]


@twist(_ANY)
def chapters_and_tags(clip: Clip) -> None:
    clip.options += [
        "-metadata",
        "title=A title",
        "-metadata",
        "comment=ünïcode",
        "-metadata:s:v",
        "language=eng",
    ]
    clip.after.append(["chapters", "{in}", "{out}"])


@twist(".mp4 .mov .m4v .mkv")
def cover(clip: Clip) -> None:
    red = ["-f", "lavfi", "-i", "color=red:s=32x32", "-frames:v", "1", "-update", "1"]
    clip.after.append(["ffmpeg", *red, "cover.png"])
    attached = ["-attach", "cover.png", "-metadata:s:t", "mimetype=image/png"]
    mapped = ["-i", "cover.png", "-map", "0", "-map", "1", "-disposition:v:1", "attached_pic"]
    how = ["-map", "0", *attached] if clip.suffix == ".mkv" else mapped
    clip.after.append(["ffmpeg", "-i", "{in}", *how, "-c", "copy", "-strict", "-2", "{out}"])


@twist(".mkv")
def font_attached(clip: Clip) -> None:
    clip.options += ["-attach", "{font}", "-metadata:s:t", "mimetype=font/ttf"]


@twist(".mkv .mp4 .mov")
def second_video(clip: Clip) -> None:
    """Another one in front of it, which is not marked as the default."""
    other = ["-f", "lavfi", "-i", "color=gray:size=130x98:rate=25", "-i", "{in}"]
    coded = [
        "-c",
        "copy",
        "-c:v:0",
        "mpeg4",
        "-frames:v:0",
        "7",
        "-disposition:v:0",
        "0",
        "-disposition:v:1",
        "default",
    ]
    clip.after.append(["ffmpeg", *other, "-map", "0:v", "-map", "1", *coded, "{out}"])
    clip.recipe.stream = 1


@twist(".mov .mp4 .mxf", "libx264 mpeg2video prores_ks mpeg4")
def timecode(clip: Clip) -> None:
    clip.mux += ["-timecode", "01:00:00:00"]


@twist(".mkv", "libx264 libx265 libvpx-vp9 ffv1")
def stereo(clip: Clip) -> None:
    clip.options += ["-metadata:s:v:0", "stereo_mode=left_right"]


@twist(".mkv .mp4", "libx265")
def light_levels(clip: Clip) -> None:
    levels = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1)"
    clip.options += ["-x265-params", f"log-level=none:master-display={levels}:max-cll=1000,400"]


@twist(".mov .avi", "png")
def profiles_in_frames(clip: Clip) -> None:
    clip.after.append(["profiles", "{in}", "{out}"])


def _joined(clip: Clip, *pieces: str) -> None:
    clip.recipe.steady = clip.rate  # ffmpeg guesses the last frame of a piece from its neighbours
    clip.recipe.slack = 0.11 * len(pieces)  # as the picture waits for the sound of the piece before
    clip.after.append(["join", "{in}", *pieces, "{out}"])


_JOINS = ".ts .m2ts .mpg .vob .flv"
_JOINED = "libx264 libx265 mpeg2video mpeg1video mpeg4 flv"


@twist(_JOINS, _JOINED)
def joined_twice(clip: Clip) -> None:
    _joined(clip, "0")


@twist(_JOINS, _JOINED)
def joined_thrice(clip: Clip) -> None:
    _joined(clip, "0", "0")


@twist(".ts .m2ts .mpg .vob", _JOINED)
def joined_with_a_gap(clip: Clip) -> None:
    _joined(clip, clip.rng.choice(("50", "1000")))


@twist(".ts .m2ts", "libx264 mpeg2video")
def size_changes(clip: Clip) -> None:
    clip.after.append(["append", "{in}", "{out}"])
    clip.recipe.expect, clip.recipe.words = REFUSED, "one size"


@twist(".mp4 .mov .mkv .avi .webm .m4v")
def cut_short(clip: Clip) -> None:
    clip.after.append(["cut", "{in}", clip.rng.choice(("0.95", "0.8", "0.5")), "{out}"])
    clip.recipe.expect = DAMAGED


@twist(".ts .mpg .flv .m2ts .wmv .nut .ogv .mxf .vob .3gp .rm .h264 .gif .apng .y4m .dv .ivf .hevc .obu")
def cut_anywhere(clip: Clip) -> None:
    clip.after.append(["cut", "{in}", clip.rng.choice(("0.95", "0.7", "0.4")), "{out}"])
    clip.recipe.expect = SURVIVED


@twist(" ".join(sorted({suffix for row in VIDEOS for suffix in row.suffixes.split()})))
def bits_flipped(clip: Clip) -> None:
    clip.after.append(["flip", "{in}", str(clip.rng.randrange(10**6)), "{out}"])
    clip.recipe.expect = SURVIVED


@twist(".mkv .mp4 .mov .ts .avi .webm")
def one_frame(clip: Clip) -> None:
    clip.frames = 3 if clip.suffix == ".ts" else 1  # one is too little for FFmpeg to know the file's kind by


@twist(".mkv .mp4 .mov .ts .mpg", "libx264 libx265 mpeg2video")
def few_frames(clip: Clip) -> None:
    clip.frames = clip.rng.choice((2, 3))


@twist(".mkv .mp4 .mov .nut", "libx264 mpeg4 ffv1 libx265 libvpx-vp9")
def odd_rate(clip: Clip) -> None:
    clip.rate = clip.rng.choice(("1", "120", "240", "7/3", "1001/17"))
    clip.sounds = clip.sounds[:1]


@twist(".mp4 .mov .mkv .ts .avi .webm .mpg .flv .wmv .ogv .vob")
def sound_only(clip: Clip) -> None:
    clip.after.append(["ffmpeg", "-i", "{in}", "-map", "0:a", "-c", "copy", "{out}"])
    clip.recipe.expect, clip.recipe.words = REFUSED, "no video"


_NEED_SOUND = ("late_video", "late_sound", "sound_only")
_ALONE = (
    *("joined_twice", "joined_thrice", "joined_with_a_gap"),
    *_NEED_SOUND,
    "rotated33",
    "hdr",
    "wide_gamut",
    "size_changes",
    "odd_rate",
    "bits_flipped",
    "cut_anywhere",
    "cut_short",
)

# -- the list -------------------------------------------------------------------------------------------------


def recipes(count: int, seed: int) -> list[Recipe]:
    """The first `count` recipes of the seed's list, names numbered."""
    rng = random.Random(seed)
    clips, stills = _clips(rng), pictures.recipes(random.Random(seed + 1))
    found = []
    for index in range(count):
        recipe = next(stills) if rng.random() < _SHARE_OF_PICTURES else next(clips)
        recipe.name = f"{index:04d}-{recipe.name}"
        found.append(recipe)
    return found


def _clips(rng: random.Random) -> Iterator[Recipe]:
    """Rounds over all rows in another order each, so that a short list has some of everything."""
    while True:
        makers: list[Callable[[], Recipe | None]] = []
        makers += [
            lambda row=row, pair=pair: _of_video(rng, row, *pair) for row in VIDEOS for pair in row.pairs
        ]
        makers += [lambda s=s, x=x: _of_sound(rng, s, x) for s in SOUNDS for x in s.suffixes.split()] * 2
        makers += [
            lambda c=c, x=x: _of_subtitle(rng, c, x) for c, all_ in SUBTITLES.items() for x in all_.split()
        ]
        makers += [lambda n=n, x=x: _of_twist(rng, n, x) for n, t in TWISTS.items() for x in t[1].split()] * 2
        rng.shuffle(makers)
        for make in makers:
            recipe = make()
            if recipe is not None:
                yield recipe


def _of_video(rng: random.Random, row: Video, pixel: str, suffix: str) -> Recipe:
    clip = Clip(row, pixel, suffix, rng)
    if rng.random() < 0.3:
        _add_sounds(clip)
    if rng.random() < 0.35:
        _add_twist(clip)
    return _finished(clip)


def _of_sound(rng: random.Random, sound: Sound, suffix: str) -> Recipe:
    clip = _plain(rng, suffix)
    clip.sounds = [sound]
    if rng.random() < 0.3:
        _add_sounds(clip)
    if rng.random() < 0.4:
        _add_twist(clip)
    return _finished(clip)


def _of_subtitle(rng: random.Random, codec: str, suffix: str) -> Recipe:
    clip = _plain(rng, suffix)
    clip.subtitles = [codec]
    clip.frames = 30 if not clip.is_large else 4
    return _finished(clip)


def _of_twist(rng: random.Random, name: str, suffix: str) -> Recipe | None:
    _, _, encoders = TWISTS[name]
    clip = _plain(rng, suffix, encoders)
    if clip is None:
        return None
    if rng.random() < 0.6 or name in _NEED_SOUND:
        _add_sounds(clip)
    if name in _NEED_SOUND and not clip.sounds:
        return None
    _apply(clip, name)
    if name not in _ALONE and rng.random() < 0.25:
        _add_twist(clip)
    return _finished(clip)


def _plain(rng: random.Random, suffix: str, encoders: str = "") -> Clip | None:
    """A clip of any kind that the container is made for."""
    rows = [
        row
        for row in VIDEOS
        if suffix in row.suffixes.split() and row.encoder in (encoders.split() or [row.encoder])
    ]
    if not rows:
        return None
    small = [row for row in rows if row.size in ("", "64x48")] or rows
    row = rng.choice(small)
    return Clip(row, rng.choice(row.formats.split()), suffix, rng)


def _add_sounds(clip: Clip) -> None:
    fitting = [sound for sound in SOUNDS if clip.suffix in sound.suffixes.split()]
    most = 1 if clip.suffix in (".flv", ".swf", ".roq", ".rm") else 3
    while fitting and len(clip.sounds) < most and (not clip.sounds or clip.rng.random() < 0.3):
        clip.sounds.append(clip.rng.choice(fitting))


def _add_twist(clip: Clip) -> None:
    fitting = [
        name
        for name, (_, containers, encoders) in TWISTS.items()
        if clip.suffix in containers.split()
        and (not encoders or clip.video.encoder in encoders.split())
        and name not in (*_ALONE, *clip.twists)
    ]
    if fitting:
        _apply(clip, clip.rng.choice(fitting))


def _apply(clip: Clip, name: str) -> None:
    clip.twists.append(name)
    TWISTS[name][0](clip)


def _finished(clip: Clip) -> Recipe:
    rng, recipe = clip.rng, clip.recipe
    recipe.output = rng.choice([".mkv"] * 6 + [".mp4", ".mov", ".webm", "/"])
    if recipe.output == ".mkv" and rng.random() < 0.4:
        recipe.codec = "ffv1"
    elif recipe.output == ".mov" and rng.random() < 0.3:
        recipe.codec = "prores"
    exact = recipe.codec == "ffv1" or recipe.output == "/"
    recipe.scale = 1 if clip.is_large or (exact and rng.random() < 0.8) else 4
    if clip.is_large and recipe.output == ".webm":
        recipe.output = ".mkv"
    return clip.build()
