"""The published file layouts, written tensor by tensor.

A model is described as names -> :class:`LazyTensor`; the values of a tensor are made block by block while the
file is written, so a checkpoint of gigabytes costs a few megabytes of memory. Every file is written beside
its final name and renamed when it is whole.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

log = logging.getLogger(__name__)

Block = np.ndarray
Progress = Callable[[str, float], None]
Json = dict[str, Any]

SD_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
PARTS = ("encoder", "decoder", "others")
ADAPTERS = ("quality", "consistency")
STATE_DICTS = ("state_dict_unet", "state_dict_bpp")
CHECKPOINT_FILE = {"pkl": "model.pkl", "safetensors": "model.safetensors"}

# The published trainer's patterns, searched for in a parameter's name ("conv" alone takes every convolution).
LORA_PATTERNS = (
    "to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_in", "conv_shortcut", "conv_out",
    "proj_out", "proj_in", "ff.net.2", "ff.net.0.proj",
)  # fmt: skip

_BLOCK_BYTES = 1 << 24
_PKL_ALIGNMENT = 64  # as torch.save: a mapped tensor then starts on a cache line
_SAFETENSORS_NAMES = {torch.float16: "F16", torch.float32: "F32", torch.int64: "I64"}
_STORAGE_CLASSES: dict[torch.dtype, type] = {
    torch.float16: torch.HalfStorage,
    torch.float32: torch.FloatStorage,
    torch.int64: torch.LongStorage,
}
_NUMPY_DTYPES: dict[torch.dtype, type] = {
    torch.float16: np.float16,
    torch.float32: np.float32,
    torch.int64: np.int64,
}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor known by shape and type whose values are made only when they are written.

    `blocks` yields the values in row-major order as flat arrays of any lengths that sum up to the size.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: Callable[[], Iterator[Block]]

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the values in a file."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Checkpoint:
    """What a DLoRAL checkpoint holds: the two state dicts, and the plain entries (module lists, ranks)."""

    unet: Mapping[str, LazyTensor]
    bpp: Mapping[str, LazyTensor]
    plain: Mapping[str, Any]

    @property
    def state_dicts(self) -> dict[str, Mapping[str, LazyTensor]]:
        """The state dicts under their names in the file."""
        return {"state_dict_unet": self.unet, "state_dict_bpp": self.bpp}


def held(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> LazyTensor:
    """A lazy tensor of a tensor in memory (or mapped from a file); `dtype` converts it."""
    kind = dtype or tensor.dtype
    rows = tensor.detach()

    def blocks() -> Iterator[Block]:
        step = _BLOCK_BYTES // rows.element_size()
        flat = rows.contiguous().reshape(-1)
        for start in range(0, flat.numel(), step):
            yield flat[start : start + step].to(kind).numpy()

    return LazyTensor(tuple(tensor.shape), kind, blocks)


def total_bytes(tensors: Mapping[str, LazyTensor]) -> int:
    """Bytes that the tensors take in a file."""
    return sum(tensor.nbytes for tensor in tensors.values())


# ---------------------------------------------------------------- files


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as handle:
            yield handle
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON as the libraries that read it do: two spaces, one line end at the end."""
    with whole_file(path) as handle:
        handle.write((json.dumps(content, indent=2) + "\n").encode())


def _copy_values(
    name: str, tensor: LazyTensor, write: Callable[[bytes], Any], advance: Callable[[int], None]
) -> None:
    written = 0
    for block in tensor.blocks():
        data = np.ascontiguousarray(block, dtype=_NUMPY_DTYPES[tensor.dtype]).tobytes()
        write(data)
        written += len(data)
        advance(len(data))
    if written != tensor.nbytes:
        raise ValueError(f"{name}: its blocks hold {written} bytes, its shape {tensor.shape} {tensor.nbytes}")


def _no_advance(count: int) -> None:
    del count


def write_safetensors(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str] | None = None,
    advance: Callable[[int], None] = _no_advance,
) -> None:
    """Writes a safetensors file, one block of values at a time. `advance` is told the bytes written."""
    # Most aligned type first, as the library does: then every tensor starts at a multiple of its item size.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: Json = {"__metadata__": {"format": "pt", **(metadata or {})}}
    start = 0
    for name in order:
        tensor = tensors[name]
        end = start + tensor.nbytes
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(path) as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            _copy_values(name, tensors[name], handle.write, advance)


# ---------------------------------------------------------------- torch.save's zip


@dataclass(frozen=True)
class _Storage:
    """Stands in a pickle for the storage that is record `data/<key>` of the archive."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class _Tensor:
    """Stands in a pickle for a tensor that is all of one storage."""

    storage: _Storage
    shape: tuple[int, ...]


class _ArchivePickler(pickle.Pickler):
    """Pickles the stand-ins the way torch.save pickles tensors."""

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, _Storage):
            return ("storage", _STORAGE_CLASSES[obj.dtype], obj.key, "cpu", obj.numel)
        return None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, _Tensor):
            stride = tuple(math.prod(obj.shape[i + 1 :]) for i in range(len(obj.shape)))
            arguments: tuple[Any, ...] = (obj.storage, 0, obj.shape, stride, False, OrderedDict())
            return torch._utils._rebuild_tensor_v2, arguments
        return NotImplemented


def _record(archive: zipfile.ZipFile, handle: BinaryIO, name: str) -> zipfile.ZipInfo:
    """The zip entry of a record; a padding field aligns its content."""
    info = zipfile.ZipInfo(name)  # dated 1980: the same values give the same bytes
    content = handle.tell() + 30 + len(name.encode()) + 4
    info.extra = struct.pack("<2sH", b"FB", -content % _PKL_ALIGNMENT) + b"Z" * (-content % _PKL_ALIGNMENT)
    return info


def write_pkl(path: Path, checkpoint: Checkpoint, advance: Callable[[int], None] = _no_advance) -> None:
    """Writes the published form: what `torch.save(dict)` writes, one block of values at a time.

    torch.save itself would need all tensors in memory (or mapped, and so counted as such).
    """
    content: Json = dict(checkpoint.plain)
    storages: list[tuple[str, LazyTensor]] = []
    for group, tensors in checkpoint.state_dicts.items():
        entries: OrderedDict[str, _Tensor] = OrderedDict()
        for name, tensor in tensors.items():
            storage = _Storage(str(len(storages)), tensor.dtype, tensor.numel)
            storages.append((f"{group}.{name}", tensor))
            entries[name] = _Tensor(storage, tensor.shape)
        content[group] = entries
    with whole_file(path) as handle, zipfile.ZipFile(handle, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(_record(archive, handle, "archive/data.pkl"), "w") as record:
            _ArchivePickler(record, protocol=2).dump(content)
        archive.writestr(_record(archive, handle, "archive/byteorder"), b"little")
        for key, (name, tensor) in enumerate(storages):
            with archive.open(_record(archive, handle, f"archive/data/{key}"), "w") as record:
                _copy_values(name, tensor, record.write, advance)
        archive.writestr(_record(archive, handle, "archive/version"), b"3\n")


# ---------------------------------------------------------------- the checkpoint


def lora_modules(parameters: Sequence[str]) -> dict[str, list[str]]:
    """Sorts the UNet's parameter names into the modules that get an encoder, decoder or other adapter."""
    found: dict[str, list[str]] = {part: [] for part in PARTS}
    for name in parameters:
        if "bias" in name or "norm" in name or not any(pattern in name for pattern in LORA_PATTERNS):
            continue
        if "down_blocks" in name or "conv_in" in name:
            part = "encoder"
        elif "up_blocks" in name or "conv_out" in name:
            part = "decoder"
        else:
            part = "others"
        found[part].append(name.replace(".weight", ""))
    return found


def lora_shapes(weight: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of A and B of an adapter on a linear (O,I) or convolution (O,I,k,k) weight."""
    outputs, *inputs = weight
    return (rank, *inputs), (outputs, rank) if len(weight) == 2 else (outputs, rank, 1, 1)


def peft_state_dict(
    unet: Mapping[str, LazyTensor],
    modules: Mapping[str, list[str]],
    rank: int,
    adapter: Callable[[str, tuple[int, ...]], LazyTensor],
) -> dict[str, LazyTensor]:
    """The UNet's tensors under peft's names, with both adapters of every target module.

    `adapter` makes one: it gets the tensor's name in the file and its shape.
    """
    part_of = {module: part for part, names in modules.items() for module in names}
    result: dict[str, LazyTensor] = {}
    for name, tensor in unet.items():
        module, _, leaf = name.rpartition(".")
        if module not in part_of:
            result[name] = tensor
            continue
        result[f"{module}.base_layer.{leaf}"] = tensor
        if leaf == "weight":
            weight, part = tensor, part_of[module]
        if leaf == "bias" or f"{module}.bias" not in unet:
            for letter, shape in zip("AB", lora_shapes(weight.shape, rank), strict=True):
                for kind in ADAPTERS:
                    full = f"{module}.lora_{letter}.default_{part}_{kind}.weight"
                    result[full] = adapter(full, shape)
    return result


def plain_entries(modules: Mapping[str, list[str]], rank: int) -> Json:
    """The checkpoint's entries that are no tensors, in the order of the published file."""
    entries: Json = {
        f"unet_lora_{part}_modules_{kind}": list(modules[part]) for kind in ADAPTERS for part in PARTS
    }
    return entries | {f"lora_rank_unet_{kind}": rank for kind in ADAPTERS}


def bpp_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of `state_dict_bpp`: SpyNet, the CFR attention, and all that inference never uses."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, outputs: int, inputs: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
        shapes[f"{name}.bias"] = (outputs,)

    def residual_blocks(name: str, outputs: int, inputs: int, count: int) -> None:
        conv(f"{name}.main.0", outputs, inputs, 3)
        for block in range(count):
            conv(f"{name}.main.2.{block}.conv1", outputs, outputs, 3)
            conv(f"{name}.main.2.{block}.conv2", outputs, outputs, 3)

    residual_blocks("feat_extract", 64, 4, 5)
    shapes["spynet.mean"] = shapes["spynet.std"] = (1, 3, 1, 1)
    for level in range(6):
        for index, (inputs, outputs) in enumerate(((8, 32), (32, 64), (64, 32), (32, 16), (16, 2))):
            conv(f"spynet.basic_module.{level}.basic_module.{index}.conv", outputs, inputs, 7)
    for name in ("query_conv", "key_conv", "value_conv"):
        conv(f"cross_attn_module.{name}", 576, 4, 1)
    conv("cross_attn_module.proj_out", 4, 576, 1)
    shapes["cross_attn_module.threshold_fc.weight"] = (1, 64)
    shapes["cross_attn_module.threshold_fc.bias"] = (1,)
    residual_blocks("weight_predict", 64, 3, 5)
    residual_blocks("weight_predict_final", 1, 64, 1)
    residual_blocks("reconstruction_feat", 64, 64, 5)
    conv("conv_hr", 64, 64, 3)
    conv("conv_last", 4, 64, 3)
    return shapes


def write_checkpoint_safetensors(
    path: Path, checkpoint: Checkpoint, advance: Callable[[int], None] = _no_advance
) -> None:
    """Writes the re-saved form of a DLoRAL checkpoint.

    Tensors are named `state_dict_unet.X` and `state_dict_bpp.X`; the plain entries are in the file's metadata
    under their own names, each as JSON text.
    """
    tensors = {
        f"{group}.{name}": tensor
        for group, members in checkpoint.state_dicts.items()
        for name, tensor in members.items()
    }
    metadata = {name: json.dumps(value) for name, value in checkpoint.plain.items()}
    write_safetensors(path, tensors, metadata, advance)


def write_checkpoint(
    path: Path, checkpoint: Checkpoint, advance: Callable[[int], None] = _no_advance
) -> None:
    """Writes a checkpoint in the form that the ending of `path` names: `.pkl` or `.safetensors`."""
    if path.suffix == ".pkl":
        write_pkl(path, checkpoint, advance)
    elif path.suffix == ".safetensors":
        write_checkpoint_safetensors(path, checkpoint, advance)
    else:
        raise ValueError(f"a checkpoint is written as .pkl or .safetensors, not as {path.name}")


def resave_as_safetensors(pkl: Path, out: Path) -> Path:
    """Re-saves a DLoRAL checkpoint (`torch.save` form) as safetensors, values untouched. Returns `out`."""
    content = torch.load(pkl, map_location="cpu", weights_only=True, mmap=True)
    missing = [name for name in STATE_DICTS if not isinstance(content, dict) or name not in content]
    if missing:
        raise ValueError(
            f"{pkl} is not a DLoRAL checkpoint: no {' and no '.join(missing)} in it; expected the dict "
            "that the DLoRAL trainer saves (model.pkl)"
        )
    groups = {name: {key: held(tensor) for key, tensor in content.pop(name).items()} for name in STATE_DICTS}
    checkpoint = Checkpoint(groups["state_dict_unet"], groups["state_dict_bpp"], content)
    write_checkpoint_safetensors(out, checkpoint)
    log.info("re-saved %s as %s", pkl, out)
    return out


# ---------------------------------------------------------------- the Stable Diffusion directory


def byte_vocabulary() -> dict[str, int]:
    """A CLIP-style vocabulary without merges: the 256 bytes, the 256 that end a word, and the two marks.

    The order of the bytes is CLIP's, so that `!` is id 0: Stable Diffusion 2.1 pads with it.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    return {word: index for index, word in enumerate(words)}


def write_tokenizer(out: Path, tokenizer: Path | None) -> dict[str, int]:
    """Writes the tokenizer's directory and returns its vocabulary.

    `tokenizer` is a directory with CLIP's vocab.json and merges.txt; None writes :func:`byte_vocabulary`,
    which splits any prompt into bytes.
    """
    if tokenizer is None:
        vocabulary, merges = byte_vocabulary(), b"#version: 0.2\n"
    else:
        for name in ("vocab.json", "merges.txt"):
            if not (tokenizer / name).is_file():
                raise FileNotFoundError(f"{tokenizer} has no {name}; expected a CLIP tokenizer's directory")
        vocabulary = json.loads((tokenizer / "vocab.json").read_text(encoding="utf-8"))
        merges = (tokenizer / "merges.txt").read_bytes()
    with whole_file(out / "vocab.json") as handle:
        handle.write(json.dumps(vocabulary, ensure_ascii=False).encode())
    with whole_file(out / "merges.txt") as handle:
        handle.write(merges)
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "!",
    }
    write_json(out / "special_tokens_map.json", special)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    write_json(out / "tokenizer_config.json", {**settings, **special, "errors": "replace"})
    return vocabulary


def write_frame_files(sd: Path) -> None:
    """Writes the files of the Stable Diffusion directory that hold no weights: index and scheduler."""
    libraries = {
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    pipeline = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.25.0"}
    write_json(sd / "model_index.json", {**pipeline, **libraries})
    scheduler = {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": "0.25.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "steps_offset": 0,
        "timestep_spacing": "leading",
        "variance_type": "fixed_small",
    }
    write_json(sd / "scheduler" / "scheduler_config.json", scheduler)


def refuse_to_overwrite(out: Path, overwrite: bool) -> None:
    """Raises FileExistsError where `out` holds something and may not be overwritten."""
    if not overwrite and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"{out} exists and is not empty; choose another directory or pass overwrite=True"
        )
