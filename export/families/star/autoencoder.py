"""vae_encoder and vae_decoder: Stable Video Diffusion's autoencoder, whose decoder sees neighbouring frames.

The encoder is Stable Diffusion's, with weights of its own: frames go through one by one. STAR draws a sample, so the
encoder gives mean and deviation, and the noise comes from outside (`steps.Sample`). The decoder takes a group of
up to 3 frames. Each of its blocks is one of Stable Diffusion's, then two convolutions over 3 frames that are mixed in
by a learned share, which is multiplied into the second one's weights here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsr_trt.export import pretrained, shards
from vsr_trt.export.families.stable_diffusion.vae import PIXELS, one_head_function, smooth, use_one_head
from vsr_trt.export.families.star.blocks import Batch, by_channel, by_frame
from vsr_trt.export.families.star.shapes import IMAGE, LATENTS, MOMENTS, bounds
from vsr_trt.export.network import Input, NetworkSpec, Output
from vsr_trt.runtime.bundle.manifest import Bound
from vsr_trt.runtime.errors import CheckpointError

SCALING = 0.18215  # of latents; STAR's code has it as a number
_CLASS = "AutoencoderKLTemporalDecoder"
_WANTED = (
    "expected the VAE of Stable Video Diffusion in diffusers' layout (config.json and its weights, or a folder vae/ "
    "that has them)"
)


def folder_of(path: Path) -> Path:
    """The VAE's own folder: the path, or `vae/` in it."""
    return path / "vae" if (path / "vae").is_dir() else path


def weight_files(path: Path) -> list[Path]:
    """Every weight file that is read, indices and shards among them."""
    return shards.files(_weights(folder_of(path)))


def _weights(folder: Path) -> Path:
    return shards.find(folder, "diffusion_pytorch_model", "diffusion_pytorch_model")


def open_vae(path: Path) -> Any:
    """diffusers' AutoencoderKLTemporalDecoder in FP32, from its folder, or from one that has it as `vae/`.

    Raises:
        CheckpointError: another autoencoder, or weights that are missing, unknown, of another shape or not finite.
    """
    folder = folder_of(path)
    config = _config(folder)
    found = config.get("_class_name")
    if found == "AutoencoderKL":
        raise CheckpointError(
            f"{folder} is the VAE of Stable Diffusion, whose decoder looks at single frames; {_WANTED}."
        )
    if found != _CLASS or config.get("latent_channels") != 4:
        raise CheckpointError(
            f"{folder / 'config.json'} describes a {found} of {config.get('latent_channels')} latent channels; "
            f"{_WANTED}."
        )
    from diffusers import AutoencoderKLTemporalDecoder

    with torch.device("meta"), pretrained.building(folder / "config.json"):
        vae = AutoencoderKLTemporalDecoder.from_config(config).eval()
    file = _weights(folder)
    tensors = shards.open_weights(file)
    expected = vae.state_dict()
    if missing := next((name for name in expected if name not in tensors), None):
        if not any("temporal" in name for name in tensors):
            raise CheckpointError(
                f"{file} has the weights of another VAE, whose decoder looks at single frames; {_WANTED}."
            )
        raise CheckpointError(f"{file} lacks {missing}.")
    if unknown := next((name for name in tensors if name not in expected), None):
        raise CheckpointError(f"{file} has {unknown}, which config.json does not account for.")
    weights = {
        name: pretrained.in_fp32(tensors[name], f"{file}: {name}", place) for name, place in expected.items()
    }
    vae.load_state_dict(weights, assign=True)
    use_one_head(vae)
    return vae


def _config(folder: Path) -> dict[str, Any]:
    content = pretrained.read_config(folder / "config.json", _WANTED)
    return content if isinstance(content, dict) else {}


class Encoder(nn.Module):
    """image (f,3,8h,8w) in [-1,1] -> mean, deviation (f,4,h,w) of its latents' distribution, not scaled."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        mean, logarithm = self.quant_conv(self.encoder(image)).chunk(2, dim=1)
        return mean, (0.5 * logarithm.clamp(-30, 20)).exp()


class Decoder(nn.Module):
    """denoised (1,4,f,h,w) -> image (f,3,8h,8w), about [-1,1]; f is a group, whose ends are the ends of time."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        decoder = vae.decoder
        self.conv_in = decoder.conv_in
        self.middle = nn.ModuleList(_Block(block) for block in decoder.mid_block.resnets)
        (self.attention,) = decoder.mid_block.attentions
        self.levels = nn.ModuleList(_Level(block) for block in decoder.up_blocks)
        self.norm, self.conv_out = decoder.conv_norm_out, decoder.conv_out
        self.time_conv_out = _over_frames(decoder.time_conv_out)

    def forward(self, denoised: Tensor) -> Tensor:
        """See the class."""
        batch = Batch(1, denoised.shape[2])
        x = self.conv_in(denoised[0].transpose(0, 1) / SCALING)
        first, *others = self.middle
        x = self.attention(first(x, batch))
        for layer in (*others, *self.levels):
            x = layer(x, batch)
        x = self.conv_out(F.silu(self.norm(x)))
        height, width = x.shape[2], x.shape[3]
        return by_frame(self.time_conv_out(by_channel(x, batch)), height, width)


class _Level(nn.Module):
    """x (f,c,h,w), its batch -> (f,c',2h,2w), the last level's not doubled."""

    def __init__(self, level: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(block) for block in level.resnets)
        self.conv = level.upsamplers[0].conv if level.upsamplers else None

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        """See the class."""
        for block in self.blocks:
            x = block(x, batch)
        if self.conv is None:
            return x
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Block(nn.Module):
    """x (f,c,h,w), its batch -> (f,c',h,w): a block for each frame by itself, then two convolutions over frames."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.spatial = block.spatial_res_block
        over = block.temporal_res_block
        self.norm1, self.norm2 = over.norm1, over.norm2
        self.conv1 = _over_frames(over.conv1)
        self.conv2 = _over_frames(over.conv2, torch.sigmoid(block.time_mixer.mix_factor))

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        """See the class."""
        x = self.spatial(x, None)
        height, width = x.shape[2], x.shape[3]
        clip = by_channel(x, batch)
        update = self.conv1(F.silu(self.norm1(clip)))
        return by_frame(clip + self.conv2(F.silu(self.norm2(update))), height, width)


def _over_frames(convolution: Any, share: Tensor | float = 1.0) -> nn.Conv2d:
    """A convolution over frames alone, times a share, for (1,c,f,h*w)."""
    with torch.device("meta"):
        flat = nn.Conv2d(convolution.in_channels, convolution.out_channels, (3, 1), padding=(1, 0))
    flat.weight = nn.Parameter((convolution.weight * share)[..., 0].detach())
    flat.bias = nn.Parameter((convolution.bias * share).detach())
    return flat


_SCRATCH = {"encoder": {"f*h*w": 800}, "decoder": {"h*w": 880, "f*h*w": 930}}
"""Bytes that a run on the CPU works in, for each channel of the first level: as measured at full size, 1 to 3 frames of
34x32 and 66x64 latents, within 7 %."""


def _scratch(vae: Any, half: str) -> dict[str, float]:
    channels = vae.config.block_out_channels[0]
    return {product: float(each * channels) for product, each in _SCRATCH[half].items()}


def encoder_spec(vae: Any) -> NetworkSpec:
    """The encoder as it is exported."""

    def dummy_inputs(sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        """A picture-like image in [-1, 1]."""
        image = smooth(sizes["f"], 3, PIXELS * sizes["h"], PIXELS * sizes["w"], generator)
        return {"image": (image / 2).clamp(-1, 1)}

    return NetworkSpec(
        name="vae_encoder",
        module=Encoder(vae),
        inputs=(Input("image", torch.float32, IMAGE),),
        outputs=(Output("mean", torch.float32, MOMENTS), Output("deviation", torch.float32, MOMENTS)),
        bounds=bounds("h", "w", frames=Bound(1, 32)),
        dummy_inputs=dummy_inputs,
        traced={"f": 2, "h": 26, "w": 32},
        checked=({"f": 1, "h": 18, "w": 24}, {"f": 2, "h": 26, "w": 16}),
        functions=(one_head_function(vae),),
        scratch=_scratch(vae, "encoder"),
    )


def decoder_spec(vae: Any, group: int) -> NetworkSpec:
    """The decoder as it is exported, for groups of so many frames at most."""

    def dummy_inputs(sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Latents of about unit deviation."""
        field = smooth(sizes["f"], 4, sizes["h"], sizes["w"], generator)
        return {"denoised": field.transpose(0, 1).unsqueeze(0)}

    return NetworkSpec(
        name="vae_decoder",
        module=Decoder(vae),
        inputs=(Input("denoised", torch.float32, LATENTS),),
        outputs=(Output("image", torch.float32, IMAGE),),
        bounds=bounds("h", "w", frames=Bound(1, group)),
        dummy_inputs=dummy_inputs,
        traced={"f": 3, "h": 26, "w": 32},
        checked=({"f": 1, "h": 18, "w": 24}, {"f": 3, "h": 26, "w": 16}),
        functions=(one_head_function(vae),),
        scratch=_scratch(vae, "decoder"),
    )
