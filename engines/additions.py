"""Adding files to a finished bundle, all of them or none."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock

from vsr_trt.runtime.bundle.directory import refuse_hub_cache
from vsr_trt.runtime.bundle.manifest import FileEntry, Manifest
from vsr_trt.runtime.bundle.reading import read_manifest
from vsr_trt.runtime.errors import DISK_FULL, OutputError
from vsr_trt.runtime.machine import shell, temporary


@contextlib.contextmanager
def staging(bundle: Path, needed: int = 0) -> Iterator[Path]:
    """A hidden folder inside the bundle for what is being made; it is gone afterwards.

    Args:
        bundle: the directory.
        needed: bytes that will be written, refused beforehand where they are not free.

    Raises:
        OutputError: the bundle lies in a hub's cache, is not writable, or the disk is full, then or later.
    """
    refuse_hub_cache(bundle, "where nothing may be added")
    free = shutil.disk_usage(bundle).free
    if needed > free:
        raise OutputError(
            f"the disk is full: about {needed / 1e6:.0f} MB will be written into {bundle}, {free / 1e6:.0f} MB "
            "are free. Free some space, or move the bundle to another disk."
        )
    folder: Path | None = None
    try:
        with shell.shield():  # made and known, or neither
            folder = temporary.make(bundle, "adding")
        yield folder
    except OSError as error:
        if error.errno in DISK_FULL:
            raise OutputError(
                f"the disk is full: nothing was added to {bundle}. Free some space, or move the bundle to "
                "another disk."
            ) from error
        raise OutputError(f"{bundle} cannot be written ({error}); nothing was added to it.") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def commit(
    bundle: Path,
    folder: Path,
    forget: Callable[[Manifest], Manifest],
    change: Callable[[Manifest], Manifest],
) -> Manifest:
    """Moves the files of `folder` to the same places in the bundle, and changes the manifest.

    The manifest is valid at every moment: before a file is replaced, one that does not name it is written. So a
    process that is killed on the way leaves a bundle without the additions; any error puts everything back. Other
    processes that add to the bundle wait meanwhile.

    Args:
        bundle: the directory.
        folder: holds the new files; on the same disk.
        forget: the manifest without what will be replaced.
        change: the manifest with the additions; the new files are among its `files` already.

    Returns:
        The new manifest.
    """
    with lock(bundle):
        before = read_manifest(bundle)
        forgotten = forget(before)
        new = {
            path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
        }
        entries = {name: FileEntry.of(path) for name, path in new.items()}
        after = change(_with_files(forgotten, entries))
        with shell.shield():  # renames only
            _move(bundle, folder / ".old", new, (before, forgotten, after))
        return after


def lock(bundle: Path) -> FileLock:
    """Held while a bundle is changed. It lies in the system's temporary folder: every user of the machine finds it
    there, and a bundle that is copied carries no lock."""
    name = hashlib.sha256(str(bundle.resolve()).encode()).hexdigest()[:32]
    return FileLock(Path(tempfile.gettempdir()) / f"vsr-trt-{name}.lock", mode=0o666)


def _move(
    bundle: Path, aside: Path, new: dict[str, Path], manifests: tuple[Manifest, Manifest, Manifest]
) -> None:
    before, forgotten, after = manifests
    dropped = [name for name in before.files if name not in after.files]
    moved: list[str] = []
    try:
        if forgotten != before:
            forgotten.write(bundle)
        for name in [*dropped, *(name for name in new if (bundle / name).exists())]:
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            (bundle / name).rename(aside / name)
        for name, path in new.items():
            (bundle / name).parent.mkdir(parents=True, exist_ok=True)
            path.rename(bundle / name)
            moved.append(name)
        after.write(bundle)
    except BaseException:
        for name in moved:
            (bundle / name).unlink(missing_ok=True)
        for path in [path for path in aside.rglob("*") if path.is_file()]:
            path.rename(bundle / path.relative_to(aside))
        if forgotten != before:
            before.write(bundle)
        raise


def sync(folder: Path) -> None:
    """Makes the disk hold every file of a folder before any of them is renamed into place."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:  # Windows syncs only what can be written
                os.fsync(file.fileno())


def _with_files(manifest: Manifest, entries: dict[str, FileEntry]) -> Manifest:
    return dataclasses.replace(manifest, files=dict(sorted({**manifest.files, **entries}.items())))
