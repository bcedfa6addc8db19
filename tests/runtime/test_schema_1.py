"""Bundles of schema version 1 are opened: what its code took for granted is what the exporter writes out now."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx.compose
import pytest
from helpers.golden import GOLDEN, read_png
from helpers.stages import STORED, dloral_manifest

from vsr_trt.export.families.dloral import family
from vsr_trt.runtime.bundle import schema_1
from vsr_trt.runtime.bundle.manifest import SCHEMA_VERSION, FileEntry
from vsr_trt.runtime.bundle.reading import read_manifest
from vsr_trt.runtime.errors import BundleError
from vsr_trt.runtime.restore.restorer import Restorer

NEW = ("canvas", "tilings", "loops", "clip", "options")


def stored() -> dict:
    return json.loads(STORED.read_text())


def write(folder: Path, data: dict) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "bundle.json").write_text(json.dumps(data))
    return folder


def put_warp_in_front(retrieval: Path, warp: Path) -> None:
    """Makes the graph that versions 1 and 2 had: warp and attention as one network."""
    both = onnx.compose.merge_models(
        onnx.compose.add_prefix(onnx.load(warp), "warp/"),
        onnx.compose.add_prefix(onnx.load(retrieval), "cfr/"),
        [("warp/warped", "cfr/warped")],
        outputs=["warp/warped", "cfr/fused"],
    )
    for value in (*both.graph.input, *both.graph.output):
        short = value.name.partition("/")[2]
        for node in both.graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == value.name:
                        names[index] = short
        value.name = short
    onnx.checker.check_model(both)
    onnx.save(both, retrieval)


def test_a_stored_manifest_becomes_what_is_written_now() -> None:
    assert stored()["schema_version"] == 1
    found = dloral_manifest()
    assert found.schema_version == SCHEMA_VERSION
    assert found.canvas == family.CANVAS
    assert found.tilings == family.TILINGS
    assert found.options == family.OPTIONS
    assert found.inputs == family.INPUTS
    # warp and attention, two stages now, were one network
    others = [stage for stage in family.STAGES if stage.name not in ("warp", "cfr")]
    assert [stage for stage in found.stages if stage.name != "cfr"] == others
    (both,) = (stage for stage in found.stages if stage.name == "cfr")
    assert both.writes == {"warped": "warped", "fused": "fused"}


@pytest.mark.parametrize("version", [1, 2])
def test_engines_that_left_a_part_to_a_kernel_are_gone(tmp_path: Path, version: int) -> None:
    data = stored() if version == 1 else schema_1.migrated(stored())
    record = {
        **{
            "network": "cfr",
            "backend": "tensorrt_rtx",
            "version": "1",
            "target": "sm_89",
            "targets": ["sm_89"],
        },
        **{"device": None, "precision": "fp32", "profiles": {}, "file": "prompt.npy", "report": "prompt.npy"},
        "key": "0",
    }
    data["engines"] = [record | {"flags": ["warp"]}, record | {"flags": []}]
    data["operator"] = {"network": "cfr", "current": "latent"}
    entry = {"bytes": 0, "sha256": ""}
    graphs = [path for network in data["networks"].values() for path in network["graphs"].values()]
    data["files"] = dict.fromkeys((*graphs, "prompt.npy"), entry)
    found = read_manifest(write(tmp_path / "b", data))
    assert [engine.flags for engine in found.engines] == [()]
    assert found.schema_version == SCHEMA_VERSION


@pytest.mark.thorough
def test_an_old_bundle_restores_the_same_bytes(golden_bundle: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(golden_bundle, old)
    now, then = json.loads((old / "bundle.json").read_text()), stored()
    former = {name: value for name, value in now.items() if name in then}
    for name in (
        "stages",
        "inputs",
        "window",
        "schema_version",
        "frame_multiple",
        "minimum_side",
        "option_defaults",
    ):
        former[name] = then[name]
    assert not set(former) & set(NEW)
    former["networks"] = {name: record for name, record in now["networks"].items() if name != "warp"}
    former["networks"]["cfr"] = now["networks"]["cfr"] | then["networks"]["cfr"] | {"kernel": None}
    for form in former["networks"]["cfr"]["graphs"].values():
        put_warp_in_front(old / form, old / now["networks"]["warp"]["graphs"]["native"])
        former["files"][form] = dataclasses.asdict(FileEntry.of(old / form))
    write(old, former)
    frames = [read_png(path) for path in sorted((GOLDEN / "in").glob("*.png"))][:2]
    with Restorer(golden_bundle) as one, Restorer(old) as other:
        for new, same in zip(one.restore(frames), other.restore(frames), strict=True):
            np.testing.assert_array_equal(new, same)


@pytest.mark.parametrize(
    "missing", ["frame_multiple", "minimum_side", "stages", "inputs", "option_defaults", "scale"]
)
def test_what_an_old_manifest_lacks_is_a_sentence(tmp_path: Path, missing: str) -> None:
    data = stored()
    del data[missing]
    with pytest.raises(BundleError, match=r"bundle\.json is damaged: a field of schema version 1"):
        read_manifest(write(tmp_path / "b", data))


@pytest.mark.parametrize(
    ("name", "value"), [("scale", 0), ("stages", 3), ("inputs", []), ("minimum_side", "a")]
)
def test_what_does_not_fit_an_old_manifest_is_a_sentence(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(BundleError, match=r"bundle\.json is damaged"):
        read_manifest(write(tmp_path / "b", stored() | {name: value}))
