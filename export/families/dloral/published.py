"""Where DLoRAL's checkpoints are published."""

from __future__ import annotations

from vsr_trt.export.families.stable_diffusion.published import STABLE_DIFFUSION
from vsr_trt.export.published import Drive, Part, Wanted

_LICENCE = (
    "as its authors publish it with their paper; their repository states no licence for the weights: ask them before "
    "you sell"
)
_CHECKPOINTS = {
    "improved": Part(
        "model.pkl",
        "DLoRAL's checkpoint, improved version of October 2025",
        _LICENCE,
        (Drive("1AyOITHgEUEk2h90b4O5-KxtLw2Qn4YFP"),),
        (("model.pkl",),),
        None,
    ),
    "paper": Part(
        "model-paper.pkl",
        "DLoRAL's checkpoint, that of the paper",
        _LICENCE,
        (Drive("1vpcaySpRx_K-tXq2D2EBqFZ-03Foky8G"),),
        (("model-paper.pkl",),),
        None,
    ),
}

WANTED = Wanted(
    (STABLE_DIFFUSION,),
    _CHECKPOINTS,
    "vsr-build bundle --sd {to}/stable-diffusion-2-1-base --checkpoint {checkpoint} --out BUNDLE",
)
