"""The families that bundles are made of, recognised by what their checkpoints hold."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open

from vsr_trt.export.families.dloral import bundle as dloral
from vsr_trt.export.families.dloral.checkpoint import load_pickle
from vsr_trt.export.network import NetworkSpec
from vsr_trt.export.request import BundleRequest
from vsr_trt.kernels.gpu.build import Compiled
from vsr_trt.runtime.bundle.manifest import Manifest, Network
from vsr_trt.runtime.errors import CheckpointError


class Model(Protocol):
    """A family's weights, opened: makes the specs of its networks one at a time, and the manifest at the end."""

    network_names: tuple[str, ...]
    slow: tuple[str, ...]
    """Networks whose export takes longest. The first of them is always exported in the process that writes the
    manifest; others may be in another one, from a model of its own."""

    def notes(self) -> list[str]:
        """Sentences about what was found in the files, for the user."""

    def check(self) -> None:
        """Reads all weights that are cheap to read, and keeps none: exports take minutes.

        Raises:
            CheckpointError: weights that cannot be exported.
        """

    def spec(self, name: str) -> NetworkSpec:
        """Loads one network's weights."""

    def kernels(self, target: str) -> list[Compiled]:
        """Compiles the GPU kernels that its bundles bring.

        Raises:
            KernelError: they cannot be compiled.
        """

    def manifest(self, folder: Path, networks: dict[str, Network], kernels: tuple[str, ...]) -> Manifest:
        """Writes what a bundle holds besides graphs and kernels, and says what it is.

        Args:
            folder: of the bundle; the networks' graphs lie in it.
            networks: as they were exported.
            kernels: launch metadata of the kernels in `folder`.

        Returns:
            The manifest, without its files.
        """


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        name: as the manifest has it.
        recognises: whether a checkpoint with tensors or entries of these names is one of its own.
        open: opens the weights of a request; it is passed the phases of its work.
    """

    name: str
    recognises: Callable[[Collection[str]], bool]
    open: Callable[[BundleRequest, Callable[[str], None]], Model]


FAMILIES = (Family("dloral", dloral.recognises, dloral.BundleModel.open),)


def family_of(checkpoint: Path) -> Family:
    """The family of a checkpoint. A file that none recognises is left to the first one, which says what it lacks.

    Raises:
        CheckpointError: the file is missing, damaged or holds code.
    """
    names = _names(checkpoint)
    return next((family for family in FAMILIES if family.recognises(names)), FAMILIES[0])


def _names(path: Path) -> Collection[str]:
    """Names of entries, or of tensors in a safetensors file; no tensor is read."""
    if not path.is_file():
        return ()
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return tuple(file.keys())
        except (SafetensorError, OSError):
            return ()  # who loads it says why
    content = load_pickle(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a dict of a trainer.")
    return tuple(name for name in content if isinstance(name, str))
