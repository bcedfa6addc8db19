"""Symbolic shapes that STAR's networks share, and the bounds of their sizes."""

from __future__ import annotations

from vsr_trt.runtime.bundle.manifest import Bound

LATENTS = (1, 4, "f", "h", "w")
MOMENTS = ("f", 4, "h", "w")
IMAGE = ("f", 3, "8*h", "8*w")
FRAME = ("f", "lr_h", "lr_w", 3)

MOST_WINDOW = 32
STRETCH = 1.25
"""How much longer than the others a clip's last chunk may be."""
BOUNDS = {
    "f": Bound(1, 1 << 16),
    "h": Bound(10, 1026, 8, 2),
    "w": Bound(8, 1024, 8),
    "lr_h": Bound(2, 2032),
    "lr_w": Bound(2, 2032),
    "s": Bound(1, 100),
}
"""`h` is 2 more than a multiple of 8: the UNet pads two rows above and below, at each of its levels. A frame of less
than 2 pixels has no variance."""
CHUNK = Bound(1, int(MOST_WINDOW * STRETCH))
"""Frames that look at each other."""


def bounds(*names: str, frames: Bound = BOUNDS["f"]) -> dict[str, Bound]:
    """Those of the named sizes, and of the frames."""
    return {"f": frames} | {name: BOUNDS[name] for name in names}
