"""Tensors as files hold them: which kinds are taken, under which names, and what is refused before it is used.

Weights come off the disk one at a time, and each is looked at as it comes: its kind, and whether it is finite.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vsr_trt.runtime.errors import CheckpointError

WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")
"""What DataParallel, torch.compile and peft put before every name of the module that they wrap."""

_LARGEST = {"FP32": torch.finfo(torch.float32).max, "FP16": torch.finfo(torch.float16).max}
_PLAIN = (Tensor, nn.Parameter)  # others may compute something of their own
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""safetensors' names of the types that are taken."""


# ---------------------------------------------------------------- kinds


def plain(tensor: Tensor, what: str) -> Tensor:
    """An ordinary tensor without gradient, of the same shape, type and memory: what a parameter holds, for example.

    Args:
        tensor: of any kind that `torch.load` makes with `weights_only=True`.
        what: file and name, which begin the message.

    Raises:
        CheckpointError: sparse, quantised, without numbers, or of a type that is no floating point.
    """
    kind = _kind(tensor)
    if kind is not None:
        raise _unusual(what, kind)
    return tensor.detach().resolve_neg()


def _kind(tensor: Tensor) -> str | None:
    if tensor.is_nested:
        return "a nested tensor"
    if type(tensor) not in _PLAIN:
        return f"a {type(tensor).__name__}"
    if tensor.layout != torch.strided:
        return f"sparse ({_short(tensor.layout)})"
    if tensor.is_quantized:
        return f"quantised ({_short(tensor.dtype)})"
    if tensor.device.type != "cpu":
        return f"on the device {tensor.device.type}, without its numbers"
    return None if tensor.dtype in _DTYPES.values() else f"of type {_short(tensor.dtype)}"


def _short(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")


def _unusual(what: str, kind: str) -> CheckpointError:
    return CheckpointError(
        f"{what} is {kind}, expected an ordinary tensor of floating-point numbers. Re-save it as one, in float32 or "
        "float16."
    )


# ---------------------------------------------------------------- numbers


def is_within(tensor: Tensor, precision: str = "FP32") -> bool:
    """Whether all numbers are finite and fit `FP32` or `FP16`; needs no memory for tensors that are FP32."""
    if not tensor.numel():
        return True
    low, high = (float(value) for value in torch.aminmax(tensor.float()))  # NaN if any is
    return -_LARGEST[precision] <= low and high <= _LARGEST[precision]


def refuse_not_finite(tensor: Tensor, what: str) -> None:
    """Refuses NaN and infinity, and what becomes infinite in FP32.

    Args:
        tensor: plain.
        what: file and name, which begin the message.

    Raises:
        CheckpointError: with how many numbers it has that are not finite.
    """
    if not is_within(tensor):
        bad = tensor.numel() - int(tensor.float().isfinite().sum())
        raise CheckpointError(
            f"{what} has {bad} of {tensor.numel()} numbers that are NaN or infinite; expected finite ones. "
            "Download the file again, or take a checkpoint from before the training diverged."
        )


def refuse_overflow(module: nn.Module, precision: str, describe: Callable[[str], str]) -> None:
    """Refuses a network with a weight beyond `FP32` or `FP16`, after all that was merged or folded into it.

    Args:
        module: on the CPU.
        precision: of the graph that will be made.
        describe: file and name of a parameter, which begin the message.

    Raises:
        CheckpointError: naming the first such parameter, and how far it reaches.
    """
    for name, parameter in module.named_parameters():
        if not is_within(parameter.detach(), precision):
            reach = float(parameter.detach().abs().max())
            mend = " Use --precision fp32." if precision == "FP16" and math.isfinite(reach) else ""
            raise CheckpointError(
                f"{describe(name)} reaches {reach:.4g} in the finished network; {precision} ends at "
                f"{_LARGEST[precision]:.6g}.{mend}"
            )


# ---------------------------------------------------------------- names


def common_prefix(names: Iterable[str]) -> str:
    """What wrappers put before all of the names, nested in any order, e.g. `module._orig_mod.`; empty if nothing."""
    names, prefix = list(names), ""
    while names:
        found = next((w for w in WRAPPERS if all(name.startswith(w, len(prefix)) for name in names)), None)
        if found is None:
            break
        prefix += found
    return prefix


@contextlib.contextmanager
def named_in_refusals(parts: Mapping[str, Iterable[str]]) -> Iterator[None]:
    """Ends refusals of a layout with what wrappers have to do with it: their prefix is not all that differs.

    Args:
        parts: what the file or its part is called -> names as they are in the file.
    """
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{error}{prefix_remark(parts)}") from error


def prefix_remark(parts: Mapping[str, Iterable[str]]) -> str:
    """The sentences that begin with a blank, empty where no name of any part has a wrapper's prefix."""
    remark = ""
    for part, found in parts.items():
        names = list(found)
        prefix = common_prefix(names)
        partial = next((w for w in WRAPPERS if any(name.startswith(w, len(prefix)) for name in names)), None)
        if prefix:
            remark += f" All names of {part} begin with {prefix!r}, which a wrapper adds; that prefix is not all that "
            remark += "differs."
        if partial:
            remark += (
                f" Some names of {part} begin with {prefix + partial!r}, which a wrapper adds, and others do not; that "
                "prefix is not all that differs."
            )
    return remark


# ---------------------------------------------------------------- tensors that are read when they are used


class InMemory(Mapping[str, Tensor]):
    """Tensors that `torch.load` gave, made plain as they are taken.

    Args:
        tensors: name -> tensor of any kind.
        what: the file, and what stands before the names in messages.
    """

    def __init__(self, tensors: Mapping[str, Tensor], what: str) -> None:
        self._tensors, self._what = tensors, what

    def __getitem__(self, name: str) -> Tensor:
        return plain(self._tensors[name], f"{self._what}{name}")

    def check_kinds(self) -> None:
        """Refuses the first tensor that is not plain."""
        for name in self._tensors:
            self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class OnDisk(Mapping[str, Tensor]):
    """Tensors of an open safetensors file whose names start with a prefix.

    Args:
        file: open.
        prefix: left out of the names.
        names: without it.
        what: the file, and what stands before the names in messages.
    """

    def __init__(self, file: safe_open, prefix: str, names: Iterable[str], what: str) -> None:
        self._file, self._prefix, self._names, self._what = file, prefix, dict.fromkeys(names), what

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        self._check_kind(name)
        return self._file.get_tensor(self._prefix + name)

    def check_kinds(self) -> None:
        """Refuses the first tensor that is not of floating-point numbers, from the file's header."""
        for name in self._names:
            self._check_kind(name)

    def _check_kind(self, name: str) -> None:
        dtype = self._file.get_slice(self._prefix + name).get_dtype()
        if dtype not in _DTYPES:
            raise _unusual(f"{self._what}{name}", f"of type {dtype}")

    def shape(self, name: str) -> tuple[int, ...]:
        """From the file's header."""
        return tuple(self._file.get_slice(self._prefix + name).get_shape())

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Renamed(Mapping[str, Tensor]):
    """A view of a mapping under other names: `names` has new -> old."""

    def __init__(self, source: Mapping[str, Tensor], names: dict[str, str]) -> None:
        self._source, self._names = source, names

    @staticmethod
    def without(source: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
        """The mapping with that prefix, which all of its names have, left out."""
        return Renamed(source, {name.removeprefix(prefix): name for name in source}) if prefix else source

    def __getitem__(self, name: str) -> Tensor:
        return self._source[self._names[name]]

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns that of the tensor under its other name."""
        return shape_of(self._source, self._names[name])

    def original(self, name: str) -> str:
        """What the tensor is called in the file."""
        return original_name(self._source, self._names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def shape_of(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """A tensor's shape; the tensor is not read where the file's header tells."""
    if isinstance(tensors, (OnDisk, Renamed)):
        return tensors.shape(name)
    return tuple(tensors[name].shape)


def original_name(tensors: Mapping[str, Tensor], name: str) -> str:
    """What a tensor is called in its file."""
    return tensors.original(name) if isinstance(tensors, Renamed) else name


def open_safetensors(path: Path) -> safe_open:
    """Opens a file, tensors unread.

    Raises:
        CheckpointError: truncated, or of another kind.
    """
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is truncated or damaged, or no safetensors file: {error}. Download it again."
        ) from error
