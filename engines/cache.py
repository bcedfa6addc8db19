"""Compiled engines, and GPU kernels, by what made them: content-addressed, shared by bundles, safe between processes.

```
CACHE/
  engines/ab/abcdef…/NAME        the engine, under the name that it has in bundles
                     entry.json  what made it (the parts of the key), its size and hash, the build's report
  locks/abcdef….lock             held while that engine is built
  timing/…                       what TensorRT measured, a file for each card and driver
  tmp/                           builds under way
```

An entry is a directory that is renamed into place when it is complete, so it is there as a whole or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from vsr_trt.engines.additions import sync
from vsr_trt.engines.tensorrt.builder import write_error
from vsr_trt.runtime.bundle.manifest import sha256
from vsr_trt.runtime.errors import InputError, OutputError
from vsr_trt.runtime.machine import shell

SCHEMA_VERSION = 2
ENTRY = "entry.json"
DEFAULT_LIMIT = 50_000_000_000  # bytes: some twenty full-size UNets
_STALE = 24 * 3600.0  # seconds after which a directory in tmp/ belongs to a process that was killed

Parts = Mapping[str, Any]
"""Everything that makes an engine what it is, by name, as JSON values."""


def key_of(parts: Parts) -> str:
    """The address: SHA-256 over the parts' canonical JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def differences(one: Parts, other: Parts) -> list[str]:
    """The parts in which two keys differ, in words."""
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    return [f"{name}: {_short(one.get(name))} instead of {_short(other.get(name))}" for name in names]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) == 64 and not set(text) - set("0123456789abcdef"):
        return f"{text[:12]}…"
    return text if len(text) <= 100 else f"{text[:100]}…"


@dataclass(frozen=True)
class Entry:
    """A compiled engine in the cache.

    Attributes:
        key: its address.
        parts: what the key was made of.
        files: name -> SHA-256; the first is the engine itself.
        bytes: of all files.
        report: about the build, as JSON values.
        created: seconds since 1970.
        folder: where it lies.
        used: seconds since 1970.
    """

    key: str
    parts: dict[str, Any]
    files: dict[str, str]
    bytes: int
    report: dict[str, Any]
    created: float
    folder: Path
    used: float


class Cache:
    """The cache folder.

    Args:
        folder: None for the platform's cache folder.
        limit: bytes; least recently used engines go when it is exceeded.

    Raises:
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: Path | None = None, limit: int = DEFAULT_LIMIT) -> None:
        self.folder = folder or default_folder()
        self.limit = limit
        try:
            for name in ("engines", "locks", "tmp", "timing"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder / "tmp"):
                pass
        except OSError as error:
            raise OutputError(
                f"the cache {self.folder} cannot be written: {error.strerror or error}. Choose another folder with "
                "--cache-dir."
            ) from error

    def find(self, key: str) -> Entry | None:
        """The engine of that key, and marks it as used; None if there is none."""
        folder = self._folder(key)
        entry = _read(folder)
        if entry is None or any(not (folder / name).is_file() for name in entry.files):
            return None
        with contextlib.suppress(OSError):
            os.utime(folder / ENTRY)
        return entry

    def entries(self) -> list[Entry]:
        """All engines, the most recently used first."""
        found = (_read(path.parent) for path in (self.folder / "engines").glob(f"*/*/{ENTRY}"))
        return sorted((e for e in found if e is not None), key=lambda entry: entry.used, reverse=True)

    def nearest(self, parts: Parts) -> Entry | None:
        """The engine of the same network whose key differs in the fewest parts; to say why another misses."""
        same = [entry for entry in self.entries() if entry.parts.get("network") == parts.get("network")]
        return min(same, key=lambda entry: len(differences(parts, entry.parts)), default=None)

    def lock(self, key: str) -> FileLock:
        """Held by whoever builds that engine."""
        return FileLock(self.folder / "locks" / f"{key}.lock")

    def timing_file(self, name: str) -> Path:
        """Where TensorRT's measurements on a GPU are kept."""
        return self.folder / "timing" / f"{name}.cache"

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder to build in, on the cache's file system; it disappears."""
        self._sweep()
        folder: Path | None = None
        try:
            with shell.shield():  # made and known, or neither
                folder = Path(tempfile.mkdtemp(dir=self.folder / "tmp"))
            yield folder
        finally:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def add(
        self, parts: Parts, engine: Path, report: Mapping[str, Any], keep: frozenset[str] = frozenset()
    ) -> Entry:
        """Takes an engine and the files next to it into the cache, and prunes the cache to its limit.

        Args:
            parts: what made the engine.
            engine: its file, in a folder of its own; the folder is moved.
            report: about the build.
            keep: keys that must not be pruned.

        Raises:
            OutputError: the disk is full.
        """
        key, folder = key_of(parts), engine.parent
        names = sorted((path.name for path in folder.iterdir()), key=lambda name: (name != engine.name, name))
        sizes = sum((folder / name).stat().st_size for name in names)
        data = {
            "schema_version": SCHEMA_VERSION,
            "key": key,
            "parts": dict(parts),
            "files": {name: sha256(folder / name) for name in names},
            "bytes": sizes,
            "report": dict(report),
            "created": time.time(),
        }
        target = self._folder(key)
        try:
            (folder / ENTRY).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
            sync(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            with shell.shield():
                if target.exists():  # --force, or one that is damaged
                    shutil.rmtree(target)
                folder.rename(target)
        except OSError as error:
            raise write_error(str(parts.get("network")), error) from error
        entry = _read(target)
        assert entry is not None
        self.prune(self.limit, keep | {key})
        return entry

    def remove(self, entry: Entry) -> None:
        """Forgets an engine."""
        shutil.rmtree(entry.folder, ignore_errors=True)

    def prune(self, limit: int, keep: frozenset[str] | set[str] = frozenset()) -> list[Entry]:
        """Removes the least recently used engines until the rest fits; none that is just being built or kept."""
        gone, total = [], 0
        for entry in self.entries():
            total += entry.bytes
            if total <= limit or entry.key in keep:
                continue
            try:
                with self.lock(entry.key).acquire(timeout=0):
                    self.remove(entry)
            except Timeout:
                continue
            total -= entry.bytes
            gone.append(entry)
        return gone

    def _folder(self, key: str) -> Path:
        return self.folder / "engines" / key[:2] / key

    def _sweep(self) -> None:
        """What killed builds left behind."""
        for path in (self.folder / "tmp").iterdir():
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE:
                    shutil.rmtree(path, ignore_errors=True)


def default_folder() -> Path:
    """The platform's cache folder for this program, e.g. ~/.cache/vsr-trt."""
    folder = Path(platformdirs.user_cache_dir("vsr-trt", appauthor=False))
    # without a home folder the platform's is a path from the working directory on
    return folder if folder.is_absolute() else Path(shell.home()) / ".cache" / "vsr-trt"


def lookup(cache: Cache, prefix: str) -> Entry:
    """The engine whose key begins with `prefix`.

    Raises:
        InputError: none, or several.
    """
    found = [entry for entry in cache.entries() if entry.key.startswith(prefix)]
    if len(found) != 1:
        what = "no engine" if not found else f"{len(found)} engines"
        raise InputError(
            f"{what} in {cache.folder} with a key that begins with {prefix!r}; see: vsr-build cache list"
        )
    return found[0]


def _read(folder: Path) -> Entry | None:
    """None for what is no entry of this version."""
    path = folder / ENTRY
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("schema_version") != SCHEMA_VERSION or data["key"] != folder.name:
            return None
        if not all(Path(name).name == name for name in data["files"]):
            return None
        return Entry(**data, folder=folder, used=path.stat().st_mtime)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def as_json(entry: Entry) -> dict[str, Any]:
    """Returns the values that `--json` prints."""
    return dataclasses.asdict(entry) | {"folder": str(entry.folder)}
