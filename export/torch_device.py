"""A bundle's networks as the torch modules that they were exported from: what everything else is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vsr_trt.export.families.registry import Model, reopen
from vsr_trt.runtime.bundle.manifest import Manifest, Source, sha256
from vsr_trt.runtime.errors import CheckpointError


class TorchNetworks:
    """Runs networks in torch, in FP32 on the CPU, as `Networks` of `runtime.devices.actions`.

    Args:
        manifest: of the bundle.
        model: makes the modules.
        compiled: compile each module for the first sizes that it gets.
    """

    name = "torch"

    def __init__(self, manifest: Manifest, model: Model, compiled: bool = False) -> None:
        self._manifest, self._model, self._compiled = manifest, model, compiled
        self._modules: dict[str, nn.Module] = {}

    def load(self, network: str) -> None:
        """Reads a network's weights, once.

        Raises:
            CheckpointError: they cannot be read.
        """
        if network not in self._modules:
            module = self._model.spec(network).module.eval()
            self._modules[network] = torch.compile(module, dynamic=False) if self._compiled else module

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


def open_networks(manifest: Manifest, checkpoint: Path, parts: Mapping[str, Path]) -> TorchNetworks:
    """Opens the weights that a bundle was made from.

    Args:
        manifest: of the bundle.
        checkpoint: as it was made from.
        parts: directories of the rest, by the names that the family gives them.

    Raises:
        CheckpointError: they are not those: another name, size or hash than the bundle's provenance has.
        BundleError: a bundle of a family that this version cannot make.
        InputError: parts that the family needs and that are missing, or what it has no use for.
    """
    provenance = manifest.provenance
    if provenance is None:
        raise CheckpointError("the bundle does not say which weights it was made from.")
    _refuse_others(checkpoint, provenance.checkpoint)
    model = reopen(manifest, checkpoint, parts)
    sources = {source.name: source for source in provenance.base_model}
    for name, path in model.sources().items():
        if name not in sources:
            raise CheckpointError(
                f"{path} would be read, but the bundle was made from {', '.join(sorted(sources))}. Give the directory "
                "that it was made from."
            )
        _refuse_others(path, sources[name])
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
