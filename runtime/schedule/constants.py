"""The arrays of a schedule's constants."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vsr_trt.runtime.bundle.manifest import Manifest
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.errors import BundleError
from vsr_trt.runtime.schedule.build import ZEROS, numbered
from vsr_trt.runtime.schedule.graph import Schedule


def constants(
    manifest: Manifest, schedule: Schedule, options: Options, files: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """All constants of a schedule: from files, rows of those, values of options, zeros.

    Args:
        manifest: of the bundle.
        schedule: built with its manifest and these options.
        options: the user's.
        files: the bundle's own, by name: `Bundle.constants`.

    Raises:
        BundleError: a constant has another shape, a table too few rows, or rows of another size.
    """
    found = {}
    for name, buffer in schedule.buffers.items():
        if buffer.kind != "constant":
            continue
        table, index = numbered(name)
        given = manifest.inputs.get(name)
        if name.startswith(ZEROS):
            array = np.zeros(buffer.shape, buffer.dtype)
        elif given is not None and given.source == "option":
            assert given.name is not None
            array = np.full(buffer.shape, options.value(manifest, given.name), buffer.dtype)
        elif name in files:
            array = files[name]
            if array.shape != buffer.shape:
                raise BundleError(
                    f"the constant {name} has the shape {array.shape}, expected {buffer.shape}. Build the bundle again."
                )
        else:
            assert index is not None
            array = _row(files[table], index, table, buffer.shape)
        found[name] = array
    return found


def _row(table: np.ndarray, index: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if index >= len(table):
        raise BundleError(
            f"the table {name} has {len(table)} rows, and the loop more. Build the bundle again."
        )
    row = table[index]
    if row.size != np.prod(shape, dtype=int):
        raise BundleError(
            f"a row of the table {name} has the shape {row.shape}, expected {shape}. Build the bundle again."
        )
    return np.ascontiguousarray(row.reshape(shape))
