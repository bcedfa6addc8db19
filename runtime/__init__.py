"""The runtime of vsr-trt: from a bundle and a clip to the restored clip.

Lean: numpy, PyAV, rich and one inference library; never torch. Typical use::

    from vsr_trt.runtime import Restorer

    with Restorer("BUNDLE") as restorer:
        for restored in restorer.restore(frames):  # (H,W,3) uint8 -> (4H,4W,3) uint8
            ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vsr_trt.runtime.bundle.directory import Bundle
    from vsr_trt.runtime.bundle.manifest import Manifest
    from vsr_trt.runtime.bundle.options import Settings
    from vsr_trt.runtime.errors import FrameError, VsrError
    from vsr_trt.runtime.restore.restorer import Restorer

__all__ = ["Bundle", "FrameError", "Manifest", "Restorer", "Settings", "VsrError"]

_HOMES = {
    "Bundle": "vsr_trt.runtime.bundle.directory",
    "FrameError": "vsr_trt.runtime.errors",
    "Manifest": "vsr_trt.runtime.bundle.manifest",
    "Restorer": "vsr_trt.runtime.restore.restorer",
    "Settings": "vsr_trt.runtime.bundle.options",
    "VsrError": "vsr_trt.runtime.errors",
}


def __getattr__(name: str) -> Any:
    """Imports on first use: the build side reads manifests without loading an inference library."""
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vsr_trt.runtime' has no attribute {name!r}")
