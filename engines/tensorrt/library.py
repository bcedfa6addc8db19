"""TensorRT and TensorRT-RTX behind one face: which is installed, which version, what it can do.

Both modules have the same interface but for a few points, and those changed from version to version. What
matters is asked of the module itself (`hasattr`), never deduced from a version number.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Literal

from vsr_trt.runtime.errors import EngineError
from vsr_trt.runtime.machine.libraries import EXTRAS, TITLES

Backend = Literal["tensorrt_rtx", "tensorrt", "onnxruntime"]

# Packages that put their libraries into the same process under the same names, one family for each CUDA version.
_FAMILIES: dict[str, str] = {
    "tensorrt_rtx": r"tensorrt[-_]rtx[-_]cu\d+",
    "tensorrt": r"tensorrt[-_]cu\d+",
}


@dataclass(frozen=True)
class CompilerLibrary:
    """One of the two modules.

    Attributes:
        backend: `tensorrt_rtx` or `tensorrt`.
        module: the imported module.
        version: of the module.
    """

    backend: Backend
    module: ModuleType
    version: str

    @property
    def title(self) -> str:
        """The product's name."""
        return TITLES[self.backend]

    @property
    def targets(self) -> tuple[str, ...]:
        """Compute capabilities that it builds for without their GPU; none for TensorRT."""
        kinds = getattr(self.module, "ComputeCapability", None)
        names = kinds.__members__ if kinds is not None else ()
        numbers = sorted(int(match[1]) for name in names if (match := re.fullmatch(r"SM(\d+)", name)))
        return tuple(f"sm_{number}" for number in numbers)

    @property
    def needs_gpu(self) -> bool:
        """Whether it builds on a machine with a GPU only."""
        return not self.targets

    def network_flags(self) -> int:
        """Strongly typed, always: precision is in the graph. TensorRT 11 knows no other, and has no flag."""
        flags = self.module.NetworkDefinitionCreationFlag
        wanted = ("STRONGLY_TYPED", "PREFER_AOT_PYTHON_PLUGINS")
        return sum(1 << int(getattr(flags, name)) for name in wanted if hasattr(flags, name))

    def builder_flag(self, name: str) -> Any:
        """A builder flag.

        Raises:
            EngineError: this version has none of that name.
        """
        if not hasattr(self.module.BuilderFlag, name):
            raise EngineError(
                f"{self.title} {self.version} has no builder flag {name}; install a newer version."
            )
        return getattr(self.module.BuilderFlag, name)


@cache
def load(backend: Backend) -> CompilerLibrary:
    """Imports the module.

    Raises:
        EngineError: not installed, two versions at once, or its libraries cannot be loaded.
    """
    refuse_two_versions(backend, (dist.metadata["Name"] or "" for dist in importlib.metadata.distributions()))
    try:
        module = importlib.import_module(backend)
        version = module.__version__
        module.Builder  # noqa: B018  (bindings without their libraries lack it)
    except (ImportError, OSError, AttributeError) as error:
        raise EngineError(
            f"{TITLES[backend]} cannot be loaded ({_short(error)}). Install it with: "
            f"pip install 'vsr-trt[{EXTRAS[backend]}]'"
        ) from error
    return CompilerLibrary(backend, module, version)


def refuse_two_versions(backend: Backend, installed: Iterable[str]) -> None:
    """Refuses two families of packages that both bring the library.

    Raises:
        EngineError: naming them, and what to remove.
    """
    pattern = re.compile(_FAMILIES[backend] + r"[-_]libs")
    families = sorted({name.rpartition(name[-5])[0] for name in installed if pattern.fullmatch(name)})
    if len(families) > 1:
        raise EngineError(
            f"two versions of {TITLES[backend]} are installed, {' and '.join(families)}, and a process would load "
            f"parts of both. Remove one: pip uninstall {families[0]}-bindings {families[0]}-libs {families[0]}"
        )


def _short(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
