"""What is installed serves programs outside of the tree, in C and C++, by CMake and by pkg-config."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import native_host
from helpers.native_host import SOURCE, Host, Library, frames, run
from helpers.processes import ROOT

pytestmark = pytest.mark.native

WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
C_CONSUMER = """#include <stdio.h>
#include <vsr.h>
int main(int count, char **arguments) {
  vsr_model *model = NULL;
  vsr_error *error = NULL;
  if (count != 2 || vsr_open(arguments[1], NULL, 0, &model, &error) != VSR_OK) {
    puts(vsr_error_message(error));
    vsr_error_free(error);
    return 1;
  }
  printf("%s %u\\n", vsr_version(), (unsigned)vsr_scale(model));
  vsr_close(model);
  return 0;
}
"""
CPP_CONSUMER = """#include <cstdio>
#include <type_traits>
#include <vsr.hpp>
static_assert(std::is_move_constructible_v<vsr::Stream> && !std::is_copy_constructible_v<vsr::Stream>);
static_assert(std::is_move_constructible_v<vsr::Model> && !std::is_copy_constructible_v<vsr::Model>);
int main(int count, char **arguments) try {
  vsr::Model first(count > 1 ? arguments[1] : "/no/such/bundle");
  vsr::Model model = std::move(first);
  vsr::Stream stream = model.stream(80, 80);
  vsr::Stream moved = std::move(stream);
  std::vector<vsr::Picture> clip(4, vsr::Picture(80, 80));
  unsigned results = 0;
  moved.progress([](const char *, std::uint64_t, std::uint64_t) {});
  for (vsr::Picture &picture : moved.restore(clip)) results += picture.width == 160;
  std::printf("%u results\\n", results);
} catch (const vsr::Error &error) {
  std::printf("%d %s\\n", error.status(), error.what());
  return 1;
}
"""
CMAKE = """cmake_minimum_required(VERSION 3.18)
project(consumer C CXX)
find_package(vsr 0.1 CONFIG REQUIRED)
foreach(name c_consumer.c cpp_consumer.cpp)
  string(REGEX REPLACE "[.].*" "" program ${name})
  add_executable(${program} ${name})
  target_link_libraries(${program} PRIVATE vsr::vsr)
endforeach()
set_target_properties(c_consumer PROPERTIES C_STANDARD 99 C_EXTENSIONS OFF)
target_compile_features(cpp_consumer PRIVATE cxx_std_17)
"""


@pytest.fixture(scope="module")
def installed(build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it was installed; moved afterwards, as packages are."""
    first = tmp_path_factory.mktemp("first") / "usr"
    run(["cmake", "--install", str(build), "--prefix", str(first)])
    return Path(shutil.move(first, tmp_path_factory.mktemp("second") / "usr"))


@pytest.fixture
def consumer(tmp_path: Path) -> Path:
    (tmp_path / "CMakeLists.txt").write_text(CMAKE)
    (tmp_path / "c_consumer.c").write_text(C_CONSUMER)
    (tmp_path / "cpp_consumer.cpp").write_text(CPP_CONSUMER)
    return tmp_path


def test_consumers_find_it_with_cmake(installed: Path, consumer: Path, other: Path) -> None:
    run(["cmake", "-S", str(consumer), "-B", str(consumer / "b"), f"-DCMAKE_PREFIX_PATH={installed}"])
    run(["cmake", "--build", str(consumer / "b")])
    assert run([str(consumer / "b" / "c_consumer"), str(other)]).stdout == "0.1.0 2\n"
    assert run([str(consumer / "b" / "cpp_consumer"), str(other)]).stdout == "4 results\n"
    said = run([str(consumer / "b" / "cpp_consumer")], expected=1).stdout
    assert said.startswith("-2 /no/such/bundle is not a bundle")


@pytest.mark.parametrize("compilers", [("gcc", "g++"), ("clang", "clang++")])
def test_consumers_find_it_with_pkg_config_and_have_no_warning(
    installed: Path, consumer: Path, other: Path, compilers: tuple[str, str]
) -> None:
    for program in (*compilers, "pkg-config"):
        if shutil.which(program) is None:
            pytest.skip(f"not run: there is no {program}")
    [pc] = installed.rglob("vsr.pc")
    environment = {**os.environ, "PKG_CONFIG_PATH": str(pc.parent)}
    flags = run(["pkg-config", "--cflags", "--libs", "vsr"], env=environment).stdout.split()
    libraries = {**os.environ, "LD_LIBRARY_PATH": str(next(installed.rglob("libvsr.so")).parent)}
    for compiler, standard, file in zip(
        compilers, ("-std=c99", "-std=c++17"), ("c_consumer.c", "cpp_consumer.cpp"), strict=True
    ):
        program = consumer / "program"
        run([compiler, standard, *WARNINGS, str(consumer / file), "-o", str(program), *flags])
        run([str(program), str(other)], env=libraries)


def test_the_library_shows_its_own_names_alone(installed: Path) -> None:
    library = next(installed.rglob("libvsr.so"))
    names = run(["nm", "-D", "--defined-only", str(library)]).stdout.split()[2::3]
    declared = set(re.findall(r"\b(vsr_\w+)\(", (SOURCE / "include" / "vsr.h").read_text()))
    assert set(names) == {
        name for name in declared if f" {name}(" in (SOURCE / "include" / "vsr.h").read_text()
    }
    dynamic = run(["readelf", "-d", str(library)]).stdout
    assert "[libvsr.so.0]" in dynamic
    needed = re.findall(r"NEEDED.*\[(\S+?)\.so", dynamic)
    assert not [name for name in needed if "onnx" in name or "cuda" in name or "nvinfer" in name]


def test_no_header_of_others_is_in_the_tree() -> None:
    found = {path.name for folder in (SOURCE / "include", SOURCE / "src") for path in folder.iterdir()}
    assert not [name for name in found if "onnxruntime" in name or "nlohmann" in name]


def test_the_pipe(build: Path, library: Library, other: Path) -> None:
    clip = frames(4, 80, 80)
    with Host(library, other) as host:
        expected = b"".join(result.tobytes() for result in host.restore(clip))
    command = [str(build / "vsr_pipe"), "--bundle", str(other), "--size", "160x160", "--set", "threads=2"]
    import subprocess

    pixels = b"".join(frame.tobytes() for frame in clip)
    done = subprocess.run(command, input=pixels, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == expected
    torn = subprocess.run(command, input=pixels[:-5], capture_output=True)
    assert torn.returncode == 1
    assert b"not whole" in torn.stderr
    assert len(torn.stdout) == 3 * 160 * 160 * 3
    wrong = subprocess.run([*command[:4], "161x160"], input=b"", capture_output=True)
    assert wrong.returncode == 1
    assert b"multiples" in wrong.stderr


def test_two_streams_in_a_program(build: Path, other: Path) -> None:
    said = run([str(build / "two_streams"), str(other), "80", "80"]).stdout.splitlines()
    assert len(said) == 6
    assert all("160x160" in line for line in said)


def test_the_page_s_program_is_built_and_restores(installed: Path, tmp_path: Path, other: Path) -> None:
    """The first lines of docs/native.md."""
    [text] = re.findall(r"```cpp\n(.*?)```", (ROOT / "docs" / "native.md").read_text(), re.DOTALL)[:1]
    (tmp_path / "first.cpp").write_text(text)
    libraries = next(installed.rglob("libvsr.so")).parent
    flags = [f"-I{installed / 'include'}", f"-L{libraries}", "-lvsr"]
    run(["g++", "-std=c++17", *WARNINGS, str(tmp_path / "first.cpp"), "-o", str(tmp_path / "first"), *flags])
    frame = np.full((80, 80, 3), 90, np.uint8)
    (tmp_path / "frame.rgb").write_bytes(frame.tobytes())
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    run(
        [str(tmp_path / "first"), str(other), "80", "80", "frame.rgb", "out.rgb"],
        cwd=tmp_path,
        env=environment,
    )
    assert (tmp_path / "out.rgb").stat().st_size == 160 * 160 * 3
    assert native_host.onnxruntime_library().exists()
