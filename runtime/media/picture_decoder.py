"""Decodes pictures, as a program of its own: `python picture_decoder.py`, spoken to over its pipes.

A decoder that crashes on a damaged file then takes no restored frames with it; `picture_reader` starts the program,
and starts it again when it has died. It imports nothing of ours, so that it is up in a moment.

A request is a line of JSON, `{"do": "look" or "decode", "path": ...}`. The answer is a line of JSON: what `look` or
`decode` return, or `{"error": sentence}`; behind that of `decode` come the bytes of the picture.
"""

from __future__ import annotations

import io
import json
import struct
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pillow_heif
from PIL import BmpImagePlugin, Image, ImageCms, ImageFile, ImageOps, TiffImagePlugin

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "AVIF", "HEIF")
_MAX_PIXELS = 1 << 28  # far more than can be restored: what says that it is larger is not decoded
_LARGE_BLOCK = 1 << 20
_ORIENTATION, _QUARTER_TURNS = 0x0112, (5, 6, 7, 8)
# TIFF
_SUBFILE_TYPE, _REDUCED = 254, 1
_STRIPS, _TILES = (273, 279), (324, 325)  # offsets, counts of bytes
_SAMPLE_FORMAT, _FLOAT, _BITS = 339, 3, 258
_PHOTOMETRIC, _YCBCR = 262, 6
# ITU-T H.273, in the cICP block of a PNG or the nclx box of a HEIF
_BT2020, _PQ, _HLG = 9, 16, 18
_UNSPECIFIED, _BT709 = 2, 1
_SAME_LEVELS = 1  # a profile that moves no colour by more is sRGB by another name


class RefusedError(Exception):
    """A picture that cannot be decoded as it should be; the message is the end of a sentence about it."""


def look(path: Path) -> dict[str, Any]:
    """What the headers say.

    Returns:
        kind: one of `FORMATS`, or "MPO", a JPEG with others behind it. size: (width, height), upright.
        pictures: how many the file holds, an animation's frames
        or a TIFF's pages. animated: whether they follow in time. end: the least length that the file has to have,
        in bytes, as far as the headers tell.
    """
    with _opened(path) as image:
        pictures = _count(image)
        return {
            "kind": image.format,
            "size": _upright_size(image, path),
            "pictures": pictures,
            "animated": pictures > 1 and image.format in ("PNG", "WEBP", "AVIF"),
            "end": _end_of_data(image),
        }


def decode(path: Path) -> tuple[dict[str, Any], bytes]:
    """The picture, upright, in sRGB.

    Returns:
        size: (width, height). notes: sentences about what is read differently from how it is stored; and the bytes
        of (H,W,3) uint8.
    """
    with _opened(path) as image:
        notes = []
        depth = _depth(image, path)
        _refuse_other_light(image, path)
        try:
            image.load()
        except (OSError, SyntaxError, ValueError, EOFError, struct.error, MemoryError) as error:
            raise RefusedError(f"cannot be decoded ({_reason(error)}); replace or remove it.") from error
        if depth > 8:
            notes.append(f"{depth}-bit pictures are processed and written in 8 bit.")
        if _is_transparent(image):
            notes.append("The alpha channel (transparency) is dropped.")
        profile = image.info.get("icc_profile")
        upright = ImageOps.exif_transpose(image)
        rgb, note = _in_srgb(_in_8_bit(upright, depth), profile)
        if note:
            notes.append(note)
        return {"size": rgb.size, "notes": notes}, rgb.tobytes()


def _opened(path: Path) -> Image.Image:
    try:
        image = Image.open(path, formats=FORMATS)
        if image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == _YCBCR:  # type: ignore[attr-defined]
            return _by_libtiff(path)
        return image
    except Image.DecompressionBombError as error:
        raise RefusedError(f"is too large to be decoded ({error}).") from error
    except Image.UnidentifiedImageError as error:
        raise RefusedError(
            "is not a picture that can be read; a PNG, JPEG, BMP, TIFF, WebP, AVIF or HEIC file was expected."
        ) from error
    except OSError as error:
        raise RefusedError(f"cannot be read ({_reason(error)}).") from error
    except (SyntaxError, ValueError, EOFError, struct.error) as error:
        raise RefusedError(f"is damaged ({_reason(error)}); replace or remove it.") from error


def _by_libtiff(path: Path) -> Image.Image:
    """Opens a TIFF of YCbCr: Pillow's own decoder fails where pixels share chroma and takes any range for full."""
    TiffImagePlugin.READ_LIBTIFF = True
    try:
        return Image.open(path, formats=("TIFF",))
    finally:
        TiffImagePlugin.READ_LIBTIFF = False


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _upright_size(image: Image.Image, path: Path) -> tuple[int, int]:
    """As it is shown. Pillow turns the size of a TIFF by itself; a PNG it would decode to find EXIF behind it."""
    if image.format == "TIFF":
        return image.size
    exif = Image.Exif()
    if image.format == "PNG":
        with path.open("rb") as file:
            exif.load(next((data for kind, data in _png_blocks(file, skip=True) if kind == b"eXIf"), b""))
    else:
        exif = image.getexif()
    width, height = image.size
    return (height, width) if exif.get(_ORIENTATION) in _QUARTER_TURNS else (width, height)


def _count(image: Image.Image) -> int:
    """Pictures in the file next to thumbnails and the like."""
    if image.format == "TIFF":
        pages = 0
        for page in range(getattr(image, "n_frames", 1)):
            image.seek(page)
            pages += not int(image.tag_v2.get(_SUBFILE_TYPE, 0)) & _REDUCED  # type: ignore[attr-defined]
        image.seek(0)
        return max(1, pages)
    if image.format in ("MPO", "HEIF"):
        return 1  # the others are views, previews or gain maps of the first one
    return int(getattr(image, "n_frames", 1))


def _end_of_data(image: Image.Image) -> int:
    """Where the picture's samples end in the file, of a TIFF or an uncompressed BMP; else 0."""
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        for offsets, counts in (_STRIPS, _TILES):
            if offsets in tags and counts in tags:
                return max(
                    (a + b for a, b in zip(_all(tags[offsets]), _all(tags[counts]), strict=False)), default=0
                )
    if isinstance(image, BmpImagePlugin.BmpImageFile) and image.tile and image.tile[0][0] == "raw":
        _, box, offset, arguments = image.tile[0]
        assert box is not None
        assert isinstance(arguments, tuple)
        stride = int(arguments[1])
        return int(offset) + stride * (int(box[3]) - int(box[1]))
    return 0


def _all(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (int(value),)


def _depth(image: Image.Image, path: Path) -> int:
    """Bits of a sample as it is stored."""
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24]
    if image.format == "TIFF":
        return max(_all(image.tag_v2.get(_BITS, 8)))  # type: ignore[attr-defined]
    return int(image.info.get("bit_depth", 8))


def _refuse_other_light(image: Image.Image, path: Path) -> None:
    """Refuses high dynamic range and BT.2020: shown as sRGB they would be spoilt."""
    if image.format == "TIFF" and _FLOAT in _all(image.tag_v2.get(_SAMPLE_FORMAT, 1)):  # type: ignore[attr-defined]
        raise RefusedError(
            "holds floating-point samples, whose white is not known; convert it to 8 or 16 bit first."
        )
    tags = _color_tags(image, path)
    if tags is None:
        return
    primaries, transfer = tags
    if transfer in (_PQ, _HLG) or primaries == _BT2020:
        what = "HDR" if transfer in (_PQ, _HLG) else "in the wide gamut BT.2020"
        raise RefusedError(
            f"is {what}; only standard dynamic range can be restored. Convert it to sRGB first."
        )
    if "icc_profile" not in image.info and primaries not in (_UNSPECIFIED, _BT709):
        profile = _profile_of(primaries)
        if profile is not None:
            image.info["icc_profile"] = profile


def _color_tags(image: Image.Image, path: Path) -> tuple[int, int] | None:
    """Primaries and transfer of ITU-T H.273, where the file has them."""
    if image.format == "PNG":
        with path.open("rb") as file:
            block = next((data for kind, data in _png_blocks(file) if kind == b"cICP"), b"")
        return (block[0], block[1]) if len(block) >= 4 else None
    box = image.info.get("nclx_profile")
    if isinstance(box, dict):
        return int(box.get("color_primaries", _UNSPECIFIED)), int(
            box.get("transfer_characteristics", _UNSPECIFIED)
        )
    return None


def _png_blocks(file: BinaryIO, skip: bool = False) -> Iterator[tuple[bytes, bytes]]:
    """(kind, data) of what stands in front of the picture itself; with `skip`, behind it, too."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IDAT" or length > _LARGE_BLOCK:
            if not skip:
                return
            file.seek(length + 4, io.SEEK_CUR)
            continue
        yield kind, file.read(length)
        file.seek(4, io.SEEK_CUR)  # the checksum


def _profile_of(primaries: int) -> bytes | None:
    """An ICC profile for primaries of ITU-T H.273 with the curve of sRGB: a matrix profile, version 2."""
    xy = {
        4: ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), (0.310, 0.316)),
        5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), (0.3127, 0.3290)),
        6: ((0.63, 0.34), (0.31, 0.595), (0.155, 0.07), (0.3127, 0.3290)),
        7: ((0.63, 0.34), (0.31, 0.595), (0.155, 0.07), (0.3127, 0.3290)),
        11: ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), (0.314, 0.351)),
        12: ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), (0.3127, 0.3290)),
    }.get(primaries)
    return None if xy is None else _matrix_profile(xy)


def _matrix_profile(xy: tuple[tuple[float, float], ...]) -> bytes:
    columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in xy[:3]]).T
    x, y = xy[3]
    white = np.array([x / y, 1.0, (1 - x - y) / y])
    columns = columns * np.linalg.solve(columns, white)
    # Bradford's adaptation to the D50 of profiles
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50 = np.array([0.9642, 1.0, 0.8249])
    scale = np.diag((bradford @ d50) / (bradford @ white))
    columns = np.linalg.inv(bradford) @ scale @ bradford @ columns

    def fixed(values: Any) -> bytes:
        return b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)

    samples = np.linspace(0, 1, 1024)
    linear = np.where(samples <= 0.04045, samples / 12.92, ((samples + 0.055) / 1.055) ** 2.4)
    curve = b"curv\0\0\0\0" + struct.pack(">I", 1024) + (linear * 65535).round().astype(">u2").tobytes()
    text = b"matrix"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text + b"\0" + bytes(78)
    parts = {
        b"desc": description,
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + fixed(d50),
        **{
            name: b"XYZ \0\0\0\0" + fixed(columns[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))
        },
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    table, data, position = b"", b"", 128 + 4 + 12 * len(parts)
    for name, part in parts.items():
        part += bytes(-len(part) % 4)
        table += struct.pack(">4sII", name, position + len(data), len(part))
        data += part
    head = struct.pack(
        ">I4sI4s4s4s12s4s", 0, b"\0\0\0\0", 0x02400000, b"mntr", b"RGB ", b"XYZ ", bytes(12), b"acsp"
    )
    head = head.ljust(68, b"\0") + fixed(d50)
    body = head.ljust(128, b"\0") + struct.pack(">I", len(parts)) + table + data
    return struct.pack(">I", len(body)) + body[4:]


def _is_transparent(image: Image.Image) -> bool:
    """Whether any pixel is not opaque; decoders of WebP invent an alpha channel, and palettes hide one."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return False
    try:
        least, _ = image.convert("RGBA").getchannel("A").getextrema()
        return int(least) < 255  # type: ignore[arg-type]
    except ValueError:
        return False


def _in_8_bit(image: Image.Image, depth: int) -> Image.Image:
    """RGB, L or CMYK."""
    mode = image.mode
    if mode in ("RGB", "L", "CMYK"):
        return image
    if mode.startswith("I;16"):
        samples = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((samples * 255 + 32767) // 65535).astype(np.uint8))
    if mode == "I":
        samples = np.asarray(image).astype(np.int64)
        if depth > 16 or samples.min() < 0 or samples.max() > 65535:
            raise RefusedError(
                "holds 32-bit samples, whose white is not known; convert it to 8 or 16 bit first."
            )
        return Image.fromarray(((samples * 255 + 32767) // 65535).astype(np.uint8))
    if mode in ("1", "LA", "La"):
        return image.convert("LA").getchannel("L") if mode != "1" else image.convert("L")
    if mode in ("P", "PA", "RGBA", "RGBX", "RGBa", "YCbCr"):
        # alpha is left out, not blended: what lies below is the picture's own
        return image.convert("RGBA").convert("RGB") if mode in ("P", "PA", "RGBa") else image.convert("RGB")
    raise RefusedError(
        f"has samples of a kind that cannot be converted to RGB ({mode}); convert it to a PNG first."
    )


def _in_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str | None]:
    """The picture as RGB in sRGB, and what to say about its colour profile."""
    if not profile:
        return image.convert("RGB"), None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = (ImageCms.getProfileDescription(source) or "").strip().splitlines()
        called = f"'{name[0][:60]}'" if name and name[0] else "its profile"
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            image.mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.HIGHRESPRECALC | ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        return image.convert("RGB"), f"A colour profile cannot be used ({_reason(error)}) and is ignored."
    if image.mode != "CMYK" and _moves_nothing(transform, image.mode):
        return image.convert("RGB"), None
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None
    return converted, f"The colours are converted from {called} to sRGB."


def _moves_nothing(transform: Any, mode: str) -> bool:
    """Whether it keeps every colour of a grid within `_SAME_LEVELS`."""
    steps = np.linspace(0, 255, 18).round().astype(np.uint8)
    if mode == "L":
        grid = np.arange(256, dtype=np.uint8)[None]
        expected = np.repeat(grid[..., None], 3, axis=2)
    else:
        grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 18, 3)
        expected = grid
    moved = ImageCms.applyTransform(Image.fromarray(grid), transform)
    apart = np.abs(np.asarray(moved).astype(int) - expected.astype(int))
    return bool(apart.max() <= _SAME_LEVELS)


def main() -> None:
    """Answers requests until the other side closes the pipe."""
    warnings.simplefilter("ignore")  # nobody reads them here
    Image.MAX_IMAGE_PIXELS = _MAX_PIXELS
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    Image.init()  # all kinds, before only some of them are asked for
    pillow_heif.register_heif_opener()
    answers = sys.stdout.buffer
    for line in sys.stdin.buffer:
        request = json.loads(line)
        path, data = Path(request["path"]), b""
        try:
            if request["do"] == "look":
                answer = look(path)
            else:
                answer, data = decode(path)
        except RefusedError as refused:
            answer = {"error": str(refused)}
        except Exception as error:  # a decoder's own fault: of one picture, not of the program
            answer = {"error": f"cannot be decoded ({type(error).__name__}: {error}); replace or remove it."}
        answers.write(json.dumps(answer).encode() + b"\n" + data)
        answers.flush()


if __name__ == "__main__":
    main()
