"""Launches of a bundle's own GPU kernels, as their metadata say."""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Mapping
from typing import Any

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.launches import Launch
from vsr_trt.runtime.cuda.driver import CudaError, Driver, Owned

_log = logging.getLogger(__name__)
_NOT_FOR_HERE = (
    "CUDA_ERROR_INVALID_IMAGE",
    "CUDA_ERROR_NO_BINARY_FOR_GPU",
)
_PARTS = re.compile(r"ceil\((\w+) / (\d+)\)")


class Kernel:
    """A loaded kernel.

    Args:
        driver, owned: load it and keep it.
        bundle: that it lies in.
        metadata: how it is launched.
    """

    def __init__(self, driver: Driver, owned: Owned, bundle: Bundle, metadata: Launch) -> None:
        self._driver, self._metadata = driver, metadata
        self._function = self._load(owned, bundle)
        if metadata.shared_memory > 48 * 1024:  # more than a kernel gets without asking
            attribute = driver.module.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            driver.call("cuFuncSetAttribute", self._function, attribute, metadata.shared_memory)

    def _load(self, owned: Owned, bundle: Bundle) -> Any:
        """The machine code; where the driver does not take it, the PTX, which it compiles."""
        metadata = self._metadata
        if metadata.cubin is not None:
            try:
                return owned.function(bundle.file(metadata.cubin).read_bytes(), metadata.kernel)
            except CudaError as error:
                if error.status not in _NOT_FOR_HERE:
                    raise
                _log.warning(
                    "the driver does not take %s (%s); it compiles %s, which takes a moment at every start.",
                    metadata.cubin,
                    error.status,
                    metadata.ptx,
                )
        text = bundle.file(metadata.ptx).read_bytes()
        return owned.function(text + b"\0", metadata.kernel)  # the driver reads text up to a zero

    @property
    def launch_metadata(self) -> Launch:
        """How it is launched."""
        return self._metadata

    def launch(self, stream: Any, values: Mapping[str, int], **sizes: int) -> None:
        """Puts a launch on a stream.

        Args:
            stream: that it runs on.
            values: of all arguments by name, addresses as numbers.
            sizes: that the grid names and no argument has.
        """
        kinds = {"pointer": ctypes.c_void_p, "int32": ctypes.c_int32}
        passed = tuple(values[argument.name] for argument in self._metadata.arguments)
        types = tuple(kinds[argument.type] for argument in self._metadata.arguments)
        x, y, z = (_blocks(text, {**values, **sizes}) for text in self._metadata.grid)
        self._driver.call(
            "cuLaunchKernel",
            self._function,
            *(x, y, z),
            *(self._metadata.threads, 1, 1),
            self._metadata.shared_memory,
            stream,
            (passed, types),
            0,
        )


def _blocks(text: str, sizes: Mapping[str, int]) -> int:
    found = _PARTS.fullmatch(text)
    if found:
        return -(-sizes[found[1]] // int(found[2]))
    return int(text) if text.isdigit() else sizes[text]
