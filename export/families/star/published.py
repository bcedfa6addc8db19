"""Where STAR's weights are published."""

from __future__ import annotations

from vsr_trt.export.published import Hub, Part, Wanted

_CHECKPOINTS = {
    name: Part(
        f"{name}_deg.pt",
        f"STAR's UNet and ControlNet (I2VGen-XL form), for {what}",
        "MIT",
        (Hub("SherryX/STAR", "I2VGen-XL-based"),),
        ((f"{name}_deg.pt",),),
        8_200_000_000,
    )
    for name, what in (("light", "lightly degraded clips"), ("heavy", "heavily degraded clips"))
}
_TEMPORAL_VAE = Part(
    "stable-video-diffusion-vae",
    "the VAE of Stable Video Diffusion, whose decoder sees neighbouring frames",
    "Stability AI Community License: huggingface.co/stabilityai/stable-video-diffusion-img2vid/blob/main/LICENSE.md. "
    "The hub asks for an account that has agreed to it: `hf auth login`",
    (Hub("stabilityai/stable-video-diffusion-img2vid"),),
    (
        ("vae/config.json",),
        ("vae/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.safetensors"),
    ),
    200_000_000,
    flag="vae",
)
_TEXT_ENCODER = Part(
    "clip-vit-h-14",
    "the text encoder: OpenCLIP ViT-H-14",
    "MIT",
    (Hub("laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),),
    (
        ("config.json",),
        ("vocab.json",),
        ("merges.txt",),
        ("special_tokens_map.json",),
        ("tokenizer_config.json",),
        ("model.safetensors", "pytorch_model.bin"),
    ),
    3_940_000_000,
    optional=frozenset({"special_tokens_map.json", "tokenizer_config.json"}),
    flag="text-encoder",
)

WANTED = Wanted(
    (_TEMPORAL_VAE, _TEXT_ENCODER),
    _CHECKPOINTS,
    "vsr-build bundle --vae {to}/stable-video-diffusion-vae --text-encoder {to}/clip-vit-h-14 "
    "--checkpoint {checkpoint} --out BUNDLE",
)
