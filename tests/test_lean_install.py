"""The runtime needs its own extra alone: nothing of the build side. And a wheel holds one name, `vsr_trt`."""

from __future__ import annotations

import os
import sys
import tomllib
import zipfile
from fractions import Fraction
from pathlib import Path

import av
import pytest
from helpers import processes
from helpers.media_clips import Clip

ROOT = processes.ROOT
ABSENT = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "safetensors", "scipy", "kernels")
BLOCKED = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""
"""As if the build side's packages were not installed, which takes a minute less than an environment without them."""


def clip(folder: Path) -> Path:
    path = folder / "clip.mp4"
    Clip(pts=(0, 20, 40), time_base=Fraction(1, 500), size=(48, 40)).write(path)
    return path


def restored(output: Path) -> list[int]:
    with av.open(str(output)) as container:
        return [frame.width for frame in container.decode(video=0)]


def run(command: list, folder: Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = processes.run([*map(str, command)], cwd=folder, env=environment | variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.thorough
def test_the_runtime_restores_a_clip_without_the_build_side(golden_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCKED)
    lean = {"PYTHONPATH": str(tmp_path / "site")}
    probe = f"import importlib.util as u; print([n for n in {ABSENT!r} if u.find_spec(n)])"
    assert (
        "No module named 'torch'"
        in processes.run([sys.executable, "-c", probe], cwd=tmp_path, env=os.environ | lean).stderr
    )
    vsr = [sys.executable, "-m", "vsr_trt.runtime"]
    output = tmp_path / "restored.mp4"
    run([*vsr, "restore", clip(tmp_path), "-o", output, "--bundle", golden_bundle], tmp_path, **lean)
    assert restored(output) == [192] * 3
    assert "onnxruntime" in run([*vsr, "doctor", "--bundle", golden_bundle], tmp_path, **lean)


def test_the_packages_that_are_installed_are_those_of_the_tree() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = ("runtime", "engines", "export", "kernels", "recipes")
    found = {file.parent.relative_to(ROOT) for name in folders for file in (ROOT / name).rglob("*.py")}
    assert sorted(listed) == sorted(["vsr_trt", *(f"vsr_trt.{'.'.join(folder.parts)}" for folder in found)])
    assert all((ROOT / folder / "__init__.py").is_file() for folder in found)


@pytest.mark.thorough
def test_a_wheel_holds_one_name_and_all_that_is_read(tmp_path: Path) -> None:
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, ROOT], tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"vsr_trt", "vsr_trt-0.1.0.dist-info"}
    for data in (
        p for name in ("*.schema.json", "full_size.json", "py.typed") for p in ROOT.glob(f"*/**/{name}")
    ):
        if ".venv" not in data.parts and "build" not in data.parts:
            assert f"vsr_trt/{data.relative_to(ROOT).as_posix()}" in names


@pytest.mark.full_size
def test_a_fresh_environment_restores_a_clip(golden_bundle: Path, tmp_path: Path) -> None:
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    run([sys.executable, "-m", "venv", tmp_path / "env"], tmp_path)
    run([python, "-m", "pip", "install", "--quiet", f"{ROOT}[cpu]"], tmp_path)
    site = Path(
        run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], tmp_path).strip()
    )
    (site / "kernels").mkdir()  # the package that transformers and diffusers look for
    (site / "kernels" / "__init__.py").write_text("get_kernel = 1\n")
    probe = f"import importlib.util as u; print([n for n in {ABSENT[:-1]!r} if u.find_spec(n)])"
    assert run([python, "-c", probe], tmp_path).strip() == "[]"
    both = "import kernels, vsr_trt.kernels; print(kernels.get_kernel, vsr_trt.kernels.__file__)"
    one, where = run([python, "-c", both], tmp_path).split()
    assert one == "1"
    assert Path(where).is_relative_to(site / "vsr_trt")
    assert not [name for name in ("runtime", "engines", "export", "recipes") if (site / name).exists()]
    vsr, output = python.with_name("vsr"), tmp_path / "restored.mp4"
    run([vsr, "restore", clip(tmp_path), "-o", output, "--bundle", golden_bundle], tmp_path)
    assert restored(output) == [192] * 3
    assert "onnxruntime" in run([vsr, "doctor", "--bundle", golden_bundle], tmp_path)
    assert "usage: vsr-build" in run([python.with_name("vsr-build"), "cache", "--help"], tmp_path)
