"""STAR's bundles: what they are made of, and what their manifest says."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vsr_trt.export.families.prompt import TOKENIZER, embed
from vsr_trt.export.families.star import autoencoder, family, text
from vsr_trt.export.families.star import checkpoint as checkpoints
from vsr_trt.export.provenance import source_of, versions
from vsr_trt.export.request import BundleRequest
from vsr_trt.kernels.gpu.build import Compiled
from vsr_trt.runtime.bundle.manifest import Manifest, Network, Prompt, Provenance, Tokenizer
from vsr_trt.runtime.bundle.tokens import cut_note, encode
from vsr_trt.runtime.errors import InputError

recognises = checkpoints.recognises
PARTS = {
    "vae": "the VAE of Stable Video Diffusion",
    "text-encoder": "OpenCLIP ViT-H-14 in transformers' layout",
}
SETTINGS = frozenset({"negative_prompt", "canvas"})


def settings_of(manifest: Manifest) -> dict[str, Any]:
    """The settings of the request that a bundle was made by."""
    height, width = (side * manifest.scale for side in manifest.canvas.least)
    return {"canvas": (height, width)}


def place_of(name: str, parts: Mapping[str, Path]) -> Path:
    """Where a file of the provenance lies."""
    part, _, file = name.partition("/")
    folder = {"vae": autoencoder.folder_of(parts["vae"]), "text_encoder": parts["text-encoder"]}[part]
    return folder / file


class BundleModel(family.STAR):
    """STAR's weights for one request."""

    def __init__(self, request: BundleRequest, checkpoint: checkpoints.Checkpoint) -> None:
        vae, text_encoder = autoencoder.folder_of(request.parts["vae"]), request.parts["text-encoder"]
        super().__init__(checkpoint, vae, text_encoder, request.precision)
        self._request = request
        self._prompt = text.PROMPT if request.prompt is None else request.prompt
        self._negative = text.NEGATIVE if request.negative_prompt is None else request.negative_prompt
        self._tokenizer = text.open_tokenizer(text_encoder)
        texts = (text.caption(self._prompt), self._negative)
        self._tokens = [encode(self._tokenizer, each) for each in texts]

    @staticmethod
    def open(request: BundleRequest, phase: Callable[[str], None]) -> BundleModel:
        """Opens the checkpoint; the folders' weights are read network by network.

        Raises:
            CheckpointError: one of them is refused.
            InputError: a canvas that the UNet cannot take.
        """
        checkpoint = checkpoints.load(request.checkpoint)
        if request.canvas is not None:
            height, width = request.canvas
            if height % 64 != 16 or width % 64 or min(height, width) < 1:
                raise InputError(
                    f"--canvas {width}x{height}: expected a width that is a multiple of 64, and a height that is 16 "
                    "more than one, e.g. 512x528."
                )
            sizes = dataclasses.replace(checkpoint.sizes, canvas=request.canvas)
            checkpoint = dataclasses.replace(checkpoint, sizes=sizes)
        return BundleModel(request, checkpoint)

    def notes(self) -> list[str]:
        """A prefix that was left out, and texts that were cut."""
        notes = []
        if self._request.canvas is not None:
            notes.append(
                "the canvas is another one than the published: its white border takes part in all that is computed, so "
                "pictures smaller than the published canvas become others"
            )
        if self.checkpoint.prefix:
            notes.append(
                f"{self.checkpoint.prefix!r}, which a wrapper had put before all names of {self.checkpoint.path.name}, "
                "was left out of them"
            )
        for name, (_, cut) in zip(("prompt", "negative prompt"), self._tokens, strict=True):
            if cut:
                notes.append(cut_note(name, cut))
        return notes

    def kernels(self, target: str) -> list[Compiled]:
        """None: nothing is cut into tiles."""
        return []

    def manifest(self, folder: Path, networks: dict[str, Network], kernels: tuple[str, ...]) -> Manifest:
        """Embeds both texts with the bundle's own text encoder, and writes the sampler's tables."""
        text_encoder = folder / networks["text_encoder"].graphs["native"]
        np.save(folder / "prompts.npy", np.stack([embed(text_encoder, ids) for ids, _ in self._tokens]))
        self._tokenizer.save(str(folder / TOKENIZER), pretty=False)
        (folder / "steps").mkdir()
        for name, table in family.tables().items():
            np.save(folder / name, table)
        request, sizes = self._request, self.checkpoint.sizes
        return Manifest(
            family="star",
            scale=family.SCALE,
            precision=request.precision,
            canvas=family.canvas(sizes.canvas),
            latent_scale=family.LATENT_SCALE,
            networks=networks,
            stages=family.STAGES,
            phases=family.phases(sizes.group),
            chunks=family.CHUNKS,
            loops=family.LOOPS,
            options=family.OPTIONS,
            inputs=family.INPUTS,
            output="result",
            prompt=Prompt(
                self._prompt,
                "prompts.npy",
                self._negative,
                Tokenizer(TOKENIZER, "text_encoder", text.POSITIVE),
            ),
            files={},
            kernels=kernels,
            provenance=Provenance(
                checkpoint=source_of(request.checkpoint, request.checkpoint.name),
                checkpoint_layout=self.checkpoint.layout,
                base_model=tuple(source_of(path, name) for name, path in self.sources().items()),
                stripped_prefixes={"checkpoint": self.checkpoint.prefix} if self.checkpoint.prefix else {},
                tools=versions(),
                created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            ),
        )
