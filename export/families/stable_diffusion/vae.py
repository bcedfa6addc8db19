"""vae_encoder and vae_decoder: Stable Diffusion's autoencoder, 8 pixels a latent each way.

The middle block's attention has one head of 512 channels, for which no compiler has a fused kernel: it is a
node `vsr_trt::SoftmaxAttention`, a local function that writes its products out in chunks of the queries (see
`kernels.softmax_attention`). The query is scaled before the product; FP16 would overflow after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsr_trt import kernels
from vsr_trt.export.network import Input, NetworkSpec, Output
from vsr_trt.runtime.bundle.manifest import Bound

if TYPE_CHECKING:
    import onnx

PIXELS = 8  # of the picture for one latent, each way
_BOUNDS = {"n": Bound(1, 32), "h": Bound(32, 2048, 8), "w": Bound(32, 2048, 8)}


class _OneHead:
    """Attention processor for diffusers: the function's node in the graph, its products in torch."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """(n,c,h,w) -> (n,c,h,w), residual included; what diffusers passes besides is always None."""
        n, channels, height, width = hidden_states.shape
        tokens = attn.group_norm(hidden_states).reshape(n, channels, height * width).transpose(1, 2)
        query = attn.to_q(tokens) * attn.scale
        key, value = attn.to_k(tokens), attn.to_v(tokens)
        if torch.compiler.is_exporting():
            retrieved = torch.onnx.ops.symbolic(
                f"{kernels.DOMAIN}::{kernels.SOFTMAX_ATTENTION}",
                (query, key, value),
                dtype=query.dtype,
                shape=query.shape,
                version=1,
            )
        else:
            retrieved = (query @ key.transpose(1, 2)).softmax(dim=-1) @ value
        update = attn.to_out[0](retrieved).transpose(1, 2).reshape(n, channels, height, width)
        return hidden_states + update


def use_one_head(vae: nn.Module) -> None:
    """Makes the VAE's attentions appear in its graphs as calls of the local function."""
    vae.set_attn_processor(_OneHead())


class Encoder(nn.Module):
    """image (n,3,8h,8w) in [-1,1] -> latent (n,4,h,w): the distribution's mode, scaled."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv
        self.channels = vae.config.latent_channels
        self.scaling_factor = vae.config.scaling_factor

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        moments = self.encoder(image)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        return moments[:, : self.channels] * self.scaling_factor


class Decoder(nn.Module):
    """latent (n,4,h,w), divided by the scaling factor -> image (n,3,8h,8w), about [-1,1]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv

    def forward(self, latent: Tensor) -> Tensor:
        """See the class."""
        if self.post_quant_conv is not None:
            latent = self.post_quant_conv(latent)
        return self.decoder(latent)


def one_head_function(vae: Any) -> onnx.FunctionProto:
    """The local function that the VAE's attentions call."""
    return kernels.softmax_attention_function(vae.config.block_out_channels[-1])


def smooth(n: int, channels: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """A smooth random field with some noise: nearer to pictures than noise alone."""
    coarse = torch.randn(n, channels, height // 8, width // 8, generator=generator)
    field = F.interpolate(coarse, (height, width), mode="bilinear")
    return field + 0.1 * torch.randn(n, channels, height, width, generator=generator)


def encoder_inputs(sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
    """A picture-like image in [-1, 1]."""
    image = smooth(sizes["n"], 3, PIXELS * sizes["h"], PIXELS * sizes["w"], generator)
    return {"image": (image / 2).clamp(-1, 1)}


def decoder_inputs(sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
    """A latent-like field, of the size that the scaling factor leaves."""
    return {"latent": 5 * smooth(sizes["n"], 4, sizes["h"], sizes["w"], generator)}


def encoder_spec(vae: Any) -> NetworkSpec:
    """The encoder as it is exported."""
    return NetworkSpec(
        name="vae_encoder",
        module=Encoder(vae),
        inputs=(Input("image", torch.float32, ("n", 3, "8*h", "8*w")),),
        outputs=(Output("latent", torch.float32, ("n", 4, "h", "w")),),
        bounds=_BOUNDS,
        dummy_inputs=encoder_inputs,
        traced={"n": 2, "h": 72, "w": 80},
        checked=({"n": 1, "h": 32, "w": 40}, {"n": 2, "h": 40, "w": 32}),
        functions=(one_head_function(vae),),
        in_strips=True,
    )


def decoder_spec(vae: Any) -> NetworkSpec:
    """The decoder as it is exported."""
    return NetworkSpec(
        name="vae_decoder",
        module=Decoder(vae),
        inputs=(Input("latent", torch.float32, ("n", 4, "h", "w")),),
        outputs=(Output("image", torch.float32, ("n", 3, "8*h", "8*w")),),
        bounds=_BOUNDS,
        dummy_inputs=decoder_inputs,
        traced={"n": 2, "h": 72, "w": 80},
        checked=({"n": 1, "h": 32, "w": 40}, {"n": 2, "h": 40, "w": 32}),
        functions=(one_head_function(vae),),
        in_strips=True,
    )
