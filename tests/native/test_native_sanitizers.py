"""The native host with sanitizers: no memory that is not its own, nothing undefined, no leak, no race."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers import native_host
from helpers.native_host import SOURCE, copied, run

pytestmark = pytest.mark.native
FAST = ("-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O0", "-DVSR_EXAMPLES=OFF")  # to compile


@pytest.fixture(scope="module")
def address() -> Path:
    return native_host.build("address", "-DVSR_SANITIZE=address,undefined", *FAST)


@pytest.fixture(scope="module")
def thread() -> Path:
    return native_host.build("thread", "-DVSR_SANITIZE=thread", *FAST)


def strictly() -> dict[str, str]:
    return {**os.environ, "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}


@pytest.mark.parametrize("family", ["other", "clip"])
def test_memory_and_undefined_behaviour(
    address: Path, other: Path, clip: Path, tmp_path: Path, family: str
) -> None:
    bundle = other if family == "other" else clip
    run([str(address / "vsr_abi"), str(bundle), "80", "80"], env=strictly())
    run([str(address / "vsr_streams"), "threads", str(bundle), "150", "100"], env=strictly())
    changed = copied(bundle, tmp_path / "bundle")
    run([str(address / "vsr_mutate"), str(changed), "80", "80", "200", "7"], env=strictly())


@pytest.mark.parametrize("family", ["other", "clip"])
def test_races(thread: Path, other: Path, clip: Path, family: str) -> None:
    bundle = other if family == "other" else clip
    environment = {**os.environ, "TSAN_OPTIONS": f"suppressions={SOURCE / 'tests' / 'tsan.supp'}"}
    run([str(thread / "vsr_streams"), "threads", str(bundle), "80", "80", "1"], env=environment)
