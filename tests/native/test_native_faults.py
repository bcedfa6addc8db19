"""What can be wrong with a bundle, a caller or a frame has a status and a sentence, and nothing crashes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import native_host
from helpers.native_host import Host, Library, NativeError, copied, frames

pytestmark = pytest.mark.native

MUTATIONS = int(os.environ.get("VSR_TRT_MUTATIONS", "10000"))


def change_json(file: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    """Changes a JSON file of a bundle, and its size in the manifest."""

    def apply(bundle: Path) -> None:
        data = json.loads((bundle / file).read_text())
        change(data)
        (bundle / file).write_text(json.dumps(data))
        if file != "bundle.json":
            resized(bundle, file)

    return apply


def resized(bundle: Path, file: str) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"][file]["bytes"] = (bundle / file).stat().st_size
    (bundle / "bundle.json").write_text(json.dumps(manifest))


def manifest(change: Callable[[Any], object]) -> Callable[[Path], None]:
    return change_json("bundle.json", change)


def schedule(change: Callable[[Any], object]) -> Callable[[Path], None]:
    return change_json("schedules/160x160-s1.json", change)


def truncated(bundle: Path) -> None:
    graph = bundle / "onnx" / "encode.onnx"
    graph.write_bytes(graph.read_bytes()[: graph.stat().st_size // 2])
    resized(bundle, "onnx/encode.onnx")


def linked_out(bundle: Path) -> None:
    graph = bundle / "onnx" / "encode.onnx"
    outside = bundle.parent / "outside.onnx"
    graph.rename(outside)
    graph.symlink_to(outside)


def renamed(data: Any) -> None:
    data["host"]["networks"]["enter"]["cpu"] = "../outside.onnx"


def removed(bundle: Path) -> None:
    (bundle / "onnx" / "encode.onnx").unlink()


FAULTS: dict[str, tuple[int, str, Callable[[Path], object]]] = {
    "no manifest": (native_host.MISSING, "is not a bundle", lambda b: (b / "bundle.json").unlink()),
    "no JSON": (native_host.DAMAGED, "is no JSON", lambda b: (b / "bundle.json").write_text("{")),
    "a newer schema": (
        native_host.TOO_NEW,
        "schema version 6",
        manifest(lambda m: m.update(schema_version=6)),
    ),
    "an older schema": (
        native_host.TOO_NEW,
        "vsr-build schedule",
        manifest(lambda m: m.update(schema_version=4)),
    ),
    "a lost file": (native_host.MISSING, "lost the file onnx/encode.onnx", removed),
    "a changed file": (
        native_host.DAMAGED,
        "was changed",
        lambda b: (b / "onnx" / "encode.onnx").write_bytes(b"short"),
    ),
    "a truncated graph": (native_host.DEVICE, "encode.onnx", truncated),
    "a link out": (native_host.DAMAGED, "leads out of the bundle", linked_out),
    "a path out": (
        native_host.DAMAGED,
        "leaves the bundle",
        manifest(lambda m: m["files"].update({"../x": {"bytes": 1, "sha256": ""}})),
    ),
    "an absolute path": (
        native_host.DAMAGED,
        "leaves the bundle",
        manifest(lambda m: m["files"].update({"/etc/passwd": {"bytes": 1, "sha256": ""}})),
    ),
    "a graph out": (native_host.DAMAGED, "not among the bundle's files", schedule(renamed)),
    "an older format": (native_host.TOO_NEW, "format 2", schedule(lambda s: s.update(format=2))),
    "no host": (native_host.DAMAGED, "host", schedule(lambda s: s.update(host=None))),
    "a larger block": (native_host.DAMAGED, "blocks", schedule(lambda s: s["blocks"].update(slot=1))),
    "an offset": (
        native_host.DAMAGED,
        "at another place",
        schedule(lambda s: s["buffers"][1].update(offset=512 * 7)),
    ),
    "no schedule": (
        native_host.SIZE,
        "vsr-build schedule",
        manifest(lambda m: [m["files"].pop(name) for name in list(m["files"]) if "160x160" in name]),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_bundle_is_refused(library: Library, other: Path, tmp_path: Path, fault: str) -> None:
    status, text, damage = FAULTS[fault]
    bundle = copied(other, tmp_path / "bundle", damage)
    with pytest.raises(NativeError) as error, Host(library, bundle) as host:
        host.open(80, 80)
    assert error.value.status == status
    assert text in str(error.value)


def test_a_frame_that_fails_names_its_stage(library: Library, other: Path, tmp_path: Path) -> None:
    """A network whose output has another size than its buffer."""

    def halved(data: Any) -> None:
        data["host"]["networks"]["leave_plain"]["cpu"] = "onnx/enter.onnx"

    bundle = copied(other, tmp_path / "bundle", schedule(halved))
    with Host(library, bundle) as host:
        host.open(80, 80)
        clip = frames(5, 80, 80)
        assert [host.push(frame) for frame in clip[:3]] == [[], [], []]
        with pytest.raises(NativeError) as error:
            host.push(clip[3])
        assert error.value.status == native_host.FRAME
        assert (error.value.stage, error.value.frame) == ("leave", 0)
        with pytest.raises(NativeError, match="make a new one") as again:
            host.push(clip[4])
        assert again.value.status == native_host.DEVICE


def test_a_clip_of_a_length_without_a_schedule(library: Library, clip: Path) -> None:
    """Nothing of it is lost: with one frame more it is restored."""
    pushed = frames(4, 80, 80)
    with Host(library, clip) as host:
        host.open(80, 80)
        for frame in pushed[:3]:
            host.push(frame)
        with pytest.raises(NativeError, match="--frames 3") as error:
            host.flush()
        assert error.value.status == native_host.SIZE
        host.push(pushed[3])
        results = host.flush()
    with Host(library, clip) as host:
        assert np.array_equal(results, host.restore(pushed))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tone": "loud"}, "one of plain, soft"),
        ({"strength": "2"}, "to 1"),
        ({"strength": "much"}, "a number"),
        ({"threads": "0"}, "1 to 1024"),
        ({"threads": "1025"}, "1 to 1024"),
        ({"colour": "none"}, "strength, tone"),
    ],
)
def test_options_are_checked(library: Library, other: Path, options: dict[str, str], text: str) -> None:
    with pytest.raises(NativeError) as error:
        Host(library, other, options)
    assert error.value.status == native_host.ARGUMENT
    assert text in str(error.value)


def test_callers_of_another_version_and_wrong_arguments(build: Path, other: Path) -> None:
    native_host.run([str(build / "vsr_abi"), str(other), "80", "80"])


def test_two_streams_on_two_threads_and_a_second_caller(build: Path, other: Path, tiny: Path) -> None:
    native_host.run([str(build / "vsr_streams"), "threads", str(other), "80", "80"])


def test_memory_stays_flat(build: Path, other: Path) -> None:
    native_host.run([str(build / "vsr_streams"), "soak", str(other), "80", "80", "1000"])


def test_a_changed_file_is_refused_or_run(build: Path, other: Path, clip: Path, tmp_path: Path) -> None:
    """Manifests and schedules changed at random, two processes at a time."""
    running = []
    for seed, family in enumerate((other, clip)):
        bundle = copied(family, tmp_path / family.name)
        command = [str(build / "vsr_mutate"), str(bundle), "80", "80", str(MUTATIONS // 2), str(seed)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    for process in running:
        said, _ = process.communicate()
        assert process.returncode == 0, said[-2000:]
