"""A checkpoint's family is told by what it holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.golden import GOLDEN
from safetensors.torch import save_file

from vsr_trt.export.families import registry
from vsr_trt.export.families.dloral import family as dloral
from vsr_trt.export.families.registry import FAMILIES, Family, family_of
from vsr_trt.recipes.synthetic.checkpoint_file import resave_as_safetensors
from vsr_trt.runtime.errors import CheckpointError


def test_both_layouts_are_recognised(tmp_path: Path) -> None:
    assert family_of(GOLDEN / "model.pkl").name == "dloral"
    saved = resave_as_safetensors(GOLDEN / "model.pkl", tmp_path / "model.safetensors")
    assert family_of(saved).name == "dloral"
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def test_the_family_that_recognises_it_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Family("other", lambda names: "other.weight" in names, FAMILIES[0].open)
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
