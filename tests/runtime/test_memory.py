"""The peak of memory is this process's own."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from helpers import processes

from vsr_trt.runtime.machine.memory import peak_bytes

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell")


def test_the_peak_grows_with_what_is_used_and_stays() -> None:
    before = peak_bytes()
    assert before is not None
    ballast = np.ones(1 << 28, np.uint8)
    grown = peak_bytes()
    assert grown is not None
    del ballast
    after = peak_bytes()
    assert after is not None
    assert after >= 0.98 * grown > 0  # the kernel counts pages by processor, and not to the last one


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands a peak on to children")
def test_a_child_does_not_inherit_its_parents_peak() -> None:
    ballast = np.ones(400_000_000, np.uint8)
    code = "from vsr_trt.runtime.machine.memory import peak_bytes; print(peak_bytes())"
    done = processes.run([sys.executable, "-c", code], check=True)
    del ballast
    assert int(done.stdout) < 200_000_000
