"""Opening a bundle: its manifest, and the certainty that its files are there and are its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.errors import BundleError
from runtime.manifest import Manifest, sha256

_REBUILD = "Copy the bundle again, or build it anew with build.py bundle."


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: the directory, and its manifest."""

    path: Path
    manifest: Manifest

    @staticmethod
    def open(path: str | Path, check: bool = False) -> Bundle:
        """Reads the manifest and looks at every file: it exists, has its size, lies inside.

        Args:
            path: the bundle's directory; it may have been moved anywhere.
            check: also compare every file's SHA-256, which reads all of it.

        Raises:
            BundleError: naming the file that is missing or differs.
        """
        bundle = Bundle(Path(path), Manifest.read(Path(path)))
        for name in bundle.manifest.files:
            bundle._look_at(name)
        if check:
            bundle.check_hashes()
        return bundle

    def file(self, name: str) -> Path:
        """The path of one of the manifest's files.

        Raises:
            BundleError: the path leaves the bundle, through a link for example.
        """
        path = self.path / name
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise BundleError(f"{self.path}: {name} leads out of the bundle; it was not opened. {_REBUILD}")
        return path

    def constants(self) -> dict[str, np.ndarray]:
        """Buffers that come from files of the bundle, by name.

        Raises:
            BundleError: a file that cannot be read.
        """
        constants = {}
        for name, file in self.manifest.inputs.items():
            if file is not None:
                try:
                    constants[name] = np.load(self.file(file), allow_pickle=False)
                except (ValueError, OSError, EOFError) as error:
                    raise BundleError(f"{self.path}: {file} cannot be read: {error}. {_REBUILD}") from error
        return constants

    def check_hashes(self, progress: Callable[[str], None] = lambda name: None) -> None:
        """Compares every file with the manifest's SHA-256; `progress` is told each name.

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
