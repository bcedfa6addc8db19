"""A tiny model whose weights are set by hand, so that the whole pipeline shows a clean picture of its input.

**It is not a trained model and restores nothing**: it carries the picture through the published architecture,
so that a demo or a test can be judged by eye where no weights can be downloaded. What its networks do:

- VAE encoder: four numbers for 2x2 pixels of the low-resolution clip (8x8 of the x4 picture): the luma of the
  block, the luma of the block half a step down and right (the two form a quincunx, as the green pixels of a
  camera do), and two colour differences.
- CFR: the attention runs, but its last projection is zero: fused = z. SpyNet's last layers are zero: no flow.
- UNet: eps is half the difference to the previous latent, limited to a small step. That calms noise between
  frames and leaves what moves alone. Its middle has random weights and runs without effect.
- VAE decoder: sharpens the quincunx, interleaves it, and doubles the picture three times. What the four
  numbers cannot hold is the finest diagonal detail, and colour detail under two pixels.

How a linear picture gets through GroupNorm and SiLU: each tensor has two channels with the constants +64 and
-64, which fix the deviation of its only group, and a channel of zeros that goes through the same
normalisation; a signal minus that channel is then the signal times a constant, whatever the picture or the
tile holds. A bias of 20 keeps SiLU in its linear part. Where a 3x3 filter would reach beyond the border, its
result is gated off (SiLU of a large negative number), so zero padding leaves no dark rim.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from vsr_trt.recipes.synthetic import random as full_size
from vsr_trt.recipes.synthetic.checkpoint import Checkpoint
from vsr_trt.recipes.synthetic.checkpoint_file import CHECKPOINT_FILE
from vsr_trt.recipes.synthetic.safetensors_file import write_safetensors
from vsr_trt.recipes.synthetic.sd_folder import Json, refuse_to_overwrite, write_frame_files, write_tokenizer
from vsr_trt.recipes.synthetic.tensors import LazyTensor, held
from vsr_trt.recipes.synthetic.torch_file import write_pkl

log = logging.getLogger(__name__)

Weights = dict[str, torch.Tensor]

_SEED = 7  # of the weights that have no effect
_RANK = 4

# Channels of the VAE: signals 0..3, then these.
_ZERO, _PLUS, _MINUS, _CHANNELS = 4, 6, 7, 8
_CONSTANT = 64.0
_DEVIATION = _CONSTANT * (2 / _CHANNELS) ** 0.5
_BIAS = 20.0  # added before SiLU: SiLU(20 + x) = 20 + x but for 1e-4 while x > -9
_SIGNAL_GAIN = 8.0  # of a picture in [-1, 1] before SiLU
_FILTER_GAIN = 4.0  # of a filter's result, which may reach +-3
_GATE = 32.0  # times the share of a 3x3 window outside the picture (at least 1/3)
_LATENT_GAIN = 5.0  # gives the scaled latents a deviation near 1, as Stable Diffusion's have

_LUMA, _DETAIL, _BLUE, _RED = range(4)
_RGB_TO_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])

# Sharpening of the quincunx, fitted by least squares on two real clips: against the other lattice's four
# nearest, and against the own lattice's four nearest and four diagonal neighbours. Without the unsharp mask
# below, the decoded luma is then within 48 dB of the bicubic picture's (interpolated block means: 36.5 dB).
_SHARPEN_OTHER, _SHARPEN_OWN, _SHARPEN_DIAGONAL = 3.4, -0.55, -0.45

# Unsharp masking of the luma at the clip's own size: edges a little crisper than bicubic's.
_UNSHARP = 0.6

# The UNet's limited step, in units of the scaled latent (0.91 for a luma of 1).
_STEP = 0.015
_STEP_SHARE = 0.5
_STEP_SLOPE = 8.0 / _STEP  # steepness before SiLU: its bend is small against the step
_STEP_CONSTANT = 2.0

UNET_CONFIG: Json = {
    **full_size.UNET_CONFIG,
    "attention_head_dim": [1, 1],
    "block_out_channels": [32, 64],
    "cross_attention_dim": 32,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
VAE_CONFIG: Json = {
    **full_size.VAE_CONFIG,
    "block_out_channels": [_CHANNELS] * 4,
    "layers_per_block": 1,
    "norm_num_groups": 1,
    "sample_size": 512,
}
TEXT_CONFIG: Json = {
    **full_size.TEXT_CONFIG,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "projection_dim": 32,
}


@dataclass(frozen=True)
class Demo:
    """Where the demo model lies: the Stable Diffusion directory and the DLoRAL checkpoint."""

    sd: Path
    checkpoint: Path


def write_demo(
    out: Path, *, tokenizer: Path | None = None, overwrite: bool = False, packed: bool = False
) -> Demo:
    """Writes the hand-made model into `out`: `sd/` and `model.pkl`, all FP16, a few megabytes.

    `tokenizer` is a directory with CLIP's vocab.json and merges.txt; without it the prompt is split into
    bytes. `packed` leaves out the random weights that change no picture, so that an archive of the model is small.
    The same call always writes the same bytes.
    """
    refuse_to_overwrite(out, overwrite)
    demo = Demo(out / "sd", out / CHECKPOINT_FILE["pkl"])
    vocabulary = write_tokenizer(demo.sd / "tokenizer", tokenizer)
    text_config = full_size.with_vocabulary({**TEXT_CONFIG, "vocab_size": len(vocabulary)}, vocabulary)
    write_frame_files(demo.sd)
    full_size.write_configs(demo.sd, UNET_CONFIG, VAE_CONFIG, text_config)

    unet = demo_unet()
    text_encoder = _random("text_encoder", full_size.text_encoder_shapes(text_config))
    _write(demo.sd / "unet/diffusion_pytorch_model.safetensors", unet)
    _write(demo.sd / "vae/diffusion_pytorch_model.safetensors", demo_vae())
    _write(demo.sd / "text_encoder/model.safetensors", text_encoder)
    write_pkl(demo.checkpoint, _checkpoint(unet, packed))
    log.info("wrote the demo model (set by hand, not trained) to %s", out)
    return demo


def _write(path: Path, weights: Weights) -> None:
    write_safetensors(path, _halved(weights))


def _halved(weights: Weights) -> dict[str, LazyTensor]:
    return {name: held(tensor, torch.float16) for name, tensor in weights.items()}


def _random(part: str, shapes: Mapping[str, tuple[int, ...]]) -> Weights:
    """Seeded FP32 values for all tensors of a network."""
    weights: Weights = {}
    for name, shape in shapes.items():
        blocks = full_size.seeded(_SEED, f"{part}/{name}", shape).blocks()
        weights[name] = torch.cat([torch.from_numpy(block) for block in blocks]).reshape(shape)
    return weights


def _clear(weights: Weights, *modules: str) -> None:
    """Sets weight and bias of the modules to zero."""
    for module in modules:
        weights[f"{module}.weight"].zero_()
        weights[f"{module}.bias"].zero_()


# ---------------------------------------------------------------- VAE


def demo_vae() -> Weights:
    """Weights (FP32) of the VAE described above."""
    weights = _random("vae", full_size.vae_shapes(VAE_CONFIG))
    for name in [name.removesuffix(".conv2.weight") for name in weights if name.endswith(".conv2.weight")]:
        _clear(weights, f"{name}.conv2")  # a residual block without effect; some are set below
    for half in ("encoder", "decoder"):
        _clear(weights, f"{half}.mid_block.attentions.0.proj_attn")
    _set_encoder(weights)
    _set_decoder(weights)
    return weights


def _set_encoder(weights: Weights) -> None:
    kernel = _signal_conv(weights, "encoder.conv_in")
    kernel[[_LUMA, _BLUE, _RED], :, 1, 1] = _RGB_TO_YCC
    kernel[_DETAIL, :, 1, 1] = _RGB_TO_YCC[0]
    signals = (_LUMA, _DETAIL, _BLUE, _RED)
    for block in range(3):
        kernel = _signal_conv(weights, f"encoder.down_blocks.{block}.downsamplers.0.conv")
        for signal in signals:
            kernel[signal, signal, :2, :2] = 0.25  # diffusers pads right and below: these taps are inside
    # Before the last halving a pixel is one of the clip's. The detail becomes the mean of the 2x2 pixels from
    # here to the right and below; the halving then takes it at odd places: where four luma blocks meet.
    mean = torch.zeros(3, 3)
    mean[1:, 1:] = 0.25
    mean[1, 1] -= 1
    _set_filter(weights, "encoder.down_blocks.2.resnets.0", {(_DETAIL, _DETAIL): mean})
    kernel[_DETAIL] = 0
    kernel[_DETAIL, _DETAIL, 1, 1] = 1

    _set_norm(weights, "encoder.conv_norm_out", _SIGNAL_GAIN)
    _clear(weights, "encoder.conv_out", "quant_conv")
    for signal in signals:
        weights["encoder.conv_out.weight"][signal, signal, 1, 1] = 1 / _SIGNAL_GAIN
        weights["encoder.conv_out.weight"][signal, _ZERO, 1, 1] = -1 / _SIGNAL_GAIN
        weights["quant_conv.weight"][signal, signal, 0, 0] = _LATENT_GAIN
    weights["quant_conv.bias"][len(signals) :] = -30  # log-variance: a sample is then the mode


def _set_decoder(weights: Weights) -> None:
    _clear(weights, "post_quant_conv")
    signals = (_LUMA, _DETAIL, _BLUE, _RED)
    kernel = _signal_conv(weights, "decoder.conv_in")
    for signal in signals:
        weights["post_quant_conv.weight"][signal, signal, 0, 0] = 1 / _LATENT_GAIN
        kernel[signal, signal, 1, 1] = 1
    _set_filter(weights, "decoder.mid_block.resnets.0", _sharpening())
    for block in range(3):
        kernel = _signal_conv(weights, f"decoder.up_blocks.{block}.upsamplers.0.conv")
        for signal in signals:
            kernel[signal, signal, 1, 1] = 1
    smooth = _smoothing()
    # The nearest sample of the other lattice is up and left once that lattice was doubled.
    interleave = {(_LUMA, _LUMA): _tap(1, 1, -0.5), (_LUMA, _DETAIL): _tap(0, 0, 0.5)}
    colours = {(signal, signal): smooth for signal in (_BLUE, _RED)}
    _set_filter(weights, "decoder.up_blocks.1.resnets.0", {**interleave, **colours})
    _set_filter(weights, "decoder.up_blocks.1.resnets.1", {(_LUMA, _LUMA): -_UNSHARP * smooth})
    for block in (2, 3):
        _set_filter(weights, f"decoder.up_blocks.{block}.resnets.0", {(_LUMA, _LUMA): smooth, **colours})

    _set_norm(weights, "decoder.conv_norm_out", _SIGNAL_GAIN)
    _clear(weights, "decoder.conv_out")
    to_rgb = torch.linalg.inv(_RGB_TO_YCC) / _SIGNAL_GAIN
    kernel = weights["decoder.conv_out.weight"]
    kernel[:, [_LUMA, _BLUE, _RED], 1, 1] = to_rgb
    kernel[:, _ZERO, 1, 1] = -to_rgb.sum(dim=1)


def _tap(row: int, column: int, value: float) -> torch.Tensor:
    kernel = torch.zeros(3, 3)
    kernel[row, column] = value
    return kernel


def _smoothing() -> torch.Tensor:
    """[1,2,1]/4 both ways, less the centre: what makes a doubling by repetition a bilinear one."""
    line = torch.tensor([0.25, 0.5, 0.25])
    return torch.outer(line, line) - _tap(1, 1, 1.0)


def _sharpening() -> dict[tuple[int, int], torch.Tensor]:
    """The filters (3,3) that sharpen each lattice of the quincunx, by (result, source)."""
    own = _tap(1, 1, _SHARPEN_OTHER + _SHARPEN_OWN + _SHARPEN_DIAGONAL)
    for row, column in ((0, 1), (1, 0), (1, 2), (2, 1)):
        own[row, column] = -_SHARPEN_OWN / 4
    for row, column in ((0, 0), (0, 2), (2, 0), (2, 2)):
        own[row, column] = -_SHARPEN_DIAGONAL / 4
    before, after = torch.zeros(3, 3), torch.zeros(3, 3)
    before[:2, :2] = after[1:, 1:] = -_SHARPEN_OTHER / 4
    return {
        (_LUMA, _LUMA): own,
        (_LUMA, _DETAIL): before,
        (_DETAIL, _DETAIL): own,
        (_DETAIL, _LUMA): after,
    }


def _signal_conv(weights: Weights, name: str) -> torch.Tensor:
    """Makes a convolution one that yields the constants and nothing else; returns its kernel to be filled."""
    _clear(weights, name)
    _set_constants(weights[f"{name}.bias"])
    return weights[f"{name}.weight"]


def _set_constants(bias: torch.Tensor) -> None:
    bias[_PLUS], bias[_MINUS] = _CONSTANT, -_CONSTANT


def _set_norm(weights: Weights, name: str, gain: float) -> None:
    """After this norm and SiLU: channel k is gain * (signal k - mean) + 20, and the two constants are 20."""
    weights[f"{name}.weight"].fill_(gain * _DEVIATION)
    weights[f"{name}.weight"][[_PLUS, _MINUS]] = 0
    weights[f"{name}.bias"].fill_(_BIAS)


def _set_filter(weights: Weights, block: str, filters: Mapping[tuple[int, int], torch.Tensor]) -> None:
    """Makes a residual block add 3x3 filters: signal r gets the sum over s of filters[r, s] * signal s.

    Where the 3x3 window leaves the picture, nothing is added.
    """
    _set_norm(weights, f"{block}.norm1", _SIGNAL_GAIN)
    kernel = _signal_conv(weights, f"{block}.conv1")
    bias = weights[f"{block}.conv1.bias"]
    results = sorted({result for result, _ in filters})
    for (result, source), taps in filters.items():
        kernel[result, source] += taps / _SIGNAL_GAIN
        kernel[result, _ZERO] -= taps / _SIGNAL_GAIN  # takes the mean and the bias out, tap by tap
    for channel in (*results, _ZERO):  # 0 where the whole window is inside, else -32 times the share outside
        kernel[channel, _PLUS] += _GATE / (9 * _BIAS)
        bias[channel] = -_GATE
    _set_norm(weights, f"{block}.norm2", _FILTER_GAIN)
    _clear(weights, f"{block}.conv2")
    for result in results:
        weights[f"{block}.conv2.weight"][result, result, 1, 1] = 1 / _FILTER_GAIN
        weights[f"{block}.conv2.weight"][result, _ZERO, 1, 1] = -1 / _FILTER_GAIN


# ---------------------------------------------------------------- UNet and checkpoint

_LAST_RESNET = "up_blocks.1.resnets.1"
_LAST_PROJECTION = "up_blocks.1.attentions.1.proj_out"
# Modules on the way from the input to eps: their adapters must not disturb.
_ON_THE_WAY = (
    "conv_in",
    f"{_LAST_RESNET}.conv2",
    f"{_LAST_RESNET}.conv_shortcut",
    _LAST_PROJECTION,
    "conv_out",
)


def demo_unet() -> Weights:
    """Weights (FP32) of the UNet, with the 4-channel `conv_in` of Stable Diffusion.

    The way to eps: conv_in, the outermost skip connection, the last block's shortcut, conv_norm_out, SiLU,
    conv_out.
    """
    weights = _random("unet", full_size.unet_shapes(UNET_CONFIG))
    _clear(weights, f"{_LAST_RESNET}.conv2", f"{_LAST_RESNET}.conv_shortcut", _LAST_PROJECTION, "conv_out")
    outputs, inputs, *_ = weights[f"{_LAST_RESNET}.conv_shortcut.weight"].shape
    skip = torch.arange(outputs)
    weights[f"{_LAST_RESNET}.conv_shortcut.weight"][skip, inputs - outputs + skip, 0, 0] = 1

    size = outputs // UNET_CONFIG["norm_num_groups"]
    deviation = _STEP_CONSTANT * (2 / size) ** 0.5
    weights["conv_norm_out.weight"].fill_(_STEP_SLOPE * deviation)
    weights["conv_norm_out.bias"].zero_()
    for latent in range(4):
        for channel, sign in ((size * latent, 1), (size * latent + 1, -1)):
            weights["conv_out.weight"][latent, channel, 1, 1] = sign * _STEP_SHARE / _STEP_SLOPE
    weights["conv_out.bias"].fill_(-_STEP_SHARE * _STEP)
    return weights


def _wide_conv_in(outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (outputs,8,3,3) and bias of the widened conv_in, whose input is [warped, fused].

    With d = fused - warped, a group of channels for each latent holds d + step, d - step, their negatives
    (the group's mean is then zero) and the constants that fix its deviation.
    """
    size = outputs // UNET_CONFIG["norm_num_groups"]
    weight, bias = torch.zeros(outputs, 8, 3, 3), torch.zeros(outputs)
    for latent in range(4):
        first = size * latent
        for channel, sign, step in ((0, 1, _STEP), (1, 1, -_STEP), (2, -1, _STEP), (3, -1, -_STEP)):
            weight[first + channel, 4 + latent, 1, 1] = sign
            weight[first + channel, latent, 1, 1] = -sign
            bias[first + channel] = sign * step
        bias[first + 4], bias[first + 5] = _STEP_CONSTANT, -_STEP_CONSTANT
    return weight, bias


def _checkpoint(unet: Weights, packed: bool = False) -> Checkpoint:
    """The DLoRAL checkpoint around the demo's UNet; `packed`: without the flow network's and the adapters' noise."""
    checkpoint = full_size.seeded_checkpoint(_SEED, _halved(unet), _RANK)
    adapted, bpp = dict(checkpoint.unet), dict(checkpoint.bpp)
    weight, bias = _wide_conv_in(unet["conv_in.bias"].shape[0])
    adapted["conv_in.base_layer.weight"] = held(weight, torch.float16)
    adapted["conv_in.base_layer.bias"] = held(bias, torch.float16)
    for name, tensor in adapted.items():
        module, marker, _ = name.partition(".lora_B.")
        if marker and (packed or module in _ON_THE_WAY):
            adapted[name] = _zeros(tensor)
    for name, tensor in bpp.items():
        ends = name.startswith("cross_attn_module.proj_out") or ".basic_module.4.conv" in name
        if ends or (packed and ".basic_module." in name and name.endswith(".weight")):
            bpp[name] = _zeros(tensor)
    return Checkpoint(adapted, bpp, checkpoint.plain)


def _zeros(tensor: LazyTensor) -> LazyTensor:
    return held(torch.zeros(tensor.shape, dtype=tensor.dtype))
