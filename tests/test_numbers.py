"""Numbers out of range, on every option of every command: a sentence and exit code 2, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import planned_bundle
from PIL import Image

from vsr_trt import build
from vsr_trt.kernels import __main__ as kernels
from vsr_trt.runtime.cli import main as cli

HUGE = str(10**9)
VAST = "1" + 30 * "0"
WHOLE = ("0", "-1", VAST, "1.5", "nan", "1e3")
MEMORY = ("0", "0GB", "-1", "-1GB", "1e400", "1e400GB", "nan", "infGB", "8", "8XB", "")
SIZES = (
    "0x0",
    "-1x8",
    "512",
    "512x",
    "512x512x3",
    "514x512",
    "1e3x512",
    f"{VAST}x512",
    "999996x999996",
    "nanxnan",
    "",
)

_RESTORE = ("restore", "{clip}", "-o", "{new}.mkv", "--bundle", "{bundle}")
_PICTURES = ("restore", "{pictures}", "-o", "{new}.mkv", "--bundle", "{bundle}")
_PLAN = ("plan", "--bundle", "{bundle}", "--size", "512x512")
_BENCH = ("bench", "--bundle", "{bundle}", "--size", "512x512")
_COMPARE = ("compare", "{clip}", "{clip}", "-o", "{new}.png")
_SHARED = {
    "--tile": (*WHOLE, "50", HUGE),
    "--overlap": ("-1", "49", VAST, "1.5", "nan"),
    "--vae-tile": (*WHOLE, "50", HUGE),
    "--slots": (*WHOLE, HUGE),
    "--memory": MEMORY,
}
_START = ("1e300", "1e309", "nan", "inf", "-1", "-inf", "x", "1e18")
_THREADS = (*WHOLE, HUGE)
REFUSED: list[tuple[Callable, tuple[str, ...], dict[str, tuple[str, ...]]]] = [
    (
        cli.main,
        _RESTORE,
        _SHARED
        | {
            "--start": _START,
            "--frames": WHOLE,
            "--threads": _THREADS,
            "--crf": ("-1", "52", VAST, "1.5", "nan"),
        },
    ),
    (
        cli.main,
        _PICTURES,
        {"--fps": ("0", "-25", "nan", "inf", "1e999", "1e300", "1e-300", "0/1", "25/0", "30000/", VAST)},
    ),
    (cli.main, _PLAN, _SHARED),
    (
        cli.main,
        _BENCH,
        _SHARED
        | {
            "--threads": _THREADS,
            "--seconds": ("-1", "nan", "inf", "1e300", "1e999"),
            "--warmup": ("-1", "nan", "inf", "1e300"),
            "--max-regression": ("-1", "nan", "inf", "1e999"),
        },
    ),
    (cli.main, ("plan", "--bundle", "{bundle}"), {"--size": SIZES}),
    (cli.main, ("bench", "--bundle", "{bundle}"), {"--size": SIZES}),
    (
        cli.main,
        _COMPARE,
        {
            "--frame": ("-1", "1.5", "nan", HUGE, VAST),
            "--crop": (*WHOLE[:2], "1.5", "nan"),
            "--start": _START,
        },
    ),
    (
        build.main,
        ("engines", "{bundle}", "--dry-run", "--cache-dir", "{new}"),
        {
            "--tile": (*WHOLE, "50", HUGE),
            "--vae-tile": (*WHOLE, "50", HUGE),
            "--batch": (*WHOLE, HUGE),
            "--jobs": (*WHOLE, HUGE),
            "--memory": MEMORY,
            "--size": SIZES,
            "--workspace": ("0", "-1", "nan", "inf", "1e300", "1e999"),
            "--cache-limit": ("-1", "nan", "inf", "1e300", "1e999"),
        },
    ),
    (
        build.main,
        ("cache", "prune", "--cache-dir", "{new}"),
        {"--limit": ("-1", "nan", "inf", "1e300", "1e999")},
    ),
    (
        build.main,
        ("bundle", "--sd", "{new}", "--checkpoint", "{new}", "--out", "{new}"),
        {"--top-k": WHOLE, "--adapter": ("x=nan", "x=inf", "x=1e999", "x=", "x")},
    ),
    (
        build.main,
        ("calibrate", "{bundle}", "--clip", "{clip}"),
        {"--frames": WHOLE, "--start": _START, "--limit": ("0", "-1", "1.1", "nan", "inf", "1e999")},
    ),
    (build.main, ("verify", "{bundle}", "--clip", "{clip}", "--report", "{new}"), {"--frames": WHOLE}),
    (
        build.main,
        ("time", "runtime", "--bundle", "{bundle}", "--clip", "{clip}"),
        {"--frames": (*WHOLE, "1"), "--threads": _THREADS},
    ),
    (
        build.main,
        ("alternatives", "{bundle}", "--ways", "runtime", "--clip", "{clip}"),
        {"--frames": (*WHOLE, "1"), "--threads": _THREADS},
    ),
    (
        build.main,
        ("vae-forms", "{bundle}"),
        {"--size": SIZES, "--tile": (*WHOLE, "50", HUGE), "--runs": (*WHOLE, HUGE), "--threads": _THREADS},
    ),
    (build.main, ("demo", "--out", "{new}"), {"--frames": WHOLE}),
    (
        build.main,
        ("full-size", "--out", "{new}"),
        {"--frames": (*WHOLE, "1"), "--torch-frames": ("-1", "1", VAST, "nan")},
    ),
    (
        kernels.main,
        ("report",),
        {"--size": ("0x0", "-1x8", "64", "64x", f"{VAST}x64", "1e3x64", "99999x99999")},
    ),
    (
        kernels.main,
        ("bench",),
        {"--size": ("0x0", "64", f"{VAST}x64"), "--seconds": ("0", "-1", "nan", "inf", "1e300", "1e999")},
    ),
]


def cases() -> Iterator[Any]:
    """All of them; by default each value where it comes first, and one in three of each option's."""
    tried: set[str] = set()
    for main, command, options in REFUSED:
        for option, values in options.items():
            for place, value in enumerate(values):
                fast = value not in tried or (place + len(option)) % 3 == 0
                tried.add(value)
                name = f"{command[0]} {option} {value[:12]}"
                marks = () if fast else pytest.mark.thorough
                yield pytest.param(main, command, option, value, id=name, marks=marks)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from helpers.media_clips import Clip

    folder = tmp_path_factory.mktemp("numbers")
    Clip().write(folder / "clip.mkv")
    (folder / "pictures").mkdir()
    for index in range(3):
        Image.fromarray(np.full((16, 16, 3), index, np.uint8)).save(folder / "pictures" / f"{index}.png")
    bundle = planned_bundle.make(folder / "bundle").path
    return {"clip": folder / "clip.mkv", "pictures": folder / "pictures", "bundle": bundle, "folder": folder}


@pytest.mark.parametrize(("main", "command", "option", "value"), cases())
def test_numbers_out_of_range_are_refused(
    main: Callable, command: tuple, option: str, value: str, names: dict[str, Path], capsys, tmp_path: Path
) -> None:
    before = sorted(path.name for path in names["folder"].rglob("*"))
    arguments = [part.format(**names, new=tmp_path / "new") for part in command]
    try:
        code = main([*arguments, f"{option}={value}"])
    except SystemExit as stop:  # of argparse
        code = stop.code
    printed = capsys.readouterr()
    assert code == 2, printed
    assert "error:" in printed.err
    assert sorted(path.name for path in names["folder"].rglob("*")) == before
    if main is cli.main:
        assert list(tmp_path.iterdir()) == []
