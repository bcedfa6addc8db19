"""Does an engine run here? Told from the plan's header and the manifest, before anything is loaded, without a GPU."""

from __future__ import annotations

import importlib.metadata
import platform
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import COMPATIBLE, STRIP, Engine
from vsr_trt.runtime.errors import EngineError
from vsr_trt.runtime.machine.gpu import Gpu, why_none
from vsr_trt.runtime.machine.libraries import EXTRAS, TITLES

_HEADER = struct.Struct("<4s12xQ4B4xI")  # magic, bytes of the plan, version, magic again, capabilities
_MAGIC = {"tensorrt_rtx": b"vtrt", "tensorrt": b"ftrt"}
# TensorRT-RTX writes the capabilities of a plan as bits. Found by building plans for each and comparing.
_RTX_BITS = {1: "sm_75", 2: "sm_80", 4: "sm_86", 8: "sm_89", 16: "sm_120", 32: "sm_121"}
OLDEST_PORTABLE = 80  # TensorRT's portable plans are for Ampere and newer
_REBUILD = "Build it again: vsr-build engines BUNDLE --force"
_PACKAGES = {
    "tensorrt_rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
}


@dataclass(frozen=True)
class Header:
    """What the first bytes of a plan say.

    Attributes:
        version: of the library that built it.
        bytes: of the whole plan; None where the header does not tell.
        targets: compute capabilities whose GPUs run it; empty where the header does not tell.
    """

    version: str
    bytes: int | None
    targets: tuple[str, ...]


def read_header(path: Path, backend: str) -> Header:
    """Reads the header of a TensorRT or TensorRT-RTX plan.

    Raises:
        EngineError: not such a plan, or one that was cut off.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER.size)
        size = path.stat().st_size
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror or error}.") from error
    if len(start) < _HEADER.size:
        raise EngineError(f"{path} is no engine: it has only {size} bytes. {_REBUILD}")
    magic, length, *version, bits = _HEADER.unpack(start)
    if magic != _MAGIC[backend]:
        raise EngineError(f"{path} is no {TITLES[backend]} engine, or its beginning is damaged. {_REBUILD}")
    named = ".".join(map(str, version))
    if backend == "tensorrt":  # of the rest of its header only the version's place is documented
        return Header(named, None, ())
    if length != size:
        raise EngineError(f"{path} is damaged: it should have {length} bytes, and has {size}. {_REBUILD}")
    return Header(named, length, tuple(name for bit, name in _RTX_BITS.items() if bits & bit))


def installed_version(backend: str) -> str | None:
    """Version of the backend's library, None where it is not installed. Nothing is loaded."""
    for package in _PACKAGES[backend]:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def why_not(bundle: Bundle, engine: Engine, gpu: Gpu | None, installed: str | None) -> str | None:
    """Why an engine of TensorRT or TensorRT-RTX does not run here, None if it does.

    Args:
        bundle: that it is in.
        engine: from its manifest.
        gpu: in the machine.
        installed: version of the engine's library, None if it is not there.
    """
    try:
        header = read_header(bundle.file(engine.file), engine.backend)
    except EngineError as error:
        return str(error)
    title = TITLES[engine.backend]
    if installed is None:
        return f"{title} is not installed; install it with: pip install 'vsr-trt[{EXTRAS[engine.backend]}]'"
    if not _version_fits(header.version, installed, COMPATIBLE in engine.flags):
        return (
            f"it was built by {title} {header.version}, and {installed} is installed; build it again, or install "
            f"{title} {header.version}"
        )
    if engine.platform not in (None, this_platform()):
        return f"it is for {engine.platform}, and this machine is {this_platform()}"
    if STRIP in engine.flags:
        return "it has no weights; put them in with engines.tensorrt.refit"
    if gpu is None:
        return f"there is no GPU in this machine ({why_none()})"
    targets = header.targets or engine.targets
    if engine.backend == "tensorrt" and engine.target == "portable":
        if capability_number(gpu.capability) < OLDEST_PORTABLE:
            return f"it is for sm_{OLDEST_PORTABLE} and newer, and the GPU is {gpu}"
    elif gpu.capability not in targets:
        return f"it is for {', '.join(targets)}, and the GPU is {gpu}"
    if engine.device is not None and engine.device != gpu.name:
        return f"it was tuned on {engine.device}, and the GPU is {gpu}"
    return None


def this_platform() -> str:
    """System and architecture, e.g. `linux-x86_64`: plans of TensorRT run on those that built them."""
    return f"{sys.platform}-{platform.machine()}"


def capability_number(name: str) -> int:
    """sm_89 -> 89."""
    return int(name.removeprefix("sm_"))


def _version_fits(built: str, installed: str, compatible: bool) -> bool:
    """The same release, or for compatible plans a later one of the same major version or of the next."""
    one, other = ([int(part) for part in version.split(".")[:3]] for version in (built, installed))
    if compatible:
        return other >= one and other[0] - one[0] <= 1
    return one == other
