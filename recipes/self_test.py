"""Makes the bundle that `vsr --self-test` restores with: `python -m vsr_trt.recipes.self_test`.

Needed again when a change makes the stored one unreadable, or another picture; the tests say so.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from vsr_trt.export.bundle import build
from vsr_trt.export.request import BundleRequest
from vsr_trt.recipes.synthetic import by_hand
from vsr_trt.runtime import self_test
from vsr_trt.runtime.restore.job import Job, restore
from vsr_trt.runtime.self_test import clip, run

_FOLDER = Path(self_test.__file__).parent
_WHEN = (2026, 1, 1, 0, 0, 0)  # the date of all files in the archive


def main() -> None:
    """Writes the archive and what is expected, into the package's own folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = by_hand.write_demo(folder / "weights", packed=True)
        build(BundleRequest(model.checkpoint, folder / "bundle", {"sd": model.sd}, kernels=False))
        clip.write(folder / "clip.mkv")
        restore(Job(folder / "clip.mkv", folder / "restored.mkv", folder / "bundle", codec="ffv1"))
        means = np.array([clip.means(frame) for frame in clip.read(folder / "restored.mkv")])
        _pack(folder / "bundle", _FOLDER / run.BUNDLE)
        (_FOLDER / run.EXPECTED).write_text(json.dumps(means.round(2).tolist()) + "\n")


def _pack(bundle: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for path in sorted(path for path in bundle.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(bundle).as_posix(), _WHEN)
            entry.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(entry, path.read_bytes())


if __name__ == "__main__":
    main()
