"""Frames on the GPU that belong to the application, and results for it, without a copy.

Two protocols are understood and offered: `__cuda_array_interface__` (version 3,
https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html), which pycuda, CuPy, Numba and torch speak,
and DLPack (https://dmlc.github.io/dlpack/latest/python_spec.html). Streams may be numbers, or objects of
cuda-python, torch or pycuda.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.schedule.memory import ALIGNMENT

_CUDA, _UINT = 2, 1  # DLPack's kDLCUDA and kDLUInt
_LEGACY = 1  # CU_STREAM_LEGACY: what 0 stands for, and what both protocols ask to be written instead


@dataclass(frozen=True)
class DeviceArray:
    """An array of the caller's on the device.

    Attributes:
        address: of its first byte.
        shape: of it; uint8, C-contiguous.
        owner: kept until the frame is done with.
        stream: on which it is written, where its producer says so.
    """

    address: int
    shape: tuple[int, ...]
    owner: Any
    stream: int | None = None

    @property
    def is_aligned(self) -> bool:
        """Whether engines can read it where it lies; a part of a larger array may lie anywhere."""
        return self.address % ALIGNMENT == 0

    def check(self, expected: Sequence[int]) -> None:
        """Refuses another shape than (H,W,3) `expected`.

        Raises:
            InputError: says both.
        """
        if self.shape != tuple(expected):
            raise InputError(f"a frame on the GPU must have the shape {tuple(expected)}, not {self.shape}.")


def on_device(frame: Any) -> bool:
    """Whether a frame says that it lies on a GPU."""
    if hasattr(frame, "__cuda_array_interface__"):
        return True
    return hasattr(frame, "__dlpack_device__") and int(frame.__dlpack_device__()[0]) == _CUDA


def device_array(frame: Any, stream: int | None = None) -> DeviceArray:
    """A frame on the device, (H,W,3) uint8, C-contiguous, as it lies.

    Args:
        frame: has `__cuda_array_interface__` or `__dlpack__`.
        stream: that it will be read on; its producer may make it wait.

    Raises:
        InputError: another type or layout.
    """
    interface = getattr(frame, "__cuda_array_interface__", None)
    if interface is not None:
        if interface["typestr"] not in ("|u1", "<u1", "=u1", ">u1"):
            raise InputError(f"a frame must be uint8, not {interface['typestr']}.")
        shape = tuple(int(size) for size in interface["shape"])
        _contiguous(shape, interface.get("strides"))
        producer = interface.get("stream")
        if producer == 0:
            raise InputError(
                "a frame's __cuda_array_interface__ names the stream 0, which that protocol rules out."
            )
        return DeviceArray(int(interface["data"][0]), shape, frame, producer)
    # -1: the producer need not wait for anything. Without a stream of ours the caller has waited already.
    capsule = frame.__dlpack__(stream=-1 if stream is None else stream)
    tensor = _Managed.from_address(_pointer(capsule)).tensor
    if tensor.device_type != _CUDA:
        raise InputError("the frame does not lie on a CUDA device.")
    if tensor.device_id != 0:
        raise InputError(f"the frame lies on CUDA device {tensor.device_id}; this version uses device 0.")
    if (tensor.code, tensor.bits, tensor.lanes) != (_UINT, 8, 1):
        raise InputError(f"a frame must be uint8, not DLPack type {tensor.code} of {tensor.bits} bits.")
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None
    _contiguous(shape, strides)
    # The capsule is not renamed: it stays the owner, and gives its tensor back when it goes.
    return DeviceArray(int(tensor.data or 0) + int(tensor.byte_offset), shape, capsule)


def stream_address(stream: Any) -> int | None:
    """The address of a caller's stream; None for none.

    Args:
        stream: a number; cuda-python's CUstream or cuda.core's Stream; torch.cuda.Stream; pycuda.driver.Stream;
            anything with `__cuda_stream__`.

    Raises:
        InputError: none of these.
    """
    if stream is None:
        return None
    found: int | None = None
    if isinstance(stream, int) and not isinstance(stream, bool):
        found = stream
    elif hasattr(stream, "__cuda_stream__"):
        protocol = stream.__cuda_stream__
        found = int((protocol() if callable(protocol) else protocol)[1])
    elif attributes := [
        name for name in ("cuda_stream", "handle") if hasattr(stream, name)
    ]:  # torch's, pycuda's
        found = int(getattr(stream, attributes[0]))
    elif type(stream).__module__.startswith("cuda.") and hasattr(stream, "__int__"):
        found = int(stream)
    if found is not None:
        return found or _LEGACY  # the default stream, torch's for example
    raise InputError(
        f"{type(stream).__name__} is no CUDA stream: expected its address as a number, or a stream of cuda-python, "
        "torch or pycuda."
    )


class DeviceFrame:
    """A restored frame where it lies on the device, (4H,4W,3) uint8, finished. It is valid until the next frame is
    pushed, or the Restorer closed: copy what is needed for longer, on the Restorer's stream or before that.

    Args:
        address: of its first byte.
        shape: (4H,4W,3).
    """

    def __init__(self, address: int, shape: tuple[int, ...]) -> None:
        self.address, self.shape, self.dtype = address, shape, "uint8"

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": "|u1",
            "data": (self.address, False),
            "strides": None,
            "stream": None,  # nothing is to be waited for
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, 0

    def __dlpack__(
        self, *, stream: Any = None, dl_device: Any = None, copy: bool | None = None, **newer: Any
    ) -> Any:
        """A capsule.

        Raises:
            BufferError: a copy, or another device, is asked for.
        """
        if copy or dl_device not in (None, (_CUDA, 0)):
            raise BufferError("a restored frame is given as it lies on CUDA device 0, and not copied.")
        return _export(self.address, self.shape)


def _contiguous(shape: tuple[int, ...], strides: Sequence[int] | None) -> None:
    expected, step = [], 1
    for size in reversed(shape):
        expected.append(step)
        step *= size
    if strides is not None and tuple(strides) != tuple(reversed(expected)):
        raise InputError(f"a frame on the GPU must be C-contiguous; its strides are {tuple(strides)}.")


class _Tensor(ctypes.Structure):
    """DLTensor of dlpack.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    """DLManagedTensor of dlpack.h."""

    _fields_ = (("tensor", _Tensor), ("manager_ctx", ctypes.c_void_p), ("deleter", _Deleter))


_NAME = b"dltensor"
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_get = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_is_named = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
# Descriptions of tensors that were given out. Results lie at the same few addresses for ever, so they are few, and
# nobody has to tell when a consumer is done with one: no deleter, and no code of ours in another library's clean-up.
_exported: dict[tuple[int, tuple[int, ...]], tuple[_Managed, Any]] = {}


def _pointer(capsule: Any) -> int:
    if not _is_named(id(capsule), _NAME):
        raise InputError("the frame's DLPack capsule was used already.")
    return int(_get(id(capsule), _NAME))


def _export(address: int, shape: tuple[int, ...]) -> Any:
    if (address, shape) not in _exported:
        sizes = (ctypes.c_int64 * len(shape))(*shape)
        tensor = _Tensor(address, _CUDA, 0, len(shape), _UINT, 8, 1, sizes, None, 0)
        _exported[address, shape] = _Managed(tensor, None, _Deleter()), sizes
    managed, _ = _exported[address, shape]
    return _new(ctypes.addressof(managed), _NAME, None)
