"""Opening a bundle: its manifest, and the certainty that its files are there and are its own.

A bundle that a hub's client downloaded is a snapshot in that client's cache, a folder of links:

```
models--OWNER--NAME/
  blobs/HASH                                    the files; several snapshots may share one
  snapshots/REVISION/onnx/unet.onnx -> ../../../blobs/HASH
```

Those links are followed, and no others that lead out of a bundle.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vsr_trt.runtime.bundle.manifest import MANIFEST_NAME, Manifest, sha256
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.bundle.reading import read_manifest
from vsr_trt.runtime.errors import BundleError, OutputError

_REBUILD = "Copy the bundle again, or build it again with vsr-build bundle."
_HUB = (
    "models--",
    "datasets--",
    "spaces--",
)  # what the names of a hub's repositories begin with in its cache


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: the directory, and its manifest."""

    path: Path
    manifest: Manifest

    @staticmethod
    def open(path: str | Path, check: bool = False) -> Bundle:
        """Reads the manifest and looks at every file: it exists, has its size, lies inside or in its hub's cache.

        Args:
            path: the bundle's directory; it may have been moved anywhere.
            check: also compare every file's SHA-256, which reads all of it.

        Raises:
            BundleError: naming the file that is missing or differs.
        """
        _refuse_links_out(Path(path), MANIFEST_NAME)
        bundle = Bundle(Path(path), read_manifest(Path(path)))
        for name in bundle.manifest.files:
            bundle._look_at(name)
        if check:
            bundle.check_hashes()
        return bundle

    def file(self, name: str) -> Path:
        """The path of one of the manifest's files; in a hub's cache it is a link.

        Raises:
            BundleError: a link that leaves the bundle, other than to its repository's blobs in a hub's cache.
        """
        _refuse_links_out(self.path, name)
        return self.path / name

    @property
    def way_out(self) -> str:
        """Ends the message of whoever cannot follow the links of a hub's cache; empty for a bundle elsewhere."""
        return "" if repository(self.path) is None else f" A copy without links may do: {_copying(self.path)}"

    def constants(self, options: Options | None = None) -> dict[str, np.ndarray]:
        """Buffers that come from files of the bundle, by name.

        Args:
            options: what was chosen, checked; None for the defaults.

        Raises:
            BundleError: a file that cannot be read.
        """
        constants = {}
        options = Options() if options is None else options
        for name, given in self.manifest.inputs.items():
            if given.source == "file":
                file = options.file(self.manifest, given)
                try:
                    constants[name] = np.load(self.file(file), allow_pickle=False)
                    if not isinstance(constants[name], np.ndarray):
                        raise ValueError("expected one array, not an archive of them")
                except (ValueError, OSError, EOFError) as error:
                    raise BundleError(f"{self.path}: {file} cannot be read: {error}. {_REBUILD}") from error
        return constants

    def check_hashes(self, progress: Callable[[str], None] = lambda name: None) -> None:
        """Compares every file with the manifest's SHA-256; `progress` is passed each name.

        Raises:
            BundleError: naming the first file that was changed.
        """
        for name, entry in self.manifest.files.items():
            progress(name)
            try:
                digest = sha256(self.file(name))
            except OSError as error:
                raise BundleError(f"{self.path}: {name} cannot be read: {error}. {_REBUILD}") from error
            if digest != entry.sha256:
                raise BundleError(
                    f"{self.path}: {name} was changed: its SHA-256 is {digest[:12]}…, "
                    f"expected {entry.sha256[:12]}…. {_REBUILD}"
                )

    def _look_at(self, name: str) -> None:
        path, entry = self.file(name), self.manifest.files[name]
        try:
            size = path.stat().st_size
        except OSError as error:
            raise BundleError(f"{self.path} lost the file {name}. {_REBUILD}") from error
        if not path.is_file() or size != entry.bytes:
            raise BundleError(
                f"{self.path}: {name} was changed: it has {size} bytes, expected {entry.bytes}. {_REBUILD}"
            )


def repository(bundle: Path) -> Path | None:
    """The repository in a hub's cache that a bundle is a snapshot of, or lies in a snapshot of; None elsewhere."""
    for folder in bundle.resolve().parents:
        if folder.name == "snapshots" and folder.parent.name.startswith(_HUB):
            return folder.parent
    return None


def refuse_hub_cache(bundle: Path, why: str) -> None:
    """Refuses what cannot be done in a hub's cache: its snapshots are what was downloaded, and their files are shared.

    Args:
        bundle: its directory.
        why: a clause about the cache, e.g. "where nothing may be added".

    Raises:
        OutputError: with the command that makes a bundle of one's own.
    """
    if repository(bundle) is not None:
        raise OutputError(
            f"{bundle} lies in a hub's cache, {why}. Copy the bundle first, and use the copy: {_copying(bundle)}"
        )


def _refuse_links_out(bundle: Path, name: str) -> None:
    path = bundle / name
    try:
        root, target = bundle.resolve(), path.resolve()
        allowed = target.is_relative_to(root) or _is_blob(path, root)
    except (
        OSError,
        RuntimeError,
    ) as error:  # links in a circle; which of the two depends on Python's version
        raise BundleError(f"{bundle}: {name} cannot be followed: {error}. {_REBUILD}") from error
    if not allowed:
        raise BundleError(
            f"{bundle}: {name} leads out of the bundle, to {target}; it was not opened. If all that its links lead to "
            f"is yours, make a copy without links: {_copying(bundle)}"
        )


def _is_blob(path: Path, root: Path) -> bool:
    """Whether a path is one link, straight to a file in the blobs of the repository that `root` is a snapshot of."""
    repo, folder = repository(root), path.parent.resolve()
    if repo is None or not path.is_symlink() or not folder.is_relative_to(root):
        return False
    target, blobs = folder / path.readlink(), repo / "blobs"
    straight = target.name != ".." and target.parent.resolve() == blobs
    return straight and not blobs.is_symlink() and not (blobs / target.name).is_symlink()


def _copying(bundle: Path) -> str:
    return f"cp -rL {shlex.quote(str(bundle))} COPY"
