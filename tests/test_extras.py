"""The extras by which users install a side: what each brings can be imported where it is installed."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from vsr_trt.runtime import doctor

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
EXTRAS = {
    name: [re.match(r"[\w-]+", requirement)[0] for requirement in requirements]  # type: ignore[index]
    for name, requirements in PROJECT["optional-dependencies"].items()
}
IMPORTED = {
    "onnxruntime-gpu": "onnxruntime",
    "tensorrt-rtx-cu13": "tensorrt_rtx",
    "cuda-python": "cuda.bindings.driver",
    "nvidia-ml-py": "pynvml",
}
RUN = ("cpu", "gpu", "rtx", "ort-gpu", "prompt", "pycuda")


def test_tensorrt_is_one_that_takes_our_graphs() -> None:
    """ONNX's Attention is parsed from 10.14 on, functions that a plugin may take the place of from 10.15 on."""
    for extra, package in (("gpu", "tensorrt"), ("dev", "tensorrt-cu13-bindings")):
        (text,) = [
            found for found in PROJECT["optional-dependencies"][extra] if found.startswith(f"{package}>")
        ]
        assert "10.14.9" not in Requirement(text).specifier
        assert "10.15.1" in Requirement(text).specifier


def test_all_sides_have_an_extra() -> None:
    assert set(EXTRAS) == {*RUN, "build", "demo", "dev"}
    assert "onnxruntime" not in EXTRAS["ort-gpu"], "both share an import name"


@pytest.mark.parametrize("package", sorted({p for name in RUN for p in EXTRAS[name]}))
def test_what_is_installed_can_be_imported(package: str) -> None:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"not run: {package} is not installed")
    importlib.import_module(IMPORTED.get(package, package))


def test_the_doctor_has_a_row_for_each() -> None:
    rows = set(doctor.diagnose(None).packages)
    for extra in RUN:
        assert set(EXTRAS[extra]) - {"nvidia-ml-py"} <= rows
