"""The compiled kernels launched as a host would: by their launch metadata alone, through the CUDA driver."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.blending import picture
from helpers.operands import exact_constants, random_constants

from vsr_trt.kernels import FoldedAttention, gated_topk_attention
from vsr_trt.kernels.gpu import build, launch, store
from vsr_trt.kernels.gpu.launch import DType
from vsr_trt.kernels.gpu.targets import TARGETS
from vsr_trt.runtime.cuda.driver import Context, Driver, Owned, bindings
from vsr_trt.runtime.machine import gpu


def launch_file(
    metadata: Path, kind: str, arrays: dict[str, np.ndarray], numbers: dict[str, int], **sizes: int
) -> dict[str, np.ndarray]:
    """One launch of the file `kind` (cubin or ptx), with arguments by name; the arrays as they are afterwards."""
    driver = Driver(bindings())
    info = launch.read(metadata)
    content = json.loads(metadata.read_text())
    image = (metadata.parent / content["files"][kind]["name"]).read_bytes() + b"\0"
    context, owned = Context(driver), Owned(driver)
    version = driver.call("cuDriverGetVersion")
    info.check_driver((version // 1000, version % 1000 // 10))
    try:
        with context.current():
            stream = owned.stream()
            addresses = {name: owned.memory(array.nbytes) for name, array in arrays.items()}
            for name, array in arrays.items():
                driver.copy_in(addresses[name], np.ascontiguousarray(array), stream)
            function = owned.function(image, content["kernel"])
            values, types = [], []
            for argument in content["arguments"]:
                pointer = argument["type"] == "pointer"
                values.append((addresses if pointer else numbers)[argument["name"]])
                types.append(ctypes.c_void_p if pointer else ctypes.c_int)
            driver.call(
                "cuLaunchKernel",
                function,
                *info.blocks(**numbers, **sizes),
                *content["block"],
                content["shared_memory"],
                stream,
                (tuple(values), tuple(types)),
                0,
            )
            results = {name: np.empty_like(array) for name, array in arrays.items()}
            for name, array in results.items():
                driver.call("cuMemcpyDtoHAsync", array.ctypes.data, addresses[name], array.nbytes, stream)
            driver.call("cuStreamSynchronize", stream)
            return results
    finally:
        with context.current():
            owned.close()
        context.close()


def run(
    metadata: Path,
    kind: str,
    current: np.ndarray,
    previous: np.ndarray,
    folded: FoldedAttention,
    k: int | None = None,
) -> np.ndarray:
    """One launch of the attention."""
    single = folded.astype(np.float32)
    shapes = (current.shape, previous.shape, single.M.shape, single.P.shape, single.bias.shape)
    launch.read(metadata).check(*shapes, k)
    pictures, _, height, width = current.shape
    arrays = {
        "current": current,
        "previous": previous,
        "M": single.M,
        "P": single.P,
        "bias": single.bias,
        "fused": np.full_like(current, 12345),
    }
    numbers = {"heads": len(single.M), "positions": height * width, "k": k or 0}
    return launch_file(metadata, kind, arrays, numbers, pictures=pictures)["fused"]


@pytest.fixture(scope="module")
def target() -> str:
    """The GPU in the machine."""
    here = gpu.detect()
    assert here is not None
    name = here.capability
    if name not in TARGETS:
        pytest.skip(f"no kernel is compiled for {name}")
    return name


@pytest.mark.parametrize("kind", ["cubin", "ptx"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("k", [None, 50])
def test_launched_by_its_metadata(
    tmp_path: Path, target: str, kind: str, dtype: DType, k: int | None
) -> None:
    metadata = store.write(build.compile_kernel(target, dtype, k is not None), tmp_path)[0]
    rng = np.random.default_rng(0)
    folded = random_constants(rng, heads=9, width=64)
    scalar = {"fp32": np.float32, "fp16": np.float16}[dtype]
    if k is not None:  # integers: what is among the k best does not depend on rounding
        folded = exact_constants(2)
        current, previous = rng.integers(-2, 3, (2, 2, 4, 21, 33)).astype(scalar)
    else:
        current, previous = rng.standard_normal((2, 2, 4, 21, 33)).astype(scalar)
    wide = (latent.astype(np.float64) for latent in (current, previous))
    expected = gated_topk_attention(*wide, folded.astype(np.float32).astype(np.float64), k)
    got = run(metadata, kind, current, previous, folded, k)
    rounding = {"fp32": 5e-6, "fp16": 2**-11 * 1.02}[dtype]
    assert np.abs(got - expected).max() <= rounding * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["cubin", "ptx"])
@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap", "square", "factor"),
    [(135, 240, 96, 32, True, 1), (135, 240, 136, 16, False, 8), (40, 30, 96, 16, False, 8)],
)
def test_tiles_blended_by_the_metadata(
    tmp_path: Path,
    target: str,
    kind: str,
    height: int,
    width: int,
    tile: int,
    overlap: int,
    square: bool,
    factor: int,
) -> None:
    metadata = store.write(build.compile_blending(target), tmp_path)[0]
    window = "gaussian" if square else "ramp"
    case = picture(
        np.random.default_rng(0), height, width, tile, overlap, window, square, channels=3, factor=factor
    )
    (tops, lefts), (rows, columns) = case.starts, case.windows
    arrays = {"tiles": case.tiles, "tops": tops, "lefts": lefts, "row_window": rows, "column_window": columns}
    arrays["out"] = np.full_like(case.expected, 12345)
    channels, tile_height, tile_width = case.tiles.shape[1:]
    numbers = {
        "rows": len(tops),
        "columns": len(lefts),
        "channels": channels,
        "tile_height": tile_height,
        "tile_width": tile_width,
        "height": case.shape[0],
        "width": case.shape[1],
    }
    got = launch_file(metadata, kind, arrays, numbers)["out"]
    assert np.abs(got - case.expected).max() <= 1e-6 * np.abs(case.tiles).max()
