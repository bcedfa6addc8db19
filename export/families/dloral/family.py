"""DLoRAL: its networks, and the stages that a frame goes through."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from vsr_trt.export.families.dloral import cfr, postprocess, preprocess, spynet, unet, warp
from vsr_trt.export.families.dloral.checkpoint import Checkpoint
from vsr_trt.export.families.dloral.lora import merge_into
from vsr_trt.export.families.stable_diffusion import text_encoder, vae
from vsr_trt.export.families.stable_diffusion.base_model import BaseModel
from vsr_trt.export.network import NetworkSpec, Precision
from vsr_trt.export.tensors import refuse_overflow
from vsr_trt.runtime.bundle.manifest import Canvas, Input, Option, Stage, Tiling
from vsr_trt.runtime.errors import CheckpointError

SCALE = preprocess.SCALE
FRAME_MULTIPLE = preprocess.FRAME_MULTIPLE
LATENT_SCALE = vae.PIXELS
MINIMUM_SIDE = 128  # SpyNet's pyramid needs 64 latents, which are 128 pixels x4 / 8

CANVAS = Canvas((MINIMUM_SIDE, MINIMUM_SIDE), FRAME_MULTIPLE // SCALE, "enlarge")
"""The networks pad and crop by themselves."""
TILINGS = {
    "latent": Tiling(side=96, overlap=32),
    "vae": Tiling(
        side=96,
        overlap=16,
        window="ramp",
        square=False,
        together=False,
        share=4,
        exact=True,
        engine_side=136,
    ),
}
"""As published for flow, retrieval and UNet; the VAE is published whole."""
OPTIONS = {
    "color": Option(
        "choice",
        "adain",
        "align colours to the input's: by mean and deviation, by low frequencies, or not",
        postprocess.VARIANTS,
    )
}
INPUTS = {"frame": Input("frame"), "prompt": Input("file", "prompt.npy")}
# Lanes: frame n+1 is encoded, and its flow computed, while frame n is denoised and decoded.
STAGES = (
    Stage(
        name="preprocess",
        lane="encode",
        network="preprocess",
        reads={"frame": "frame"},
        writes={"image": "image", "thumb": "thumb", "reference": "reference"},
    ),
    Stage(
        name="vae_encoder",
        lane="encode",
        network="vae_encoder",
        reads={"image": "image"},
        writes={"latent": "latent"},
        tiling="vae",
    ),
    Stage(
        name="spynet",
        lane="encode",
        network="spynet",
        reads={"thumb": "thumb", "previous_thumb": "thumb[n-1]"},
        writes={"flow": "flow"},
        tiling="latent",
    ),
    Stage(
        name="warp",
        lane="decode",
        network="warp",
        reads={"previous_latent": "latent[n-1]", "flow": "flow"},
        writes={"warped": "warped"},
        tiling="latent",
    ),
    Stage(
        name="cfr",
        lane="decode",
        network="cfr",
        reads={"latent": "latent", "warped": "warped"},
        writes={"fused": "fused"},
        tiling="latent",
    ),
    Stage(
        name="unet",
        lane="decode",
        network="unet",
        reads={"warped": "warped", "fused": "fused", "prompt": "prompt"},
        writes={"denoised": "denoised"},
        tiling="latent",
    ),
    Stage(
        name="vae_decoder",
        lane="decode",
        network="vae_decoder",
        reads={"latent": "denoised"},
        writes={"image": "decoded"},
        tiling="vae",
    ),
    Stage(
        name="postprocess",
        lane="decode",
        network="postprocess_adain",
        reads={"image": "decoded", "reference": "reference"},
        writes={"result": "result"},
        variants={variant: f"postprocess_{variant}" for variant in postprocess.VARIANTS},
        option="color",
    ),
)


class DLoRAL:
    """Makes the specs of DLoRAL's networks, one at a time, so that only one's weights are in memory.

    Args:
        base: the Stable Diffusion directory.
        checkpoint: the trained weights.
        adapter_weights: how much of each adapter is merged.
        top_k: positions that the cross-frame attention retrieves, None for all.
        phase: is passed that the adapters are merged now.
        precision: of the graphs that the specs are for; weights that it cannot hold are refused.
    """

    # the UNet first: it is the largest, and nothing else is in memory yet
    # the UNet here, because the manifest names its hash
    slow: tuple[str, ...] = ("unet", "spynet", "vae_decoder", "vae_encoder")
    network_names = (
        "unet",
        "text_encoder",
        "vae_encoder",
        "vae_decoder",
        "spynet",
        "warp",
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
        precision: Precision = "fp32",
    ) -> None:
        self.base = base
        self.checkpoint = checkpoint
        self.adapter_weights = dict(adapter_weights)
        self.top_k = top_k
        self.merged_sha256 = ""
        self._phase = phase
        self._limit = precision.upper()

    def prefixes(self) -> dict[str, str]:
        """Part of the weights -> what a wrapper had put before all of its names, and was left out of them."""
        return {**self.checkpoint.prefixes, **self.base.prefixes()}

    def check(self) -> None:
        """Reads all weights but the UNet's, one network after another, and keeps none.

        An export takes minutes; what is wrong with the last network should not be reported after that of the first. The
        UNet is the first, and merging looks at its weights.

        Raises:
            CheckpointError: a tensor that is missing, of another shape or kind, not finite, or beyond FP16 in an FP16
                bundle.
        """
        path = self.base.weights_file("vae")
        refuse_overflow(self.base.vae(), self._limit, lambda name: f"{path}: {name}")
        self.base.text_encoder()
        with np.errstate(over="ignore"):  # reported below
            folded = cfr.operands(self.checkpoint.cfr)
        if not all(np.isfinite(array).all() for array in (folded.M, folded.P, folded.bias)):
            raise CheckpointError(
                f"{self.checkpoint.path}: the weights of state_dict_bpp.cross_attn_module are too large for FP32 once "
                "they are multiplied with each other."
            )

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
        if name == "warp":
            return warp.spec()
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
        refuse_overflow(model, self._limit, self.checkpoint.describe)
        return unet.spec(model, self.base.scaling_factor())
