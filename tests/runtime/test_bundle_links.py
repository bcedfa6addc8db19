"""Bundles in a hub's cache, which is made of links: those links are followed, no others, and nothing is written."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.golden import GOLDEN, read_png
from helpers.tiny_bundle import frames, tree, write_bundle, write_clip

from vsr_trt import build
from vsr_trt.runtime import Restorer
from vsr_trt.runtime.bundle.directory import Bundle, refuse_hub_cache, repository
from vsr_trt.runtime.bundle.manifest import sha256
from vsr_trt.runtime.cli import main as cli
from vsr_trt.runtime.errors import BundleError, OutputError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
REVISION = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = "onnx/refine.onnx.data"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of four networks as files, their weights next to the graphs."""
    folder = write_bundle(tmp_path_factory.mktemp("plain") / "bundle")
    assert WEIGHTS in Bundle.open(folder, check=True).manifest.files
    return folder


def download(bundle: Path, cache: Path, inside: str = "", absolute: bool = False) -> Path:
    """Lays a bundle out as a hub's client does; returns the folder of the bundle in the snapshot."""
    repo = cache / "models--someone--something"
    folder, blobs = repo / "snapshots" / REVISION / inside, repo / "blobs"
    blobs.mkdir(parents=True)
    for path in sorted(bundle.rglob("*")):
        if path.is_file():
            blob, link = blobs / sha256(path), folder / path.relative_to(bundle)
            shutil.copyfile(path, blob)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob if absolute else os.path.relpath(blob, link.parent))
    return folder


@pytest.fixture
def snapshot(plain: Path, tmp_path: Path) -> Path:
    return download(plain, tmp_path / "the cache")


def relink(path: Path, target: Path | str) -> None:
    path.unlink()
    path.symlink_to(target)


# ---------------------------------------------------------------- what opens


@pytest.mark.parametrize("inside", ["", "fp32", "bundles/fp32"])
@pytest.mark.parametrize("absolute", [False, True])
def test_a_snapshot_opens_and_is_verified(plain: Path, tmp_path: Path, inside: str, absolute: bool) -> None:
    folder = download(plain, tmp_path / "cache", inside, absolute)
    opened = Bundle.open(folder, check=True)
    assert opened.file(WEIGHTS) == folder / WEIGHTS  # the name that graphs know their weights by
    assert repository(folder) == tmp_path / "cache" / "models--someone--something"


def test_a_link_to_a_snapshot_opens(snapshot: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").symlink_to(snapshot)
    Bundle.open(tmp_path / "mine", check=True)


def test_a_changed_blob_is_found_by_its_hash(snapshot: Path) -> None:
    blob = (snapshot / WEIGHTS).resolve()
    content = bytearray(blob.read_bytes())
    content[0] ^= 1
    blob.write_bytes(content)
    Bundle.open(snapshot)  # sizes only
    with pytest.raises(BundleError, match=r"refine\.onnx\.data was changed: its SHA-256"):
        Bundle.open(snapshot, check=True)


def test_a_blob_that_is_gone_is_named_by_its_file(snapshot: Path) -> None:
    (snapshot / WEIGHTS).resolve().unlink()
    with pytest.raises(BundleError, match=r"lost the file onnx/refine\.onnx\.data"):
        Bundle.open(snapshot)


def test_a_snapshot_restores_what_its_copy_restores(snapshot: Path, tmp_path: Path) -> None:
    """ONNX Runtime takes weights from outside the model's folder for links of this kind only."""
    copy = shutil.copytree(snapshot, tmp_path / "copy")  # follows links, as cp -rL does
    results = []
    for bundle in (snapshot, copy):
        with Restorer(bundle, check=True) as restorer:
            results.append(list(restorer.restore(frames())))
    assert len(results[0]) == 2
    assert np.array_equal(*results)


@pytest.mark.thorough
def test_the_command_line_restores_from_a_snapshot(
    golden_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All networks of a real bundle, whose forms share their weights."""
    linked, results = download(golden_bundle, tmp_path / "cache"), []
    for name, bundle in (("linked", linked), ("plain", golden_bundle)):
        output = tmp_path / f"{name}.png"
        frame = GOLDEN / "in" / "frame_0000.png"
        assert cli.main(["restore", str(frame), "-o", str(output), "--bundle", str(bundle), "--check"]) == 0
        results.append(read_png(output))
    assert np.array_equal(*results)
    assert cli.main(["plan", "--bundle", str(linked), "--size", "512x512"]) == 0
    assert cli.main(["doctor", "--bundle", str(linked)]) == 0
    assert "everything is in order" in " ".join(capsys.readouterr().out.split())


def test_doctor_reads_every_byte_of_a_snapshot(snapshot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--bundle", str(snapshot)]) == 0
    capsys.readouterr()
    blob = (snapshot / WEIGHTS).resolve()
    blob.write_bytes(bytes(blob.stat().st_size))
    assert cli.main(["doctor", "--bundle", str(snapshot)]) == 1
    assert "was changed: its SHA-256" in " ".join(capsys.readouterr().out.split())


# ---------------------------------------------------------------- links that are not followed


def outside(snapshot: Path) -> Path:
    """A file with the bytes that are asked for, and in no cache."""
    return Path(shutil.copyfile(snapshot / WEIGHTS, snapshot.parents[3] / "outside.data"))


def to_another_repository(snapshot: Path) -> None:
    other = snapshot.parents[2] / "models--someone--else" / "blobs" / "x"
    other.parent.mkdir(parents=True)
    shutil.copyfile(snapshot / WEIGHTS, other)
    relink(snapshot / WEIGHTS, "../../../../models--someone--else/blobs/x")


def to_another_snapshot(snapshot: Path) -> None:
    other = snapshot.parent / "another" / "x"
    other.parent.mkdir()
    shutil.copyfile(snapshot / WEIGHTS, other)
    relink(snapshot / WEIGHTS, "../../another/x")


def by_a_link_elsewhere(snapshot: Path) -> None:
    blob, between = (snapshot / WEIGHTS).resolve(), snapshot.parents[3] / "between"
    between.symlink_to(blob)
    relink(snapshot / WEIGHTS, between)


def by_a_blob_that_is_a_link(snapshot: Path) -> None:
    blob = (snapshot / WEIGHTS).resolve()
    target = outside(snapshot)
    relink(blob, target)


def by_a_blob_that_links_to_a_blob(snapshot: Path) -> None:
    blob = (snapshot / WEIGHTS).resolve()
    blob.rename(blob.with_name("other"))
    blob.symlink_to("other")


def by_a_folder_of_blobs_that_is_a_link(snapshot: Path) -> None:
    blobs = snapshot.parents[1] / "blobs"
    blobs.rename(snapshot.parents[3] / "blobs elsewhere")
    blobs.symlink_to(snapshot.parents[3] / "blobs elsewhere")


def by_a_folder_in_the_snapshot(snapshot: Path) -> None:
    elsewhere = snapshot.parents[3] / "onnx elsewhere"
    (snapshot / "onnx").rename(elsewhere)
    (snapshot / "onnx").symlink_to(elsewhere)


def below_the_blobs(snapshot: Path) -> None:
    blobs = snapshot.parents[1] / "blobs"
    (blobs / "deep").mkdir()
    shutil.copyfile(snapshot / WEIGHTS, blobs / "deep" / "x")
    relink(snapshot / WEIGHTS, "../../../blobs/deep/x")


def through_the_blobs(snapshot: Path) -> None:
    shutil.copyfile(snapshot / WEIGHTS, snapshot.parents[1] / "x")
    relink(snapshot / WEIGHTS, "../../../blobs/../x")


def to_the_folder_above_the_blobs(snapshot: Path) -> None:
    relink(snapshot / WEIGHTS, "../../../blobs/..")


def to_an_absolute_path(snapshot: Path) -> None:
    relink(snapshot / WEIGHTS, outside(snapshot))


def in_a_circle(snapshot: Path) -> None:
    relink(snapshot / WEIGHTS, Path(WEIGHTS).name)


def of_the_manifest(snapshot: Path) -> None:
    target = Path(shutil.copyfile(snapshot / "bundle.json", snapshot.parents[3] / "manifest.json"))
    relink(snapshot / "bundle.json", target)


ELSEWHERE = (
    to_another_repository,
    to_another_snapshot,
    by_a_link_elsewhere,
    by_a_blob_that_is_a_link,
    by_a_blob_that_links_to_a_blob,
    by_a_folder_of_blobs_that_is_a_link,
    by_a_folder_in_the_snapshot,
    below_the_blobs,
    through_the_blobs,
    to_the_folder_above_the_blobs,
    to_an_absolute_path,
    in_a_circle,
    of_the_manifest,
)


@pytest.mark.parametrize("change", ELSEWHERE, ids=lambda change: change.__name__)
def test_a_link_elsewhere_is_refused_with_the_way_out(snapshot: Path, change: Callable[[Path], None]) -> None:
    change(snapshot)
    with pytest.raises(BundleError) as caught:
        Bundle.open(snapshot)
    message = str(caught.value)
    assert message.startswith(f"{snapshot}: ")
    if change is in_a_circle:
        assert f"{WEIGHTS} cannot be followed" in message
    else:
        assert "leads out of the bundle, to " in message
        assert message.endswith(f"make a copy without links: cp -rL '{snapshot}' COPY")


@pytest.mark.parametrize("place", ["elsewhere/snapshots/1", "models--a--b/other/1", "models--a--b/snapshots"])
def test_blobs_of_no_hubs_cache_are_not_the_bundles(plain: Path, tmp_path: Path, place: str) -> None:
    folder, blobs = tmp_path / place, (tmp_path / place).parents[1] / "blobs"
    shutil.copytree(plain, folder)
    blobs.mkdir()
    (folder / WEIGHTS).rename(blobs / "x")
    (folder / WEIGHTS).symlink_to(os.path.relpath(blobs / "x", (folder / WEIGHTS).parent))
    with pytest.raises(BundleError, match="leads out of the bundle"):
        Bundle.open(folder)


def test_links_within_a_bundle_stay_allowed(plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "bundle"))
    (folder / WEIGHTS).rename(folder / "x")
    (folder / WEIGHTS).symlink_to("../x")
    Bundle.open(folder, check=True)


def test_the_command_of_the_refusal_makes_a_bundle(snapshot: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        refuse_hub_cache(snapshot, "where nothing may be added")
    command = str(caught.value).partition("use the copy: ")[2].replace("COPY", str(tmp_path / "copy"))
    subprocess.run(shlex.split(command), check=True)
    Bundle.open(tmp_path / "copy", check=True)
    assert not any(path.is_symlink() for path in (tmp_path / "copy").rglob("*"))
    refuse_hub_cache(tmp_path / "copy", "")  # not one any more


# ---------------------------------------------------------------- what would write


@pytest.mark.parametrize("command", ["calibrate", "engines", "verify"])
def test_nothing_is_written_into_a_cache(
    snapshot: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_clip(tmp_path / "clip")
    options = {
        "calibrate": ["--clip", str(clip)],
        "engines": ["--backend", "onnxruntime", "--cache-dir", str(tmp_path / "engines")],
        "verify": ["--clip", str(clip)],
    }
    before = tree(snapshot.parents[1])
    assert build.main([command, str(snapshot), *options[command]]) == OutputError.exit_code
    message = " ".join(capsys.readouterr().err.split())
    assert "lies in a hub's cache, " in message
    assert f"use the copy: cp -rL '{snapshot}' COPY" in message
    assert tree(snapshot.parents[1]) == before


def test_what_is_only_planned_needs_no_copy(snapshot: Path, tmp_path: Path) -> None:
    options = ["--backend", "onnxruntime", "--cache-dir", str(tmp_path / "engines"), "--dry-run"]
    assert build.main(["engines", str(snapshot), *options]) == 0


def test_no_bundle_is_built_over_a_snapshot(snapshot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = ["--sd", str(GOLDEN / "sd"), "--checkpoint", str(GOLDEN / "model.pkl")]
    before = tree(snapshot.parents[1])
    assert build.main(["bundle", *sources, "--out", str(snapshot), "--overwrite"]) == OutputError.exit_code
    assert "is made of links, as in a hub's cache" in " ".join(capsys.readouterr().err.split())
    assert tree(snapshot.parents[1]) == before
