"""Bundles of schema version 1 are opened: what its code took for granted is what the exporter writes out now."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.golden import GOLDEN, read_png
from helpers.stages import STORED, dloral_manifest

from vsr_trt.export.families.dloral import family
from vsr_trt.runtime.bundle.errors import BundleError
from vsr_trt.runtime.bundle.reading import read_manifest
from vsr_trt.runtime.restore.restorer import Restorer

NEW = ("canvas", "tilings", "loops", "clip", "options")


def stored() -> dict:
    return json.loads(STORED.read_text())


def write(folder: Path, data: dict) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "bundle.json").write_text(json.dumps(data))
    return folder


def test_a_stored_manifest_becomes_what_is_written_now() -> None:
    assert stored()["schema_version"] == 1
    found = dloral_manifest()
    assert found.schema_version == 2
    assert found.canvas == family.CANVAS
    assert found.tilings == family.TILINGS
    assert found.options == family.OPTIONS
    assert found.inputs == family.INPUTS
    assert found.stages == family.STAGES


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
