"""What is given on the command line: sizes of pictures and of memory, frame rates, folders."""

from __future__ import annotations

import argparse
import re
from fractions import Fraction
from pathlib import Path

from vsr_trt.runtime.bundle.manifest import Manifest
from vsr_trt.runtime.errors import InputError

_UNITS = {"b": 1, "mb": 10**6, "gb": 10**9, "mib": 2**20, "gib": 2**30}


def parse_size(text: str, manifest: Manifest) -> tuple[int, int]:
    """Reads `--size`, width and height of the restored picture, e.g. 1280x720.

    Raises:
        InputError: not a size, or none that this bundle restores to.
    """
    match = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", text, re.ASCII)
    if match is None:
        raise InputError(f"--size {text}: expected WIDTHxHEIGHT of the restored picture, e.g. 1280x720.")
    width, height = int(match[1]), int(match[2])
    scale = manifest.scale
    if width % scale or height % scale or not width or not height:
        near = "x".join(str(max(1, round(side / scale)) * scale) for side in (width, height))
        raise InputError(
            f"--size {text}: the restored picture is {scale} times the clip, so both sides are multiples of {scale}, "
            f"e.g. {near}."
        )
    return width, height


def parse_memory(text: str) -> int:
    """Reads `--memory` as bytes, e.g. 16GB (16 000 000 000), 16GiB (a GPU's, mostly), 12000MB.

    Raises:
        InputError: not an amount of memory.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([a-z]{1,3})", text.strip().lower(), re.ASCII)
    bytes_ = int(float(match[1]) * _UNITS[match[2]]) if match and match[2] in _UNITS else 0
    if not bytes_:
        raise InputError(f"--memory {text}: expected a number and MB, MiB, GB or GiB, e.g. 16GB.")
    return bytes_


def output_folder(text: str) -> Path:
    """Reads the name of a folder that is written; argparse.ArgumentTypeError for `-`, which means standard output."""
    if text == "-":
        raise argparse.ArgumentTypeError("a folder cannot be written to standard output (-); give it a name")
    return Path(text)


def parse_segment(text: str) -> tuple[int, int]:
    """Reads `--segment`: frames, and how many of them the next one has, too.

    Raises:
        InputError: no such numbers.
    """
    match = re.fullmatch(r"(\d{1,6})(?:,(\d{1,6}))?", text, re.ASCII)
    if match is None:
        raise InputError(f"--segment {text}: expected a number of frames, or two: 32, or 32,8.")
    return int(match[1]), int(match[1]) // 4 if match[2] is None else int(match[2])


def parse_fps(text: str) -> Fraction | float:
    """Reads `--fps`: a fraction, e.g. 30000/1001, as it is; another number as it reads.

    Raises:
        InputError: neither.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip(), re.ASCII)
    try:
        return Fraction(int(match[1]), int(match[2])) if match else float(text)
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"--fps {text}: expected a number, e.g. 25 or 29.97, or a fraction, e.g. 30000/1001."
        ) from error
