"""DLoRAL: its networks, and the stages that a frame goes through."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from export.base_model import BaseModel
from export.checkpoint import Checkpoint
from export.lora import merge_into
from export.network import NetworkSpec
from export.networks import cfr, postprocess, preprocess, spynet, text_encoder, unet, vae
from runtime.manifest import Stage

SCALE = preprocess.SCALE
FRAME_MULTIPLE = preprocess.FRAME_MULTIPLE
LATENT_SCALE = vae.PIXELS
MINIMUM_SIDE = 128  # SpyNet's pyramid needs 64 latents, which are 128 pixels x4 / 8

STAGES = (
    Stage(
        name="preprocess",
        network="preprocess",
        reads={"frame": "frame"},
        writes={"image": "image", "thumb": "thumb", "reference": "reference"},
    ),
    Stage(
        name="vae_encoder",
        network="vae_encoder",
        reads={"image": "image"},
        writes={"latent": "latent"},
        tiling="vae",
    ),
    Stage(
        name="spynet",
        network="spynet",
        reads={"thumb": "thumb", "previous_thumb": "thumb[n-1]"},
        writes={"flow": "flow"},
        tiling="latent",
    ),
    Stage(
        name="cfr",
        network="cfr",
        reads={"latent": "latent", "previous_latent": "latent[n-1]", "flow": "flow"},
        writes={"warped": "warped", "fused": "fused"},
        tiling="latent",
    ),
    Stage(
        name="unet",
        network="unet",
        reads={"warped": "warped", "fused": "fused", "prompt": "prompt"},
        writes={"denoised": "denoised"},
        tiling="latent",
    ),
    Stage(
        name="vae_decoder",
        network="vae_decoder",
        reads={"latent": "denoised"},
        writes={"image": "decoded"},
        tiling="vae",
    ),
    Stage(
        name="postprocess",
        network="postprocess_adain",
        reads={"image": "decoded", "reference": "reference"},
        writes={"result": "result"},
        variants={variant: f"postprocess_{variant}" for variant in postprocess.VARIANTS},
        option="color",
    ),
)


class DLoRAL:
    """Makes the specs of DLoRAL's networks, one at a time, so that only one's weights are in memory."""

    # the UNet first: it is the largest, and nothing else is in memory yet
    network_names = (
        "unet",
        "text_encoder",
        "vae_encoder",
        "vae_decoder",
        "spynet",
        "cfr",
        "preprocess",
        *(f"postprocess_{variant}" for variant in postprocess.VARIANTS),
    )

    def __init__(
        self,
        base: BaseModel,
        checkpoint: Checkpoint,
        adapter_weights: Mapping[str, float],
        top_k: int | None,
        phase: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.base = base
        self.checkpoint = checkpoint
        self.adapter_weights = dict(adapter_weights)
        self.top_k = top_k
        self.merged_sha256 = ""
        self._phase = phase

    def spec(self, name: str) -> NetworkSpec:
        """Loads one network's weights; the UNet's adapters are merged and its hash kept."""
        if name == "unet":
            return self._unet()
        if name == "text_encoder":
            return text_encoder.spec(self.base.text_encoder())
        if name in ("vae_encoder", "vae_decoder"):
            model = self.base.vae()
            vae.use_one_head(model)
            return vae.encoder_spec(model) if name == "vae_encoder" else vae.decoder_spec(model)
        if name == "spynet":
            return spynet.spec(self.checkpoint.cfr)
        if name == "cfr":
            return cfr.spec(self.checkpoint.cfr, self.top_k)
        if name == "preprocess":
            return preprocess.spec()
        return postprocess.spec(name.removeprefix("postprocess_"))

    def _unet(self) -> NetworkSpec:
        self._phase("merge")
        model = self.base.empty_unet()
        self.merged_sha256 = merge_into(model, self.checkpoint, self.adapter_weights)
        unet.fold_timestep(model)
        return unet.spec(model, self.base.config("vae").get("scaling_factor", 0.18215))
