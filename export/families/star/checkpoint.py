"""Reading a STAR checkpoint in the I2VGen-XL form: UNet and ControlNet, as published (`.pt`) or as safetensors.

The published file is `torch.save` of the state dict, or of a dict that has it under `state_dict`, in FP16 or FP32.
Sizes follow from the weights' shapes. What these do not tell is read from a `config.json` next to the file, in the
names of the published constructor; without one, it is as published. STAR's own loader takes any file whose names fit
in part; here every name must be there, and no other.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vsr_trt.export.families.dloral.checkpoint import PARTS as DLORAL
from vsr_trt.export.families.star.sizes import CONTROL, Sizes
from vsr_trt.export.pickles import load_pickle
from vsr_trt.export.tensors import (
    InMemory,
    OnDisk,
    Renamed,
    common_prefix,
    named_in_refusals,
    open_safetensors,
    refuse_not_finite,
    shape_of,
)
from vsr_trt.runtime.errors import CheckpointError

_STATE = "state_dict"
_WANTED = "expected STAR's checkpoint in the I2VGen-XL form (light_deg.pt or heavy_deg.pt)"
_FETCH = " This gets it: vsr-build fetch star --to weights."
_GATE = ".transformer_blocks.0.local1.conv1.weight"


@dataclass(frozen=True)
class Checkpoint:
    """A recognised checkpoint; tensors stay on disk until they are used.

    Attributes:
        path: the file.
        layout: `star-pt` or `star-safetensors`.
        weights: of UNet and ControlNet under their published names.
        sizes: of both.
        prefix: what a wrapper had put before all names, and was left out of them.
    """

    path: Path
    layout: str
    weights: Mapping[str, Tensor]
    sizes: Sizes
    prefix: str = ""

    def describe(self, name: str) -> str:
        """File and name, as it is in the file; begins a message."""
        return f"{self.path}: {self.prefix}{name}"

    def check(self) -> None:
        """Reads every tensor, one at a time.

        Raises:
            CheckpointError: NaN or infinity.
        """
        for name in self.weights:
            refuse_not_finite(self.weights[name], self.describe(name))


def recognises(names: Collection[str]) -> bool:
    """Whether these are names of STAR's checkpoint, of the UNet that it was trained from, or of its CogVideoX form."""
    return any("input_blocks.0.1.transformer_blocks." in name or _is_cogvideox(name) for name in names)


def _is_cogvideox(name: str) -> bool:
    return "transformer.layers." in name or ".mixins." in name


def load(path: Path) -> Checkpoint:
    """Opens and recognises a checkpoint.

    Raises:
        CheckpointError: missing, damaged, holding code, of another model, or with a tensor that is missing, unknown, of
            another shape or no plain numbers. Whether they are finite shows `Checkpoint.check`.
    """
    if not path.is_file():
        if path.is_dir():
            raise CheckpointError(f"{path} is a directory; {_WANTED}.")
        raise CheckpointError(f"{path} does not exist; {_WANTED}.{_FETCH}")
    if path.suffix == ".safetensors":
        file = open_safetensors(path)
        layout, tensors = "star-safetensors", OnDisk(file, "", list(file.keys()), f"{path}: ")
    else:
        layout, tensors = "star-pt", _open_pickle(path)  # type: ignore[assignment]
    _refuse_others(path, tensors)
    tensors.check_kinds()
    prefix = common_prefix(tensors)
    weights = Renamed.without(tensors, prefix)
    with named_in_refusals({path.name: list(tensors)}):
        if not any(name.startswith(CONTROL) for name in weights):
            raise CheckpointError(
                f"{path} has no ControlNet (no name begins with {CONTROL}); {_WANTED}, which has both networks in one "
                "file. Is this the UNet that STAR was trained from?"
            )
        sizes = read_sizes(path, weights)
        _check_shapes(path, weights, sizes)
    return Checkpoint(path, layout, weights, sizes, prefix)


def _open_pickle(path: Path) -> InMemory:
    content = load_pickle(path)
    inside = content.get(_STATE) if isinstance(content, dict) else None
    tensors = content if inside is None else inside
    if not isinstance(tensors, dict):
        raise CheckpointError(f"{path} holds a {type(tensors).__name__}, expected a state dict; {_WANTED}.")
    _refuse_others(path, tensors)
    strange = next((name for name, tensor in tensors.items() if not isinstance(tensor, Tensor)), None)
    if strange is not None or not tensors or not all(isinstance(name, str) for name in tensors):
        found = f": {strange!r} is no tensor" if strange is not None else ""
        raise CheckpointError(f"{path} holds no state dict{found}; {_WANTED}.")
    return InMemory(tensors, f"{path}: ")


def _refuse_others(path: Path, found: Collection[object]) -> None:
    """Refuses what is known and not STAR's, by its names."""
    names = [name for name in found if isinstance(name, str)]
    if any(name == part or name.startswith(f"{part}.") for name in names for part in DLORAL):
        raise CheckpointError(f"{path} is a checkpoint of DLoRAL; {_WANTED}.")
    if "module" in names or any(map(_is_cogvideox, names)):
        raise CheckpointError(
            f"{path} is STAR's CogVideoX form, another model under another licence that cannot be exported; {_WANTED}."
        )
    if any(name.startswith(("encoder.down_blocks.", "decoder.up_blocks.")) for name in names):
        raise CheckpointError(f"{path} is an autoencoder; {_WANTED}.")
    if any(name.startswith("model.diffusion_model.") for name in names):
        raise CheckpointError(f"{path} is a plain Stable Diffusion checkpoint; {_WANTED}.")


# ---------------------------------------------------------------- sizes


def read_sizes(path: Path, weights: Mapping[str, Tensor]) -> Sizes:
    """Sizes from the weights' shapes, and from `config.json` next to the file.

    Raises:
        CheckpointError: names by which sizes are told are missing, or weights and `config.json` contradict each other.
    """
    config = _config(path)
    published = Sizes()
    head = _integer(path, config, "head_dim", published.head)

    def shape(name: str) -> tuple[int, ...]:
        if name not in weights:
            raise CheckpointError(f"{path} lacks {name}; {_WANTED}.")
        found = shape_of(weights, name)
        if not found or 0 in found:
            raise CheckpointError(f"{path}: {name} has shape {found}.")
        return found

    first = shape("input_blocks.0.0.weight")
    inner = shape("input_blocks.0.1.proj_in.weight")[0]
    dim, latent = (*first, 1)[:2]
    levels: list[list[int]] = [[]]
    attends: list[bool] = []
    index = 1
    while (
        f"input_blocks.{index}.op.weight" in weights
        or f"input_blocks.{index}.0.out_layers.3.weight" in weights
    ):
        if f"input_blocks.{index}.op.weight" in weights:
            levels.append([])
        else:
            if not levels[-1]:
                attends.append(f"input_blocks.{index}.1{_GATE}" in weights)
            levels[-1].append(shape(f"input_blocks.{index}.0.out_layers.3.weight")[0])
        index += 1
    residuals = len(levels[0])
    if not residuals or any(len(level) != residuals for level in levels):
        raise CheckpointError(
            f"{path} has {[len(level) for level in levels]} residual blocks a level; {_WANTED}."
        )
    if not attends[0]:
        raise CheckpointError(f"{path} lacks input_blocks.1.1{_GATE}; {_WANTED}.")
    context = shape("middle_block.1.transformer_blocks.0.attn2.to_k.weight")[-1]
    for channels in (inner, *(level[0] for level, own in zip(levels, attends, strict=True) if own)):
        if channels % head:
            raise CheckpointError(
                f"{path}: {channels} channels do not divide into heads of {head} (head_dim)."
            )
    if any(level[0] % dim for level in levels):
        raise CheckpointError(
            f"{path}: the levels have {[level[0] for level in levels]} channels, not multiples of {dim}."
        )
    sizes = Sizes(
        latent=latent,
        dim=dim,
        multipliers=tuple(level[0] // dim for level in levels),
        residuals=residuals,
        attends=tuple(attends),
        context=context,
        head=head,
        heads=inner // head,
        canvas=_canvas(path, config, published.canvas),
        group=_integer(path, config, "decode_chunk", published.group),
    )
    _compare(path, config, sizes)
    return sizes


def _config(path: Path) -> dict[str, Any]:
    """`config.json` next to the file, empty where there is none."""
    file = path.with_name("config.json")
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds no object.")
    return content


def _integer(path: Path, config: Mapping[str, Any], name: str, otherwise: int) -> int:
    value = config.get(name, otherwise)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(
            f"{path.with_name('config.json')} has {name} = {value!r}, expected a whole number from 1 on."
        )
    return value


def _canvas(path: Path, config: Mapping[str, Any], otherwise: tuple[int, int]) -> tuple[int, int]:
    value = config.get("min_canvas", otherwise)
    fits = (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(isinstance(side, int) and side > 0 for side in value)
        and value[0] % 64 == 16
        and value[1] % 64 == 0
    )
    if not fits:
        raise CheckpointError(
            f"{path.with_name('config.json')} has min_canvas = {value!r}, expected a height that is 16 more than a "
            "multiple of 64, and a width that is a multiple of 64."
        )
    return (value[0], value[1])


def _compare(path: Path, config: Mapping[str, Any], sizes: Sizes) -> None:
    """Refuses a `config.json` that says otherwise than the weights."""
    scales = [2.0**-level for level, attends in enumerate(sizes.attends) if attends]
    found = {
        "in_dim": sizes.latent,
        "out_dim": sizes.latent,
        "dim": sizes.dim,
        "y_dim": sizes.context,
        "context_dim": sizes.context,
        "dim_mult": list(sizes.multipliers),
        "num_res_blocks": sizes.residuals,
        "num_heads": sizes.heads,
        "attn_scales": scales,
    }
    for name, value in found.items():
        if name in config and config[name] != value:
            raise CheckpointError(
                f"{path.with_name('config.json')} has {name} = {config[name]!r}, and the weights of {path.name} have "
                f"{value!r}."
            )


def _check_shapes(path: Path, weights: Mapping[str, Tensor], sizes: Sizes) -> None:
    """Names the first tensor that is missing, of another shape or unknown, and says how many are."""
    expected = sizes.shapes()
    if missing := [name for name in expected if name not in weights]:
        raise CheckpointError(f"{path} lacks {missing[0]}{_more(missing)}; {_WANTED}.")
    for name, shape in expected.items():
        if (got := shape_of(weights, name)) != shape:
            raise CheckpointError(f"{path}: {name} has shape {got}, expected {shape}.")
    if unknown := sorted(set(weights) - set(expected)):
        raise CheckpointError(f"{path} has {unknown[0]}{_more(unknown)}, which STAR's networks do not have.")


def _more(names: Collection[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
