"""The compiled kernel launched as a host would: by its launch metadata alone, through the CUDA driver."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from operands import exact_constants, random_constants

from kernels import FoldedAttention, gated_topk_attention
from kernels.gpu import build, launch
from kernels.gpu.launch import DType
from kernels.gpu.targets import TARGETS


def call(function: Any, *arguments: Any) -> Any:
    """A driver call; its result, after its status."""
    status, *results = function(*arguments)
    assert int(status) == 0, f"{function.__name__}: {status.name}"
    return results[0] if results else None


def run(
    metadata: Path,
    kind: str,
    current: np.ndarray,
    previous: np.ndarray,
    folded: FoldedAttention,
    k: int | None = None,
) -> np.ndarray:
    """One launch of the file `kind` (cubin or ptx). Everything that it passes it reads off the metadata."""
    from cuda.bindings import driver

    info = launch.read(metadata)
    content = json.loads(metadata.read_text())
    version = call(driver.cuDriverGetVersion)
    info.check_driver((version // 1000, version % 1000 // 10))
    single = folded.astype(np.float32)
    info.check(current.shape, previous.shape, single.M.shape, single.P.shape, single.bias.shape, k)
    pictures, _, height, width = current.shape
    tensors = {
        name: torch.from_numpy(array.copy()).cuda()
        for name, array in {
            "current": current,
            "previous": previous,
            "M": single.M,
            "P": single.P,
            "bias": single.bias,
            "fused": np.full_like(current, 12345),
        }.items()
    }
    numbers = {"heads": len(single.M), "positions": height * width, "k": k or 0}
    module = call(
        driver.cuModuleLoadData, (metadata.parent / content["files"][kind]["name"]).read_bytes() + b"\0"
    )
    try:
        function = call(driver.cuModuleGetFunction, module, content["kernel"].encode())
        values, types = [], []
        for argument in content["arguments"]:
            pointer = argument["type"] == "pointer"
            values.append(tensors[argument["name"]].data_ptr() if pointer else numbers[argument["name"]])
            types.append(ctypes.c_void_p if pointer else ctypes.c_int)
        torch.cuda.synchronize()
        call(
            driver.cuLaunchKernel,
            function,
            *info.grid(pictures, height * width),
            *content["block"],
            content["shared_memory"],
            0,
            (tuple(values), tuple(types)),
            0,
        )
        torch.cuda.synchronize()
        return tensors["fused"].cpu().numpy()
    finally:
        call(driver.cuModuleUnload, module)


@pytest.fixture(scope="module")
def target() -> str:
    """The GPU in the machine."""
    torch.zeros(1, device="cuda")  # makes the context that the driver calls use
    major, minor = torch.cuda.get_device_capability()
    name = f"sm_{major}{minor}"
    if name not in TARGETS:
        pytest.skip(f"no kernel is compiled for {name}")
    return name


@pytest.mark.parametrize("kind", ["cubin", "ptx"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("k", [None, 50])
def test_launched_by_its_metadata(
    tmp_path: Path, target: str, kind: str, dtype: DType, k: int | None
) -> None:
    metadata = build.write(build.compile_kernel(target, dtype, k is not None), tmp_path)[0]
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
