"""What a stored schedule tells hosts in other languages: names of files, choices, sources, weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from helpers import clip_family, other_family

from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.schedule import hosting, tiling
from vsr_trt.runtime.schedule.build import build
from vsr_trt.runtime.schedule.canvas import FrameShape
from vsr_trt.runtime.schedule.parts import parts


def test_only_options_that_decide_stand_in_the_name(tmp_path: Path) -> None:
    manifest = other_family.write(tmp_path / "other").manifest
    shape, [part] = FrameShape.of(manifest, 80, 80), parts(manifest)
    assert hosting.deciding(manifest) == ["tone"]
    for options, ending in ((Options(), ""), (Options({"tone": "soft", "strength": 0.3}), "-tone=soft")):
        assert hosting.file_name(manifest, shape, 2, options, part) == f"160x160-s2{ending}.json"


def test_the_name_of_a_phase_has_its_frames(tmp_path: Path) -> None:
    manifest = clip_family.write(tmp_path / "clip").manifest
    shape, part = FrameShape.of(manifest, 100, 150), parts(manifest, 7)[1]
    assert set(hosting.deciding(manifest)) == {"window", "solver", "steps"}
    name = hosting.file_name(manifest, shape, 1, Options({"steps": 3, "solver": "normal"}), part)
    assert name == "300x200-s1-solver=normal-steps=3-sample-7f.json"


def test_sources_and_weights(tmp_path: Path) -> None:
    manifest = other_family.write(tmp_path / "other").manifest
    shape = FrameShape.of(manifest, 160, 200)
    schedule = build(manifest, *shape.given, Options())
    found = hosting.host(manifest, shape, Options(), schedule)
    assert found.inputs["sigmas[2]"] == hosting.Source("file", "sigmas.npy", 2)
    assert found.inputs["strength"] == hosting.Source("option", "strength")
    assert {source.kind for source in found.inputs.values()} == {"zeros", "file", "option"}
    assert found.picture.border == 255
    for item in found.weights:
        product = np.outer(item.down, item.across).astype(np.float32)
        assert np.array_equal(product, tiling.window(item.window, item.height, item.width, item.overlap))
    sizes = {(item.height, item.width) for item in found.weights}
    blends = [step for step in schedule.steps if step.action == "blend"]
    assert blends
    for step in blends:
        assert step.grid is not None
        assert (step.grid.height * step.factor, step.grid.width * step.factor) in sizes
