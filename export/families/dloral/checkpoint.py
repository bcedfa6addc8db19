"""Reading a DLoRAL checkpoint: as published (`model.pkl`) or re-saved as safetensors.

The published file is `torch.save` of a dict: `state_dict_unet` holds the whole UNet under peft's names,
`state_dict_bpp` the cross-frame module, next to lists of module names and ranks. The re-saved form holds
the same tensors as `state_dict_unet.<name>` and `state_dict_bpp.<name>`. Nothing in a file is executed,
and tensors are read when they are used.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from vsr_trt.export.pickles import load_pickle
from vsr_trt.export.tensors import (
    InMemory,
    OnDisk,
    Renamed,
    common_prefix,
    named_in_refusals,
    open_safetensors,
    original_name,
    prefix_remark,
    refuse_not_finite,
    shape_of,
)
from vsr_trt.runtime.errors import CheckpointError

_UNET, _CFR = "state_dict_unet", "state_dict_bpp"
PARTS = (_UNET, _CFR)
_LORA = re.compile(r"(.+)\.lora_([AB])\.([^.]+)\.weight")
QUALITY = ("default_encoder_quality", "default_decoder_quality", "default_others_quality")
CONSISTENCY = ("default_encoder_consistency", "default_decoder_consistency", "default_others_consistency")
ADAPTERS = QUALITY + CONSISTENCY
_LISTS = {name: "unet_lora_{1}_modules_{2}".format(*name.split("_")) for name in ADAPTERS}
_CFR_SHAPES: dict[str, tuple[int, ...]] = {
    f"spynet.basic_module.{level}.basic_module.{index}.conv.weight": shape
    for level in range(6)
    for index, shape in enumerate(
        [(32, 8, 7, 7), (64, 32, 7, 7), (32, 64, 7, 7), (16, 32, 7, 7), (2, 16, 7, 7)]
    )
}
_LATENT = 4


@dataclass(frozen=True)
class LowRank:
    """One adapter's update of one layer: weight + scale * B A, before the adapter's own weight."""

    A: Tensor
    B: Tensor

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.A.shape[0]


@dataclass(frozen=True)
class Checkpoint:
    """A recognised DLoRAL checkpoint.

    Attributes:
        path: the file.
        layout: `dloral-pkl` or `dloral-safetensors`.
        base: the UNet's own tensors under diffusers' names, adapters left out.
        adapters: layer -> adapter -> its update.
        cfr: tensors of the cross-frame module under their published names.
        prefixes: part -> what a wrapper had put before all of its names, which was left out of the names here.
        remark: ends a refusal because of the layout: what such prefixes have to do with it.
    """

    path: Path
    layout: str
    base: Mapping[str, Tensor]
    adapters: Mapping[str, Mapping[str, LowRank]]
    cfr: Mapping[str, Tensor]
    prefixes: Mapping[str, str] = field(default_factory=dict)
    remark: str = ""

    def describe(self, name: str) -> str:
        """File and name, as it is in the file, of one of `base`; begins a message."""
        return f"{self.path}: {_UNET}.{original_name(self.base, name)}"

    def describe_half(self, layer: str, adapter: str, half: str) -> str:
        """The same for half A or B of an adapter's update."""
        prefix = self.prefixes.get(_UNET, "")
        return f"{self.path}: {_UNET}.{prefix}{layer}.lora_{half}.{adapter}.weight"


def load(path: Path) -> Checkpoint:
    """Opens and recognises a checkpoint; tensors stay on disk until they are used.

    Raises:
        CheckpointError: missing, truncated, holding code, of another layout, or with tensors that are no plain
            numbers. Whether the UNet's are finite shows when they are merged.
    """
    if not path.is_file():
        problem = "is a directory" if path.is_dir() else "does not exist"
        way = "" if path.is_dir() else " This gets it: vsr-build fetch dloral --to weights."
        raise CheckpointError(f"{path} {problem}; expected a DLoRAL checkpoint (model.pkl).{way}")
    if path.suffix == ".safetensors":
        layout, (unet, cfr, entries) = "dloral-safetensors", _open_safetensors(path)
    else:
        layout, (unet, cfr, entries) = "dloral-pkl", _open_pickle(path)
    unet.check_kinds()
    parts = {_UNET: list(unet), _CFR: list(cfr)}
    prefixes = {part: prefix for part, names in parts.items() if (prefix := common_prefix(names))}
    plain_cfr = Renamed.without(cfr, prefixes.get(_CFR, ""))
    with named_in_refusals(parts):
        base, adapters = _split(path, Renamed.without(unet, prefixes.get(_UNET, "")))
        _check_lists(path, base, adapters, entries, prefixes.get(_UNET, ""))
        used = _check_cfr(path, plain_cfr)
    for name in used:
        refuse_not_finite(plain_cfr[name], f"{path}: {_CFR}.{original_name(plain_cfr, name)}")
    return Checkpoint(path, layout, base, adapters, plain_cfr, prefixes, prefix_remark(parts))


_Opened = tuple[InMemory | OnDisk, InMemory | OnDisk, Mapping[str, object]]
"""The UNet's tensors, the cross-frame module's, and the entries that are no tensors."""


def _open_pickle(path: Path) -> _Opened:
    content = load_pickle(path)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, expected a dict of a DLoRAL trainer."
        )
    for name in (_UNET, _CFR):
        part = content.get(name)
        if not isinstance(part, dict) or not all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in part.items()
        ):
            raise CheckpointError(f"{path} is no DLoRAL checkpoint: it has no '{name}'.{_guess(content)}")
    unet, cfr = (InMemory(content[name], f"{path}: {name}.") for name in (_UNET, _CFR))
    return unet, cfr, content


def _open_safetensors(path: Path) -> _Opened:
    file = open_safetensors(path)
    keys = list(file.keys())
    metadata = file.metadata() or {}
    parts = []
    for name in (_UNET, _CFR):
        names = [key.removeprefix(f"{name}.") for key in keys if key.startswith(f"{name}.")]
        if not names:
            raise CheckpointError(f"{path} is no DLoRAL checkpoint: it has no '{name}.*'.{_guess(keys)}")
        parts.append(OnDisk(file, f"{name}.", names, f"{path}: {name}."))
    entries = {}
    for name, text in metadata.items():
        with contextlib.suppress(ValueError, RecursionError):  # metadata of any other kind
            entries[name] = json.loads(text)
    return parts[0], parts[1], entries


def _guess(keys: object) -> str:
    """A sentence about what the file may be instead."""
    names = [key for key in keys if isinstance(key, str)] if isinstance(keys, (dict, list)) else []
    if isinstance(keys, dict) and isinstance(keys.get("state_dict"), dict):
        names += [key for key in keys["state_dict"] if isinstance(key, str)]
    if any(name.startswith("model.diffusion_model.") for name in names):
        return " It looks like a plain Stable Diffusion checkpoint; pass the trained DLoRAL model.pkl."
    if any(name.startswith(("down_blocks.", "conv_in.")) for name in names):
        return " It looks like the UNet of a Stable Diffusion directory; pass the trained DLoRAL model.pkl."
    found = ", ".join(sorted(names)[:3])
    return f" It has: {found}." if found else ""


def _split(
    path: Path, unet: Mapping[str, Tensor]
) -> tuple[Mapping[str, Tensor], dict[str, dict[str, LowRank]]]:
    """Separates peft's names: `X.base_layer.weight` and `X.lora_A.<adapter>.weight`."""
    base: dict[str, str] = {}
    halves: dict[tuple[str, str], dict[str, str]] = {}
    for name in unet:
        if match := _LORA.fullmatch(name):
            layer, half, adapter = match.groups()
            halves.setdefault((layer, adapter), {})[half] = name
        else:
            plain = name.replace(".base_layer.", ".")
            if plain in base:
                raise CheckpointError(f"{path} has both {_UNET}.{base[plain]} and {_UNET}.{name}.")
            base[plain] = name
    adapters: dict[str, dict[str, LowRank]] = {}
    for (layer, adapter), names in halves.items():
        if adapter not in ADAPTERS:
            raise CheckpointError(
                f"{path} has an adapter {adapter!r} at {layer}; expected are {', '.join(ADAPTERS)}."
            )
        for half in "AB":
            if half not in names:
                raise CheckpointError(f"{path} lacks {layer}.lora_{half}.{adapter}.weight.")
        update = LowRank(unet[names["A"]], unet[names["B"]])
        if f"{layer}.weight" not in base:
            raise CheckpointError(f"{path} lacks {layer}.base_layer.weight, which {adapter} adapts.")
        _check_update(path, layer, adapter, shape_of(unet, base[f"{layer}.weight"]), update)
        adapters.setdefault(layer, {})[adapter] = update
    found = {adapter for updates in adapters.values() for adapter in updates}
    if missing := [adapter for adapter in ADAPTERS if adapter not in found]:
        raise CheckpointError(f"{path} is no DLoRAL checkpoint: it has no adapter {missing[0]!r}.")
    return Renamed(unet, base), adapters


def _check_lists(
    path: Path,
    base: Mapping[str, Tensor],
    adapters: Mapping[str, Mapping[str, LowRank]],
    entries: Mapping[str, object],
    prefix: str,
) -> None:
    """Names the first layer that the trainer listed as adapted, with a wrapper's prefix or without, and is not."""
    for adapter, name in _LISTS.items():
        layers = entries.get(name)
        for listed in layers if isinstance(layers, list) else ():
            layer = str(listed).removeprefix(prefix)
            if f"{layer}.weight" in base and adapter not in adapters.get(layer, {}):
                raise CheckpointError(f"{path} lacks {layer}.lora_A.{adapter}.weight, which its {name} has.")


def _check_update(path: Path, layer: str, adapter: str, shape: tuple[int, ...], update: LowRank) -> None:
    if len(shape) not in (2, 4):
        raise CheckpointError(
            f"{path}: {layer}.base_layer.weight has shape {shape}, "
            f"expected a linear layer's or a convolution's, because {adapter} adapts it."
        )
    rank = max(1, update.rank) if update.A.ndim else 1
    expected_A = (rank, *shape[1:])
    expected_B = (shape[0], rank, *(1 for _ in shape[2:]))
    for half, tensor, expected in (("A", update.A, expected_A), ("B", update.B, expected_B)):
        if tuple(tensor.shape) != expected:
            raise CheckpointError(
                f"{path}: {layer}.lora_{half}.{adapter}.weight has shape {tuple(tensor.shape)}, "
                f"expected {expected} next to a weight of {shape}."
            )


def _check_cfr(path: Path, cfr: Mapping[str, Tensor]) -> list[str]:
    """Names the first tensor of SpyNet or the attention that is missing or does not fit; returns their names."""
    expected = dict(_CFR_SHAPES)
    for name, shape in _CFR_SHAPES.items():
        expected[name.replace(".weight", ".bias")] = shape[:1]
    _check_shapes(path, cfr, expected)
    threshold = "cross_attn_module.threshold_fc.weight"
    query = "cross_attn_module.query_conv.weight"
    for name in (threshold, query):
        if name not in cfr:
            raise CheckpointError(f"{path} lacks {_CFR}.{name}.")
    rows, width = (*cfr[query].shape, 0)[0], (0, *cfr[threshold].shape)[-1]
    if not rows or not width or rows % width:
        raise CheckpointError(f"{path}: {rows} rows of {query} do not divide into heads of {width}.")
    attention: dict[str, tuple[int, ...]] = {"threshold_fc.weight": (1, width), "threshold_fc.bias": (1,)}
    for part in ("query", "key", "value"):
        attention |= {f"{part}_conv.weight": (rows, _LATENT, 1, 1), f"{part}_conv.bias": (rows,)}
    attention |= {"proj_out.weight": (_LATENT, rows, 1, 1), "proj_out.bias": (_LATENT,)}
    own = {f"cross_attn_module.{name}": shape for name, shape in attention.items()}
    _check_shapes(path, cfr, own)
    return [*expected, *own]


def _check_shapes(path: Path, tensors: Mapping[str, Tensor], expected: dict[str, tuple[int, ...]]) -> None:
    for name, shape in expected.items():
        if name not in tensors:
            raise CheckpointError(f"{path} lacks {_CFR}.{name}.")
        got = shape_of(tensors, name)
        if got != shape:
            raise CheckpointError(f"{path}: {_CFR}.{name} has shape {got}, expected {shape}.")
