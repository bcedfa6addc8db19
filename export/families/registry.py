"""The families that bundles are made of, recognised by what their checkpoints hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open

from vsr_trt.export.families.dloral import bundle as dloral
from vsr_trt.export.families.star import bundle as star
from vsr_trt.export.network import NetworkSpec
from vsr_trt.export.pickles import load_pickle
from vsr_trt.export.request import BundleRequest
from vsr_trt.kernels.gpu.build import Compiled
from vsr_trt.runtime.bundle.manifest import Manifest, Network
from vsr_trt.runtime.errors import CheckpointError, InputError


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
        parts: what its bundles are made from besides the checkpoint, by name, each with a few words about it.
        settings: fields of a request that it knows, beyond those that all do.
    """

    name: str
    recognises: Callable[[Collection[str]], bool]
    open: Callable[[BundleRequest, Callable[[str], None]], Model]
    parts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    settings: frozenset[str] = frozenset()


FAMILIES = (
    Family("dloral", dloral.recognises, dloral.BundleModel.open, dloral.PARTS, dloral.SETTINGS),
    Family("star", star.recognises, star.BundleModel.open, star.PARTS, star.SETTINGS),
)
_FLAGS = {"adapters": "adapter"}
"""Fields of a request that the command line calls by another name."""


def family_of(request: BundleRequest) -> Family:
    """The family of a request's checkpoint, and whether it is asked for what that family has.

    A file that none recognises is left to the family that was named, or is made from such parts, which says what the
    file lacks.

    Raises:
        CheckpointError: the file is missing, damaged, holds code, or is of another family than was named.
        InputError: parts that the family needs and that are missing, or what it has no use for.
    """
    found = recognised(request.checkpoint)
    named = next((family for family in FAMILIES if family.name == request.family), None)
    if found and named and found is not named:
        raise CheckpointError(
            f"{request.checkpoint} is a checkpoint of the family {found.name}, and {named.name} was asked for."
        )
    alike = (family for family in FAMILIES if set(family.parts) == set(request.parts))
    family = found or named or next(alike, FAMILIES[0])
    _check(family, request)
    return family


def recognised(checkpoint: Path) -> Family | None:
    """The family that a checkpoint's names are of.

    Raises:
        CheckpointError: the file is damaged or holds code.
    """
    names = _names(checkpoint)
    return next((family for family in FAMILIES if family.recognises(names)), None)


def _check(family: Family, request: BundleRequest) -> None:
    needs = " and ".join(f"--{part}" for part in family.parts)
    what = f"a bundle of the family {family.name}, as {request.checkpoint} is,"
    for part, about in family.parts.items():
        if part not in request.parts:
            raise InputError(f"{what} is made from {needs}; add --{part} DIR, {about}.")
    if unknown := sorted(set(request.parts) - set(family.parts)):
        raise InputError(f"{what} is made from {needs}; leave out --{unknown[0]}.")
    optional = frozenset().union(*(other.settings for other in FAMILIES))
    for field in dataclasses.fields(request):
        if field.name in optional - family.settings:
            default = field.default if field.default is not dataclasses.MISSING else {}
            if getattr(request, field.name) != default:
                flag = _FLAGS.get(field.name, field.name).replace("_", "-")
                raise InputError(f"{what} has nothing that --{flag} could change; leave it out.")


def _names(path: Path) -> Collection[str]:
    """Names of entries, of what is in them, or of tensors in a safetensors file; no tensor is read."""
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
    own = [name for name in content if isinstance(name, str)]
    inner = [
        f"{name}.{key}"
        for name in own
        if isinstance(content[name], dict)
        for key in content[name]
        if isinstance(key, str)
    ]
    return (*own, *inner)
