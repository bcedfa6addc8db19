"""A checkpoint's family is told by what it holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.golden import GOLDEN
from safetensors.torch import save_file

from vsr_trt.export.families import registry
from vsr_trt.export.families.dloral import family as dloral
from vsr_trt.export.families.registry import FAMILIES, Family
from vsr_trt.export.request import BundleRequest
from vsr_trt.recipes.synthetic.checkpoint_file import resave_as_safetensors
from vsr_trt.runtime.errors import CheckpointError, InputError


def family_of(checkpoint: Path, *parts: str, **changes: Any) -> Family:
    """By default, what a family needs is there."""
    found = registry.recognised(checkpoint)
    needed = parts or tuple((found or FAMILIES[0]).parts)
    given = {part: Path("there") for part in needed}
    return registry.family_of(BundleRequest(checkpoint, Path("out"), given, **changes))


def test_both_layouts_are_recognised(tmp_path: Path) -> None:
    assert family_of(GOLDEN / "model.pkl").name == "dloral"
    saved = resave_as_safetensors(GOLDEN / "model.pkl", tmp_path / "model.safetensors")
    assert family_of(saved).name == "dloral"
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def test_the_family_that_recognises_it_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = dataclasses.replace(FAMILIES[0], name="other", recognises=lambda names: "other.weight" in names)
    monkeypatch.setattr(registry, "FAMILIES", (*FAMILIES, other))
    save_file({"other.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    torch.save({"other.weight": torch.zeros(1)}, tmp_path / "a.pt")
    assert family_of(tmp_path / "a.safetensors").name == family_of(tmp_path / "a.pt").name == "other"
    assert family_of(GOLDEN / "model.pkl").name == "dloral"
    # what nobody recognises is refused by the first one's loader
    save_file({"x": torch.zeros(1)}, tmp_path / "b.safetensors")
    assert family_of(tmp_path / "b.safetensors") is FAMILIES[0]


def test_what_is_no_checkpoint_is_a_sentence(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"list\.pt holds a list, expected a dict of a trainer"):
        family_of(tmp_path / "list.pt")


def test_every_family_names_its_networks_in_an_order() -> None:
    assert {stage.network for stage in dloral.STAGES} <= set(dloral.DLoRAL.network_names)


STAR = GOLDEN.parent / "case_s" / "model.pt"


def test_star_is_recognised_wrapped_and_not(tmp_path: Path) -> None:
    assert family_of(STAR).name == "star"
    torch.save({"state_dict": torch.load(STAR, weights_only=True)}, tmp_path / "wrapped.pt")
    assert family_of(tmp_path / "wrapped.pt").name == "star"


@pytest.mark.parametrize(
    ("checkpoint", "parts", "sentence"),
    [
        (
            STAR,
            ("sd",),
            r"is made from --vae and --text-encoder; add --vae DIR, the VAE of Stable Video Diffusion\.",
        ),
        (STAR, ("vae",), r"add --text-encoder DIR, OpenCLIP ViT-H-14 in transformers' layout\."),
        (STAR, ("vae", "text-encoder", "sd"), r"is made from --vae and --text-encoder; leave out --sd\."),
        (
            GOLDEN / "model.pkl",
            ("vae", "text-encoder"),
            r"is made from --sd; add --sd DIR, Stable Diffusion 2\.1\.",
        ),
    ],
)
def test_parts_of_another_family(checkpoint: Path, parts: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        family_of(checkpoint, *parts)


def test_settings_of_another_family() -> None:
    for checkpoint, change, flag in (
        (STAR, {"top_k": 5}, "--top-k"),
        (STAR, {"adapters": {"a": 1.0}}, "--adapter"),
        (STAR, {"stage": "consistency"}, "--stage"),
        (GOLDEN / "model.pkl", {"negative_prompt": ""}, "--negative-prompt"),
        (GOLDEN / "model.pkl", {"canvas": (528, 512)}, "--canvas"),
    ):
        with pytest.raises(InputError, match=f"has nothing that {flag} could change; leave it out"):
            family_of(checkpoint, **change)


def test_a_family_that_it_is_not() -> None:
    for checkpoint, name, other in ((STAR, "dloral", "star"), (GOLDEN / "model.pkl", "star", "dloral")):
        with pytest.raises(CheckpointError, match=f"of the family {other}, and {name} was asked for"):
            family_of(checkpoint, family=name)
