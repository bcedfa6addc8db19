"""Compiled GPU kernels in the cache that engines are in: listed, explained and pruned like them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vsr_trt.engines.cache import Cache, key_of
from vsr_trt.kernels.gpu.store import Parts
from vsr_trt.runtime.errors import OutputError, VsrError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KernelStore:
    """A store of kernels (`kernels.gpu.store.Store`) in the engines' cache."""

    cache: Cache

    def find(self, parts: Parts) -> Path | None:
        """The folder of the files, None where there is none."""
        entry = self.cache.find(key_of(parts))
        return None if entry is None else entry.folder

    def add(self, parts: Parts, write: Callable[[Path], list[Path]]) -> None:
        """Keeps the files; where the disk is full or not to be written, an export goes on without."""
        try:
            with self.cache.lock(key_of(parts)), self.cache.workspace() as space:
                (space / "kernel").mkdir()
                self.cache.add(parts, write(space / "kernel")[0], {})
        except (OSError, VsrError) as error:
            log.info("the kernel %s for %s is not kept: %s", parts["network"], parts["target"], error)


def open_store(folder: Path | None) -> KernelStore | None:
    """The store in a cache folder, None for the platform's.

    The cache has no limit here: what an export of a few hundred kilobytes adds shall not push out engines.

    Returns:
        None where the platform's folder cannot be written: a bundle needs no cache.

    Raises:
        OutputError: the folder that was named cannot be written.
    """
    try:
        return KernelStore(Cache(folder, sys.maxsize))
    except OutputError as error:
        if folder is not None:
            raise
        log.info("%s", error)
        return None
