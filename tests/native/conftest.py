"""Fixtures of the native host's tests: the library, built once, and bundles with schedules."""

from __future__ import annotations

import zipfile
from importlib import resources
from pathlib import Path

import pytest
from helpers import clip_family, native_host, other_family
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
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phases, chunks and noise. Read it only."""
    return shared(tmp_path_factory, "native-clip", _clip)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the self-test, of DLoRAL's shape. Read it only."""
    return shared(tmp_path_factory, "native-tiny", _tiny)
