"""Outputs that appear whole or not at all: written under a hidden name, renamed at the end."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
from pathlib import Path

from runtime.errors import OutputError

log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_failure(error: OSError | Exception, final: Path, temporary: Path | None = None) -> OutputError:
    """What the person at the terminal is told when writing `final` failed with `error`."""
    code = getattr(error, "errno", None)
    reason = getattr(error, "strerror", None) or str(error)
    if code in _FULL:
        return OutputError(
            f"the disk is full: {_size_of(temporary)} of {final.name} were written, "
            f"{_megabytes(_free(final.parent))} are left in {final.parent}. "
            "Free some space or write to another disk."
        )
    if code == errno.EFBIG:
        return OutputError(
            f"{final} grew larger than this disk or this user may have files ({_size_of(temporary)} were "
            "written); write to another disk or raise the limit (ulimit -f)."
        )
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(
            f"{final.parent} is not writable ({reason}); choose another folder or change its permissions."
        )
    return OutputError(f"{final} cannot be written: {reason}.")


def _free(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _size_of(path: Path | None) -> str:
    if path is None or not path.exists():
        return _megabytes(0)
    files = path.iterdir() if path.is_dir() else [path]
    return _megabytes(sum(file.stat().st_size for file in files))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


class Staging:
    """A hidden file or folder beside `final` that becomes `final` in one step.

    `temporary` is where to write; it has the suffix of `final`, for the muxers. Exactly one of `commit`
    and `discard` ends it. OutputError if `final` exists and may not be replaced, or its folder is missing
    or not writable. Leftovers of runs that were killed are removed.
    """

    def __init__(self, final: Path, *, overwrite: bool, folder: bool = False) -> None:
        self.final = final
        self._folder = folder
        self.temporary = final.parent / f".{final.name}.{os.getpid()}.part{'' if folder else final.suffix}"
        self._check(overwrite)
        self._remove_leftovers()
        try:
            if folder:
                self.temporary.mkdir()
            else:
                self.temporary.open("wb").close()
        except OSError as error:
            raise write_failure(error, final) from error

    def _check(self, overwrite: bool) -> None:
        parent = self.final.parent
        if not parent.is_dir():
            if parent.exists():
                raise OutputError(
                    f"{parent} is not a folder, so {self.final.name} cannot be written into it."
                )
            raise OutputError(f"the folder {parent} does not exist; create it with: mkdir -p {parent}")
        if self.final.is_dir() != self._folder and self.final.exists():
            expected, found = ("folder", "file") if self._folder else ("file", "folder")
            raise OutputError(
                f"{self.final} is a {found}, a {expected} was to be written; choose another name."
            )
        if self._folder and self.final.is_dir():
            self._check_folder(overwrite)
        elif self.final.exists() and not overwrite:
            raise OutputError(f"{self.final} exists already; give --overwrite to replace it.")

    def _check_folder(self, overwrite: bool) -> None:
        """A folder is replaced as a whole, so it must hold nothing that this program would not write."""
        entries = list(self.final.iterdir())
        foreign = [entry.name for entry in entries if entry.suffix.lower() != ".png" or not entry.is_file()]
        if foreign:
            raise OutputError(
                f"the folder {self.final} holds other things than PNG pictures ({foreign[0]}), which "
                "would be lost; choose another folder."
            )
        if entries and not overwrite:
            raise OutputError(f"the folder {self.final} is not empty; give --overwrite to replace it.")

    def _remove_leftovers(self) -> None:
        """Remove hidden files of this output whose process is gone; living ones are still writing."""
        suffix = "" if self._folder else self.final.suffix
        pattern = re.compile(rf"\.{re.escape(self.final.name)}\.(\d+)\.part{re.escape(suffix)}")
        for entry in self.final.parent.iterdir():
            match = pattern.fullmatch(entry.name)
            if match and not _is_alive(int(match[1])):
                log.info("removing %s, left by a run that was killed", entry)
                _remove(entry)

    def commit(self, *, partial: bool = False) -> Path:
        """Make it durable and visible; its path. With `partial` the name is <stem>.partial<suffix>."""
        target = self.final
        if partial:
            target = target.with_name(f"{target.stem}.partial{target.suffix}")
        try:
            for file in self.temporary.iterdir() if self._folder else [self.temporary]:
                _sync(file)
            if self._folder and target.is_dir():
                self._replace_folder(target)
            else:
                self.temporary.replace(target)
            _sync(target.parent)
        except OSError as error:
            raise write_failure(error, target, self.temporary) from error
        return target

    def _replace_folder(self, target: Path) -> None:
        """Folders cannot replace folders that are not empty, so the old one steps aside first."""
        old = self.temporary.with_name(f".{target.name}.{os.getpid()}.old")
        target.rename(old)
        try:
            self.temporary.rename(target)
        except OSError:
            old.rename(target)
            raise
        _remove(old)

    def discard(self) -> None:
        """Leave nothing behind. Never raises: it runs while another error is on its way."""
        _remove(self.temporary)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # somebody else's, but alive
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
