"""A hundred files of the corpus, restored and compared with what ffmpeg makes of them; tests/corpus has the whole."""

from __future__ import annotations

import os

import pytest
from corpus import generate, pool
from corpus.recipe import REFUSED, Recipe

pytestmark = pytest.mark.thorough

COUNT, SEED = 100, 1


@pytest.fixture(scope="module")
def checked() -> list[pool.Checked]:
    return list(pool.run(generate.recipes(COUNT, SEED), jobs=min(2, os.cpu_count() or 1)))


def test_nothing_is_found(checked: list[pool.Checked]) -> None:
    found = [
        f"{one.recipe.name} -> {one.recipe.output}: {finding}" for one in checked for finding in one.findings
    ]
    assert not found, "\n".join(found)


def test_most_files_can_be_made(checked: list[pool.Checked]) -> None:
    missing = [f"{one.recipe.name}: {one.said}" for one in checked if one.result == "not made"]
    assert len(missing) <= COUNT // 20, "\n".join(missing)
    assert sum(one.result == "restored" for one in checked) > COUNT // 2


def test_a_seed_gives_the_same_list() -> None:
    one, other = ([recipe.dumps() for recipe in generate.recipes(300, SEED)] for _ in range(2))
    assert one == other
    assert one != [recipe.dumps() for recipe in generate.recipes(300, SEED + 1)]
    assert one[:100] == [recipe.dumps() for recipe in generate.recipes(100, SEED)]


def test_a_list_has_clips_and_pictures_and_refusals() -> None:
    recipes = generate.recipes(COUNT, SEED)
    assert len({recipe.name for recipe in recipes}) == COUNT
    assert any(recipe.picture for recipe in recipes)
    assert any(recipe.expect == REFUSED for recipe in recipes)
    assert len({recipe.file.rpartition(".")[2] for recipe in recipes}) > 15


def test_wrong_results_are_found() -> None:
    """A recipe that expects something else than what the file is."""
    source = [
        "-f",
        "lavfi",
        "-i",
        "testsrc2=size=64x48:rate=25",
        "-frames:v",
        "4",
        "-c:v",
        "ffv1",
        "-pix_fmt",
        "yuv420p",
    ]
    good = Recipe("good", [["ffmpeg", *source, "in.mkv"]], "in.mkv", siting="left", codec="ffv1")
    wrong = Recipe("wrong", good.steps, good.file, siting="left", codec="ffv1", matrix="bt709")
    refused = Recipe("refused", good.steps, good.file, expect=REFUSED, words="HDR")
    results = {one.recipe.name: one for one in pool.run([good, wrong, refused], jobs=1)}
    assert results["good"].findings == []
    assert any("levels off" in finding for finding in results["wrong"].findings)
    assert any("should be refused" in finding for finding in results["refused"].findings)


def test_a_crash_is_a_finding_of_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORPUS_CRASH", "crashing")
    source = ["-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25", "-frames:v", "2", "-c:v", "ffv1", "in.mkv"]
    steps = [["ffmpeg", *source]]
    recipes = [Recipe(name, steps, "in.mkv", siting="left", codec="ffv1") for name in ("a", "crashing", "b")]
    results = {one.recipe.name: one for one in pool.run(recipes, jobs=1)}
    assert results["crashing"].result == "crash"
    assert "SIGSEGV" in results["crashing"].findings[0]
    assert results["a"].findings == results["b"].findings == []
