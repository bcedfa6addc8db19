"""The families that bundles are made of, recognised by what their checkpoints hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open

from vsr_trt.export.families.dloral import bundle as dloral
from vsr_trt.export.families.star import bundle as star
from vsr_trt.export.network import NetworkSpec
from vsr_trt.export.pickles import load_pickle
from vsr_trt.export.request import BundleRequest
from vsr_trt.kernels.gpu.build import Compiled
from vsr_trt.runtime.bundle.manifest import Manifest, Network
from vsr_trt.runtime.errors import BundleError, CheckpointError, InputError


class Model(Protocol):
    """A family's weights, opened: makes the specs of its networks one at a time, and the manifest at the end."""

    network_names: tuple[str, ...]
    slow: tuple[str, ...]
    """Networks whose export takes longest. The first of them is always exported in the process that writes the
    manifest; others may be in another one, from a model of its own."""

    def notes(self) -> list[str]:
        """Sentences about what was found in the files, for the user."""

    def sources(self) -> dict[str, Path]:
        """What is read besides the checkpoint, by the names that a bundle's provenance has."""

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
        settings_of: those of the request that a bundle was made by.
        place_of: where a file of the provenance lies, by its name there and the parts' directories.
    """

    name: str
    recognises: Callable[[Collection[str]], bool]
    open: Callable[[BundleRequest, Callable[[str], None]], Model]
    parts: Mapping[str, str]
    settings: frozenset[str]
    settings_of: Callable[[Manifest], Mapping[str, Any]]
    place_of: Callable[[str, Mapping[str, Path]], Path]


FAMILIES = tuple(
    Family(
        name,
        family.recognises,
        family.BundleModel.open,
        family.PARTS,
        family.SETTINGS,
        family.settings_of,
        family.place_of,
    )
    for name, family in (("dloral", dloral), ("star", star))
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


def reopen(manifest: Manifest, checkpoint: Path, parts: Mapping[str, Path]) -> Model:
    """Opens the weights that a bundle was made from, as it was made.

    Args:
        manifest: of the bundle.
        checkpoint, parts: as for a request.

    Raises:
        BundleError: a family that this version cannot make.
        InputError: parts that the family needs and that are missing, or what it has no use for.
        CheckpointError: weights that are refused.
    """
    family = next((family for family in FAMILIES if family.name == manifest.family), None)
    if family is None:
        known = " and ".join(family.name for family in FAMILIES)
        raise BundleError(
            f"the bundle is of the family {manifest.family!r}; this version knows {known} only."
        )
    settings = family.settings_of(manifest)
    request = BundleRequest(checkpoint, Path(), parts, family=family.name, **settings)
    _check(family, request)
    return family.open(request, lambda text: None)


def place_of(manifest: Manifest, name: str, parts: Mapping[str, Path]) -> Path:
    """Where a file of a bundle's provenance lies that is not the checkpoint.

    Raises:
        BundleError: a family that this version cannot make.
    """
    return _family_of(manifest).place_of(name, parts)


def recognised(checkpoint: Path) -> Family | None:
    """The family that a checkpoint's names are of.

    Raises:
        CheckpointError: the file is damaged or holds code.
    """
    names = _names(checkpoint)
    return next((family for family in FAMILIES if family.recognises(names)), None)


def _family_of(manifest: Manifest) -> Family:
    found = next((family for family in FAMILIES if family.name == manifest.family), None)
    if found is None:
        known = " and ".join(family.name for family in FAMILIES)
        raise BundleError(
            f"the bundle is of the family {manifest.family!r}; this version knows {known} only."
        )
    return found


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
