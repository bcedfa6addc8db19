"""A provider that is not the CPU's, asked for by name: OpenVINO's, of a build of ONNX Runtime of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import native_host
from helpers.native_host import Host, Library, frames

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def openvino() -> Path:
    """That build's library."""
    return native_host.openvino_library()


def pipe(
    build: Path, bundle: Path, clip: list[np.ndarray], scale: int = 2, **options: str
) -> subprocess.CompletedProcess[bytes]:
    height, width, _ = clip[0].shape
    command = [
        str(build / "vsr_pipe"),
        "--log",
        "--bundle",
        str(bundle),
        "--size",
        f"{scale * width}x{scale * height}",
    ]
    for name, value in options.items():
        command += ["--set", f"{name.replace('__', '.')}={value}"]
    return subprocess.run(command, input=b"".join(frame.tobytes() for frame in clip), capture_output=True)


# Without the second, ONNX Runtime runs on the CPU what a provider does not take, and says nothing.
EXACT = {"provider__precision": "FP32", "session__disable_cpu_ep_fallback": "1"}


def test_openvino_computes_what_the_cpus_provider_does(
    build: Path, library: Library, other: Path, openvino: Path
) -> None:
    clip = frames(5, 100, 120)
    with Host(library, other) as host:
        expected = np.stack(list(host.restore(clip))).astype(int)
    done = pipe(
        build,
        other,
        clip,
        onnxruntime=str(openvino),
        provider="OpenVINO",
        provider__device_type="CPU",
        **EXACT,
    )
    assert done.returncode == 0, done.stderr
    assert f"ONNX Runtime: {openvino}" in done.stderr.decode()
    found = np.frombuffer(done.stdout, np.uint8).reshape(expected.shape).astype(int)
    assert np.abs(found - expected).max() <= 1, "levels"


def test_what_the_provider_refuses_is_a_sentence(
    build: Path, other: Path, tiny: Path, openvino: Path
) -> None:
    clip, there = frames(1, 80, 80), {"onnxruntime": str(openvino), "provider": "OpenVINO"}
    cases = (
        (there | {"provider__nonsense": "1"}, "the provider OpenVINO: "),
        (there | {"provider__device_type": "TPU"} | EXACT, "enter.onnx: "),
        ({"provider": "OpenVINO"}, "the provider OpenVINO: "),  # the usual build has none
    )
    for options, said in cases:
        done = pipe(build, other, clip, **options)
        assert (done.returncode, done.stdout) == (1, b""), options
        assert f"error: {said}" in done.stderr.decode().replace(f"{other}/onnx/", ""), options
    done = pipe(build, tiny, frames(1, 128, 128), 4, **there)
    assert done.returncode == 1
    assert "error: " in done.stderr.decode()
