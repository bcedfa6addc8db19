"""warp: the previous latent, moved to this frame along the flow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vsr_trt.export.families.dloral.spynet import warp
from vsr_trt.export.network import Input, NetworkSpec, Output
from vsr_trt.runtime.bundle.manifest import Bound


class Warp(nn.Module):
    """previous_latent (n,4,h,w), flow (n,2,h,w) -> warped (n,4,h,w); zeros come from outside of the picture."""

    def forward(self, previous_latent: Tensor, flow: Tensor) -> Tensor:
        """See the class."""
        return warp(previous_latent, flow, padding="zeros")


def dummy_inputs(sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
    """A latent of unit deviation; flow of a few pixels, some of it out of the picture."""
    n, h, w = sizes["n"], sizes["h"], sizes["w"]
    return {
        "previous_latent": torch.randn((n, 4, h, w), generator=generator),
        "flow": torch.randn((n, 2, h, w), generator=generator) * 3,
    }


def spec() -> NetworkSpec:
    """The network as it is exported; it has no weights."""
    latent = ("n", 4, "h", "w")
    return NetworkSpec(
        name="warp",
        module=Warp(),
        inputs=(
            Input("previous_latent", torch.float32, latent),
            Input("flow", torch.float32, ("n", 2, "h", "w")),
        ),
        outputs=(Output("warped", torch.float32, latent),),
        bounds={"n": Bound(1, 32), "h": Bound(32, 192, 8), "w": Bound(32, 192, 8)},
        dummy_inputs=dummy_inputs,
        traced={"n": 2, "h": 72, "w": 64},
        checked=({"n": 1, "h": 32, "w": 40}, {"n": 3, "h": 40, "w": 32}),
        always_fp32="positions between pixels need more digits than FP16 has",
    )
