"""Recipes of pictures: kinds, modes, depths, profiles, orientations, several in a file, cut short."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
from corpus.recipe import DAMAGED, REFUSED, SURVIVED, Recipe
from PIL import Image, ImageCms

from vsr_trt.runtime.media import picture_decoder

SIZES = [(64, 48), (64, 48), (63, 47), (33, 65), (16, 16), (1, 1), (7, 3), (200, 120), (300, 280)]

# kind -> what Pillow can be asked for: modes, and options of which one is picked
KINDS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    ".png": ("1 L LA P PT RGB RGBA I;16", [{}, {"optimize": True}, {"compress_level": 0}]),
    ".jpg": (
        "L RGB CMYK",
        [
            *({"subsampling": share} for share in (0, 1, 2)),
            *({"progressive": True}, {"restart_marker_rows": 1}, {"optimize": True}),
        ],
    ),
    ".tif": (
        "1 L LA P RGB RGBA CMYK I;16 YCbCr LAB",
        [
            *(
                {"compression": name}
                for name in ("tiff_lzw", "tiff_deflate", "packbits", "tiff_adobe_deflate", "zstd")
            ),
            *({}, {"big_tiff": True}),
        ],
    ),
    ".webp": (
        "RGB RGBA L P",
        [{"lossless": True}, {"quality": 80}, {"quality": 100, "method": 6}, {"exact": True}],
    ),
    ".bmp": ("1 L P RGB RGBA", [{}]),
    ".avif": (
        "RGB RGBA L",
        [{"subsampling": s, "quality": 95} for s in ("4:4:4", "4:2:2", "4:2:0")]
        + [{"range": "limited", "quality": 95}, {"tile_rows": 1, "tile_cols": 1}],
    ),
    ".heic": (
        "RGB RGBA L",
        [{"quality": 95, "chroma": 444}, {"quality": 95, "chroma": 420}, {"quality": 95}],
    ),
}
ENCODED = {  # by ffmpeg: encoder -> suffix, pixel formats, options
    "png": (
        ".png",
        "rgb24 rgba rgb48be rgba64be pal8 gray ya8 gray16be ya16be monob",
        ["", "-pred mixed", "-flags +ildct"],
    ),
    "mjpeg": (".jpg", "yuvj420p yuvj422p yuvj444p", ["-q:v 2", "-q:v 2 -huffman 0"]),
    "tiff": (
        ".tiff",
        "rgb24 rgb48le rgba rgba64le gray ya8 gray16le pal8 monob monow yuv420p yuv422p yuv444p",
        ["", "-compression_algo lzw", "-compression_algo deflate", "-compression_algo raw"],
    ),
    "bmp": (".bmp", "bgra bgr24 rgb565le rgb555le rgb444le rgb8 gray pal8 monob", [""]),
    "libwebp": (".webp", "bgra yuv420p yuva420p", ["-lossless 1", "-q:v 90"]),
    "libaom-av1": (
        ".avif",
        "yuv420p yuv422p yuv444p gbrp gray yuv420p10le yuv444p10le yuv420p12le",
        ["-still-picture 1 -cpu-used 8", "-still-picture 1 -cpu-used 8 -color_range pc"],
    ),
    "libsvtav1": (".avif", "yuv420p yuv420p10le", ["-svtav1-params avif=1:lp=1"]),
}
NO_COLOR = ("1", "L", "LA", "I;16")
PROFILES = {"srgb": "", "p3": "to sRGB", "rubbish": "ignored"}
_CLEARER = ",format=rgba,colorchannelmixer=aa=0.5"
COARSE_TOLERANCE = 10.0  # decoders of pictures smooth chroma each in their way
TOLERANCE = 3.5
_KEEPS_PROFILE = (".png", ".jpg", ".tif", ".webp", ".avif", ".heic")
_TURNS = (".png", ".jpg", ".tif", ".webp", ".avif", ".heic")


def recipes(rng: random.Random) -> Iterator[Recipe]:
    """Rounds over all kinds of pictures, in another order each."""
    while True:
        makers: list[Callable[[], Recipe]] = []
        for suffix, (modes, all_options) in KINDS.items():
            makers += [
                lambda s=suffix, m=mode, o=options: _plain(rng, s, m, o)
                for mode in modes.split()
                for options in all_options
            ]
            makers += [lambda s=suffix, n=n: _turned(rng, s, n) for n in range(1, 9) if suffix in _TURNS]
            makers += [
                lambda s=suffix, p=p: _profiled(rng, s, p) for p in PROFILES if suffix in _KEEPS_PROFILE
            ] * 2
            makers += [
                lambda s=suffix: _cut(rng, s),
                lambda s=suffix: _flipped(rng, s),
                lambda s=suffix: _folder(rng, s),
            ] * 3
        makers += [
            lambda s=s: _several(rng, s) for s in (".png", ".webp", ".tif", ".avif", ".heic", ".gif")
        ] * 2
        makers += [
            lambda e=e, p=p, o=o: _encoded(rng, e, p, o)
            for e, (_, all_, opts) in ENCODED.items()
            for p in all_.split()
            for o in opts
        ]
        rng.shuffle(makers)
        for make in makers:
            yield make()


def _recipe(rng: random.Random, name: str, file: str, **spec: Any) -> Recipe:
    recipe = Recipe(name + file[file.rindex(".") :] if "." in file else name, [["picture", file]], file)
    recipe.picture = {"size": list(rng.choice(SIZES)), "mode": "RGB", "options": {}} | spec
    recipe.output = rng.choice(["/", ".png", ".png", ".mkv", ".mp4"])
    recipe.codec = "ffv1" if recipe.output == ".mkv" else None
    recipe.scale = 4 if recipe.picture["size"] != [300, 280] else 1
    recipe.tolerance, recipe.siting = TOLERANCE, "center"
    return recipe


def _plain(rng: random.Random, suffix: str, mode: str, options: dict[str, Any]) -> Recipe:
    marks = "-".join(f"{key}={value}" for key, value in options.items())
    recipe = _recipe(rng, f"{mode}-{marks}", f"a{suffix}", mode=mode, options=options)
    if suffix in (".avif", ".heic", ".jpg", ".webp") and min(recipe.picture["size"]) < 33:
        recipe.picture["size"] = [64, 48]
    has_alpha = (
        mode in ("LA", "RGBA", "PT") and suffix != ".bmp"
    )  # Pillow writes 32 bits, and no mask for alpha
    recipe.notes, recipe.silent = ("alpha", "") if has_alpha else ("", "alpha")
    if mode == "LAB":
        recipe.expect, recipe.words = REFUSED, "kind that cannot be converted"
    return recipe


def _turned(rng: random.Random, suffix: str, orientation: int) -> Recipe:
    return _recipe(rng, f"orientation{orientation}", f"a{suffix}", orientation=orientation, size=[64, 48])


def _profiled(rng: random.Random, suffix: str, profile: str) -> Recipe:
    best = {".jpg": {"quality": 100, "subsampling": 0}, ".webp": {"lossless": True}}
    best |= {".avif": {"quality": 100, "subsampling": "4:4:4"}, ".heic": {"quality": 100, "chroma": 444}}
    options = best.get(suffix, {})
    recipe = _recipe(rng, f"profile-{profile}", f"a{suffix}", options=options, profile=profile, size=[64, 48])
    recipe.profile, recipe.notes = profile, PROFILES[profile]
    recipe.silent = "" if recipe.notes else "sRGB"
    return recipe


def _cut(rng: random.Random, suffix: str) -> Recipe:
    share = rng.choice((0.97, 0.8, 0.5, 0.2, 0.02))
    recipe = _recipe(rng, f"cut{share}", f"a{suffix}", size=[64, 48])
    recipe.steps.append(["cut", f"a{suffix}", str(share), f"b{suffix}"])
    recipe.file, recipe.expect = f"b{suffix}", DAMAGED
    return recipe


def _flipped(rng: random.Random, suffix: str) -> Recipe:
    recipe = _recipe(rng, "bits-flipped", f"a{suffix}", size=[64, 48])
    recipe.steps.append(["flip", f"a{suffix}", str(rng.randrange(10**6)), f"b{suffix}"])
    recipe.file, recipe.expect = f"b{suffix}", SURVIVED
    return recipe


def _folder(rng: random.Random, suffix: str) -> Recipe:
    count = rng.choice((2, 3, 5))
    recipe = _recipe(rng, f"folder{count}", f"in/p1{suffix}", size=[64, 48])
    recipe.steps = [["picture", f"in/p{number}{suffix}"] for number in range(count)]
    recipe.file, recipe.output = "in", rng.choice(["/", ".mkv", ".mp4", ".webm", ".mov"])
    recipe.codec = None
    if rng.random() < 0.25:
        recipe.name, recipe.expect, recipe.words = "other-sizes-" + recipe.name, REFUSED, "different sizes"
        recipe.steps[-1].append("larger")
    return recipe


def _several(rng: random.Random, suffix: str) -> Recipe:
    count = rng.choice((2, 3, 6))
    recipe = _recipe(rng, f"several{count}", f"a{suffix}", size=[64, 48], pages=count)
    recipe.expect, recipe.words = REFUSED, "pages" if suffix == ".tif" else "animation"
    if suffix == ".heic":  # others are views of the first
        recipe.expect = "restored"
    if suffix == ".gif":  # a video
        recipe.expect, recipe.picture["options"] = "restored", {"duration": 100, "loop": 0}
        recipe.output = ".mkv"
    return recipe


def _encoded(rng: random.Random, encoder: str, pixel: str, options: str) -> Recipe:
    suffix = ENCODED[encoder][0]
    width, height = rng.choice(
        [(64, 48), (63, 47), (98, 18), (200, 120)] if encoder != "libsvtav1" else [(64, 64)]
    )
    recipe = _recipe(
        rng,
        f"{encoder}-{pixel}{options.replace(' ', '')}-{width}x{height}",
        f"a{suffix}",
        size=[width, height],
    )
    alpha = suffix != ".bmp" and pixel in (
        "rgba",
        "rgba64be",
        "rgba64le",
        "ya8",
        "ya16be",
        "bgra",
        "yuva420p",
    )
    source = (
        f"testsrc2=size={width + width % 2}x{height + height % 2},hue=h=77,format=rgb24,crop={width}:{height}"
    )
    source += _CLEARER if alpha else ""
    words = [
        "-f",
        "lavfi",
        "-i",
        source,
        "-frames:v",
        "1",
        "-c:v",
        encoder,
        "-pix_fmt",
        pixel,
        *options.split(),
    ]
    recipe.steps = [["ffmpeg", *words, *([] if suffix == ".avif" else ["-update", "1"]), f"a{suffix}"]]
    recipe.picture = {}
    recipe.scale = 4
    recipe.tolerance = COARSE_TOLERANCE if "42" in pixel or "-q:v" in options else TOLERANCE
    recipe.notes = "alpha" if alpha else ""
    if pixel == "rgb444le":
        recipe.expect, recipe.words = REFUSED, "Unsupported BMP"
    return recipe


# -- making ---------------------------------------------------------------------------------------------------


def source(index: int, size: tuple[int, int]) -> np.ndarray:
    """Colours that change slowly and an edge, (H, W, 3) uint8; another one for every index."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    picture = np.stack([40 + 170 * x, 40 + 170 * y, 60 + 120 * (1 - x) + 0 * y], -1)
    picture[height // 3 : height // 2, width // 4 : width // 2] = [210, 60 + 40 * index % 150, 70]
    return picture.round().astype(np.uint8)


def profile_of(name: str) -> bytes:
    if name == "p3":
        return picture_decoder._profile_of(12)  # type: ignore[return-value]
    if name == "rubbish":
        return b"rubbish"
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def in_mode(picture: np.ndarray, mode: str) -> Image.Image:
    image = Image.fromarray(picture)
    if mode == "I;16":
        return Image.fromarray(picture[..., 0].astype(np.uint16) * 257)
    if mode == "PT":
        return image.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    if mode == "P":
        return image.convert("P", palette=Image.Palette.ADAPTIVE, colors=64)
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(picture[..., 1]))
    return (
        image.convert(mode)
        if mode != "LAB"
        else ImageCms.applyTransform(
            image,
            ImageCms.buildTransform(
                ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
            ),
        )
    )


def write(path: Path, spec: dict[str, Any], index: int = 0, larger: bool = False) -> None:
    """One picture as `spec` says: size, mode, options, and perhaps orientation, profile, pages."""
    pillow_heif.register_heif_opener()
    width, height = spec["size"]
    size = (width + 4, height) if larger else (width, height)
    options = dict(spec["options"])
    image = in_mode(source(index, size), spec["mode"])
    if spec["mode"] == "PT":
        options["transparency"] = image.getpixel((0, 0))
    if "orientation" in spec:
        exif = Image.Exif()
        exif[0x0112] = spec["orientation"]
        options["exif"] = exif
        options |= {".jpg": {"quality": 95, "subsampling": 0}, ".webp": {"lossless": True}}.get(
            path.suffix, {}
        )
    if "profile" in spec:
        options["icc_profile"] = profile_of(spec["profile"])
    if spec.get("pages"):
        more = [in_mode(source(number, size), spec["mode"]) for number in range(1, spec["pages"])]
        options |= {"save_all": True, "append_images": more}
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(saved(image, path.suffix, options))


def saved(image: Image.Image, suffix: str, options: dict[str, Any]) -> bytes:
    target = io.BytesIO()
    image.save(target, format=Image.registered_extensions()[suffix], **options)
    return target.getvalue()


def p3_as_srgb(picture: np.ndarray) -> np.ndarray:
    """By the definitions of Display P3 and sRGB, which share white and curve."""

    def matrix(xy: list[tuple[float, float]]) -> np.ndarray:
        columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in xy]).T
        white = np.array([0.3127 / 0.329, 1, (1 - 0.3127 - 0.329) / 0.329])
        return columns * np.linalg.solve(columns, white)

    values = picture / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    to = np.linalg.inv(matrix([(0.64, 0.33), (0.3, 0.6), (0.15, 0.06)]))
    linear = np.clip(linear @ (to @ matrix([(0.68, 0.32), (0.265, 0.69), (0.15, 0.06)])).T, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
