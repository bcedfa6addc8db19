"""A bundle's networks as the torch modules that they were exported from: what everything else is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vsr_trt.export.families.dloral import checkpoint as checkpoints
from vsr_trt.export.families.dloral import family as dloral
from vsr_trt.export.families.stable_diffusion.base_model import BaseModel
from vsr_trt.runtime.bundle.manifest import Manifest, Source, sha256
from vsr_trt.runtime.errors import BundleError, CheckpointError


class TorchNetworks:
    """Runs networks in torch, in FP32 on the CPU, as a device of `runtime.devices.in_order`.

    Args:
        manifest: of the bundle.
        model: makes the modules.
    """

    name = "torch"

    def __init__(self, manifest: Manifest, model: dloral.DLoRAL) -> None:
        self._manifest, self._model = manifest, model
        self._modules: dict[str, nn.Module] = {}

    def load(self, network: str) -> None:
        """Reads a network's weights, once.

        Raises:
            CheckpointError: they cannot be read.
        """
        if network not in self._modules:
            self._modules[network] = self._model.spec(network).module.eval()

    def run(self, network: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs a loaded network; returns its outputs by name."""
        # torch refuses arrays that it could not write to
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in inputs.items()}
        with torch.inference_mode():
            outputs = self._modules[network](**tensors)
        names = [tensor.name for tensor in self._manifest.networks[network].outputs]
        arrays = outputs if isinstance(outputs, tuple) else (outputs,)
        return {name: value.numpy() for name, value in zip(names, arrays, strict=True)}

    def close(self) -> None:
        """Releases the modules."""
        self._modules.clear()


def open_device(manifest: Manifest, sd: Path, checkpoint: Path) -> TorchNetworks:
    """Opens the weights that a bundle was made from.

    Raises:
        CheckpointError: they are not those: another name, size or hash than the bundle's provenance has.
        BundleError: a bundle of a family that this version cannot make.
    """
    if manifest.family != "dloral":
        raise BundleError(f"the bundle is of the family {manifest.family!r}; this version knows dloral only.")
    provenance = manifest.provenance
    if provenance is None:
        raise CheckpointError("the bundle does not say which weights it was made from.")
    _refuse_others(checkpoint, provenance.checkpoint)
    base = BaseModel.open(sd)
    sources = {source.name: source for source in provenance.base_model}
    for path in base.weight_files():
        name = path.relative_to(sd).as_posix()
        if name not in sources:
            raise CheckpointError(
                f"{path} would be read, but the bundle was made from {', '.join(sorted(sources))}. Give the directory "
                "that it was made from."
            )
        _refuse_others(path, sources[name])
    model = dloral.DLoRAL(base, checkpoints.load(checkpoint), provenance.adapters, manifest.top_k)
    return TorchNetworks(manifest, model)


def _refuse_others(path: Path, source: Source) -> None:
    try:
        digest = sha256(path)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}); expected {source.name}, which the bundle was made from."
        ) from error
    if digest != source.sha256:
        raise CheckpointError(
            f"{path} is not the file that the bundle was made from: its SHA-256 is {digest[:12]}…, expected "
            f"{source.sha256[:12]}… ({source.name}, {source.bytes} bytes). Give that one, or build a bundle from this."
        )
