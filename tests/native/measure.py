"""Start-up, seconds a frame, of the clock and of the processor, and peak memory of both hosts, in turns.

    python tests/native/measure.py build/native/release/vsr_pipe BUNDLE 512x512 9

BUNDLE has a schedule for that size of restored pictures. Each host restores one frame, and then 9, in processes of
their own: what 8 more take, divided by 8, is a frame; what one takes less that is the start-up. The least of 5 rounds
counts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROUNDS = 5
PYTHON = """
import sys
import numpy as np
from vsr_trt.runtime import Restorer
height, width = int(sys.argv[2]), int(sys.argv[3])
with Restorer(sys.argv[1], backend="onnxruntime-cpu") as restorer:
    while len(pixels := sys.stdin.buffer.read(height * width * 3)):
        for result in restorer.push(np.frombuffer(pixels, np.uint8).reshape(height, width, 3)):
            sys.stdout.buffer.write(result)
    for result in restorer.flush():
        sys.stdout.buffer.write(result)
"""


def measured(command: list[str], pixels: bytes) -> tuple[float, float, float, bytes]:
    """Seconds, the processor's seconds, peak memory in MB, and what came out."""
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as sink:
        source.write(pixels)
        source.seek(0)
        started = time.perf_counter()
        process = subprocess.Popen(command, stdin=source, stdout=sink)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{command[0]} ended with {process.returncode}")
        sink.seek(0)
        return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000, sink.read()


def main() -> None:
    pipe, bundle, size, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    scale = 4
    width, height = (int(side) // scale for side in size.split("x"))
    rng = np.random.default_rng(0)
    clip = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8).tobytes() for _ in range(count)]
    script = Path(tempfile.mkdtemp()) / "python_host.py"
    script.write_text(PYTHON)
    hosts = {
        "native": [pipe, "--bundle", bundle, "--size", size],
        "Python": [sys.executable, str(script), bundle, str(height), str(width)],
    }
    found: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in hosts}
    for _ in range(ROUNDS):
        results = []
        for name, command in hosts.items():
            one, busy_one, _, _ = measured(command, clip[0])
            all_, busy_all, peak, result = measured(command, b"".join(clip))
            each, busy = (
                (many - single) / (count - 1) for many, single in ((all_, one), (busy_all, busy_one))
            )
            found[name].append((one - each, each, busy, peak))
            results.append(result)
        assert results[0] == results[1], "other bytes"
    for name, rounds in found.items():
        start, each, busy, peak = (min(values) for values in zip(*rounds, strict=True))
        text = f"start-up {start:.2f} s, {each:.3f} s a frame ({busy:.3f} s of a core), {peak:.0f} MB"
        print(f"{name}: {text}")


if __name__ == "__main__":
    main()
