"""What killed processes left behind is removed by the next one, and what living ones make is not."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from helpers import processes

from vsr_trt.runtime.machine import temporary

MAKE = """
import sys, time
from pathlib import Path
from vsr_trt.runtime.machine import temporary
print(temporary.make(Path(sys.argv[1]), "bundle"), flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows is not asked which processes live")
def test_the_next_process_cleans_up(tmp_path: Path) -> None:
    with processes.started([sys.executable, "-c", MAKE, tmp_path]) as process:
        assert process.stdout is not None
        theirs = Path(process.stdout.readline().strip())
        (theirs / "half").write_text("x")
        ours = temporary.make(tmp_path, "bundle")
        assert theirs.is_dir(), "its process lives"
        process.kill()
        process.wait()
    other, mine = temporary.make(tmp_path, "another"), temporary.make(tmp_path, "bundle")
    assert not theirs.exists()
    assert {ours, other, mine} == set(tmp_path.iterdir())


def test_names_that_others_gave_stay(tmp_path: Path) -> None:
    kept = [".bundle.tmp", ".bundle.otherhost-99999999-abc.tmp", "bundle", ".bundle.99999999-abc.tmp"]
    for name in kept:
        (tmp_path / name).mkdir()
    temporary.make(tmp_path, "bundle")
    assert set(kept) <= {path.name for path in tmp_path.iterdir()}
