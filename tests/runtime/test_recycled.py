"""Memory of results is used again, and never while somebody has one."""

from __future__ import annotations

import numpy as np

from vsr_trt.runtime.devices.recycled import Recycled

SOURCE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_is_used_again_when_its_result_is_gone() -> None:
    memory = Recycled()
    first = memory.copy(SOURCE)
    place = address(first)
    np.testing.assert_array_equal(first, SOURCE)
    second = memory.copy(SOURCE + 1)
    assert address(second) != place
    del first
    third = memory.copy(SOURCE + 2)
    assert address(third) == place
    np.testing.assert_array_equal(second, SOURCE + 1)
    np.testing.assert_array_equal(third, SOURCE + 2)


def test_a_view_of_a_result_keeps_it() -> None:
    memory = Recycled()
    part = memory.copy(SOURCE)[1, ::2]
    buffer = memoryview(memory.copy(SOURCE * 3))
    for value in range(10):
        memory.copy(np.full_like(SOURCE, value))
    np.testing.assert_array_equal(part, SOURCE[1, ::2])
    np.testing.assert_array_equal(np.asarray(buffer), SOURCE * 3)


def test_however_many_are_kept_each_has_its_own() -> None:
    memory = Recycled(kept=2)
    results = [memory.copy(SOURCE + value) for value in range(9)]
    for value, result in enumerate(results):
        np.testing.assert_array_equal(result, SOURCE + value)
    assert len(memory._blocks) == 2


def test_another_size_lets_the_former_one_go() -> None:
    memory = Recycled()
    memory.copy(SOURCE)
    small = memory.copy(SOURCE[0])
    assert [block.nbytes for block in memory._blocks] == [small.nbytes]
