"""The cache of engines: what makes a key, what a miss says, pruning, damage, and folders that cannot be written."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers.examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from vsr_trt.engines import cache as caches
from vsr_trt.engines.cache import Cache, differences, key_of
from vsr_trt.runtime.errors import InputError, OutputError

PARTS: dict[str, Any] = {
    "schema_version": 1,
    "network": "unet",
    "graph": "a" * 64,
    "weights": {"unet.onnx.data": "b" * 64},
    "precision": "fp16",
    "shapes": {"x": [[1, 4, 96, 96]] * 3},
    "backend": "tensorrt_rtx",
    "version": "1.7.1.116",
    "target": "sm_89",
    "capabilities": ["sm_89"],
    "device": None,
    "driver": None,
    "flags": [],
    "workspace": None,
    "plugin": None,
}


def add(cache: Cache, size: int = 10, **changed: Any) -> caches.Entry:
    """An engine of so many bytes."""
    parts = PARTS | changed
    with cache.workspace() as folder:
        engine = folder / "engine" / "unet.engine"
        engine.parent.mkdir()
        engine.write_bytes(os.urandom(size))
        return cache.add(parts, engine, {"seconds": 1.0})


@pytest.mark.parametrize("part", list(PARTS))
def test_every_part_makes_another_key_and_is_named(part: str) -> None:
    other = PARTS | {part: "something else"}
    assert key_of(other) != key_of(PARTS)
    (said,) = differences(other, PARTS)
    assert said.startswith(f"{part}: something else instead of ")


def test_the_order_of_parts_makes_no_difference() -> None:
    assert key_of(dict(reversed(PARTS.items()))) == key_of(PARTS)


def test_what_was_added_is_found_again_with_all_its_files(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with cache.workspace() as folder:
        engine = folder / "one" / "unet.onnx"
        engine.parent.mkdir()
        engine.write_bytes(b"graph")
        (engine.parent / "unet.onnx.data").write_bytes(b"weights")
        (engine.parent / "a").write_bytes(b"sorts before")
        cache.add(PARTS, engine, {"seconds": 2.0})
    entry = Cache(tmp_path).find(key_of(PARTS))
    assert entry is not None
    assert list(entry.files) == ["unet.onnx", "a", "unet.onnx.data"]  # the engine itself comes first
    assert entry.bytes == len(b"graphweightssorts before")
    assert entry.report == {"seconds": 2.0}
    assert list((tmp_path / "tmp").iterdir()) == []
    assert cache.find(key_of(PARTS | {"target": "sm_86"})) is None


def test_a_miss_names_what_differs_from_the_nearest(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    add(cache, network="vae_decoder")
    assert cache.nearest(PARTS) is None
    add(cache, version="1.6.0", target="sm_86")
    near = add(cache, version="1.6.0")
    found = cache.nearest(PARTS)
    assert found is not None
    assert found.key == near.key
    assert differences(PARTS, found.parts) == ["version: 1.7.1.116 instead of 1.6.0"]


def test_hashes_and_long_values_are_shortened() -> None:
    said = differences(PARTS | {"graph": "c" * 64, "shapes": {"x": "y" * 500}}, PARTS)
    assert said[0] == "graph: cccccccccccc… instead of aaaaaaaaaaaa…"
    assert len(said[1]) < 300


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=1000)
    old, middle, new = (add(cache, 300, target=name) for name in ("a", "b", "c"))
    for seconds, entry in enumerate((middle, new, old)):  # old was used last
        os.utime(entry.folder / caches.ENTRY, (1000 + seconds, 1000 + seconds))
    add(cache, 300, target="d")
    assert cache.find(middle.key) is None
    assert cache.find(old.key) is not None
    assert cache.find(new.key) is not None


def test_finding_an_engine_counts_as_using_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    one, other = add(cache, target="a"), add(cache, target="b")
    for entry in (one, other):
        os.utime(entry.folder / caches.ENTRY, (1000, 1000))
    cache.find(one.key)
    assert [entry.key for entry in cache.entries()] == [one.key, other.key]


def test_what_is_kept_or_being_built_is_not_pruned(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    kept, locked, free = (add(cache, target=name) for name in "abc")
    with cache.lock(locked.key):
        gone = cache.prune(0, {kept.key})
    assert [entry.key for entry in gone] == [free.key]
    assert cache.find(kept.key) is not None
    assert cache.find(locked.key) is not None


@settings(deadline=None, max_examples=examples(50))
@given(sizes=st.lists(st.integers(1, 100), max_size=8), limit=st.integers(0, 300))
def test_pruning_leaves_the_newest_that_fit(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int
) -> None:
    cache = Cache(tmp_path_factory.mktemp("cache"))
    entries = [add(cache, size, target=str(index)) for index, size in enumerate(sizes)]
    for index, entry in enumerate(entries):
        os.utime(entry.folder / caches.ENTRY, (1000 + index, 1000 + index))
    cache.prune(limit)
    total, expected = 0, []
    for entry in reversed(entries):  # the newest first
        if total + entry.bytes <= limit:
            total += entry.bytes
            expected.append(entry.key)
    assert [entry.key for entry in cache.entries()] == expected


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "entry.json").write_text("{"),
        lambda folder: (folder / "entry.json").write_text("[]"),
        lambda folder: (folder / "entry.json").unlink(),
        lambda folder: (folder / "unet.engine").unlink(),
        lambda folder: _change(folder / "entry.json", schema_version=99),
        lambda folder: _change(folder / "entry.json", files={"../../../etc/passwd": "0"}),
    ],
)
def test_what_is_not_whole_is_not_found(tmp_path: Path, damage: Any) -> None:
    cache = Cache(tmp_path)
    entry = add(cache)
    damage(entry.folder)
    assert cache.find(entry.key) is None
    assert add(cache).key == entry.key  # and is replaced
    assert cache.find(entry.key) is not None


def _change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_an_unwritable_cache_is_refused_with_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot be written: .*--cache-dir"):
        Cache(tmp_path / "file" / "cache")


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        cache = Cache(disk)
        with cache.workspace() as folder:
            engine = folder / "one" / "unet.engine"
            engine.parent.mkdir()
            filler = disk / "filler"
            with contextlib.suppress(OSError):  # which is the point
                filler.write_bytes(b"x" * 100_000)
            engine.write_bytes(b"")
            with pytest.raises(OutputError, match=r"the disk is full: the engine of unet.*cache prune"):
                cache.add(PARTS, engine, {"text": "x" * 50_000})
        assert cache.entries() == []
        assert list((disk / "tmp").iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_beginning_of_a_key_names_an_engine(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entry = add(cache)
    add(cache, target="sm_86")
    assert caches.lookup(cache, entry.key[:12]).key == entry.key
    with pytest.raises(InputError, match=r"no engine in .*begins with 'nothing'.*cache list"):
        caches.lookup(cache, "nothing")
    with pytest.raises(InputError, match="2 engines"):
        caches.lookup(cache, "")


def test_leftovers_of_killed_builds_go_after_a_day(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    old, young = tmp_path / "tmp" / "old", tmp_path / "tmp" / "young"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (1000, 1000))
    with cache.workspace():
        pass
    assert not old.exists()
    assert young.exists()
