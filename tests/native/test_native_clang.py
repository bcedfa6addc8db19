"""The native host built with Clang: no warning, the same bytes, and its fuzzer finds nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import native_host
from helpers.native_host import Host, Library, copied, frames, run

CLANG = ("-DCMAKE_C_COMPILER=clang", "-DCMAKE_CXX_COMPILER=clang++")
RUNS = 3000  # of each file; one takes a few milliseconds
pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(shutil.which("clang++") is None, reason="not run: there is no clang++"),
]


def test_it_compiles_without_a_warning_and_gives_the_same_bytes(library: Library, other: Path) -> None:
    warnings = "-DCMAKE_CXX_FLAGS=-Werror"
    folder = native_host.build("clang", *CLANG, warnings, warnings.replace("CXX", "C"))
    clip = frames(3, 100, 120)
    with Host(library, other) as host, Host(Library(folder), other) as by_clang:
        for expected, found in zip(host.restore(clip), by_clang.restore(clip), strict=True):
            assert np.array_equal(expected, found)


def fuzzes(folder: Path) -> bool:
    """Whether Clang's libFuzzer is installed, which comes in a package of its own."""
    program = folder / "nothing.cpp"
    program.write_text(
        'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }'
    )
    command = ["clang++", "-fsanitize=fuzzer", str(program), "-o", str(folder / "nothing")]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["manifest", "schedule"])
def test_the_fuzzer_finds_nothing(other: Path, tmp_path: Path, kind: str) -> None:
    """libFuzzer changes a file where that reaches code which no change before it reached."""
    if not fuzzes(tmp_path):
        pytest.skip("not run: clang++ has no libFuzzer (Debian: libclang-rt-14-dev)")
    folder = native_host.build(
        "fuzzer",
        *CLANG,
        "-DCMAKE_BUILD_TYPE=None",
        "-DCMAKE_CXX_FLAGS=-O1",
        "-DVSR_EXAMPLES=OFF",
        "-DVSR_TESTS=OFF",
        "-DVSR_FUZZER=ON",
        "-DVSR_SANITIZE=fuzzer-no-link,address,undefined",
    )
    bundle = copied(other, tmp_path / "bundle")
    name = "bundle.json" if kind == "manifest" else "schedules/160x160-s1.json"
    (tmp_path / "corpus").mkdir()
    shutil.copy(bundle / name, tmp_path / "corpus")
    environment = {**os.environ, "VSR_FUZZ_BUNDLE": str(bundle), "VSR_FUZZ_FILE": name}
    environment["UBSAN_OPTIONS"] = "halt_on_error=1:print_stacktrace=1"
    # libFuzzer asks the system for its peak memory, which begins with that of the process that started it: this one's,
    # gigabytes after some tests. A shell stands between; the second command keeps it from becoming the program.
    command = [
        "sh",
        "-c",
        '"$@"; exit $?',
        "sh",
        str(folder / "vsr_fuzz"),
        "corpus",
        f"-runs={RUNS}",
        "-seed=1",
        "-max_len=200000",
        "-timeout=60",
    ]
    done = run(command, env=environment, cwd=tmp_path)
    assert f"Done {RUNS} runs" in done.stderr
