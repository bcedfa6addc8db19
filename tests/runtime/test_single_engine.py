"""One engine on arrays, through the calls that the device makes; see fake_gpu."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from helpers.fake_gpu import Cheap, FakeDriver, FakeTensorRT
from helpers.stages import dloral_manifest

from vsr_trt.runtime.cuda import engines
from vsr_trt.runtime.cuda.driver import Driver
from vsr_trt.runtime.cuda.single import run_engine
from vsr_trt.runtime.errors import DeviceError, EngineError

MANIFEST = dloral_manifest()
SHAPE = (1, 4, 32, 40)
WANTED = {"denoised": (SHAPE, "float32")}


@pytest.fixture(autouse=True)
def _no_library_of_other_tests() -> None:
    engines._libraries.clear()


def feed(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"warped": SHAPE, "fused": SHAPE, "prompt": (77, 32)}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def test_it_gives_what_its_network_gives_and_everything_back() -> None:
    driver = FakeDriver()
    trt = FakeTensorRT(MANIFEST, Cheap(MANIFEST), driver)
    feeds = [feed(0), feed(1)]
    found = run_engine(trt, Driver(driver), b"unet", "unet", feeds, [WANTED] * 2)
    for got, inputs in zip(found, feeds, strict=True):
        np.testing.assert_array_equal(got["denoised"], Cheap(MANIFEST).run("unet", inputs)["denoised"])
    assert driver.live == []
    assert list(trt.objects) == []


def test_engines_ask_for_memory_of_the_callers() -> None:
    """Plans are built with REQUIRE_USER_ALLOCATION: a context of any other strategy is refused by the library."""
    driver = FakeDriver()
    trt = FakeTensorRT(MANIFEST, Cheap(MANIFEST), driver, scratch=5000)
    run_engine(trt, Driver(driver), b"unet", "unet", [feed(0)], [WANTED])
    sizes = [arguments[0] for name, arguments in driver.calls if name == "cuMemAlloc"]
    assert sizes[0] == 5000


@pytest.mark.parametrize("number", range(30))
def test_whichever_call_fails_everything_is_given_back(number: int) -> None:
    driver = FakeDriver(number)
    trt = FakeTensorRT(MANIFEST, Cheap(MANIFEST), driver)
    with contextlib.suppress(DeviceError):
        run_engine(trt, Driver(driver), b"unet", "unet", [feed(0)], [WANTED])
    failed = driver.calls[number][0] if number < len(driver.calls) else ""
    assert driver.live == [] or failed.endswith(("Destroy", "Free", "Release")), failed


def test_refusals_are_sentences() -> None:
    driver = FakeDriver()
    trt = FakeTensorRT(MANIFEST, Cheap(MANIFEST), driver)
    with pytest.raises(EngineError, match="unet cannot be loaded: magic tag does not match"):
        run_engine(trt, Driver(driver), b"damaged", "unet", [feed(0)], [WANTED])
    trt.refuse = "unet"
    with pytest.raises(DeviceError, match="unet could not be started"):
        run_engine(trt, Driver(driver), b"unet", "unet", [feed(0)], [WANTED])
    trt.refuse = None
    with pytest.raises(EngineError, match="the engine of unet has no tensor other"):
        run_engine(trt, Driver(driver), b"unet", "unet", [feed(0)], [WANTED | {"other": (SHAPE, "float32")}])
    assert driver.live == []


def test_layers_are_timed_on_the_last_feed() -> None:
    driver = FakeDriver()
    trt = FakeTensorRT(MANIFEST, Cheap(MANIFEST), driver)
    layers: dict[str, float] = {}
    found = run_engine(trt, Driver(driver), b"unet", "unet", [feed(0), feed(1)], [WANTED] * 2, layers)
    # the fake's run number n takes n ms: two for the results, one that warms up, ten that count
    mean = sum(range(4, 14)) / 10 / 1e3
    assert layers == {"first": pytest.approx(0.75 * mean), "second": pytest.approx(0.25 * mean)}
    np.testing.assert_array_equal(found[1]["denoised"], Cheap(MANIFEST).run("unet", feed(1))["denoised"])
    assert driver.live == []
