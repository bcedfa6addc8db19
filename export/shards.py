"""Weight files of one network: one file, or several shards whose index tells which holds what.

An index is as little to be trusted as any other file that was downloaded: it may name files next to it only, and what
it says of them must be what they hold.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from vsr_trt.export.pickles import load_pickle
from vsr_trt.export.tensors import OnDisk, open_safetensors
from vsr_trt.runtime.errors import CheckpointError

_INDEX = ".json"
_FORBIDDEN = ("/", "\\", ":")


def find(folder: Path, stem: str, binary: str) -> Path:
    """The weight file in a folder, or the index of its shards.

    Args:
        folder: of the network.
        stem: of safetensors, e.g. `model`.
        binary: of files by `torch.save`, e.g. `pytorch_model`.

    Raises:
        CheckpointError: there is none; it tells which names would be taken.
    """
    single: list[str] = []
    for (name, suffix), variant in itertools.product(((stem, "safetensors"), (binary, "bin")), ("", ".fp16")):
        single.append(f"{name}{variant}.{suffix}")
        # libraries differ, and differed, in where the variant stands
        indices = (f"{name}.{suffix}.index{variant}.json", f"{name}{variant}.{suffix}.index.json")
        for candidate in (single[-1], *indices):
            if (folder / candidate).is_file():
                return folder / candidate
    raise CheckpointError(
        f"{folder} has no weights; expected one of {', '.join(single)}, or the index of its shards, "
        f"{single[0]}.index.json."
    )


def files(path: Path) -> list[Path]:
    """A weight file alone; or an index and its shards.

    Raises:
        CheckpointError: an index that cannot be read, or names what is no file next to it.
    """
    return [path, *(path.parent / shard for shard in _read_index(path))] if path.suffix == _INDEX else [path]


def open_weights(path: Path) -> Mapping[str, Tensor]:
    """Opens a weight file, or all shards of an index; tensors of safetensors are read when they are used.

    Raises:
        CheckpointError: a file that is damaged, holds code or no plain state dict, or shards that do not hold what the
            index says.
    """
    if path.suffix != _INDEX:
        return _open_one(path)
    binary = ".bin." in path.name
    opened: dict[str, Mapping[str, Tensor]] = {}
    for shard, names in _read_index(path).items():
        tensors = _open_pickle(path.parent / shard) if binary else _open_safetensors(path.parent / shard)
        if missing := sorted(set(names) - set(tensors)):
            raise CheckpointError(
                f"{path.parent / shard} lacks {missing[0]}, which {path.name} places there. Download both again."
            )
        if unknown := sorted(set(tensors) - set(names)):
            raise CheckpointError(
                f"{path.parent / shard} has {unknown[0]}, which {path.name} does not place there. Download both again."
            )
        opened |= dict.fromkeys(names, tensors)
    return _Sharded(opened)


class _Sharded(Mapping[str, Tensor]):
    """One mapping of the tensors of several."""

    def __init__(self, shards: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._shards = shards

    def __getitem__(self, name: str) -> Tensor:
        return self._shards[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)


def _open_one(path: Path) -> Mapping[str, Tensor]:
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_pickle(path)


def _open_safetensors(path: Path) -> Mapping[str, Tensor]:
    file = open_safetensors(path)
    return OnDisk(file, "", list(file.keys()), f"{path}: ")


def _open_pickle(path: Path) -> Mapping[str, Tensor]:
    content = load_pickle(path)
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise CheckpointError(f"{path} holds no plain state dict.")
    return content


def _read_index(path: Path) -> dict[str, list[str]]:
    """Shard -> names of its tensors; every shard is a file next to the index."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); download it again.") from error
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise CheckpointError(
            f"{path} is no index of shards: it has no 'weight_map' of names and files. Download it again."
        )
    shards: dict[str, list[str]] = {}
    for name, shard in places.items():
        if not name.isprintable():
            raise CheckpointError(f"{path} has {name!r}, which is no name of a tensor.")
        if not _is_plain_name(shard):
            raise CheckpointError(
                f"{path} places {name} in {shard!r}, expected the name of a file next to it; nothing was read there."
            )
        shards.setdefault(shard, []).append(name)
    for shard, names in shards.items():
        if not os.path.isfile(path.parent / shard):  # noqa: PTH113 - Path's raises where a name is too long
            raise CheckpointError(
                f"{path.parent / shard} is missing, where {path.name} places {names[0]}; copy the whole directory."
            )
    return dict(sorted(shards.items()))


def _is_plain_name(shard: object) -> bool:
    """Whether it names a file of one folder on every system."""
    return (
        isinstance(shard, str)
        and shard not in ("", ".", "..")
        and shard.isprintable()
        and not any(character in shard for character in _FORBIDDEN)
    )
