"""A file that can still be finished when the disk is full: space for its end is put aside at the beginning."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO, Any

from vsr_trt.runtime.errors import DISK_FULL

# What an encoder still holds back, and an index: tens of frames, of a megabyte or so each in large pictures.
_ASIDE = 64 << 20
_SHARE = 8  # at most one part in so many of what is free


class ReservedFile(io.RawIOBase):
    """Writes the file at `path`, for a muxer; `is_full` says that it lives on what was put aside.

    The space is a file without a name in the same folder, so nothing of it can be left behind.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)  # by which a muxer opens it once more, to move an index to the front
        self.is_full = False
        self._file = io.FileIO(path, "r+")
        self._aside: IO[Any] | None = None
        with contextlib.suppress(OSError):
            size = min(_ASIDE, shutil.disk_usage(path.parent).free // _SHARE)
            aside = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115  it lives as long as this one
            if hasattr(os, "posix_fallocate") and size:
                os.posix_fallocate(aside.fileno(), 0, size)
            self._aside = aside

    def write(self, data: Any) -> int:
        """All of the data, or OSError."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            try:
                done += self._file.write(view[done:])
            except OSError as error:
                if error.errno not in DISK_FULL or self._aside is None:
                    raise
                self.is_full = True
                self._free()
        return done

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As any file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As any file."""
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        """As any file."""
        return self._file.read(size) or b""

    def writable(self) -> bool:
        """Yes."""
        return True

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def _free(self) -> None:
        aside, self._aside = self._aside, None
        if aside is not None:
            aside.close()

    def close(self) -> None:
        """Closes the file, and gives back what was put aside. Harmless to call twice."""
        self._free()
        self._file.close()
        super().close()
