"""The operator's forms for a GPU, timed by events, on a fake one; see fake_gpu."""

from __future__ import annotations

import types

import numpy as np
import pytest
from helpers.fake_gpu import FakeDriver, FakeTensorRT, array_at

from vsr_trt.kernels.gated_topk import benchmark
from vsr_trt.kernels.gated_topk.fold import FoldedAttention, fold
from vsr_trt.kernels.gated_topk.gpu_forms import LAUNCHES, Engine, Kernel
from vsr_trt.kernels.gated_topk.reference import gated_topk_attention
from vsr_trt.kernels.gpu.build import is_available
from vsr_trt.runtime.bundle.manifest import Bound, Network, Tensor
from vsr_trt.runtime.cuda import engines
from vsr_trt.runtime.cuda.driver import Driver

SIDE = 6
FOLDED = fold(benchmark.seeded_weights()).astype(np.float32)


def expected() -> np.ndarray:
    return gated_topk_attention(*benchmark._latents(SIDE, SIDE), FOLDED)


@pytest.mark.skipif(not is_available(), reason="Triton is for Linux only")
def test_the_kernel_is_launched_many_times_between_two_events() -> None:
    seen = []

    def attend(current: int, previous: int, m: int, p: int, bias: int, *rest: int) -> None:
        heads, positions, k, fused = rest
        seen.append((heads, positions, k))
        shape = (1, 4, SIDE, SIDE)
        folded = FoldedAttention(
            array_at(m, (heads, 5, 5), np.float32),
            array_at(p, (heads, 4, 5), np.float32),
            array_at(bias, (4,), np.float32),
        )
        z, warped = (array_at(address, shape, np.float32) for address in (current, previous))
        array_at(fused, shape, np.float32)[...] = gated_topk_attention(z, warped, folded)

    driver = FakeDriver(kernels={"gated_topk_attention": attend})
    form = Kernel(Driver(driver), "sm_89", FOLDED, *benchmark._latents(SIDE, SIDE))
    np.testing.assert_array_equal(form(), expected().astype(np.float32))
    assert seen == [(9, SIDE * SIDE, SIDE * SIDE)]
    before = len(driver.calls)
    assert form.seconds() >= 0
    names = driver.names()[before:]
    assert names.count("cuLaunchKernel") == LAUNCHES >= 100
    records = [index for index, name in enumerate(names) if name == "cuEventRecord"]
    launches = [index for index, name in enumerate(names) if name == "cuLaunchKernel"]
    assert records[0] < launches[0]
    assert launches[-1] < records[1]
    assert not {"cuMemcpyDtoHAsync", "cuMemcpyHtoDAsync", "cuStreamSynchronize"} & set(names), (
        "no copy, no wait"
    )


def test_an_engine_is_timed_the_same_way() -> None:
    engines._libraries.clear()
    latent = ("n", 4, "h", "w")
    record = Network(
        tuple(Tensor(name, "float32", latent) for name in ("current", "previous")),
        (Tensor("fused", "float32", latent),),
        {name: Bound(1, 100) for name in "nhw"},
        {},
        1,
        0,
    )
    manifest = types.SimpleNamespace(networks={"operator": record})
    runs = []

    class Networks:
        def run(self, network: str, inputs: dict) -> dict:
            runs.append(network)
            return {"fused": gated_topk_attention(inputs["current"], inputs["previous"], FOLDED)}

    driver = FakeDriver()
    trt = FakeTensorRT(manifest, Networks(), driver)  # type: ignore[arg-type]
    form = Engine(Driver(driver), trt, b"operator", *benchmark._latents(SIDE, SIDE))
    np.testing.assert_array_equal(form(), expected().astype(np.float32))
    form.seconds()
    assert len(runs) == 1 + LAUNCHES
