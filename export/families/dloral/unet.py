"""unet: one step of Stable Diffusion 2.1's UNet, timestep folded, prediction applied.

The model is always run at timestep 1, so everything that depends on the timestep alone is a constant:
each residual block adds a vector to its first convolution's output, which goes into that
convolution's bias here, and the embedding's layers disappear.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vsr_trt.export.network import Input, NetworkSpec, Output
from vsr_trt.runtime.bundle.manifest import Bound
from vsr_trt.runtime.errors import ExportError

TIMESTEP = 1


class _NoEmbedding(nn.Module):
    """Stands where the timestep's embedding was computed; nothing reads the result any more."""

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> None:
        """Returns None, which diffusers' residual blocks take as no embedding."""


def fold_timestep(unet: Any, timestep: int = TIMESTEP) -> None:
    """Moves what the timestep adds into biases, in place.

    Raises:
        ExportError: a residual block that uses the embedding otherwise (scale and shift).
    """
    with torch.no_grad():
        embedding = unet.time_embedding(unet.time_proj(torch.tensor([timestep])))
        for name, block in unet.named_modules():
            if getattr(block, "time_emb_proj", None) is None:
                continue
            if block.time_embedding_norm != "default" or block.skip_time_act:
                raise ExportError(f"{name} does not just add its timestep embedding; it cannot be folded.")
            shift = block.time_emb_proj(block.nonlinearity(embedding))[0]
            block.conv1.bias += shift
            block.time_emb_proj = None
    unet.time_embedding = _NoEmbedding()


class UNet(nn.Module):
    """warped, fused (n,4,h,w), prompt (77,c) -> denoised (n,4,h,w), divided by the scaling factor."""

    def __init__(self, unet: Any, scaling_factor: float) -> None:
        super().__init__()
        self.unet = unet
        self.scaling_factor = scaling_factor

    def forward(self, warped: Tensor, fused: Tensor, prompt: Tensor) -> Tensor:
        """See the class."""
        sample = torch.cat([warped, fused], dim=1)
        text = prompt.unsqueeze(0).expand(sample.shape[0], -1, -1)
        epsilon = self.unet(sample, TIMESTEP, encoder_hidden_states=text, return_dict=False)[0]
        return (fused - epsilon) / self.scaling_factor


def spec(unet: Any, scaling_factor: float) -> NetworkSpec:
    """The network as it is exported, from a UNet whose timestep is folded."""
    width = unet.config.cross_attention_dim

    def dummy_inputs(sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Latents of unit deviation and a prompt embedding of the size that CLIP gives."""
        shape = (sizes["n"], 4, sizes["h"], sizes["w"])
        return {
            "warped": torch.randn(shape, generator=generator),
            "fused": torch.randn(shape, generator=generator),
            "prompt": torch.randn(77, width, generator=generator),
        }

    latent = ("n", 4, "h", "w")
    return NetworkSpec(
        name="unet",
        module=UNet(unet, scaling_factor),
        inputs=(
            Input("warped", torch.float32, latent),
            Input("fused", torch.float32, latent),
            Input("prompt", torch.float32, (77, width)),
        ),
        outputs=(Output("denoised", torch.float32, latent),),
        bounds={"n": Bound(1, 32), "h": Bound(32, 192, 8), "w": Bound(32, 192, 8)},
        dummy_inputs=dummy_inputs,
        traced={"n": 2, "h": 72, "w": 80},
        checked=({"n": 1, "h": 32, "w": 40}, {"n": 2, "h": 40, "w": 32}),
    )
