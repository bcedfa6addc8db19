"""Downloads: mirrors in turn, cuts resumed, disk looked at first, and what arrives is what was asked for, or not kept.

huggingface_hub and gdown do the transfers. What they do not look at is looked at here: a page of HTML under the name of
a file, a hash, whether a torch file is whole.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsr_trt.export.published import Drive, Hub, Part
from vsr_trt.runtime.bundle.manifest import sha256
from vsr_trt.runtime.errors import InputError, OutputError
from vsr_trt.runtime.machine.files import write_whole

RECORD = "fetched.json"  # hashes of what was fetched, by name
_RESERVE = 1 << 30  # bytes of the disk that are left alone
_HTML = (b"<!doctype html", b"<html")

Tell = Callable[[str], None]
"""Told a sentence, between transfers."""


@dataclass(frozen=True)
class Listed:
    """A file as a place lists it: its name there, bytes, and SHA-256 where it tells."""

    name: str
    bytes: int | None
    sha256: str | None


class _WrongError(Exception):
    """What arrived is not what was asked for; the message is a clause about it."""


def fetch(part: Part, to: Path, tell: Tell, endpoint: str | None = None) -> list[Path]:
    """Fetches a part into a folder; what is there already, and right, stays.

    Args:
        part: what.
        to: an existing folder.
        tell: is told what happens.
        endpoint: of the hub; None for Hugging Face's own.

    Returns:
        Its files.

    Raises:
        InputError: no place has it, or what they have is wrong.
        OutputError: the disk is too small, or cannot be written.
    """
    why = []
    for number, place in enumerate(part.places):
        try:
            if isinstance(place, Hub):
                return _from_hub(part, place, to, tell, endpoint)
            return [_from_drive(part, place, to, tell)]
        except _failures() as error:
            reason = _sentence(error)
            why.append(f"{place}: {reason}")
            if number + 1 < len(part.places):
                tell(f"{place} does not give {part.name} ({reason}); trying {part.places[number + 1]}")
        except OSError as error:
            raise OutputError(f"{to} cannot be written: {error.strerror or error}.") from error
    raise InputError(
        f"{part.name} could not be fetched. {' '.join(f'{reason}.' for reason in why)} Try again later: what has "
        f"arrived is kept and not fetched again. Or put it into {to} yourself."
    )


def needed_bytes(part: Part, to: Path) -> int:
    """What is still to be fetched of a part, roughly; 0 where nobody knows."""
    there = sum(path.stat().st_size for path in _present(part, to))
    return max(0, (part.about_bytes or 0) - there)


def check_disk(parts: list[Part], to: Path) -> None:
    """Refuses what does not fit.

    Raises:
        OutputError: naming what is needed and what is free.
    """
    _check_room(sum(needed_bytes(part, to) for part in parts), to)


def _present(part: Part, to: Path) -> list[Path]:
    if isinstance(part.places[0], Drive):
        files = [to / part.name]
    else:
        files = [_folder(part, to) / name for names in part.files for name in names]
    return [path for path in files if path.is_file()]


def _folder(part: Part, to: Path) -> Path:
    """Where a repository's files go: a folder of the part's name, or, of a single file, the folder itself."""
    return to if len(part.files) == 1 else to / part.name


def _from_hub(part: Part, place: Hub, to: Path, tell: Tell, endpoint: str | None) -> list[Path]:
    from huggingface_hub import HfApi

    info = HfApi(endpoint=endpoint).model_info(place.repository, files_metadata=True)
    prefix = f"{place.folder}/" if place.folder else ""
    listed = {
        entry.rfilename: Listed(entry.rfilename, entry.size, entry.lfs.sha256 if entry.lfs else None)
        for entry in info.siblings or ()
    }
    chosen = []
    for names in part.files:
        found = next((listed[prefix + name] for name in names if prefix + name in listed), None)
        if found is not None:
            chosen.append(found)
        elif not part.optional.intersection(names):
            raise _WrongError(f"it has no {' or '.join(names)}")
    folder = _folder(part, to)
    missing = [entry for entry in chosen if not _is_there(folder / entry.name.removeprefix(prefix), entry)]
    _check_room(sum(entry.bytes or 0 for entry in missing), to)
    paths = []
    for entry in chosen:
        target = folder / entry.name.removeprefix(prefix)
        if entry in missing:
            _transfer(place, entry, folder, target, prefix, endpoint, info.sha)
        name = entry.name.removeprefix(prefix)
        digest = check_file(target, entry, part.sha256.get(name))
        paths.append(target)
        remember(to, target, digest, entry.sha256 is not None or name in part.sha256, tell)
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # with which cuts are resumed
    return paths


def _transfer(
    place: Hub,
    entry: Listed,
    folder: Path,
    target: Path,
    prefix: str,
    endpoint: str | None,
    revision: str | None,
) -> None:
    """One file, resumed where an earlier transfer was cut."""
    from huggingface_hub import hf_hub_download

    folder.mkdir(parents=True, exist_ok=True)
    # next to the target: what is unfinished is resumed by the next call
    try:
        path = Path(
            hf_hub_download(
                place.repository, entry.name, revision=revision, local_dir=folder, endpoint=endpoint
            )
        )
    except OSError as error:
        if error.errno is not None:
            raise
        shutil.rmtree(
            folder / ".cache", ignore_errors=True
        )  # the library says that what it put together is wrong
        raise _WrongError(str(error).partition(" (")[0]) from error
    if path != target:
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
        if not any(path.parent.iterdir()):
            path.parent.rmdir()


def _from_drive(part: Part, place: Drive, to: Path, tell: Tell) -> Path:
    import gdown

    target = to / part.name
    if target.is_file() and recorded(to, part.name) == sha256(target):
        return target
    partial = to / f".{part.name}.partial"
    identity = place.identity if place.url is None else None
    try:
        gdown.download(
            place.url, str(partial), quiet=True, use_cookies=False, id=identity, resume=True, retries=2
        )
        digest = check_file(partial, Listed(part.name, None, None), part.sha256.get(part.name))
    except _WrongError:
        _remove(partial)
        raise
    except gdown.exceptions.FileURLRetrievalError as error:
        raise _WrongError(
            "it shows a page instead of the file, as it does when too many have fetched it within a day (a quota), or "
            "to whoever is not signed in. Fetch it with a browser, "
            f"https://drive.google.com/file/d/{place.identity}/view, and save it as {target}"
        ) from error
    partial.replace(target)
    remember(to, target, digest, part.name in part.sha256, tell)
    return target


def check_file(path: Path, entry: Listed, pinned: str | None) -> str:
    """Checks that a file is what was asked for; removes it where it is not.

    Returns:
        Its SHA-256: files of gigabytes are read for it once.

    Raises:
        _WrongError: it is a web page, has another size or hash, or is a torch file that is damaged.
    """
    problem, digest = _problem(path, entry), ""
    if problem is None:
        digest = sha256(path)
        for expected, whose in ((pinned, "known here"), (entry.sha256, "of the hub's list")):
            if problem is None and expected not in (None, digest):
                problem = f"{entry.name} has another SHA-256 than that {whose}"
    if problem is not None:
        _remove(path)
        raise _WrongError(problem)
    return digest


def _problem(path: Path, entry: Listed) -> str | None:
    """What is wrong with a file, its hash aside."""
    with path.open("rb") as file:
        head = file.read(512).lstrip().lower()
    if head.startswith(_HTML):
        return f"it gives a web page in place of {entry.name}"
    size = path.stat().st_size
    if size == 0:
        return f"{entry.name} is empty"
    if entry.bytes is not None and size != entry.bytes:
        return f"{entry.name} has {size} bytes, and {entry.bytes} are expected"
    if zipfile.is_zipfile(path):  # as torch writes its files, each tensor with a checksum
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except (zipfile.BadZipFile, OSError) as error:
            damaged = str(error)
        if damaged is not None:
            return f"{entry.name} is damaged: {damaged}"
    return None


def recorded(to: Path, name: str) -> str | None:
    """The hash that a file had when it was first fetched into a folder; None where it was not."""
    found = _record(to).get(name)
    return found if isinstance(found, str) else None


def remember(to: Path, path: Path, digest: str, known: bool, tell: Tell) -> None:
    """Records a file's hash the first time, and compares with it afterwards.

    Args:
        to: folder with the record.
        path: of the file.
        digest: its SHA-256.
        known: whether its hash was compared with one from elsewhere.
        tell: is told where it was not.

    Raises:
        _WrongError: it is not what was fetched at first.
    """
    name, record = path.relative_to(to).as_posix(), _record(to)
    if name in record and record[name] != digest:
        raise _WrongError(
            f"{name} is not what was fetched at first: its SHA-256 was {record[name]}, and is {digest}"
        )
    if name in record:
        return
    write_whole(to / RECORD, json.dumps(record | {name: digest}, indent=1, sort_keys=True) + "\n")
    if not known:
        tell(f"{name}: nobody publishes its hash; recorded now, SHA-256 {digest}")


def _record(to: Path) -> dict[str, Any]:
    try:
        found = json.loads((to / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_there(path: Path, entry: Listed) -> bool:
    """Whether a file is there already; its hash is compared afterwards, as that of a new one is."""
    return path.is_file() and (entry.bytes is None or path.stat().st_size == entry.bytes)


def _check_room(need: int, to: Path) -> None:
    """Refuses what does not fit onto the disk."""
    free = shutil.disk_usage(to).free
    if need + _RESERVE > free:
        raise OutputError(
            f"{need / 1e9:.1f} GB are to be fetched, and the disk of {to} has {free / 1e9:.1f} GB free. Free some, or "
            "choose another folder: --to DIR"
        )


def _failures() -> tuple[type[BaseException], ...]:
    """What the two libraries raise where a place does not answer, or not as it should."""
    import httpx2
    import requests
    from gdown.exceptions import DownloadError
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    return (
        _WrongError,
        ValueError,  # what should be JSON is not
        httpx2.HTTPError,
        requests.RequestException,
        DownloadError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        EntryNotFoundError,
        LocalEntryNotFoundError,
    )


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300].rstrip(".")


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
