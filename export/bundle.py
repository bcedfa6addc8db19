"""Making a bundle: weights in, a directory with graphs, prompt and manifest out."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsr_trt.engines.graphs import plain
from vsr_trt.export.families.registry import Model, family_of
from vsr_trt.export.helper import Helper
from vsr_trt.export.network import Exported, export
from vsr_trt.export.request import BundleRequest
from vsr_trt.kernels.errors import KernelError
from vsr_trt.kernels.gpu import build as gpu_kernel
from vsr_trt.kernels.gpu import store as kernel_files
from vsr_trt.kernels.gpu.targets import TARGETS
from vsr_trt.runtime.bundle.manifest import FileEntry, Manifest, Network
from vsr_trt.runtime.errors import DISK_FULL, ExportError, OutputError
from vsr_trt.runtime.machine import shell
from vsr_trt.runtime.machine import temporary as temporaries
from vsr_trt.runtime.machine.memory import free_bytes
from vsr_trt.runtime.machine.processor import available_cores

_EACH = 1_500_000_000  # bytes of a process that exports, weights aside
_WEIGHTS = 2.2  # and of the weights: as they are read, and as they are written, in units of the checkpoint


@dataclass(frozen=True)
class Progress:
    """Called as the work proceeds.

    Attributes:
        network: a network begins: name, its index from 0, how many there are.
        phase: a phase of it begins.
        done: a network is written and checked.
        note: something the user should know.
    """

    network: Callable[[str, int, int], None] = lambda name, index, count: None
    phase: Callable[[str], None] = lambda name: None
    done: Callable[[Exported], None] = lambda exported: None
    note: Callable[[str], None] = lambda text: None


def build(request: BundleRequest, progress: Progress | None = None) -> Manifest:
    """Makes the bundle.

    Args:
        request: what to make it from.
        progress: is called with how far the work is.

    Returns:
        The manifest, as written.

    Raises:
        InputError: what the checkpoint's family needs and is missing, or has no use for.
        CheckpointError: weights that are refused; nothing was written.
        OutputError: the directory exists, or cannot be written.
        ExportError: a network's graph is wrong, or GPU kernels were asked for and cannot be compiled.
    """
    progress = progress or Progress()
    _refuse_output(request.out, request.overwrite)
    if request.kernels and not gpu_kernel.is_available():
        raise ExportError(
            "GPU kernels cannot be compiled without Triton. Install it with: pip install triton (for Linux "
            "only), or leave out --kernels."
        )
    model = family_of(request).open(request, progress.phase)
    with _whole_directory(request.out) as folder:
        (folder / "onnx").mkdir()
        model.check()
        for note in model.notes():
            progress.note(note)
        networks, kernels = _exported(request, model, folder, progress)
        if request.plain:
            progress.phase("plain graphs")
            networks = {name: _with_plain(record, folder) for name, record in networks.items()}
        manifest = model.manifest(folder, networks, kernels)
        progress.phase("hash")
        files = {
            path.relative_to(folder).as_posix(): FileEntry.of(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        manifest = dataclasses.replace(manifest, files=files)
        manifest.write(folder)
    return manifest


def _exported(
    request: BundleRequest, model: Model, folder: Path, progress: Progress
) -> tuple[dict[str, Network], tuple[str, ...]]:
    """Exports all networks, and compiles the kernels: what takes longest first, two at once where that is possible."""
    names = deque(sorted(model.network_names, key=lambda name: _place(name, model.slow)))
    found: dict[str, Exported] = {}

    def done(exported: Exported) -> None:
        found[exported.name] = exported
        progress.done(exported)

    with contextlib.ExitStack() as stack:
        first, helper = names.popleft(), None  # what a model learns of its first network, it learns here
        if _jobs(request) > 1:
            helper = stack.enter_context(Helper(request, names, folder / "onnx", done))
        name: str | None = first
        while name is not None:
            progress.network(name, len(found), len(model.network_names))
            done(export(model.spec(name), folder / "onnx", request.precision, progress.phase))
            if helper is not None:
                helper.check()
            name = _next(names)
        kernels = _kernels(request, model, folder, progress)
        if helper is not None:
            progress.phase("waiting for the last network")
            helper.finish()
    for name in model.network_names:
        if (uncounted := found[name].uncounted) is not None:
            progress.note(f"{name} has no count of its work: {uncounted}")
    return {name: found[name].record for name in model.network_names}, kernels


def _with_plain(record: Network, folder: Path) -> Network:
    """A network's record, with a graph that has no local functions."""
    written = plain.write(folder / record.graphs["native"]).relative_to(folder).as_posix()
    return dataclasses.replace(record, graphs={**record.graphs, plain.FORM: written})


def _place(name: str, slow: tuple[str, ...]) -> int:
    return slow.index(name) if name in slow else len(slow)


def _next(names: deque[str]) -> str | None:
    try:
        return names.popleft()
    except IndexError:  # the other process was first
        return None


def _jobs(request: BundleRequest) -> int:
    """How many networks are exported at once: two need a second core, and memory for the weights of both."""
    if request.jobs is not None:
        return request.jobs
    free = free_bytes()
    need = _EACH + _WEIGHTS * request.checkpoint.stat().st_size
    return 2 if available_cores() > 1 and (free is None or free >= 2 * need) else 1


def _kernels(request: BundleRequest, model: Model, folder: Path, progress: Progress) -> tuple[str, ...]:
    """Compiles the GPU kernels; returns their launch metadata's paths in the bundle."""
    if request.kernels is None and not gpu_kernel.is_available():
        progress.note(
            "the bundle has no GPU kernels, because Triton, which compiles them, is not installed "
            "(pip install triton; for Linux only)"
        )
        return ()
    if request.kernels is False:
        return ()
    (folder / "kernels").mkdir()
    paths = []
    for target in TARGETS:
        progress.phase(f"GPU kernels for {target}")
        try:
            compiled = model.kernels(target)
        except KernelError as error:
            raise ExportError(f"{error} (--no-kernels builds the bundle without it.)") from error
        for kernel in compiled:
            paths.append(kernel_files.write(kernel, folder / "kernels")[0].relative_to(folder).as_posix())
    if not paths:  # the family has none
        (folder / "kernels").rmdir()
    return tuple(paths)


def _refuse_output(out: Path, overwrite: bool) -> None:
    """Refuses before any work is done what could not be written at its end."""
    if out.is_symlink():
        raise OutputError(f"{out} is a link; give the directory itself.")
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists; choose another --out or add --overwrite.")
    if out.exists() and not (out / "bundle.json").is_file() and any(_entries(out)):
        raise OutputError(f"{out} exists and is no bundle; it will not be overwritten.")
    if (out / "bundle.json").is_symlink():
        raise OutputError(f"{out} is made of links, as in a hub's cache; it will not be overwritten.")
    parent = out.absolute().parent
    if not parent.is_dir():
        raise OutputError(f"the folder {parent} does not exist; create it with: mkdir -p {parent}")


@contextlib.contextmanager
def _whole_directory(out: Path) -> Iterator[Path]:
    """A directory next to `out` that takes its place at the end, and disappears on any error."""
    parent = out.absolute().parent
    replaced: Path | None = None
    temporary: Path | None = None
    try:
        with shell.shield():  # made and known, or neither
            temporary = _made(parent, out.name)
        yield temporary
        with shell.shield():
            if out.exists():
                # aside first: a process that is killed here leaves the old bundle, under another name
                replaced = temporary.with_suffix(".old")
                out.rename(replaced)
            temporary.rename(out)
    except OSError as error:
        if replaced is not None and not out.exists():
            replaced.rename(out)
        if error.errno in DISK_FULL:
            raise OutputError(
                f"the disk is full: the bundle {out} was not written. Free some space."
            ) from error
        raise
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if replaced is not None and out.exists():
            shutil.rmtree(replaced, ignore_errors=True)


def _made(parent: Path, name: str) -> Path:
    try:
        temporary = temporaries.make(parent, name)
        temporary.chmod(0o755)  # mkdtemp's is for one's own eyes only
    except OSError as error:
        raise OutputError(f"{parent} is not writable: {error}.") from error
    return temporary


def _entries(path: Path) -> Iterator[Any]:
    return path.iterdir() if path.is_dir() else iter([path])
