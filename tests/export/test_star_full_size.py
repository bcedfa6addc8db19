"""The recipe for STAR at full size, without its hours: the commands that it gives, and random weights, small ones."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vsr_trt import build
from vsr_trt.export.families.star import autoencoder
from vsr_trt.export.families.star import checkpoint as checkpoints
from vsr_trt.export.families.star.sizes import Sizes
from vsr_trt.recipes import counts, star_full_size
from vsr_trt.recipes.synthetic import by_hand, star
from vsr_trt.runtime.cli.main import parser as runtime_parser

SMALL = Sizes(dim=64, multipliers=(1, 2), residuals=1, attends=(True, False), context=32, head=16, heads=1)


def small_shapes() -> star.Shapes:
    vae = {**star.VAE_CONFIG, "block_out_channels": [32, 32, 32, 32], "layers_per_block": 1}
    return star.Shapes(SMALL, vae, {**by_hand.TEXT_CONFIG, "vocab_size": 520, "hidden_size": 32})


def test_random_weights_have_the_published_layout(tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    model = star.write_model(
        tmp_path, small_shapes(), seed=1, progress=lambda file, share: seen.append((file, share))
    )
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["light_deg.pt", "text_encoder", "vae"]
    assert {file for file, _ in seen} >= {"light_deg.pt", "vae/diffusion_pytorch_model.fp16.safetensors"}
    assert seen[-1][1] == pytest.approx(1)
    assert autoencoder.folder_of(model.vae) == model.vae
    (tmp_path / "config.json").write_text(json.dumps({"head_dim": SMALL.head}))
    loaded = checkpoints.load(model.checkpoint)
    loaded.check()
    assert (loaded.sizes.dim, loaded.sizes.multipliers, loaded.sizes.head) == (64, (1, 2), 16)
    first = model.checkpoint.read_bytes()
    again = star.write_model(tmp_path / "again", small_shapes(), seed=1)
    assert again.checkpoint.read_bytes() == first
    assert star.write_model(tmp_path / "other", small_shapes(), seed=2).checkpoint.read_bytes() != first


def test_shapes_are_those_that_the_exporter_wants() -> None:
    assert len(star.Shapes().denoiser.shapes()) == 2247
    assert sum(_size(shape) for shape in star.Shapes().denoiser.shapes().values()) == 2_041_121_910
    assert any(name.startswith("decoder.") for name in star.vae_shapes(star.VAE_CONFIG))


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def test_every_command_is_understood_and_the_report_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[str]] = []

    def run(arguments: list[Any], capture: bool = False) -> Any:
        command = [str(argument) for argument in arguments]
        if command[0] == "-m":
            assert command[1] == "vsr_trt.runtime"
            runtime_parser().parse_args(command[2:])
        else:
            build.parser().parse_args(command[1:])
        given.append(command)
        report = {"weights": 1, "activations": 2, "peak_memory": 3}
        answers: dict[str, Any] = {
            "bundle": {"seconds": 1.0, "peak_memory": 1, "bytes": 1},
            "engines": {"seconds": 1.0, "engines": [{"report": report}]},
        }
        return answers.get(command[1], {}) if capture else None

    monkeypatch.setattr(
        star, "write_model", lambda out, **_: star.Model(out / "a.pt", out / "vae", out / "text")
    )
    monkeypatch.setattr(counts, "is_current", lambda bundle: True)
    sizes: list[tuple[int, int]] = []

    def clip(folder: Path, width: int, height: int) -> None:
        sizes.append((width, height))

    console = Console(file=io.StringIO(), width=200)
    arguments = (Path("build.py"), tmp_path / "out", clip, False, run, console)
    assert star_full_size.full_size(*arguments) == 0
    assert sizes == [(32, 36)], "a frame that fills the canvas of 128x144"
    names = [command[1] for command in given if command[0] != "-m"]
    assert names[:2] == ["bundle", "alternatives"]
    assert names[2:] in ([], ["calibrate", *["engines"] * 3])
    assert json.loads((tmp_path / "out" / "report.json").read_text())["build"]["bytes"] == 1
    monkeypatch.setattr(counts, "is_current", lambda bundle: False)
    assert star_full_size.full_size(*arguments) == 1, "what doctor estimates by is stale"
