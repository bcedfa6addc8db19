"""STAR: its networks, and the stages that a clip goes through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from vsr_trt.export.families.stable_diffusion import text_encoder, vae
from vsr_trt.export.families.star import (
    autoencoder,
    denoiser,
    features,
    pictures,
    sampler,
    steps,
    text,
    weights,
)
from vsr_trt.export.families.star.checkpoint import Checkpoint
from vsr_trt.export.families.star.shapes import MOST_WINDOW, STRETCH
from vsr_trt.export.network import NetworkSpec, Precision
from vsr_trt.export.tensors import refuse_overflow
from vsr_trt.runtime.bundle.manifest import Canvas, Chunks, Input, Loop, Option, Stage, Window

SCALE = pictures.SCALE
LATENT_SCALE = vae.PIXELS
SLICES = 4
"""Parts that the denoiser's first level is computed in: the widest tensor of a 720p chunk of 32 frames is 1.4 GB."""

CHUNKS = {"windows": Chunks("window", 0.5, STRETCH)}
LOOPS = {
    "sampler": Loop(
        "steps",
        {"x": "x_next", "xt": "xt_next", "before": "denoised"},
        ("table", "time", "noise_step"),
    )
}
OPTIONS = {
    "steps": Option(
        "integer", sampler.FAST_STEPS, "how often the networks run", least=1, most=sampler.MOST_STEPS
    ),
    "solver": Option(
        "choice",
        "fast",
        f"which times the steps have: fast, a list of {sampler.FAST_STEPS}, or normal, equal intervals",
        sampler.SOLVERS,
    ),
    "guidance": Option("number", 7.5, "how much the prompt counts against the negative one", least=0),
    "spread": Option(
        "number",
        1.0,
        "how far the encoder's latents are drawn from their mean; below 1 the result is not the published one",
        least=0,
        most=1,
    ),
    "seed": Option("integer", 666, "of the noise", least=0, most=(1 << 32) - 1),
    "window": Option("integer", MOST_WINDOW, "how many frames look at each other", least=2, most=MOST_WINDOW),
}
_TABLES = "steps/{solver}-{steps}.npy"
INPUTS = {
    "frame": Input("frame"),
    "prompts": Input("file", "prompts.npy"),
    "table": Input("file", _TABLES),
    "guidance": Input("option", "guidance"),
    "spread": Input("option", "spread"),
    "noise_vae": Input("noise", "vae", seed="seed"),
    "noise_start": Input("noise", "start", seed="seed"),
    "noise_step": Input("noise", "step", seed="seed"),
}
STAGES = (
    Stage(
        name="preprocess",
        lane="encode",
        network="preprocess",
        reads={"frame": "frame"},
        writes={"image": "image", "reference": "reference"},
        phase="encode",
    ),
    Stage(
        name="vae_encoder",
        lane="encode",
        network="vae_encoder",
        reads={"image": "image"},
        writes={"mean": "mean", "deviation": "deviation"},
        phase="encode",
    ),
    Stage(
        name="sample",
        lane="encode",
        network="sample",
        reads={"mean": "mean", "deviation": "deviation", "noise": "noise_vae", "spread": "spread"},
        writes={"hint": "hint"},
        phase="encode",
    ),
    Stage(
        name="time",
        lane="sample",
        network="time",
        reads={"table": "table"},
        writes={"time": "time"},
        phase="sample",
    ),
    Stage(
        name="text",
        lane="sample",
        network="text",
        reads={"prompts": "prompts"},
        writes={"text": "text"},
        phase="sample",
    ),
    Stage(
        name="start",
        lane="sample",
        network="start",
        reads={"hint": "hint", "noise": "noise_start", "table": "table"},
        writes={"x": "x", "xt": "xt", "before": "before"},
        phase="sample",
    ),
    Stage(
        name="denoiser",
        lane="sample",
        network="denoiser",
        reads={"xt": "xt", "hint": "hint", "time": "time[i]", "text": "text"},
        writes={"positive": "positive", "negative": "negative"},
        loop="sampler",
        chunks="windows",
        phase="sample",
    ),
    Stage(
        name="guide",
        lane="sample",
        network="guide",
        reads={
            "positive": "positive",
            "negative": "negative",
            "xt": "xt",
            "row": "table[i]",
            "guidance": "guidance",
        },
        writes={"denoised": "denoised"},
        loop="sampler",
        chunks="windows",
        phase="sample",
    ),
    Stage(
        name="update",
        lane="sample",
        network="update",
        reads={
            "x": "x",
            "denoised": "denoised",
            "before": "before",
            "noise": "noise_step[i]",
            "row": "table[i]",
        },
        writes={"x_next": "x_next", "xt_next": "xt_next"},
        loop="sampler",
        phase="sample",
    ),
    Stage(
        name="vae_decoder",
        lane="decode",
        network="vae_decoder",
        reads={"denoised": "denoised"},
        writes={"image": "decoded"},
        phase="decode",
    ),
    Stage(
        name="postprocess",
        lane="decode",
        network="postprocess",
        reads={"image": "decoded", "reference": "reference"},
        writes={"result": "result"},
        phase="decode",
    ),
)


def canvas(least: tuple[int, int]) -> Canvas:
    """The canvas whose least height and width, of the result, are these; networks pad and crop by themselves."""
    multiple = pictures.MULTIPLE // SCALE
    height, width = (side // SCALE for side in least)
    return Canvas((height, width), multiple, "pad", (height % multiple, width % multiple), ample=True)


def phases(group: int) -> dict[str, Window]:
    """Frame by frame, then all frames together, then in groups that the VAE decodes."""
    return {"encode": Window(1), "sample": Window(None), "decode": Window(group, last="short")}


def tables() -> dict[str, sampler.Table]:
    """Name in the bundle -> table of the steps, for every combination of `solver` and `steps` that there is."""
    counts = {"fast": (sampler.FAST_STEPS,), "normal": range(1, sampler.MOST_STEPS + 1)}
    return {
        _TABLES.format(solver=solver, steps=count): sampler.steps_of(solver, count).packed()
        for solver in sampler.SOLVERS
        for count in counts[solver]
    }


class STAR:
    """Makes the specs of STAR's networks, one at a time, so that only one's weights are in memory.

    Args:
        checkpoint: UNet and ControlNet.
        vae_folder: of the VAE.
        text_folder: of the text encoder.
        precision: of the graphs that the specs are for; weights that it cannot hold are refused.
    """

    slow: tuple[str, ...] = ("denoiser", "vae_decoder", "vae_encoder", "text_encoder")
    network_names: tuple[str, ...] = (
        "denoiser",
        "text_encoder",
        "vae_encoder",
        "vae_decoder",
        "time",
        "text",
        "preprocess",
        "sample",
        "start",
        "guide",
        "update",
        "postprocess",
    )

    def __init__(
        self, checkpoint: Checkpoint, vae_folder: Path, text_folder: Path, precision: Precision = "fp32"
    ) -> None:
        self.checkpoint, self._vae, self._text = checkpoint, vae_folder, text_folder
        self._limit = precision.upper()

    def sources(self) -> dict[str, Path]:
        """What is read besides the checkpoint, indices and shards among them, by folder and name."""
        files = {"vae": autoencoder.weight_files(self._vae), "text_encoder": text.weight_files(self._text)}
        return {f"{part}/{path.name}": path for part, paths in files.items() for path in paths}

    def check(self) -> None:
        """Reads all weights, one network after another, and keeps none: exports take minutes.

        Raises:
            CheckpointError: a tensor that is missing, of another shape or kind, not finite, or beyond FP16 in an FP16
                bundle.
        """
        self.checkpoint.check()
        refuse_overflow(autoencoder.open_vae(self._vae), self._limit, lambda name: f"{self._vae}: {name}")
        text.open_text_encoder(self._text)

    def spec(self, name: str) -> NetworkSpec:
        """Loads one network's weights."""
        sizes, own = self.checkpoint.sizes, self.checkpoint.weights
        simple: Mapping[str, Callable[[], NetworkSpec]] = {
            "sample": steps.sample_spec,
            "start": steps.start_spec,
            "guide": steps.guide_spec,
            "update": steps.update_spec,
            "preprocess": lambda: pictures.preprocess_spec(sizes.canvas),
            "postprocess": lambda: pictures.postprocess_spec(sizes.canvas),
            "time": lambda: features.time_spec(features.TimeFeatures.from_checkpoint(sizes, own)),
            "text": lambda: features.text_spec(features.TextFeatures.from_checkpoint(sizes, own)),
            "text_encoder": lambda: text_encoder.spec(text.open_text_encoder(self._text)),
            "vae_encoder": lambda: autoencoder.encoder_spec(autoencoder.open_vae(self._vae)),
            "vae_decoder": lambda: autoencoder.decoder_spec(autoencoder.open_vae(self._vae), sizes.group),
        }
        if name in simple:
            return simple[name]()
        model = weights.denoiser(self.checkpoint, SLICES)
        refuse_overflow(model, self._limit, lambda own: self.checkpoint.describe(weights.published(own)))
        return denoiser.spec(model)
