"""Making a bundle: weights in, a directory with graphs, prompt and manifest out."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vsr_trt.export.families.dloral import cfr, lora
from vsr_trt.export.families.dloral import checkpoint as checkpoints
from vsr_trt.export.families.dloral import family as dloral
from vsr_trt.export.families.stable_diffusion.base_model import BaseModel
from vsr_trt.export.network import Exported, Precision, export
from vsr_trt.kernels.errors import KernelError
from vsr_trt.kernels.gpu import build as gpu_kernel
from vsr_trt.kernels.gpu import launch as launches
from vsr_trt.kernels.gpu.targets import TARGETS
from vsr_trt.runtime.bundle.errors import DISK_FULL, ExportError, OutputError
from vsr_trt.runtime.bundle.manifest import (
    FileEntry,
    Kernel,
    Manifest,
    Network,
    Prompt,
    Provenance,
    Source,
    sha256,
)
from vsr_trt.runtime.machine import shell
from vsr_trt.runtime.machine import temporary as temporaries

DEFAULT_PROMPT = "a sharp, detailed, high-resolution photo,"
_TOOLS = (
    "vsr-trt",
    "torch",
    "onnx",
    "onnxscript",
    "onnx-ir",
    "diffusers",
    "transformers",
    "onnxruntime",
    "numpy",
    "triton",
)


@dataclass(frozen=True)
class BundleRequest:
    """What to make a bundle from.

    Attributes:
        sd: Stable Diffusion 2.1 directory in diffusers' layout.
        checkpoint: DLoRAL checkpoint, as published or as safetensors.
        out: the bundle's directory; it appears whole or not at all.
        stage: which adapters count fully: all six, or the three for consistency.
        adapters: weights of single adapters that override the stage's.
        prompt: text that conditions the restoration.
        top_k: positions the cross-frame attention retrieves, None for all (the published weights).
        precision: storage and arithmetic of the heavy networks.
        kernels: compile the GPU kernels for every target; None to do so where Triton is installed, and to note
            it where not.
        overwrite: replace an existing bundle.
    """

    sd: Path
    checkpoint: Path
    out: Path
    stage: lora.Stage = "both"
    adapters: Mapping[str, float] = field(default_factory=dict)
    prompt: str = DEFAULT_PROMPT
    top_k: int | None = None
    precision: Precision = "fp32"
    kernels: bool | None = None
    overwrite: bool = False


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
        progress: told how far the work is.

    Returns:
        The manifest, as written.

    Raises:
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
    weights = lora.adapter_weights(request.stage, request.adapters)
    base = BaseModel.open(request.sd)
    checkpoint = checkpoints.load(request.checkpoint)
    with _whole_directory(request.out) as folder:
        onnx_folder = folder / "onnx"
        onnx_folder.mkdir()
        model = dloral.DLoRAL(base, checkpoint, weights, request.top_k, progress.phase, request.precision)
        model.check()
        for part, prefix in model.prefixes().items():
            progress.note(
                f"{prefix!r}, which a wrapper had put before all names of {part}, was left out of them"
            )
        tokens, cut = base.tokenize(request.prompt)
        if cut:
            progress.note(f"the prompt is {cut} tokens too long; its end was cut off")
        exported = []
        names = model.network_names
        for index, name in enumerate(names):
            progress.network(name, index, len(names))
            exported.append(export(model.spec(name), onnx_folder, request.precision, progress.phase))
            progress.done(exported[-1])
            if exported[-1].uncounted is not None:
                progress.note(f"{name} has no count of its work: {exported[-1].uncounted}")
        text_encoder = folder / exported[names.index("text_encoder")].record.graphs["native"]
        np.save(folder / "prompt.npy", embed(text_encoder, tokens.numpy()))
        kernels = _kernels(request, folder, progress)
        networks = {network.name: network.record for network in exported}
        if kernels:
            kernel = _attention(checkpoint, request.top_k, kernels, folder)
            networks["cfr"] = dataclasses.replace(networks["cfr"], kernel=kernel)
        progress.phase("hash")
        manifest = _manifest(request, model, networks, kernels, folder)
        manifest.write(folder)
    return manifest


def embed(text_encoder: Path, tokens: np.ndarray) -> np.ndarray:
    """Runs the exported text encoder: token ids (77,) -> embedding (77,c) float32."""
    import onnxruntime

    session = onnxruntime.InferenceSession(text_encoder, providers=["CPUExecutionProvider"])
    return session.run(None, {"tokens": tokens})[0]


def _kernels(request: BundleRequest, folder: Path, progress: Progress) -> tuple[str, ...]:
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
        # the attention is an FP32 island in every bundle
        try:
            attention = gpu_kernel.compile_kernel(target, "fp32", request.top_k is not None)
            blending = gpu_kernel.compile_blending(target)
        except KernelError as error:
            raise ExportError(f"{error} (--no-kernels builds the bundle without it.)") from error
        for compiled in (attention, blending):
            paths.append(gpu_kernel.write(compiled, folder / "kernels")[0].relative_to(folder).as_posix())
    return tuple(paths)


def _attention(
    checkpoint: checkpoints.Checkpoint, top_k: int | None, kernels: Sequence[str], folder: Path
) -> Kernel:
    """Writes the attention's constants next to its kernels."""
    operands = cfr.operands(checkpoint.cfr)
    files = {name: f"kernels/attention_{name}.npy" for name in ("M", "P", "bias")}
    for name, file in files.items():
        np.save(folder / file, getattr(operands, name))
    launch = [path for path in kernels if launches.read(folder / path).kernel == launches.ATTENTION]
    return cfr.kernel(launch, files, top_k)


def _manifest(
    request: BundleRequest,
    model: dloral.DLoRAL,
    networks: dict[str, Network],
    kernels: tuple[str, ...],
    folder: Path,
) -> Manifest:
    files = {
        path.relative_to(folder).as_posix(): FileEntry.of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return Manifest(
        family="dloral",
        scale=dloral.SCALE,
        precision=request.precision,
        canvas=dloral.CANVAS,
        latent_scale=dloral.LATENT_SCALE,
        top_k=request.top_k,
        networks=networks,
        stages=dloral.STAGES,
        tilings=dloral.TILINGS,
        options=dloral.OPTIONS,
        inputs=dloral.INPUTS,
        output="result",
        prompt=Prompt(request.prompt, "prompt.npy"),
        files=files,
        kernels=kernels,
        provenance=Provenance(
            checkpoint=_source(request.checkpoint, request.checkpoint.name),
            checkpoint_layout=model.checkpoint.layout,
            base_model=tuple(
                _source(path, path.relative_to(request.sd).as_posix()) for path in model.base.weight_files()
            ),
            stage=request.stage,
            adapters=model.adapter_weights,
            merged_sha256=model.merged_sha256,
            stripped_prefixes=model.prefixes(),
            tools={tool: _version(tool) for tool in _TOOLS},
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        ),
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # vsr-trt itself, run from a checkout


def _source(path: Path, name: str) -> Source:
    return Source(name, path.stat().st_size, sha256(path))


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
