"""Frames and streams of other libraries: what is taken, what is offered, what is refused."""

from __future__ import annotations

import ctypes
import gc
import types
from typing import Any

import numpy as np
import pytest
import torch

from runtime.cuda import interop
from runtime.cuda.interop import DeviceFrame, device_array, on_device, stream_address
from runtime.errors import InputError


class OnlyDLPack:
    """A frame on the device that speaks DLPack alone."""

    def __init__(self, frame: DeviceFrame) -> None:
        self.frame, self.asked = frame, []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.frame.__dlpack_device__()

    def __dlpack__(self, *, stream: Any = None) -> Any:
        self.asked.append(stream)
        return self.frame.__dlpack__(stream=stream)


def interface(**changes: Any) -> Any:
    values = {
        "version": 3,
        "shape": (4, 5, 3),
        "typestr": "|u1",
        "data": (4096, False),
        "strides": None,
        "stream": None,
    }
    return types.SimpleNamespace(__cuda_array_interface__=values | changes)


def test_a_result_is_taken_by_its_own_protocols() -> None:
    frame = DeviceFrame(0x7000, (8, 12, 3), 5, None)
    for other in (frame, OnlyDLPack(frame)):
        assert on_device(other)
        taken = device_array(other)
        assert (taken.address, taken.shape) == (0x7000, (8, 12, 3))
    assert frame.__cuda_array_interface__["stream"] == 5


def test_producers_are_told_the_stream() -> None:
    frame = OnlyDLPack(DeviceFrame(0x7000, (8, 12, 3), None, None))
    device_array(frame)
    device_array(frame, stream=77)
    assert frame.asked == [-1, 77], "-1: the caller has waited"


def test_capsules_keep_the_frame_and_let_it_go() -> None:
    alive: list[Any] = []

    class Owner:
        def __del__(self) -> None:
            alive.append("gone")

    frame = DeviceFrame(0x7000, (2, 2, 3), None, Owner())
    before = len(interop._exported)
    capsule = frame.__dlpack__()
    del frame
    gc.collect()
    assert not alive, "whoever holds the capsule may still read"
    del capsule
    gc.collect()
    assert alive == ["gone"]
    assert len(interop._exported) == before


def test_a_tensor_that_was_taken_over_is_let_go_by_its_deleter() -> None:
    frame = DeviceFrame(0x7000, (2, 2, 3), None, None)
    before = len(interop._exported)
    capsule = frame.__dlpack__()
    place = interop._pointer(capsule)
    name = ctypes.create_string_buffer(b"used_dltensor")  # what a consumer does
    rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)(
        ("PyCapsule_SetName", ctypes.pythonapi)
    )
    assert rename(capsule, ctypes.addressof(name)) == 0
    with pytest.raises(InputError, match="used already"):
        interop._pointer(capsule)
    del capsule
    gc.collect()
    assert len(interop._exported) == before + 1, "the consumer has it now"
    managed = interop._Managed.from_address(place)
    managed.deleter(place)
    assert len(interop._exported) == before


def test_layouts_that_would_be_misread_are_refused() -> None:
    assert device_array(interface(strides=(15, 3, 1))).address == 4096
    with pytest.raises(InputError, match="C-contiguous"):
        device_array(interface(strides=(16, 3, 1)))
    with pytest.raises(InputError, match="uint8"):
        device_array(interface(typestr="<f4"))
    with pytest.raises(InputError, match=r"shape \(4, 6, 3\), not \(4, 5, 3\)"):
        device_array(interface()).check((4, 6, 3))


def test_torch_on_the_cpu_is_no_frame_on_a_gpu() -> None:
    assert not on_device(torch.zeros(4, 4, 3, dtype=torch.uint8))
    assert not on_device(np.zeros((4, 4, 3), np.uint8))


def test_streams_of_all_kinds() -> None:
    from cuda.bindings import driver

    class Protocol:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, 44

    assert stream_address(None) is None
    assert stream_address(11) == 11
    assert stream_address(driver.CUstream(22)) == 22
    assert stream_address(types.SimpleNamespace(cuda_stream=33)) == 33  # torch.cuda.Stream
    assert stream_address(types.SimpleNamespace(handle=55)) == 55  # pycuda.driver.Stream
    assert stream_address(Protocol()) == 44  # cuda.core, and whoever follows
    for wrong in ("default", 1.5, True):
        with pytest.raises(InputError, match="is no CUDA stream"):
            stream_address(wrong)
