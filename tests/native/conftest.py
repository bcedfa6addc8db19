"""Fixtures of the native host's tests: the library, built once, and bundles with schedules."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from importlib import resources
from pathlib import Path

import onnx
import pytest
from helpers import clip_family, native_host, other_family
from helpers.family_files import files_of
from helpers.native_host import Library
from helpers.once import shared


@pytest.fixture(scope="session")
def build() -> Path:
    """The folder of the release build."""
    return native_host.build()


@pytest.fixture(scope="session")
def library(build: Path) -> Library:
    """The library."""
    return Library(build)


def _other(folder: Path) -> None:
    other_family.write(folder)
    native_host.schedules(folder, "160x160", "240x200", "400x320", "60x90", "300x200")
    native_host.schedules(folder, "160x160", slots=2)
    native_host.schedules(folder, "160x160", set="tone=soft")


def _in_half(folder: Path) -> None:
    """The family `other` with FP16 between its networks, which compute as before: what is cut and blended is FP16."""
    bundle = other_family.write(folder)
    data = json.loads((folder / "bundle.json").read_text())
    for network in data["networks"].values():
        tensors = {t["name"]: t for t in (*network["inputs"], *network["outputs"]) if len(t["shape"]) > 3}
        halves = {name for name, tensor in tensors.items() if tensor["dtype"] == "float32"}
        for name in halves:
            tensors[name]["dtype"] = "float16"
        path = folder / network["graphs"]["native"]
        graph = (model := onnx.load(str(path))).graph
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = [f"{name}_single" if name in halves else name for name in names]
        for value in (*graph.input, *graph.output):
            if value.name in halves:
                value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
        before = [
            onnx.helper.make_node("Cast", [v.name], [f"{v.name}_single"], to=onnx.TensorProto.FLOAT)
            for v in graph.input
            if v.name in halves
        ]
        after = [
            onnx.helper.make_node("Cast", [f"{v.name}_single"], [v.name], to=onnx.TensorProto.FLOAT16)
            for v in graph.output
            if v.name in halves
        ]
        nodes = [*before, *graph.node, *after]
        del graph.node[:]
        graph.node.extend(nodes)
        onnx.save(model, str(path))
    files = {name: dataclasses.asdict(entry) for name, entry in files_of(folder).items()}
    data["files"] = {name: entry for name, entry in files.items() if name in bundle.manifest.files}
    (folder / "bundle.json").write_text(json.dumps(data))
    native_host.schedules(folder, "160x160", "400x320")


def _clip(folder: Path) -> None:
    clip_family.write(folder)
    for frames in (1, 2, 4, 7, 8):
        native_host.schedules(folder, "160x160", "300x200", frames=frames)


def _tiny(folder: Path) -> None:
    with resources.files("vsr_trt.runtime.self_test").joinpath("bundle.zip").open("rb") as file:
        zipfile.ZipFile(file).extractall(folder)
    native_host.schedules(folder, "512x512", "200x160", "524x548")
    native_host.schedules(folder, "512x512", set="color=wavelet")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windows that overlap, three tilings, a loop, a buffer that lives as long as the clip. Read it only."""
    return shared(tmp_path_factory, "native-other", _other)


@pytest.fixture(scope="session")
def in_half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with FP16 between networks. Read it only."""
    return shared(tmp_path_factory, "native-half", _in_half)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phases, chunks and noise. Read it only."""
    return shared(tmp_path_factory, "native-clip", _clip)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the self-test, of DLoRAL's shape. Read it only."""
    return shared(tmp_path_factory, "native-tiny", _tiny)
