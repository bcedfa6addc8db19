"""A bundle's networks in ONNX Runtime, one after another as its manifest says, without the runtime's own machinery.

For families in phases without tilings, whose noise is given.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
from helpers.star import chunks

from vsr_trt.runtime.bundle.manifest import Loop, Stage, Window
from vsr_trt.runtime.bundle.reading import read_manifest

Arrays = dict[str, np.ndarray]


class Chain:
    """A clip's way through a bundle.

    Args:
        folder: of the bundle.
        frames: of the clip, u8 (n,h,w,3).
        noise: `noise_<name>` for each noise; of steps, with the step first.
        chosen: values of options that are not the default.

    Attributes:
        steps: for each step of the loop, what its body wrote.
        clip: what each phase wrote, for all frames.
    """

    def __init__(
        self, folder: Path, frames: np.ndarray, noise: Mapping[str, np.ndarray], **chosen: object
    ) -> None:
        self.folder, self.manifest = folder, read_manifest(folder)
        self.options = {name: option.default for name, option in self.manifest.options.items()} | chosen
        self.frames, self.noise = frames, noise
        self.steps: list[Arrays] = []
        self.clip: Arrays = {}
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    def run(self) -> np.ndarray:
        """The restored frames."""
        for phase, window in self.manifest.phases.items():
            stages = [stage for stage in self.manifest.stages if stage.phase == phase]
            parts: list[Arrays] = [self._window(stages, own) for own in self._windows(window)]
            for name in parts[0]:
                axis = self._axis(name)
                self.clip[name] = (
                    parts[0][name] if axis is None else np.concatenate([p[name] for p in parts], axis)
                )
        return self.clip[self.manifest.output]

    def _windows(self, window: Window) -> Iterable[slice]:
        total = len(self.frames)
        size = window.frames or total
        return [slice(start, min(start + size, total)) for start in range(0, total, size)]

    def _window(self, stages: list[Stage], own: slice) -> Arrays:
        made: Arrays = {}
        for loop, body in itertools.groupby(stages, lambda stage: stage.loop):
            if loop is None:
                self._stages(list(body), made, own, lambda name: name)
                continue
            self._loop(self.manifest.loops[loop], list(body), made, own)
        return made

    def _loop(self, loop: Loop, body: list[Stage], made: Arrays, own: slice) -> None:
        count = self.options[loop.steps] if isinstance(loop.steps, str) else loop.steps
        before: Arrays = {}
        for step in range(count):
            now = made | {name: before[source] for name, source in loop.carries.items() if before}
            self._stages(body, now, own, lambda name, step=step: name.replace("[i]", f"[{step}]"))
            before = {name: now[name] for stage in body for name in stage.writes.values()}
            self.steps.append(before)
        made.update(before)

    def _stages(self, stages: list[Stage], made: Arrays, own: slice, named: Callable[[str], str]) -> None:
        for kind, group in itertools.groupby(stages, lambda stage: stage.chunks):
            together = list(group)
            if kind is None:
                for stage in together:
                    made.update(self._stage(stage, made, own, named, None))
                continue
            pieces: list[Arrays] = []
            for part, taken in chunks(len(self.frames), self.options[self.manifest.chunks[kind].frames]):
                inside: Arrays = {}
                for stage in together:
                    inside.update(self._stage(stage, made | inside, own, named, (part, set(inside))))
                kept = slice(taken.start - part.start, taken.stop - part.start)
                pieces.append({name: _along(array, self._axis(name), kept) for name, array in inside.items()})
            for name in pieces[0]:
                made[name] = np.concatenate([piece[name] for piece in pieces], self._axis(name))

    def _stage(
        self,
        stage: Stage,
        made: Arrays,
        own: slice,
        named: Callable[[str], str],
        chunk: tuple[slice, set[str]] | None,
    ) -> Arrays:
        network = self.manifest.networks[stage.network]
        given = {}
        for tensor in network.inputs:
            array = self._read(named(stage.reads[tensor.name]), made, own, tensor.shape)
            if chunk is not None and "f" in tensor.shape and stage.reads[tensor.name] not in chunk[1]:
                array = _along(array, tensor.shape.index("f"), chunk[0])
            given[tensor.name] = array.astype(tensor.dtype)
        names = [tensor.name for tensor in network.outputs]
        results = self._session(stage.network).run(names, given)
        return {stage.writes[name]: array for name, array in zip(names, results, strict=True)}

    def _read(self, name: str, made: Arrays, own: slice, shape: tuple[int | str, ...]) -> np.ndarray:
        base, _, row = name.removesuffix("]").partition("[")
        supplied = self.manifest.inputs.get(base)
        if supplied is None:
            array = made[base] if base in made else _along(self.clip[base], self._axis(base), own)
            return array[int(row)] if row else array
        if supplied.source == "frame":
            return self.frames[own]
        if supplied.source == "option":
            return np.full(shape, self.options[supplied.name])
        if supplied.source == "file":
            array = np.load(self.folder / supplied.name.format(**self.options))
            return array[int(row)] if row else array
        array = self.noise[f"noise_{supplied.name}"]
        if row:
            array = array[int(row)] if int(row) < len(array) else np.zeros_like(array[0])
        if shape[0] == 1:
            array = array[None]
        return _along(array, shape.index("f"), own)

    def _axis(self, name: str) -> int | None:
        """Of the frames, in a buffer that a stage writes."""
        for stage in self.manifest.stages:
            for tensor in self.manifest.networks[stage.network].outputs:
                if stage.writes.get(tensor.name) == name:
                    return tensor.shape.index("f") if "f" in tensor.shape else None
        raise KeyError(name)

    def _session(self, network: str) -> onnxruntime.InferenceSession:
        if network not in self._sessions:
            graph = self.folder / self.manifest.networks[network].graphs["native"]
            self._sessions[network] = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        return self._sessions[network]


def _along(array: np.ndarray, axis: int | None, part: slice) -> np.ndarray:
    return array if axis is None else array[(slice(None),) * axis + (part,)]
