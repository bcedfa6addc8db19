"""DLoRAL: frame n+1 is encoded, and its flow computed, while frame n is denoised and decoded."""

LANES = {
    "preprocess": "encode",
    "vae_encoder": "encode",
    "spynet": "encode",
    "cfr": "decode",
    "unet": "decode",
    "vae_decoder": "decode",
    "postprocess": "decode",
}
