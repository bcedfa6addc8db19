"""Pictures that people have: colour profiles, many frames in a file, damage, crashes of a decoder."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from helpers.matrix import matrix
from helpers.media_clips import SIZE, pattern, restore
from PIL import Image, ImageCms, PngImagePlugin

from vsr_trt.runtime import media
from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.media import picture_decoder
from vsr_trt.runtime.media.picture_reader import PictureReader

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
P3 = picture_decoder._profile_of(12)
KINDS = {
    ".png": {},
    ".jpg": {"quality": 100, "subsampling": 0},
    ".tif": {},
    ".webp": {"lossless": True},
    ".avif": {"quality": 100, "subsampling": "4:4:4"},
    ".heic": {"quality": 100, "chroma": 444},
}


def save(path: Path, picture: np.ndarray, **options: object) -> None:
    pillow_heif.register_heif_opener()
    Image.fromarray(picture).save(path, **KINDS[path.suffix] | options)


def read(path: Path) -> tuple[np.ndarray, list[str]]:
    with media.open_source(path) as source:
        frames = list(source)
        assert len(frames) == 1
        return frames[0].rgb, source.notes


def soft() -> np.ndarray:
    """Colours that change slowly, so that lossy kinds keep them."""
    x = np.linspace(30, 220, 64)
    return np.stack(np.broadcast_arrays(x[None], x[:48, None], 255 - x[None]), -1).round().astype(np.uint8)


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


@pytest.mark.parametrize("suffix", KINDS)
def test_a_screenshot_with_the_profile_of_srgb_stays_as_it_is(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    save(path, soft(), icc_profile=SRGB)
    rgb, notes = read(path)
    assert np.abs(rgb.astype(int) - soft()).max() <= (0 if suffix in (".png", ".tif", ".webp") else 3)
    assert notes == []


@pytest.mark.parametrize("suffix", KINDS)
def test_other_profiles_are_converted_and_said(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    save(path, soft(), icc_profile=P3)
    rgb, notes = read(path)
    assert np.abs(rgb - p3_as_srgb(soft())).mean() < (0.6 if suffix in (".png", ".tif", ".webp") else 1.2)
    assert len(notes) == 1
    assert notes[0].endswith("to sRGB.")


@pytest.mark.parametrize(
    ("suffix", "name"),
    matrix(KINDS, ["a", "a.tmp", "a.mp4"], fast=lambda suffix, name: name == "a" or suffix == ".png"),
)
def test_a_picture_is_known_by_its_contents(tmp_path: Path, suffix: str, name: str) -> None:
    path = tmp_path / f"made{suffix}"
    save(path, soft(), icc_profile=P3)
    path.rename(tmp_path / name)
    _, notes = read(tmp_path / name)
    assert notes[0].endswith("to sRGB.")


def test_a_grey_profile_is_converted(tmp_path: Path) -> None:
    grey = soft()[..., 0]
    curve = b"curv\0\0\0\0" + (1).to_bytes(4, "big") + round(1.8 * 256).to_bytes(2, "big") + b"\0\0"
    body = P3[:128].replace(b"RGB ", b"GRAY")
    tags = {b"wtpt": b"XYZ \0\0\0\0" + bytes.fromhex("0000f6d6000100000000d32d"), b"kTRC": curve}
    tags[b"desc"] = b"desc\0\0\0\0" + (2).to_bytes(4, "big") + b"g\0" + bytes(78)
    tags[b"cprt"] = b"text\0\0\0\0no\0\0"
    table, data = b"", b""
    for name, tag in tags.items():
        table += name + (132 + 12 * len(tags) + len(data)).to_bytes(4, "big") + len(tag).to_bytes(4, "big")
        data += tag + bytes(-len(tag) % 4)
    profile = body + len(tags).to_bytes(4, "big") + table + data
    profile = len(profile).to_bytes(4, "big") + profile[4:]
    Image.fromarray(grey).save(tmp_path / "a.png", icc_profile=profile)
    rgb, notes = read(tmp_path / "a.png")
    linear = (grey / 255) ** 1.8
    expected = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    assert np.abs(rgb - expected[..., None]).mean() < 1
    assert "to sRGB" in notes[0]


def test_a_profile_that_is_rubbish_is_ignored_and_said(tmp_path: Path) -> None:
    save(tmp_path / "a.png", soft(), icc_profile=b"rubbish")
    rgb, notes = read(tmp_path / "a.png")
    assert np.array_equal(rgb, soft())
    assert "ignored" in notes[0]


@pytest.mark.parametrize(
    ("tags", "word"), [((9, 16, 0, 1), "HDR"), ((9, 18, 0, 1), "HDR"), ((9, 1, 0, 1), "BT.2020")]
)
def test_hdr_pictures_are_refused(tmp_path: Path, tags: tuple[int, ...], word: str) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"cICP", bytes(tags))
    save(tmp_path / "a.png", soft(), pnginfo=chunks)
    with pytest.raises(InputError, match=word):
        media.open_source(tmp_path / "a.png")


def test_color_tags_of_a_png_are_obeyed(tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"cICP", bytes((12, 13, 0, 1)))
    save(tmp_path / "a.png", soft(), pnginfo=chunks)
    rgb, notes = read(tmp_path / "a.png")
    assert np.abs(rgb - p3_as_srgb(soft())).mean() < 0.6
    assert "to sRGB" in notes[0]


@pytest.mark.parametrize(
    ("name", "in_folder"),
    matrix(
        ["a.png", "a.webp", "a.avif", "a.tif"],
        [False, True],
        fast=lambda name, in_folder: in_folder == (name in ("a.png", "a.avif")),
    ),
)
def test_several_pictures_in_a_file_are_refused(tmp_path: Path, name: str, in_folder: bool) -> None:
    pictures = [Image.fromarray(pattern(index)) for index in (1, 9, 17)]
    pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:])
    with pytest.raises(InputError) as caught:
        media.open_source(tmp_path if in_folder else tmp_path / name)
    assert name in str(caught.value)
    assert ("3 pages" if name == "a.tif" else "animation of 3 frames") in str(caught.value)


def test_an_animated_png_is_read_as_a_video_by_its_other_name(tmp_path: Path) -> None:
    pictures = [Image.fromarray(pattern(index)) for index in (1, 9, 17)]
    pictures[0].save(
        tmp_path / "a.apng", format="PNG", save_all=True, append_images=pictures[1:], duration=100
    )
    with media.open_source(tmp_path / "a.apng") as source:
        frames = list(source)
    assert [float(frame.time) for frame in frames] == pytest.approx([0, 0.1, 0.2])
    assert all(np.array_equal(f.rgb, np.asarray(p)) for f, p in zip(frames, pictures, strict=True))


def test_a_thumbnail_in_a_tiff_is_no_page(tmp_path: Path) -> None:
    small = Image.fromarray(pattern(1)).resize((16, 12))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    Image.fromarray(pattern(1)).save(tmp_path / "a.tif", save_all=True, append_images=[small])
    rgb, _ = read(tmp_path / "a.tif")
    assert np.array_equal(rgb, pattern(1))


@pytest.mark.parametrize("suffix", [".heic", ".avif"])
def test_pictures_in_tiles_are_read_whole(tmp_path: Path, suffix: str) -> None:
    if suffix == ".heic":
        pytest.importorskip("pillow_heif")
    path = tmp_path / f"a{suffix}"
    large = np.kron(soft(), np.ones((12, 10, 1), np.uint8))
    if suffix == ".avif":
        save(path, large, tile_rows=1, tile_cols=1)
    else:
        save(path, large)
    rgb, _ = read(path)
    assert rgb.shape == large.shape
    assert np.abs(rgb.astype(int) - large).mean() < 3


@pytest.mark.parametrize(
    ("suffix", "share"),
    matrix([*KINDS, ".bmp"], [0.98, 0.6], fast=lambda suffix, share: share == 0.6 or suffix == ".png"),
)
def test_a_picture_that_is_cut_short_is_told_before_the_first_frame(
    tmp_path: Path, suffix: str, share: float
) -> None:
    for index in range(3):
        path = tmp_path / f"p{index}{suffix}"
        Image.fromarray(pattern(index)).save(path) if suffix == ".bmp" else save(path, pattern(index))
    path = tmp_path / f"p2{suffix}"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(InputError, match=f"p2{suffix}"):
        media.open_source(tmp_path)


def damaged(path: Path) -> None:
    """A PNG whose samples do not unpack; headers and end are in order."""
    data = bytearray(path.read_bytes())
    start = data.index(b"IDAT") + 12
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)


def test_a_damaged_picture_in_the_middle_is_left_out_and_the_rest_goes_on(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index in range(4):
        save(tmp_path / "in" / f"p{index}.png", pattern(index))
    damaged(tmp_path / "in" / "p1.png")
    run = restore(tmp_path / "in", tmp_path / "out")
    assert "p1.png" in run.damage
    assert run.path == tmp_path / "out.partial"
    assert sorted(p.name for p in run.path.iterdir()) == ["p0.png", "p2.png", "p3.png"]


def test_a_crash_of_the_decoder_costs_one_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is killed by what a crash kills it with, as it begins with the second picture."""
    (tmp_path / "in").mkdir()
    for index in range(3):
        save(tmp_path / "in" / f"p{index}.png", pattern(index))
    ask = PictureReader._ask

    def crashing(self: PictureReader, what: str, path: Path) -> tuple:
        if what == "decode" and path.name == "p1.png":
            os.kill(self._process.pid, signal.SIGSEGV)
            self._process.wait()
        return ask(self, what, path)

    monkeypatch.setattr(PictureReader, "_ask", crashing)
    run = restore(tmp_path / "in", tmp_path / "out")
    assert "p1.png makes the decoder of pictures crash (SIGSEGV)" in run.damage
    assert sorted(p.name for p in run.path.iterdir()) == ["p0.png", "p2.png"]


@pytest.mark.parametrize(
    ("make", "noted"),
    [
        (lambda i: i.convert("P", palette=Image.Palette.ADAPTIVE, colors=8), False),
        (lambda i: i.convert("RGBA"), False),  # opaque
        (lambda i: i.convert("LA"), False),
    ],
)
def test_opaque_pictures_are_not_called_transparent(tmp_path: Path, make: object, noted: bool) -> None:
    make(Image.fromarray(soft())).save(tmp_path / "a.png")
    assert bool(read(tmp_path / "a.png")[1]) is noted


def test_a_palette_with_a_transparent_colour_is_noted(tmp_path: Path) -> None:
    picture = Image.fromarray(soft()).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    picture.save(tmp_path / "a.png", transparency=picture.getpixel((0, 0)))
    assert read(tmp_path / "a.png")[1] == ["The alpha channel (transparency) is dropped."]
    picture.save(tmp_path / "b.png", transparency=200)  # a colour that no pixel has
    assert read(tmp_path / "b.png")[1] == []


def test_the_decoder_ends_with_its_reader(tmp_path: Path) -> None:
    save(tmp_path / "a.png", soft())
    source = media.open_source(tmp_path / "a.png")
    process = source._reader._process
    assert process.poll() is None
    source.close()
    assert process.poll() is not None


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_samples_whose_white_is_not_known_are_refused(tmp_path: Path, kind: type) -> None:
    Image.fromarray(soft()[..., 0].astype(kind)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="white is not known"):
        media.open_source(tmp_path / "a.tif")


def test_a_cmyk_photograph_is_read(tmp_path: Path) -> None:
    Image.fromarray(soft()).convert("CMYK").save(tmp_path / "a.jpg", quality=100, subsampling=0)
    rgb, _ = read(tmp_path / "a.jpg")
    expected = Image.open(io.BytesIO((tmp_path / "a.jpg").read_bytes())).convert("RGB")
    assert np.array_equal(rgb, np.asarray(expected))


def test_sizes_are_what_the_tests_assume() -> None:
    assert soft().shape == (48, 64, 3)
    assert SIZE == (64, 48)
