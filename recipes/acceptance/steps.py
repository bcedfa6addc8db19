"""The steps of the acceptance, in order."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vsr_trt.kernels.gated_topk.benchmark import GPU_FORMS
from vsr_trt.recipes.acceptance import checks
from vsr_trt.recipes.acceptance.library import PORTABLE_TARGETS, Library

SIZES = ("512x512", "1280x720", "1920x1080")
SLOTS = (1, 2, 3)
_MINUTE = 60.0


@dataclass(frozen=True)
class Extent:
    """How much is measured.

    Attributes:
        sizes: of the restored picture, WIDTHxHEIGHT, the smallest first. The middle one is measured most, the last in
            tiles.
        soak: seconds without a break at the middle size.
        seconds: for each mode of every other benchmark, at least.
        latents: sizes HEIGHTxWIDTH of the kernels' benchmark; the last is of a picture of 1920x1080 that is not cut.
    """

    sizes: tuple[str, ...] = SIZES
    soak: float = 600
    seconds: float = 10
    latents: tuple[str, ...] = ("64x64", "96x96", "135x240")

    @property
    def middle(self) -> str:
        """The size that is measured most."""
        return self.sizes[len(self.sizes) // 2]


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


@dataclass(frozen=True)
class Setting:
    """What the commands are about.

    Attributes:
        script: path of build.py.
        out: folder for everything.
        library: what compiles, and for what.
        model: `sd` and `checkpoint`, weights that were written before.
        clips: size -> a folder of frames that are restored to it.
        extent: how much is measured.
    """

    script: Path
    out: Path
    library: Library
    model: Mapping[str, Path]
    clips: Mapping[str, Path]
    extent: Extent = field(default_factory=Extent)

    @property
    def bundle(self) -> str:
        """The bundle's folder."""
        return str(self.out / "bundle")


_RUNTIME = ("-m", "vsr_trt.runtime")
_CALIBRATED = ("bundle", "calibrate")
_MADE = (*_CALIBRATED, "engines")
_FRAMES = ("--frames", "2")
# with the exit code of its own that it has for errors: else it has the program's, whatever it finds
_MEMCHECK = ("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9")


def tasks(of: Setting) -> list[Task]:
    """The steps."""
    script, extent = str(of.script), of.extent
    weights = ("--sd", str(of.model["sd"]), "--checkpoint", str(of.model["checkpoint"]))
    first, middle = extent.sizes[0], extent.middle
    soak = f"{extent.soak / 60:g} minutes" if extent.soak >= _MINUTE else f"{extent.soak:g} seconds"
    return [
        Task("doctor", (*_RUNTIME, "doctor", "--json"), limit=5 * _MINUTE),
        Task(
            "device without TensorRT",
            (str(of.script.parent / "tests" / "gpu" / "device_without_tensorrt.py"),),
            check=checks.all_hold,
        ),
        _tests("tests", of, ("",)),
        Task(
            "bundle", (script, "bundle", *weights, "--out", of.bundle, "--kernels", "--overwrite", "--json")
        ),
        Task(
            "calibrate",
            (script, "calibrate", of.bundle, "--clip", str(of.clips[first]), *_FRAMES),
            None,
            ("bundle",),
        ),
        # first: engines of the GPU's own target, and those that take most tiles at once, are preferred to others
        *_portable(of),
        *_tiles(of, 1, _CALIBRATED),
        Task("engines", _engines(of, extent.sizes), None, _CALIBRATED, limit=90 * _MINUTE),
        *(
            Task(
                f"verify {size}",
                (
                    *(script, "verify", of.bundle, "--clip", str(of.clips[size]), *_FRAMES, "--json"),
                    *("--report", str(of.out / f"verify-{size}")),  # one a size: none is written over
                ),
                None,
                _MADE,
                limit=60 * _MINUTE,
                check=checks.ran_engines,
            )
            for size in extent.sizes
        ),
        *_pictures(of),
        *_starts(of),
        *(step for size in extent.sizes for step in _measured_and_predicted(of, size)),
        *(
            _bench(of, middle, f"bench {middle}, slots {slots}", _MADE, "--slots", str(slots))
            for slots in SLOTS
        ),
        _bench(of, middle, f"{soak} at {middle}", _MADE, "--mode", "throughput", seconds=extent.soak),
        *_tiles(of, 8, _MADE),
        # last of the engines: it takes those of the attention out of the bundle
        Task("attention as kernel", (*_engines(of, extent.sizes), "--operator", "kernel"), None, _MADE),
        _bench(of, middle, f"bench {middle}, kernel", ("attention as kernel",)),
        _tests("machine code and PTX", of, ("test_cubin_on_gpu.py",)),
        _kernels(of),
        _tests("memcheck", of, ("test_cubin_on_gpu.py",), _MEMCHECK),
    ]


def _portable(of: Setting) -> list[Task]:
    """Engines that several generations run, to be compared with those of this one; where the library has such."""
    if of.library.backend != "tensorrt_rtx" or of.library.target not in PORTABLE_TARGETS:
        return []
    size = of.extent.middle
    build = _engines(of, (size,), target="portable")
    return [
        Task("engines, portable", build, None, _CALIBRATED, limit=90 * _MINUTE),
        _bench(of, size, f"bench {size}, portable", ("engines, portable",)),
    ]


def _tiles(of: Setting, count: int, needs: tuple[str, ...]) -> list[Task]:
    """Engines that take so many tiles at once, and the size with most of them restored by those."""
    words, size = f"{count} tile{'' if count == 1 else 's'} at once", of.extent.sizes[-1]
    build = (*_engines(of, (size,)), "--batch", str(count))
    return [
        Task(f"engines, {words}", build, None, needs, limit=90 * _MINUTE),
        _bench(of, size, f"bench {size}, {words}", (f"engines, {words}",)),
    ]


def _engines(of: Setting, sizes: Sequence[str], target: str | None = None) -> tuple[str, ...]:
    words = [word for size in sizes for word in ("--size", size)]
    options = ("--backend", of.library.backend.replace("_", "-"), "--target", target or of.library.target)
    return (str(of.script), "engines", of.bundle, *options, *words, "--json")


def _tests(name: str, of: Setting, what: Sequence[str], program: tuple[str, ...] = ()) -> Task:
    report = of.out / f"{name}.xml"
    tests = of.script.resolve().parent / "tests" / "gpu"  # wherever the command is called
    return Task(
        name,
        ("-m", "pytest", "-q", "-n0", *(str(tests / name) for name in what), f"--junitxml={report}"),
        limit=60 * _MINUTE,
        result=functools.partial(checks.read_tests, report),
        check=checks.ran_tests,
        program=program,
    )


def _kernels(of: Setting) -> Task:
    file = of.out / "kernel.json"
    sizes = [word for size in of.extent.latents for word in ("--size", size)]
    seconds = ("--seconds", f"{min(of.extent.seconds, 3):g}")
    arguments = ("-m", "vsr_trt.kernels", "bench", *sizes, *seconds, "--json", str(file))
    # TensorRT-RTX, which compiles the other form here, does not know the GPUs that TensorRT compiles for
    forms = GPU_FORMS if of.library.backend == "tensorrt_rtx" else GPU_FORMS[:1]
    return Task("kernels", arguments, file, check=functools.partial(checks.ran_kernels, expected=forms))


def _pictures(of: Setting) -> list[Task]:
    """The same frame by the engines and on the CPU."""
    ours, cpu = of.out / "pictures-gpu", of.out / "pictures-cpu"
    by = {ours: of.library.backend, cpu: "onnxruntime-cpu"}
    size = of.extent.middle
    common = [
        Task(
            f"restore {size} by {backend}",
            (*_restore(of, size, folder, backend), "--frames", "1"),
            None,
            _MADE,
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
            (*_MADE, common[0].name),
            result=functools.partial(checks.compare_pictures, ours, cpu),
            check=checks.are_near,
        ),
    ]


def _starts(of: Setting) -> list[Task]:
    """A start without a cache of compiled kernels, with one, with one that is cut, and with one of nobody's."""
    cache = of.out / "kernel-cache"

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
                *_restore(of, of.extent.sizes[0], of.out / f"start-{index}", of.library.backend),
                *("--frames", "1", "--engine-cache", str(cache)),
            ),
            None,
            _MADE,
            before=before,
        )
        for index, (name, before) in enumerate(states.items())
    ]


def _restore(of: Setting, size: str, output: Path, backend: str) -> tuple[str, ...]:
    return (
        *(*_RUNTIME, "restore", str(of.clips[size]), "-o", str(output), "--bundle", of.bundle),
        *("--backend", backend, "--json"),
    )


def _bench(
    of: Setting, size: str, name: str, needs: tuple[str, ...], *more: str, seconds: float | None = None
) -> Task:
    file = of.out / f"{name.replace(', ', '-').replace(' ', '-')}.json"
    bench = (*_RUNTIME, "bench", "--bundle", of.bundle, "--size", size, "--backend", of.library.backend)
    during = ("--seconds", f"{of.extent.seconds if seconds is None else seconds:g}")
    limit = 30 * _MINUTE + (seconds or 0)
    return Task(name, (*bench, *during, *more, "--json", str(file), "--overwrite"), file, needs, limit)


def _measured_and_predicted(of: Setting, size: str) -> list[Task]:
    """A bench, and next to it what the roofline says of this GPU, stage by stage; without, where it has no figures."""
    bench = _bench(of, size, f"bench {size}", _MADE)
    if of.library.figures is None:
        return [bench]
    plan = (*_RUNTIME, "plan", "--bundle", of.bundle, "--size", size, "--roofline", of.library.figures)
    return [
        bench,
        Task(f"prediction {size}", (*plan, "--measured", str(bench.file), "--json"), None, (bench.name,)),
    ]
