"""Frames and streams of other libraries: what is taken, what is offered, what is refused."""

from __future__ import annotations

import ctypes
import gc
import types
from typing import Any

import numpy as np
import pytest
import torch

from vsr_trt.runtime.cuda import interop
from vsr_trt.runtime.cuda.interop import DeviceFrame, device_array, on_device, stream_address
from vsr_trt.runtime.errors import InputError


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
    frame = DeviceFrame(0x7000, (8, 12, 3))
    for other in (frame, OnlyDLPack(frame)):
        assert on_device(other)
        taken = device_array(other)
        assert (taken.address, taken.shape) == (0x7000, (8, 12, 3))
    assert frame.__cuda_array_interface__["stream"] is None, "it is finished"


def test_producers_are_told_the_stream() -> None:
    frame = OnlyDLPack(DeviceFrame(0x7000, (8, 12, 3)))
    device_array(frame)
    device_array(frame, stream=77)
    assert frame.asked == [-1, 77], "-1: the caller has waited"


def test_capsules_are_consumed_once_and_cost_nothing() -> None:
    frame = DeviceFrame(0x7000, (2, 2, 3))
    for _ in range(3):
        capsule = frame.__dlpack__()
        name = ctypes.create_string_buffer(b"used_dltensor")  # what a consumer does
        rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)(
            ("PyCapsule_SetName", ctypes.pythonapi)
        )
        assert rename(capsule, ctypes.addressof(name)) == 0
        with pytest.raises(InputError, match="used already"):
            interop._pointer(capsule)
        del capsule
        gc.collect()
    assert len([key for key in interop._exported if key == (0x7000, (2, 2, 3))]) == 1


def test_consumers_that_refuse_say_so_themselves() -> None:
    """A capsule that is dropped while an error is under way must not hide the error."""
    with pytest.raises((BufferError, RuntimeError), match="device"):
        np.from_dlpack(DeviceFrame(0x7000, (2, 2, 3)))


def test_what_cannot_be_given_is_refused_as_the_protocol_says() -> None:
    frame = DeviceFrame(0x7000, (2, 2, 3))
    frame.__dlpack__(stream=1, max_version=(1, 0), dl_device=(2, 0), copy=False)
    for wrong in ({"copy": True}, {"dl_device": (1, 0)}, {"dl_device": (2, 1)}):
        with pytest.raises(BufferError, match="CUDA device 0"):
            frame.__dlpack__(**wrong)


def test_layouts_that_would_be_misread_are_refused() -> None:
    assert device_array(interface(strides=(15, 3, 1))).address == 4096
    with pytest.raises(InputError, match="C-contiguous"):
        device_array(interface(strides=(16, 3, 1)))
    with pytest.raises(InputError, match="uint8"):
        device_array(interface(typestr="<f4"))
    with pytest.raises(InputError, match="stream 0"):
        device_array(interface(stream=0))
    assert device_array(interface(stream=9)).stream == 9
    assert device_array(interface()).is_aligned
    assert not device_array(interface(data=(4100, False))).is_aligned
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
    assert stream_address(0) == 1, "torch's default stream; 0 is ruled out by both protocols"
    assert stream_address(driver.CUstream(22)) == 22
    assert stream_address(types.SimpleNamespace(cuda_stream=33)) == 33  # torch.cuda.Stream
    assert stream_address(types.SimpleNamespace(handle=55)) == 55  # pycuda.driver.Stream
    assert stream_address(Protocol()) == 44  # cuda.core, and whoever follows
    for wrong in ("default", 1.5, True):
        with pytest.raises(InputError, match="is no CUDA stream"):
            stream_address(wrong)
