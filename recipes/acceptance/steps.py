"""The steps of the acceptance, in order."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsr_trt.recipes.acceptance import checks
from vsr_trt.recipes.acceptance.library import PORTABLE_TARGETS, Library

SIZES = ("512x512", "1280x720", "1920x1080")
SLOTS = (1, 2, 3)
_MIDDLE = "1280x720"
_MINUTE = 60.0
_SOAK = 600  # seconds


@dataclass(frozen=True)
class Task:
    """A step.

    Attributes:
        name: unique.
        arguments: of Python.
        file: JSON that the command writes; None where it prints JSON on standard output, or none at all.
        needs: steps without which it makes no sense.
        limit: seconds after which it is ended.
        result: reads what the step has made, in place of JSON.
        check: says what is wrong with the result, None where nothing is.
        before: makes ready for the step.
        program: another program that Python is started by; the step is not run where it is not installed.
    """

    name: str
    arguments: tuple[str, ...]
    file: Path | None = None
    needs: tuple[str, ...] = ()
    limit: float = 30 * _MINUTE
    result: Callable[[], Any] | None = None
    check: Callable[[Any], str | None] | None = None
    before: Callable[[], None] | None = None
    program: tuple[str, ...] = ()


def tasks(
    build_script: Path, out: Path, library: Library, model: Mapping[str, Path], clips: Mapping[str, Path]
) -> list[Task]:
    """The steps.

    Args:
        build_script: path of build.py.
        out: folder for everything.
        library: what compiles, and for what.
        model: `sd` and `checkpoint`, weights that were written before.
        clips: size -> a folder of frames that are restored to it.
    """
    script, bundle = str(build_script), str(out / "bundle")
    runtime = ("-m", "vsr_trt.runtime")
    weights = ("--sd", str(model["sd"]), "--checkpoint", str(model["checkpoint"]))
    frames = ("--frames", "2")
    made = ("bundle", "calibrate", "engines")
    return [
        Task("doctor", (*runtime, "doctor", "--json"), limit=5 * _MINUTE),
        Task(
            "device without TensorRT",
            (str(build_script.parent / "tests" / "gpu" / "device_without_tensorrt.py"),),
            check=checks.all_hold,
        ),
        _tests("tests", out, ("tests/gpu",)),
        Task("bundle", (script, "bundle", *weights, "--out", bundle, "--kernels", "--overwrite", "--json")),
        Task(
            "calibrate",
            (script, "calibrate", bundle, "--clip", str(clips[SIZES[0]]), *frames),
            None,
            ("bundle",),
        ),
        # first: engines of the GPU's own target, and those that take most tiles at once, are preferred to others
        *_portable(script, out, bundle, library),
        *_tiles(script, out, bundle, library, 1, ("bundle", "calibrate")),
        Task("engines", _engines(script, bundle, library), None, ("bundle", "calibrate"), limit=90 * _MINUTE),
        *(
            Task(
                f"verify {size}",
                (script, "verify", bundle, "--clip", str(clips[size]), *frames, "--json"),
                None,
                made,
                limit=60 * _MINUTE,
                check=checks.ran_engines,
            )
            for size in SIZES
        ),
        *_pictures(out, bundle, library, clips[_MIDDLE], made),
        *_starts(out, bundle, library, clips[SIZES[0]], made),
        *(step for size in SIZES for step in _measured_and_predicted(out, bundle, library, size, made)),
        *(
            _bench(
                out, bundle, library, _MIDDLE, f"bench {_MIDDLE}, slots {slots}", made, "--slots", str(slots)
            )
            for slots in SLOTS
        ),
        _bench(
            *(out, bundle, library, _MIDDLE, f"{_SOAK // 60} minutes at {_MIDDLE}", made),
            *("--mode", "throughput", "--seconds", str(_SOAK)),
        ),
        *_tiles(script, out, bundle, library, 8, made),
        # last of the engines: it takes those of the attention out of the bundle
        Task("attention as kernel", (*_engines(script, bundle, library), "--operator", "kernel"), None, made),
        _bench(out, bundle, library, _MIDDLE, f"bench {_MIDDLE}, kernel", ("attention as kernel",)),
        _tests("machine code and PTX", out, ("tests/gpu/test_cubin_on_gpu.py",)),
        Task(
            "kernels",
            ("-m", "vsr_trt.kernels", "bench", "--json", str(out / "kernel.json")),
            out / "kernel.json",
        ),
        _tests(
            "memcheck", out, ("tests/gpu/test_kernel_on_gpu.py",), ("compute-sanitizer", "--tool", "memcheck")
        ),
    ]


def _portable(script: str, out: Path, bundle: str, library: Library) -> list[Task]:
    """Engines that several generations run, to be compared with those of this one; where the library has such."""
    if library.backend != "tensorrt_rtx" or library.target not in PORTABLE_TARGETS:
        return []
    build = (
        script,
        "engines",
        bundle,
        "--backend",
        "tensorrt-rtx",
        "--target",
        "portable",
        "--size",
        _MIDDLE,
    )
    needs = ("bundle", "calibrate")
    return [
        Task("engines, portable", (*build, "--json"), None, needs, limit=90 * _MINUTE),
        _bench(out, bundle, library, _MIDDLE, f"bench {_MIDDLE}, portable", ("engines, portable",)),
    ]


def _tiles(
    script: str, out: Path, bundle: str, library: Library, count: int, needs: tuple[str, ...]
) -> list[Task]:
    """Engines that take so many tiles at once, and the size with most of them restored by those."""
    words = f"{count} tile{'' if count == 1 else 's'} at once"
    build = (*_engines(script, bundle, library, (SIZES[-1],)), "--batch", str(count))
    return [
        Task(f"engines, {words}", build, None, needs, limit=90 * _MINUTE),
        _bench(out, bundle, library, SIZES[-1], f"bench {SIZES[-1]}, {words}", (f"engines, {words}",)),
    ]


def _engines(script: str, bundle: str, library: Library, of: Sequence[str] = SIZES) -> tuple[str, ...]:
    sizes = [word for size in of for word in ("--size", size)]
    backend = library.backend.replace("_", "-")
    return (script, "engines", bundle, "--backend", backend, "--target", library.target, *sizes, "--json")


def _tests(name: str, out: Path, what: Sequence[str], program: tuple[str, ...] = ()) -> Task:
    report = out / f"{name}.xml"
    return Task(
        name,
        ("-m", "pytest", "-q", "-n0", *what, f"--junitxml={report}"),
        limit=60 * _MINUTE,
        result=functools.partial(checks.read_tests, report),
        check=checks.ran_tests,
        program=program,
    )


def _pictures(out: Path, bundle: str, library: Library, clip: Path, made: tuple[str, ...]) -> list[Task]:
    """The same frame by the engines and on the CPU."""
    ours, cpu = out / "pictures-gpu", out / "pictures-cpu"
    by = {ours: library.backend, cpu: "onnxruntime-cpu"}
    common = [
        Task(
            f"restore {_MIDDLE} by {backend}",
            (*_restore(clip, folder, bundle, backend), "--frames", "1"),
            None,
            made,
        )
        for folder, backend in by.items()
    ]
    last = common[-1]
    return [
        common[0],
        Task(
            last.name,
            last.arguments,
            None,
            (*made, common[0].name),
            result=functools.partial(checks.compare_pictures, ours, cpu),
            check=checks.are_near,
        ),
    ]


def _starts(out: Path, bundle: str, library: Library, clip: Path, made: tuple[str, ...]) -> list[Task]:
    """A start without a cache of compiled kernels, with one, with one that is cut, and with one of nobody's."""
    cache = out / "kernel-cache"

    def cut() -> None:
        for file in cache.glob("*"):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    def foreign() -> None:
        for file in cache.glob("*"):
            file.write_bytes(b"a cache of another library")

    states: dict[str, Callable[[], None] | None] = {"cold": None, "with its cache": None, "cut cache": cut}
    states["foreign cache"] = foreign
    return [
        Task(
            f"start, {name}",
            (
                *_restore(clip, out / f"start-{index}", bundle, library.backend),
                *("--frames", "1", "--engine-cache", str(cache)),
            ),
            None,
            made,
            before=before,
        )
        for index, (name, before) in enumerate(states.items())
    ]


def _restore(clip: Path, output: Path, bundle: str, backend: str) -> tuple[str, ...]:
    return (
        *("-m", "vsr_trt.runtime", "restore", str(clip), "-o", str(output), "--bundle", bundle),
        *("--backend", backend, "--json"),
    )


def _bench(
    out: Path, bundle: str, library: Library, size: str, name: str, made: tuple[str, ...], *more: str
) -> Task:
    file = out / f"{name.replace(', ', '-').replace(' ', '-')}.json"
    arguments: tuple[str, ...] = ("-m", "vsr_trt.runtime", "bench", "--bundle", bundle, "--size", size)
    arguments += ("--backend", library.backend, "--json", str(file), "--overwrite", *more)
    return Task(name, arguments, file, made)


def _measured_and_predicted(
    out: Path, bundle: str, library: Library, size: str, made: tuple[str, ...]
) -> list[Task]:
    """A bench, and next to it what the roofline says of this GPU, stage by stage; without, where it has no figures."""
    bench = _bench(out, bundle, library, size, f"bench {size}", made)
    if library.figures is None:
        return [bench]
    plan = (
        "-m",
        "vsr_trt.runtime",
        "plan",
        "--bundle",
        bundle,
        "--size",
        size,
        "--roofline",
        library.figures,
    )
    return [
        bench,
        Task(f"prediction {size}", (*plan, "--measured", str(bench.file), "--json"), None, (bench.name,)),
    ]
