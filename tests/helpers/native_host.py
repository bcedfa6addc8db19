"""The native host, built once, and called from Python by its C interface."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from filelock import FileLock
from helpers.processes import ROOT

SOURCE = ROOT / "runtime" / "native"
BUILD = ROOT / "build" / "native"
OPENVINO = "onnxruntime-openvino==1.24.1"
OK, NONE = 0, 1
ARGUMENT, MISSING, DAMAGED, TOO_NEW, SIZE, MEMORY, DEVICE, FRAME, BUSY = range(-1, -10, -1)


def onnxruntime_library() -> Path:
    """The library inside of ONNX Runtime's wheel."""
    [found] = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    return found


def openvino_library() -> Path:
    """The library inside of ONNX Runtime's wheel with OpenVINO's provider.

    That wheel and the usual one are one package to Python, so it is put into a folder of its own.
    """
    folder = BUILD / "onnxruntime-openvino"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            command += ["--no-compile", "--no-deps", "--upgrade", "--target", str(folder), OPENVINO]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                _missing(f"{OPENVINO} cannot be installed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
            (folder / "done").touch()
    [found] = (folder / "onnxruntime" / "capi").glob("libonnxruntime.so.*")
    return found


def _missing(reason: str) -> None:
    """Says why a test is not run; on a machine of CI it must."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(f"not run: {reason}")


def headers() -> list[str]:
    """CMake's arguments that say where the headers are; fetched once where this machine has none."""
    if os.environ.get("ONNXRUNTIME_ROOT"):
        return []
    folder = BUILD / "headers"
    with FileLock(f"{folder}.lock"):
        if not (folder / "usr" / "include" / "onnxruntime").exists():
            command = [str(SOURCE / "cmake" / "fetch-headers.sh"), str(folder)]
            fetched = subprocess.run(command, capture_output=True, text=True)
            if fetched.returncode:
                said = fetched.stderr.strip().splitlines()
                _missing(
                    f"ONNX Runtime's headers cannot be fetched: {said[-1] if said else fetched.returncode}"
                )
    return [f"-DCMAKE_PREFIX_PATH={folder / 'usr'}"]


def build(name: str = "release", *arguments: str) -> Path:
    """A folder with the library and all programs, built of what the tree holds now.

    Args:
        name: of the folder.
        arguments: of CMake.
    """
    for program in ("cmake", "c++"):
        if shutil.which(program) is None:
            _missing(f"there is no {program}")
    BUILD.mkdir(parents=True, exist_ok=True)
    found, folder = headers(), BUILD / name
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    with FileLock(f"{folder}.lock"):
        library = f"-DONNXRUNTIME_LIBRARY={onnxruntime_library()}"
        configure = ["cmake", "-S", str(SOURCE), "-B", str(folder), *generator, "-DVSR_TESTS=ON", library]
        run([*configure, *found, *arguments])
        run(["cmake", "--build", str(folder), "--parallel", "2"])
    return folder


def run(command: list[str], expected: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a program; fails with what it said where it ends otherwise."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == expected, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


class Image(ctypes.Structure):
    """vsr_image."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("stride", ctypes.c_size_t),
        ("width", ctypes.c_uint32),
        ("height", ctypes.c_uint32),
        ("format", ctypes.c_uint32),
        ("memory", ctypes.c_uint32),
        ("stream", ctypes.c_void_p),
    )

    @staticmethod
    def of(array: np.ndarray) -> Image:
        """An array (H,W,3) uint8; it must live as long as this."""
        height, width = array.shape[:2]
        return Image(ctypes.sizeof(Image), array.ctypes.data, array.strides[0], width, height, 0, 0, None)


class Option(ctypes.Structure):
    """vsr_option."""

    _fields_ = (("key", ctypes.c_char_p), ("value", ctypes.c_char_p))


class NativeError(Exception):
    """A status, with what the library says about it."""

    def __init__(self, status: int, message: str, stage: str, frame: int) -> None:
        super().__init__(message)
        self.status, self.stage, self.frame = status, stage, frame


class Library:
    """libvsr."""

    def __init__(self, folder: Path) -> None:
        self.calls = ctypes.CDLL(str(folder / "libvsr.so"))
        for name in ("vsr_error_message", "vsr_error_stage"):
            getattr(self.calls, name).restype = ctypes.c_char_p
        self.calls.vsr_error_frame.restype = ctypes.c_int64
        self.calls.vsr_scale.restype = ctypes.c_uint32

    def call(self, name: str, *arguments: Any) -> int:
        """The status of a call that takes an error behind its arguments.

        Raises:
            NativeError: it failed.
        """
        error = ctypes.c_void_p()
        status = getattr(self.calls, name)(*arguments, ctypes.byref(error))
        if status >= 0:
            return int(status)
        message, stage = (
            getattr(self.calls, f"vsr_error_{field}")(error).decode() for field in ("message", "stage")
        )
        frame = self.calls.vsr_error_frame(error)
        self.calls.vsr_error_free(error)
        raise NativeError(status, message, stage, frame)


class Host:
    """A bundle opened by the native library, and a stream for frames of a size."""

    def __init__(self, library: Library, bundle: Path, options: Mapping[str, object] | None = None) -> None:
        self.library, self.stream = library, ctypes.c_void_p()
        given = {"threads": 2, **(options or {})}
        pairs = [Option(key.encode(), str(value).encode()) for key, value in given.items()]
        self.model = ctypes.c_void_p()
        array = (Option * len(pairs))(*pairs)
        library.call("vsr_open", str(bundle).encode(), array, len(pairs), ctypes.byref(self.model))
        self.scale = library.calls.vsr_scale(self.model)

    def open(self, height: int, width: int) -> None:
        """Makes the stream."""
        self.library.call("vsr_stream_create", self.model, width, height, ctypes.byref(self.stream))
        self._result = np.empty((height * self.scale, width * self.scale, 3), np.uint8)

    def _given(self, name: str, *arguments: Any) -> list[np.ndarray]:
        result = np.empty_like(self._result)
        image = Image.of(result)
        status = self.library.call(name, self.stream, *arguments, ctypes.byref(image))
        return [result] if status == OK else []

    def push(self, frame: np.ndarray) -> list[np.ndarray]:
        """vsr_push; no result or one."""
        image = Image.of(frame)
        return self._given("vsr_push", ctypes.byref(image))

    def flush(self) -> list[np.ndarray]:
        """vsr_flush, until nothing is left."""
        results: list[np.ndarray] = []
        while found := self._given("vsr_flush"):
            results += found
        return results

    def reset(self) -> None:
        """vsr_reset."""
        self.library.call("vsr_reset", self.stream)

    def restore(self, frames: Iterable[np.ndarray]) -> list[np.ndarray]:
        """A whole clip."""
        frames = list(frames)
        if not self.stream:
            self.open(*frames[0].shape[:2])
        self.reset()
        return [result for frame in frames for result in self.push(frame)] + self.flush()

    def close(self) -> None:
        """Frees both."""
        self.library.calls.vsr_stream_destroy(self.stream)
        self.library.calls.vsr_close(self.model)
        self.stream = self.model = ctypes.c_void_p()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def frames(count: int, height: int, width: int, seed: int = 0) -> list[np.ndarray]:
    """Noisy pictures (height,width,3) uint8 with a slope."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(20, 180, width)[None, :, None]
    return [(slope + rng.uniform(0, 75, (height, width, 3))).astype(np.uint8) for _ in range(count)]


def schedules(
    bundle: Path, *sizes: str, tiles: Mapping[str, int] | None = None, **settings: str | int
) -> None:
    """`vsr-build schedule` for those restored pictures."""
    from vsr_trt import build as build_command

    arguments = ["schedule", str(bundle)]
    for size in sizes:
        arguments += ["--size", size]
    for tiling, side in (tiles or {}).items():
        arguments += ["--tile", f"{tiling}={side}"]
    for name, value in settings.items():
        arguments += [f"--{name}", str(value)]
    assert build_command.main(arguments) == 0


def copied(source: Path, target: Path, change: Callable[[Path], object] = lambda bundle: None) -> Path:
    """A copy of a bundle that may be changed."""
    shutil.copytree(source, target)
    change(target)
    return target
