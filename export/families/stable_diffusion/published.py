"""Where Stable Diffusion 2.1 base is still published."""

from __future__ import annotations

from vsr_trt.export.published import Hub, Part


def _weights(folder: str, name: str) -> tuple[str, ...]:
    return tuple(
        f"{folder}/{stem}" for stem in (f"{name}.safetensors", f"{name}.fp16.safetensors", f"{name}.bin")
    )


_MIRRORS = tuple(
    Hub(f"{owner}/stable-diffusion-2-1-base") for owner in ("yujingsun", "sd2-community", "Manojb")
)
STABLE_DIFFUSION = Part(
    "stable-diffusion-2-1-base",
    "Stable Diffusion 2.1 base: VAE, text encoder, tokenizer, and the UNet's config. Its maker withdrew it in "
    "November 2025; these are mirrors",
    "CreativeML Open RAIL++-M: huggingface.co/stabilityai/stable-diffusion-2/blob/main/LICENSE-MODEL",
    _MIRRORS,
    (
        ("tokenizer/vocab.json",),
        ("tokenizer/merges.txt",),
        ("tokenizer/special_tokens_map.json",),
        ("tokenizer/tokenizer_config.json",),
        ("text_encoder/config.json",),
        _weights("text_encoder", "model"),
        ("vae/config.json",),
        _weights("vae", "diffusion_pytorch_model"),
        ("unet/config.json",),
    ),
    1_700_000_000,
    optional=frozenset({"tokenizer/special_tokens_map.json", "tokenizer/tokenizer_config.json"}),
    flag="sd",
)
