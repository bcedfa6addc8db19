"""What a host is told, and what is refused before a launch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsr_trt.kernels import KernelError
from vsr_trt.kernels.gpu import launch
from vsr_trt.kernels.gpu.launch import Launch

INFO = Launch(
    kernel="gated_topk_attention",
    target="sm_89",
    dtype="fp32",
    top_k=False,
    ptx_version="8.0",
    tile={"queries": 16, "keys": 64},
    threads=128,
    shared_memory=128,
    registers=150,
    spilled=0,
    triton="3.9.0",
    ptxas="12.9",
    files={kind: {"name": f"k.{kind}", "sha256": "0" * 64} for kind in ("ptx", "cubin")},
)
LATENT = (2, 4, 8, 8)
CONSTANTS = {"M": (9, 5, 5), "P": (9, 4, 5), "bias": (4,)}
SHAPES = {"current": LATENT, "previous": LATENT} | CONSTANTS


@given(pictures=st.integers(1, 65535), positions=st.integers(1, 2**24))
def test_grid_covers_every_query_and_no_block_is_idle(pictures: int, positions: int) -> None:
    x, y, z = INFO.blocks(pictures=pictures, positions=positions)
    assert (y, z) == (pictures, 1)
    assert (x - 1) * 16 < positions <= x * 16


@given(width=st.integers(1, 2**15), height=st.integers(1, 65535), channels=st.integers(1, 4))
def test_a_block_blends_pixels_of_a_row(width: int, height: int, channels: int) -> None:
    info = replace(INFO, kernel=launch.BLENDING, tile={"pixels": 512})
    x, y, z = info.blocks(width=width, height=height, channels=channels)
    assert (y, z) == (height, channels)
    assert (x - 1) * 512 < width <= x * 512
    assert info.grid == ("ceil(width / 512)", "height", "channels")


def test_a_size_that_the_grid_needs_is_not_guessed() -> None:
    with pytest.raises(KeyError, match="pictures"):
        INFO.blocks(positions=4)


def test_fitting_shapes_pass() -> None:
    INFO.check(**SHAPES)
    replace(INFO, top_k=True).check(**SHAPES, k=64)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("current", (4, 8, 8), r"current latent is \(4, 8, 8\), expected \(N,4,h,w\)"),
        ("current", (1, 16, 8, 8), r"expected \(N,4,h,w\)"),
        ("current", (1, 4, 0, 8), "none of them 0"),
        ("previous", (2, 4, 8, 9), r"previous latent is \(2, 4, 8, 9\), expected \(2, 4, 8, 8\)"),
        ("previous", (1, 4, 8, 8), "previous latent"),
        ("M", (9, 5, 4), r"M is \(9, 5, 4\), expected \(9, 5, 5\)"),
        ("M", (), "M is"),
        ("M", (0, 5, 5), "M is"),
        ("P", (8, 4, 5), r"P is \(8, 4, 5\), expected \(9, 4, 5\)"),
        ("bias", (5,), r"bias is \(5,\), expected \(4,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(KernelError, match=message):
        INFO.check(**SHAPES | {name: shape})


@pytest.mark.parametrize("k", [0, -1, 65])
def test_k_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(KernelError, match=rf"k = {k} is not between 1 and the number of positions, 64"):
        replace(INFO, top_k=True).check(**SHAPES, k=k)


def test_k_that_the_kernel_does_not_read_is_refused() -> None:
    with pytest.raises(KernelError, match="takes all positions and no k; got k = 3"):
        INFO.check(**SHAPES, k=3)
    with pytest.raises(KernelError, match="keeps the k best scores and needs k; got k = None"):
        replace(INFO, top_k=True).check(**SHAPES)


@pytest.mark.parametrize(
    ("ptx", "cuda", "wanted"),
    [("8.0", (11, 8), "12.0"), ("8.6", (12, 6), "12.7"), ("8.7", (12, 7), "12.8"), ("9.0", (12, 9), "13.0")],
)
def test_ptx_newer_than_the_driver_is_refused(ptx: str, cuda: tuple[int, int], wanted: str) -> None:
    message = (
        rf"is PTX {ptx}, newer than this driver, which supports CUDA {cuda[0]}\.{cuda[1]}.*CUDA {wanted}"
    )
    with pytest.raises(KernelError, match=message):
        replace(INFO, ptx_version=ptx).check_driver(cuda)


@pytest.mark.parametrize(
    ("ptx", "cuda"), [("8.0", (12, 0)), ("8.6", (12, 7)), ("8.7", (12, 8)), ("8.7", (14, 2))]
)
def test_ptx_that_the_driver_knows_passes(ptx: str, cuda: tuple[int, int]) -> None:
    replace(INFO, ptx_version=ptx).check_driver(cuda)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"schema_version": 1}'])
def test_what_is_no_metadata_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "k.json"
    path.write_text(text)
    with pytest.raises(KernelError, match=r"k\.json is no launch metadata"):
        launch.read(path)


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "k.json").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "k.json", tmp_path / "none.json"):
        with pytest.raises(KernelError, match="cannot be read"):
            launch.read(path)


def test_another_schema_version_is_refused() -> None:
    content = json.loads(INFO.to_json()) | {"schema_version": 2}
    with pytest.raises(KernelError, match="schema version 2, expected 1; compile the kernel again"):
        Launch.from_json(json.dumps(content))


def test_a_kernel_that_is_not_known_is_refused() -> None:
    content = json.loads(INFO.to_json()) | {"kernel": "other"}
    with pytest.raises(KernelError, match="is of 'other', expected gated_topk_attention or blend_tiles"):
        Launch.from_json(json.dumps(content))
