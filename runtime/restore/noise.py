"""Noise that samplers add: standard normal numbers that depend on nothing but their place.

Every number is a function of the seed, of what it is for, of the step, of the frame, and of its place in the frame's
tensor. So a clip's noise is the same in windows of any length, on any machine, and however many frames follow.

The generator is Philox 4x32 with 10 rounds (Salmon et al., 2011). Words are 32 bits, unsigned:

| word | |
|---|---|
| key 0, 1 | the seed's lower and upper half |
| counter 0 | place in the tensor (C order) divided by 4: one block gives four numbers |
| counter 1 | number of the frame in the clip, from 0 |
| counter 2 | step of the loop, from 0; 0 outside of loops |
| counter 3 | CRC-32 of the purpose's name in ASCII, e.g. of `start` |

A word u becomes the normal quantile of (u + 1/2) / 2^32, by Wichura's AS 241 (1988) in double precision, rounded to
float32. Its logarithm is that of `_log`. All of it is additions, products, quotients and roots, which IEEE 754 defines
to the last bit: other languages get the same bytes, as long as their compiler does not contract products and sums.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vsr_trt.runtime.bundle.manifest import ROW, Manifest
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.schedule.build import numbered
from vsr_trt.runtime.schedule.graph import Schedule

_ROUNDS = 10
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
Words = npt.NDArray[np.uint64]  # of 32 bits each, with room for their products
Doubles = npt.NDArray[np.float64]

# AS 241, PPND16: coefficients from the highest power down, of numerators and denominators
_CENTRE = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457),
    (13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608),
    (5226.495278852854561, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867),
    (5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1.0),
)
_MIDDLE = (
    (7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177, 1.27045825245236838258),
    (3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966, 0.14810397642748007459),
    (0.68976733498510000455, 1.6763848301838038494, 2.05319162663775882187, 1.0),
)
_FAR = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.0012426609473880784386, 0.026532189526576123093),
    (0.29656057182850489123, 1.7848265399172913358, 5.4637849111641143699, 6.6579046435011037772),
    (2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.8463183175100546818e-5, 7.868691311456132591e-4),
    (0.0148753612908506148525, 0.13692988092273580531, 0.59983220655588793769, 1.0),
)
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # their sum is ln 2


@dataclass(frozen=True)
class Wanted:
    """Noise that a schedule takes in with each frame.

    Attributes:
        name: under which it takes it.
        purpose: what it is for.
        step: of the loop; None outside of loops.
        shape: of a frame's.
    """

    name: str
    purpose: str
    step: int | None
    shape: tuple[int, ...]

    @staticmethod
    def of(manifest: Manifest, schedule: Schedule) -> tuple[Wanted, ...]:
        """All that a schedule takes, in its order."""
        found = []
        for name, port in schedule.takes.items():
            base, step = numbered(name)
            given = manifest.inputs.get(base)
            if given is not None and given.source == "noise":
                shape = schedule.buffers[port.buffer].shape
                frame = shape[: port.axis] + shape[port.axis + 1 :]
                found.append(Wanted(name, given.name or "", step, frame))
        return tuple(found)


def purposes(manifest: Manifest, options: Options) -> dict[str, tuple[int, int]]:
    """The noise that a family draws: purpose -> axis of frames as `Recorded` has it, and steps, 0 outside of loops."""
    found, rows = {}, manifest.rows
    for stage in manifest.stages:
        for tensor in manifest.networks[stage.network].inputs:
            read = stage.reads[tensor.name]
            given = manifest.inputs.get(read.removesuffix(ROW))
            if given is None or given.source != "noise":
                continue
            shape = list(tensor.shape)
            while shape[0] in (1, "n"):
                del shape[0]
            steps = options.steps(manifest, manifest.loops[rows[read]]) if read in rows else 0
            found[given.name or ""] = (shape.index("f") + (1 if steps else 0), steps)
    return found


def seeds(manifest: Manifest, options: Options) -> dict[str, int]:
    """The seed of each purpose."""
    drawn = [given for given in manifest.inputs.values() if given.source == "noise"]
    return {given.name or "": int(options.value(manifest, given.seed or "")) for given in drawn}


class Noise(Protocol):
    """Where noise comes from."""

    def row(
        self, purpose: str, step: int | None, frame: int, shape: tuple[int, ...]
    ) -> npt.NDArray[np.float32]:
        """A frame's numbers.

        Args:
            purpose: what they are for.
            step: of the loop; None outside of loops.
            frame: its number in the clip.
            shape: of the tensor without the axis of frames.

        Raises:
            InputError: there are none.
        """


class Drawn:
    """Noise that is drawn, by a seed for each purpose."""

    def __init__(self, seeds: Mapping[str, int]) -> None:
        self._seeds = dict(seeds)

    def row(
        self, purpose: str, step: int | None, frame: int, shape: tuple[int, ...]
    ) -> npt.NDArray[np.float32]:
        """See `Noise.row`."""
        return draw(self._seeds[purpose], purpose, step or 0, frame, math.prod(shape)).reshape(shape)


class Recorded:
    """Noise that was drawn before, for a whole clip: an array `noise_<purpose>` for each purpose.

    Its shape is that of the tensor for all frames, without leading axes of size 1; in front of those stands the step,
    where each step has its own. A last step that is missing has zeros.
    """

    def __init__(
        self, arrays: Mapping[str, npt.NDArray[np.float32]], purposes: Mapping[str, tuple[int, int]]
    ) -> None:
        """`purposes`: name -> axis of frames in the array, and steps of the loop, 0 outside of loops.

        Raises:
            InputError: an array is missing or has too few axes, is of another type, or has other steps.
        """
        self._arrays, self._axes = dict(arrays), {name: axis for name, (axis, _) in purposes.items()}
        for name, (axis, steps) in purposes.items():
            array = self._arrays.get(f"noise_{name}")
            if array is None:
                raise InputError(
                    f"the recorded noise has no array noise_{name}; it has {', '.join(sorted(arrays)) or 'none'}."
                )
            if array.dtype.kind != "f" or array.ndim <= axis:
                raise InputError(
                    f"noise_{name} is {array.dtype} {list(array.shape)}; expected floating point numbers "
                    f"with frames along axis {axis}."
                )
            if steps and len(array) not in (steps - 1, steps):
                raise InputError(
                    f"noise_{name} has {len(array)} steps; expected {steps}, or {steps - 1}, for the last one may be "
                    "without."
                )

    @staticmethod
    def read(file: Path) -> dict[str, npt.NDArray[np.float32]]:
        """The arrays of an .npz file.

        Raises:
            InputError: it cannot be read.
        """
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files if name.startswith("noise_")}
        except (
            OSError,
            ValueError,
            EOFError,
            AttributeError,
            TypeError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise InputError(
                f"the recorded noise {file} cannot be read: {error}. Expected an .npz file."
            ) from error

    def row(
        self, purpose: str, step: int | None, frame: int, shape: tuple[int, ...]
    ) -> npt.NDArray[np.float32]:
        """See `Noise.row`."""
        array, axis = self._arrays[f"noise_{purpose}"], self._axes[purpose]
        if step is not None:
            if step == len(array):
                return np.zeros(shape, np.float32)
            array, axis = array[step], axis - 1
        if frame >= array.shape[axis]:
            raise InputError(f"noise_{purpose} is for {array.shape[axis]} frames; the clip has more.")
        row = np.take(array, [frame], axis).squeeze(axis)
        if row.shape != tuple(shape)[len(shape) - row.ndim :] or row.size != math.prod(shape):
            raise InputError(
                f"noise_{purpose} is {list(row.shape)} for a frame; this clip's size takes {list(shape)}."
            )
        return row.reshape(shape).astype(np.float32)


def draw(seed: int, purpose: str, step: int, frame: int, count: int) -> npt.NDArray[np.float32]:
    """`count` standard normal numbers; see the module."""
    blocks = -(-count // 4)
    counter = [
        np.arange(blocks, dtype=np.uint64),
        *(np.full(blocks, word, np.uint64) for word in (frame, step, zlib.crc32(purpose.encode("ascii")))),
    ]
    words = np.stack(philox(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)), axis=1).reshape(-1)[
        :count
    ]
    return quantile((words.astype(np.float64) + 0.5) / 2.0**32).astype(np.float32)


def philox(counter: list[Words], key: tuple[int, int]) -> list[Words]:
    """Four words for each counter; Philox 4x32-10."""
    a, b, c, d = counter
    for number in range(_ROUNDS):
        first, second = (
            np.uint64((word + number * weyl) & 0xFFFFFFFF) for word, weyl in zip(key, _WEYL, strict=True)
        )
        left, right = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (right >> _HALF) ^ b ^ first, right & _LOW, (left >> _HALF) ^ d ^ second, left & _LOW
    return [a, b, c, d]


def quantile(p: Doubles) -> Doubles:
    """The normal quantile of 0 < p < 1, to about 16 digits; Wichura's AS 241."""
    q = p - 0.5
    central = np.abs(q) <= 0.425
    r = 0.180625 - q * q
    centre = q * _ratio(_CENTRE, r)
    tail = np.sqrt(-_log(np.where(central, 0.5, np.minimum(p, 1.0 - p))))
    outer = np.where(tail <= 5.0, _ratio(_MIDDLE, tail - 1.6), _ratio(_FAR, tail - 5.0))
    return np.where(central, centre, np.where(q < 0, -outer, outer))


def _ratio(coefficients: tuple[tuple[float, ...], ...], x: Doubles) -> Doubles:
    above = _polynomial((*coefficients[0], *coefficients[1]), x)
    return above / _polynomial((*coefficients[2], *coefficients[3]), x)


def _polynomial(coefficients: tuple[float, ...], x: Doubles) -> Doubles:
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


def _log(x: Doubles) -> Doubles:
    """The natural logarithm: 2 atanh((m - 1) / (m + 1)) of the mantissa m in [sqrt(1/2), sqrt(2)), 12 terms."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < math.sqrt(0.5)
    mantissa, exponent = np.where(low, 2.0 * mantissa, mantissa), np.where(low, exponent - 1, exponent)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    series = _polynomial(tuple(1.0 / (2 * k + 1) for k in range(11, -1, -1)), s * s)
    return exponent * _LN2_HIGH + (exponent * _LN2_LOW + 2.0 * (s * series))
