"""The runtime's extra alone, in a fresh environment, restores a clip; nothing of the build side is there."""

from __future__ import annotations

import os
import shutil
import sys
from fractions import Fraction
from pathlib import Path

import av
from helpers import processes

ROOT = Path(__file__).parents[1]
from helpers.media_clips import Clip

_ABSENT = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "safetensors", "scipy")


def test_a_fresh_environment_restores_a_clip_without_torch(golden_bundle: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("runtime", "kernels", "engines", "export"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    _run([sys.executable, "-m", "venv", tmp_path / "env"], tmp_path)
    _run([python, "-m", "pip", "install", "--quiet", f"{source}[cpu]"], tmp_path)

    probe = f"import importlib.util as u; print([n for n in {_ABSENT!r} if u.find_spec(n)])"
    assert _run([python, "-c", probe], tmp_path).strip() == "[]"
    where = _run([python, "-c", "import vsr_trt.runtime; print(runtime.__file__)"], tmp_path).strip()
    assert Path(where).is_relative_to(tmp_path / "env")

    clip, output = tmp_path / "clip.mp4", tmp_path / "restored.mp4"
    Clip(pts=(0, 20, 40), time_base=Fraction(1, 500), size=(48, 40)).write(clip)
    _run(
        [python, "-m", "vsr_trt.runtime", "restore", clip, "-o", output, "--bundle", golden_bundle], tmp_path
    )
    with av.open(str(output)) as container:
        assert [frame.width for frame in container.decode(video=0)] == [192] * 3
    assert "onnxruntime" in _run(
        [python, "-m", "vsr_trt.runtime", "doctor", "--bundle", golden_bundle], tmp_path
    )


def _run(command: list, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = processes.run([*map(str, command)], cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout
