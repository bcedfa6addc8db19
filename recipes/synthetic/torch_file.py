"""Files as torch.save writes them: a zip of a pickle and the tensors' values."""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch

from vsr_trt.recipes.synthetic.tensors import (
    LazyTensor,
    copy_values,
    no_advance,
)
from vsr_trt.runtime.machine.files import whole_file

_PKL_ALIGNMENT = 64  # as torch.save: a mapped tensor then starts on a cache line
_STORAGE_CLASSES: dict[torch.dtype, type] = {
    torch.float16: torch.HalfStorage,
    torch.float32: torch.FloatStorage,
    torch.int64: torch.LongStorage,
}


class Saved(Protocol):
    """What a file holds: groups of tensors, and plain entries in front of them."""

    @property
    def state_dicts(self) -> Mapping[str, Mapping[str, LazyTensor]]:
        """Name -> tensors by name."""

    @property
    def plain(self) -> Mapping[str, Any]:
        """Name -> what pickle knows by itself."""


@dataclass(frozen=True)
class _Storage:
    """Stands in a pickle for the storage that is record `data/<key>` of the archive."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class _Tensor:
    """Stands in a pickle for a tensor that is all of one storage."""

    storage: _Storage
    shape: tuple[int, ...]


class _ArchivePickler(pickle.Pickler):
    """Pickles the stand-ins the way torch.save pickles tensors."""

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, _Storage):
            return ("storage", _STORAGE_CLASSES[obj.dtype], obj.key, "cpu", obj.numel)
        return None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, _Tensor):
            stride = tuple(math.prod(obj.shape[i + 1 :]) for i in range(len(obj.shape)))
            arguments: tuple[Any, ...] = (obj.storage, 0, obj.shape, stride, False, OrderedDict())
            return torch._utils._rebuild_tensor_v2, arguments
        return NotImplemented


def _record(archive: zipfile.ZipFile, handle: BinaryIO, name: str) -> zipfile.ZipInfo:
    """The zip entry of a record; a padding field aligns its content."""
    info = zipfile.ZipInfo(name)  # dated 1980: the same values give the same bytes
    content = handle.tell() + 30 + len(name.encode()) + 4
    info.extra = struct.pack("<2sH", b"FB", -content % _PKL_ALIGNMENT) + b"Z" * (-content % _PKL_ALIGNMENT)
    return info


def write_pkl(path: Path, checkpoint: Saved, advance: Callable[[int], None] = no_advance) -> None:
    """Writes the published form: what `torch.save(dict)` writes, one block of values at a time.

    torch.save itself would need all tensors in memory (or mapped, and so counted as such).
    """
    content: dict[str, Any] = dict(checkpoint.plain)
    storages: list[tuple[str, LazyTensor]] = []
    for group, tensors in checkpoint.state_dicts.items():
        entries: OrderedDict[str, _Tensor] = OrderedDict()
        for name, tensor in tensors.items():
            storage = _Storage(str(len(storages)), tensor.dtype, tensor.numel)
            storages.append((f"{group}.{name}", tensor))
            entries[name] = _Tensor(storage, tensor.shape)
        content[group] = entries
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as handle, zipfile.ZipFile(handle, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(_record(archive, handle, "archive/data.pkl"), "w") as record:
            _ArchivePickler(record, protocol=2).dump(content)
        archive.writestr(_record(archive, handle, "archive/byteorder"), b"little")
        for key, (name, tensor) in enumerate(storages):
            with archive.open(_record(archive, handle, f"archive/data/{key}"), "w") as record:
                copy_values(name, tensor, record.write, advance)
        archive.writestr(_record(archive, handle, "archive/version"), b"3\n")
