"""DLoRAL's bundles: what they are made of, and what their manifest says."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vsr_trt.export.families.dloral import cfr, family, lora
from vsr_trt.export.families.dloral import checkpoint as checkpoints
from vsr_trt.export.families.prompt import TOKENIZER, embed
from vsr_trt.export.families.stable_diffusion.base_model import BaseModel
from vsr_trt.export.provenance import source_of, versions
from vsr_trt.export.request import BundleRequest
from vsr_trt.kernels.gpu import build as gpu_kernel
from vsr_trt.kernels.gpu import launch as launches
from vsr_trt.runtime.bundle.manifest import Kernel, Manifest, Network, Prompt, Provenance, Tokenizer
from vsr_trt.runtime.bundle.tokens import cut_note, encode

DEFAULT_PROMPT = "a sharp, detailed, high-resolution photo,"
PARTS = {"sd": "Stable Diffusion 2.1"}
SETTINGS = frozenset({"stage", "adapters", "top_k"})


def recognises(names: Collection[str]) -> bool:
    """Whether these are names of a DLoRAL checkpoint: of its entries, or of the tensors in them."""
    return any(name == part or name.startswith(f"{part}.") for name in names for part in checkpoints.PARTS)


def settings_of(manifest: Manifest) -> dict[str, Any]:
    """The settings of the request that a bundle was made by."""
    adapters = manifest.provenance.adapters if manifest.provenance is not None else {}
    return {"adapters": adapters, "top_k": manifest.top_k}


def place_of(name: str, parts: Mapping[str, Path]) -> Path:
    """Where a file of the provenance lies."""
    return parts["sd"] / name


class BundleModel(family.DLoRAL):
    """DLoRAL's weights for one request."""

    def __init__(
        self,
        request: BundleRequest,
        base: BaseModel,
        checkpoint: checkpoints.Checkpoint,
        phase: Callable[[str], None],
    ) -> None:
        weights = lora.adapter_weights(request.stage, request.adapters)
        super().__init__(base, checkpoint, weights, request.top_k, phase, request.precision)
        self._request = request
        self._prompt = DEFAULT_PROMPT if request.prompt is None else request.prompt
        self._tokenizer = base.tokenizer()
        self._tokens, self._cut = encode(self._tokenizer, self._prompt)

    @staticmethod
    def open(request: BundleRequest, phase: Callable[[str], None]) -> BundleModel:
        """Opens the Stable Diffusion directory and the checkpoint.

        Raises:
            CheckpointError: one of them is refused.
        """
        lora.adapter_weights(request.stage, request.adapters)  # refused before anything is read
        base = BaseModel.open(request.parts["sd"])
        return BundleModel(request, base, checkpoints.load(request.checkpoint), phase)

    def notes(self) -> list[str]:
        """Prefixes that were left out, and a prompt that was cut."""
        notes = [
            f"{prefix!r}, which a wrapper had put before all names of {part}, was left out of them"
            for part, prefix in self.prefixes().items()
        ]
        if self._cut:
            notes.append(cut_note("prompt", self._cut))
        return notes

    def sources(self) -> dict[str, Path]:
        """Files of the Stable Diffusion directory, relative to it."""
        folder = self._request.parts["sd"]
        return {path.relative_to(folder).as_posix(): path for path in self.base.weight_files()}

    def kernels(self, target: str) -> list[gpu_kernel.Compiled]:
        """The attention, an FP32 island in every bundle, and the blending of tiles."""
        top_k, store = self._request.top_k is not None, self._request.kernel_store
        attention = gpu_kernel.compile_kernel(target, "fp32", top_k, store)
        return [attention, gpu_kernel.compile_blending(target, store)]

    def manifest(self, folder: Path, networks: dict[str, Network], kernels: tuple[str, ...]) -> Manifest:
        """Embeds the prompt with the bundle's own text encoder, and writes the attention's constants."""
        request = self._request
        text_encoder = folder / networks["text_encoder"].graphs["native"]
        np.save(folder / "prompt.npy", embed(text_encoder, self._tokens))
        self._tokenizer.save(str(folder / TOKENIZER), pretty=False)
        if kernels:
            kernel = _attention(self.checkpoint, request.top_k, kernels, folder)
            networks = networks | {"cfr": dataclasses.replace(networks["cfr"], kernel=kernel)}
        return Manifest(
            family="dloral",
            scale=family.SCALE,
            precision=request.precision,
            canvas=family.CANVAS,
            latent_scale=family.LATENT_SCALE,
            top_k=request.top_k,
            networks=networks,
            stages=family.STAGES,
            tilings=family.TILINGS,
            options=family.OPTIONS,
            inputs=family.INPUTS,
            output="result",
            prompt=Prompt(self._prompt, "prompt.npy", tokenizer=Tokenizer(TOKENIZER, "text_encoder")),
            files={},
            kernels=kernels,
            provenance=Provenance(
                checkpoint=source_of(request.checkpoint, request.checkpoint.name),
                checkpoint_layout=self.checkpoint.layout,
                base_model=tuple(source_of(path, name) for name, path in self.sources().items()),
                stage=request.stage,
                adapters=self.adapter_weights,
                merged_sha256=self.merged_sha256,
                stripped_prefixes=self.prefixes(),
                tools=versions(),
                created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            ),
        )


def _attention(
    checkpoint: checkpoints.Checkpoint, top_k: int | None, kernels: Sequence[str], folder: Path
) -> Kernel:
    """Writes the attention's constants next to its kernels."""
    operands = cfr.operands(checkpoint.cfr)
    files = {name: f"kernels/attention_{name}.npy" for name in ("M", "P", "bias")}
    for name, file in files.items():
        np.save(folder / file, getattr(operands, name))
    launch = [path for path in kernels if launches.read(folder / path).kernel == launches.ATTENTION]
    return cfr.kernel(launch, files, top_k)
