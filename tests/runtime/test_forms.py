"""How pictures go through the VAE, and why: by size, by memory, or because somebody asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from helpers.planned_bundle import make
from helpers.stages import dloral_manifest

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.errors import DeviceError
from vsr_trt.runtime.machine.memory import RESERVE, free_bytes, resident_bytes
from vsr_trt.runtime.schedule import forms
from vsr_trt.runtime.schedule.forms import Available, Form

FREE = Available(None, False)
SCRATCH = {"cpu": {"h*w": 200_000.0}, "cpu_strips": {"h*w": 100_000.0}}  # bytes for a latent


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Whole pictures take twice what strips do."""
    networks = {
        name: dataclasses.replace(network, scratch=SCRATCH) if name.startswith("vae") else network
        for name, network in dloral_manifest().networks.items()
    }
    return make(tmp_path / "b", networks=networks)


def choose(bundle: Bundle, width: int, height: int, available: Available = FREE, **options) -> Form:
    return forms.choose_form(bundle, height // 4, width // 4, Options(**options), available)


def test_the_size_decides(bundle: Bundle) -> None:
    assert choose(bundle, 768, 768).name == "whole"
    small, large = choose(bundle, 512, 512), choose(bundle, 1920, 1080)
    assert (small.name, large.name) == ("whole", "strips")
    assert small.why == "64x64 latents are no more than 96x96"
    assert large.why == "136x240 latents are more than 96x96"
    assert choose(bundle, 1920, 1080, tiles={"vae": 184}).name == "whole"
    assert choose(bundle, 512, 512, tiles={"vae": 32}).name == "strips"


def test_plenty_or_little_memory_changes_nothing_above_the_size(bundle: Bundle) -> None:
    """The same bytes on every machine."""
    for free in (10**12, 10**8):
        assert choose(bundle, 1920, 1080, Available(free, False)).name == "strips"


def test_memory_decides_where_whole_does_not_fit(bundle: Bundle) -> None:
    whole, strips = (
        forms.estimate(bundle, 128, 128, Options(), 1, in_strips=in_strips) for in_strips in (False, True)
    )
    assert whole is not None
    assert strips is not None
    assert whole - strips == 64 * 64 * 100_000
    assert choose(bundle, 512, 512, Available(whole, True)).name == "whole"
    for limit in (True, False):
        found = choose(bundle, 512, 512, Available(whole - 1, limit))
        assert found.name == "strips"
        assert found.memory == strips
        assert "whole it would take about" in found.why
    with pytest.raises(
        DeviceError, match=r"512x512 takes about .* in strips, and --memory allows .*statistics tile"
    ):
        choose(bundle, 512, 512, Available(strips - 1, True))
    assert choose(bundle, 512, 512, Available(strips - 1, False)).name == "strips", (
        "free memory refuses nothing"
    )


def test_tiles_are_only_for_those_who_ask(bundle: Bundle) -> None:
    found = choose(bundle, 1920, 1080, statistics="tile")
    assert found.name == "tiles"
    assert "--vae-statistics tile" in found.why
    assert choose(bundle, 512, 512, statistics="tile").name == "whole", "it is no larger than a tile"
    with pytest.raises(DeviceError, match="in tiles of 96 latents, and --memory allows 100 MB"):
        choose(bundle, 1920, 1080, Available(10**8, True), statistics="tile")


def test_more_slots_take_more(bundle: Bundle) -> None:
    one, two = (forms.estimate(bundle, 270, 480, Options(), slots, in_strips=True) for slots in (1, 2))
    assert one is not None
    assert two is not None
    assert two > one


def test_a_bundle_from_before_there_were_strips(tmp_path: Path) -> None:
    networks = {
        name: dataclasses.replace(
            network,
            strips=1,
            scratch={},
            graphs={k: v for k, v in network.graphs.items() if k != "cpu_strips"},
        )
        for name, network in dloral_manifest().networks.items()
    }
    old = make(tmp_path / "b", networks=networks)
    found = choose(old, 1920, 1080, Available(10**6, True))
    assert found.name == "whole", "the same picture, in more memory"
    assert found.memory is None
    assert "build it again" in found.why


def test_what_is_available() -> None:
    assert Available.of(5) == Available(5, True)
    found, free = Available.of(None), free_bytes()
    if free is None:  # no system that tells
        assert found.bytes is None
        return
    assert not found.limit
    assert found.bytes is not None
    assert abs(found.bytes - (free - RESERVE + resident_bytes())) < 2e9
