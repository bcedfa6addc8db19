"""Outputs that appear whole or not at all: written under a hidden name, renamed at the end."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import logging
import os
import re
import secrets
import shutil
import socket
from pathlib import Path

from vsr_trt.runtime.errors import DISK_FULL, OutputError
from vsr_trt.runtime.machine import shell

log = logging.getLogger(__name__)

_RUN = secrets.token_hex(4)  # tells this process from earlier ones with the same number
_numbers = itertools.count()  # of this process's outputs
_unfinished: set[Staging] = set()
_HOST_LENGTH = 32
_NAME_BYTES = 255  # that a name may have
_LABEL_BYTES = 180  # of them


def write_failure(error: OSError | Exception, final: Path, temporary: Path | None = None) -> OutputError:
    """The message for the person at the terminal when writing `final` failed with `error`."""
    code = getattr(error, "errno", None)
    reason = getattr(error, "strerror", None) or str(error)
    if code in DISK_FULL:
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
    """A hidden file or folder next to `final` that becomes `final` in one step.

    `temporary` is where to write; it has the suffix of `final`, for the muxers. Exactly one of `commit`
    and `discard` ends it. Where `final` is a link, the link stays, and what it leads to is replaced. OutputError if
    `final` exists and may not be replaced, is a link that leads nowhere or no regular file, or its folder is missing
    or not writable. Leftovers of this machine's runs that were killed are removed; a folder that such a
    run had moved aside to replace it, and could not, is put back.
    """

    def __init__(self, final: Path, *, overwrite: bool, folder: bool = False) -> None:
        final = _behind_links(final)
        self.final = final
        self._folder, self._overwrite = folder, overwrite
        hidden = f".{_label(final)}.{_host()}.{os.getpid()}.{_RUN}-{next(_numbers)}"
        self.temporary = final.parent / f"{hidden}.part{'' if folder else final.suffix}"
        self._aside = final.parent / f"{hidden}.old"
        self._check_parent()
        self._clean_up()
        self._check_final(overwrite)
        _unfinished.add(self)  # before there is anything to clean up: a signal may come in between
        try:
            if folder:
                self.temporary.mkdir()
            else:
                self.temporary.open("xb").close()
        except OSError as error:
            self.discard()
            raise write_failure(error, final) from error

    def _check_parent(self) -> None:
        parent = self.final.parent
        if not parent.is_dir():
            if parent.exists():
                raise OutputError(
                    f"{parent} is not a folder, so {self.final.name} cannot be written into it."
                )
            raise OutputError(f"the folder {parent} does not exist; create it with: mkdir -p {parent}")

    def _check_final(self, overwrite: bool) -> None:
        _refuse_special(self.final)
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

    def _clean_up(self) -> None:
        """Remove or put back what runs that were killed left of this output; living ones still write."""
        suffix = "" if self._folder else re.escape(self.final.suffix)
        pattern = re.compile(
            rf"\.{re.escape(_label(self.final))}\.(?P<host>[^.]+)\.(?P<pid>\d+)\.(?P<run>[0-9a-f]+)-\d+\."
            rf"(?:part{suffix}|(?P<old>old))"
        )
        try:
            entries = list(self.final.parent.iterdir())
        except OSError as error:
            log.debug("%s cannot be listed (%s); leftovers stay", self.final.parent, error)
            return
        for entry in entries:
            match = pattern.fullmatch(entry.name)
            if match is None or _is_alive(match["host"], int(match["pid"]), match["run"]):
                continue
            if match["old"] and not self.final.exists():
                log.info("putting %s back, which a run that was killed had moved aside", self.final)
                with contextlib.suppress(OSError):  # another run was quicker
                    entry.rename(self.final)
            else:
                log.info("removing %s, left by a run that was killed", entry)
                _remove(entry)

    def commit(self, *, partial: bool = False) -> Path:
        """Make it durable and visible; its path. A signal waits until that is done.

        With `partial` the name is <stem>.partial<suffix>, or <stem>.partial-2<suffix> and so on where that
        is taken; without, where something is at `final` by now that may not be replaced, <stem>-2<suffix> and so on.
        """
        with shell.shield():
            target = self._commit(partial)
            _unfinished.discard(self)
        return target

    def _commit(self, partial: bool) -> Path:
        target = self.final
        try:
            for file in self.temporary.iterdir() if self._folder else [self.temporary]:
                _sync(file)
            if partial:
                target = self._commit_free(".partial")
            elif not self._overwrite and self._is_taken(target):
                target = self._commit_free("")
            elif self._folder and target.is_dir():
                self._replace_folder(target)
            else:
                self._replace_file(target)
            _sync(target.parent)
        except OSError as error:
            raise write_failure(error, target, self.temporary) from error
        return target

    def write(self, text: str) -> None:
        """Writes a text file as a whole, and commits it.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            self.temporary.write_text(text, encoding="utf-8")
        except OSError as error:
            raise write_failure(error, self.final, self.temporary) from error
        self.commit()

    def _is_taken(self, target: Path) -> bool:
        """Whether something is at the final name that was not there, or was an empty folder, at the beginning.

        Of a file the name is taken by looking, so that no other run can take it in between.
        """
        if self._folder:
            return target.exists() and (not target.is_dir() or any(target.iterdir()))
        return not self._take(target)

    def _commit_free(self, mark: str) -> Path:
        """Move it to a name that nothing has. The name is taken first, so that no other run can."""
        numbers = itertools.count(2)
        target = self.final.with_name(_marked_name(self.final, mark or f"-{next(numbers)}"))
        while not self._take(target):
            target = self.final.with_name(_marked_name(self.final, f"{mark}-{next(numbers)}"))
        try:
            self.temporary.replace(target)  # an empty folder gives way to another, too
        except BaseException:
            with contextlib.suppress(OSError):
                target.rmdir() if self._folder else target.unlink()
            raise
        return target

    def _take(self, target: Path) -> bool:
        """Put something empty at `target`; False if something is there."""
        try:
            if self._folder:
                target.mkdir()
            else:
                target.open("xb").close()
        except FileExistsError:
            return False
        return True

    def _replace_file(self, target: Path) -> None:
        try:
            self.temporary.replace(target)
        except BaseException:
            if not (self._overwrite or self._folder):  # then what is there is ours, and empty
                with contextlib.suppress(OSError):
                    target.unlink()
            raise

    def _replace_folder(self, target: Path) -> None:
        """Folders cannot replace folders that are not empty, so the old one steps aside first.

        While it is called `.old` it is whole. It is renamed once more before it is removed, so that the
        half of one never comes back.
        """
        target.rename(self._aside)
        try:
            self.temporary.rename(target)
        except BaseException:
            self._aside.rename(target)
            raise
        with contextlib.suppress(OSError):  # the new one is in place: the next run tidies up
            self._aside.rename(self.temporary)
        _remove(self.temporary)

    def discard(self) -> None:
        """Leave nothing behind. Never raises: it runs while another error is on its way."""
        with shell.shield():
            _remove(self.temporary)
            _unfinished.discard(self)


def discard_unfinished() -> None:
    """Discards every output that was neither committed nor discarded: whoever was to do so was interrupted."""
    for staging in list(_unfinished):
        staging.discard()


def _refuse_special(final: Path) -> None:
    """OutputError for a device or a pipe: a file in its place would not be what was meant."""
    if final.exists() and not (final.is_file() or final.is_dir()):
        raise OutputError(
            f"{final} is a device or a pipe, which cannot be replaced: results appear whole, under a name; choose that "
            "of a file or folder."
        )


def _behind_links(final: Path) -> Path:
    """What a link leads to: that is replaced, and the link stays, as with cp.

    OutputError: it leads nowhere. Whether what it names is to be made, or the link is a mistake, only its owner knows.
    """
    try:
        if not final.is_symlink():
            return final
        _refuse_special(final)
        if final.exists():
            return final.resolve()
        leads = final.readlink()
    except OSError as error:
        raise write_failure(error, final) from error
    raise OutputError(
        f"{final} is a link to {leads}, where there is nothing; give the name of the file itself, or remove the link "
        f"with: rm {final}"
    )


def _marked_name(final: Path, mark: str) -> str:
    """The name with a mark in front of its suffix; of a name that is too long already, the beginning."""
    end = f"{mark}{final.suffix}"
    stem = os.fsencode(final.stem)[: _NAME_BYTES - len(os.fsencode(end))]
    return stem.decode(errors="ignore" if _is_utf8(final.stem) else "surrogateescape") + end


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _label(final: Path) -> str:
    """The name of an output as the first part of hidden names, which are longer than it and have a limit."""
    name = os.fsencode(final.name)
    return final.name if len(name) <= _LABEL_BYTES else hashlib.sha256(name).hexdigest()


def _host() -> str:
    """This machine's name as a short part of a file name, another one for every machine."""
    name = socket.gethostname()
    plain = re.sub(r"[^A-Za-z0-9-]", "-", name)
    if plain == name and 0 < len(name) <= _HOST_LENGTH:
        return name
    return f"{plain[: _HOST_LENGTH - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _is_alive(host: str, pid: int, run: str) -> bool:
    """Whether the process that gave a hidden file its name may still be writing."""
    if host != _host():
        return True  # a folder that machines share: what runs over there cannot be seen from here
    if pid == os.getpid():
        return run == _RUN  # else it is that of an earlier process with the same number, as in containers
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
