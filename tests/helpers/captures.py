"""Captured modules, kept for the next export of the same model."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch

from vsr_trt.export import capture, network


@contextlib.contextmanager
def kept(folder: Path) -> Iterator[None]:
    """While it lasts, a module with the same weights is captured once: the graph comes from `folder` afterwards."""

    def to_onnx(
        module: torch.nn.Module,
        inputs: Mapping[str, torch.Tensor],
        shapes: Mapping[str, Mapping[int, Any]],
        outputs: Sequence[str],
        opset: int,
    ) -> ir.Model:
        path = folder / f"{_key(module, inputs, shapes, outputs, opset)}.onnx"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            ir.save(capture.to_onnx(module, inputs, shapes, outputs, opset), path)
        return ir.load(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "to_onnx", to_onnx)
        yield


def _key(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor], *rest: object) -> str:
    """Of all that the capture depends on: code is the session's own."""
    settings = [
        sorted(
            (name, value)
            for name, value in vars(part).items()
            if isinstance(value, str | int | float | tuple)
        )
        for part in module.modules()  # their attributes: not all are in what is printed of them
    ]
    state = hashlib.sha256(repr((module, settings, rest)).encode())
    for name, tensor in (*module.state_dict().items(), *inputs.items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.detach().contiguous().cpu().numpy().tobytes())
    return state.hexdigest()
