"""The bundle's manifest, `bundle.json`: what a bundle holds, defined once for both sides.

The build side fills these dataclasses and writes them, the run side reads and obeys them. The same
definition is published as a JSON schema (`bundle.schema.json`, made by `vsr schema`)
for hosts in other languages.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vsr_trt.runtime.bundle.symbols import Polynomial, Shape
from vsr_trt.runtime.machine.files import write_whole

SCHEMA_VERSION = 5
MANIFEST_NAME = "bundle.json"
ROW = "[i]"  # ends the name of what is read row by row, one in each step of a loop
PREVIOUS = "[n-1]"  # ends the name of a buffer that is read as it was one frame earlier

# Flags of engines. They are part of a build's key in the cache, too.
STRIP = "strip"  # no weights inside
COMPATIBLE = "compatible"  # runs on later versions of its library
STRIPS = "strips"  # computes pictures in strips of rows


@dataclass(frozen=True)
class Tensor:
    """An input or output of a network: numpy's name of the dtype, and a symbolic shape."""

    name: str
    dtype: str
    shape: Shape


@dataclass(frozen=True)
class Bound:
    """What a symbolic dimension may be: min <= size <= max, and `offset` more than a multiple of `multiple_of`."""

    min: int
    max: int
    multiple_of: int = 1
    offset: int = 0

    def has(self, size: int) -> bool:
        """Whether it is such a size."""
        return self.min <= size <= self.max and (size - self.offset) % self.multiple_of == 0

    def __str__(self) -> str:
        steps = "" if self.multiple_of == 1 else f" in steps of {self.multiple_of}"
        first = (
            ""
            if not self.offset
            else f", beginning with {self.min - (self.min - self.offset) % -self.multiple_of}"
        )
        return f"{self.min} to {self.max}{steps}{first}"


@dataclass(frozen=True)
class Work:
    """What one run of a network for one picture (n = 1) takes, counted in its native graph.

    Attributes:
        multiply_adds: of convolutions, matrix products and attentions.
        weights: numbers in the initialisers that are read.
        activations: numbers that pass through memory, read and written, in the network's own precision.
        integer_bytes: bytes of inputs and outputs that are integers in any precision, e.g. u8 pictures.
    """

    multiply_adds: Polynomial
    weights: int
    activations: Polynomial
    integer_bytes: Polynomial


@dataclass(frozen=True)
class Kernel:
    """A GPU kernel that computes a network in one launch. What it is called with follows from its launch metadata.

    Attributes:
        launch: launch metadata, a file for each target, all of `kernels`.
        operands: pointer of the kernel -> input or output of the network, whose shape it has, the last dimensions
            taken together where the kernel has fewer.
        constants: pointer of the kernel -> .npy.
        numbers: integers of the kernel that no shape tells -> the least of these: a number, or the name of a size.
    """

    launch: tuple[str, ...]
    operands: dict[str, str]
    constants: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, tuple[int | str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """One network: its tensors, the bounds of its symbolic dimensions, its graphs.

    Attributes:
        graphs: paths in the bundle by form. `native` is for compilers (native normalisation and
            attention nodes); `cpu`, where there is one, is the same network lowered for ONNX
            Runtime's CPU provider. `cpu_strips` is that form in strips of
            rows, see `strips`. All may share one file of external data. `fp16`, in a bundle whose
            precision is `fp32`, is the native form in FP16, for compilers.
        nodes: nodes of the native graph, functions counted as one.
        parameters: numbers in its initialisers.
        always_fp32: why it is FP32 in every bundle, None if it has an FP16 form.
        work: what a run takes; None in a bundle that was built before this was counted.
        strips: strips of rows that it may be computed in, with the statistics of the whole picture in every
            normalisation: the same result in less memory. 1 where it may not.
        scratch: form -> bytes that a run on the CPU works in beyond inputs, outputs and weights, estimated; of the
            forms for which that is known.
        kernel: a GPU kernel that computes it, too; it runs where there is no engine. None where there is none.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    bounds: dict[str, Bound]
    graphs: dict[str, str]
    nodes: int
    parameters: int
    always_fp32: str | None = None
    work: Work | None = None
    strips: int = 1
    scratch: dict[str, Polynomial] = field(default_factory=dict)
    kernel: Kernel | None = None

    def graph(self, precision: str, bundle_precision: str) -> str | None:
        """The native graph of that precision in a bundle of `bundle_precision`; None if there is none."""
        if precision == bundle_precision or self.always_fp32 is not None:
            return self.graphs["native"]
        return self.graphs.get(precision)


@dataclass(frozen=True)
class Stage:
    """One step of a frame's way: a network, and the buffers that it reads and writes.

    Attributes:
        name: name of the stage, unique.
        network: the network it runs; with `variants`, the default one.
        reads: network input -> buffer. A buffer `x[n-1]` is what `x` held one frame earlier; on the
            first frame, and after a cut, it is `x` itself.
        writes: network output -> buffer.
        lane: the queue that it runs on: stages of different lanes may run at the same time, for different frames.
        tiling: how it may be cut, a name of the manifest's `tilings`; None runs it on the whole frame.
        loop: a name of the manifest's `loops`: consecutive stages of one loop are its body. None: once.
        chunks: a name of the manifest's `chunks`: consecutive stages of one take long windows chunk by chunk.
        phase: a name of the manifest's `phases`, if it has any.
        variants: values of `option` -> network, where the user has a choice.
        option: name of the option that picks the variant.
    """

    name: str
    network: str
    reads: dict[str, str]
    writes: dict[str, str]
    lane: str = "compute"
    tiling: str | None = None
    loop: str | None = None
    variants: dict[str, str] = field(default_factory=dict)
    option: str | None = None
    chunks: str | None = None
    phase: str | None = None


@dataclass(frozen=True)
class Tiling:
    """How stages cut a frame that is larger than their tiles. Sizes are in latents.

    Attributes:
        side: of a tile; frames of more than side * side are cut.
        overlap: of neighbouring tiles.
        window: weights that tiles are blended with, see `runtime.schedule.tiling.window`.
        square: whether tiles are squares, instead of as wide as possible.
        together: whether consecutive stages are cut together: each tile goes through all of them, and only the last
            one's outputs are blended.
        share: the overlap is at most one part in so many of a tile's side, where nobody says otherwise.
        exact: whether the stages' normalisations look at the whole picture, so that tiles would give another one:
            they are cut only where that is asked for, and compute large pictures in strips of rows.
        engine_side: of tiles that engines are built for, where it is another one.
    """

    side: int
    overlap: int
    window: Literal["gaussian", "ramp"] = "gaussian"
    square: bool = True
    together: bool = True
    share: int = 2
    exact: bool = False
    engine_side: int | None = None


@dataclass(frozen=True)
class Window:
    """The unit of work: how many frames go through the stages at once.

    Attributes:
        frames: of a window. A tensor's size `f` is this number. None: all frames of the clip at once.
        overlap: frames that neighbouring windows share. Of those, the first half of the results is the earlier
            window's, the rest the later one's.
        last: of a clip that windows do not divide. `full`: the last window ends at the last frame, and that of a clip
            shorter than a window repeats it; `short`: the last window has the frames that are left.
    """

    frames: int | None = 1
    overlap: int = 0
    last: Literal["full", "short"] = "full"

    @property
    def size(self) -> int:
        """Frames of a window; 1 where that is the clip's business."""
        return self.frames or 1


@dataclass(frozen=True)
class Chunks:
    """How stages take windows of many frames: in chunks that overlap, whose results are put together by hard cuts.

    Chunks begin every `frames` less the overlap. The first one that, stretched, would reach the window's end ends there
    and is the last. Of the frames that two chunks share, the first half (rounded down) is the earlier one's.

    Attributes:
        frames: of a chunk, or the name of the option that says so.
        overlap: share of a chunk's frames that the next one has, too; rounded down.
        stretch: how much longer than the others the last chunk may be.
    """

    frames: int | str
    overlap: float = 0.5
    stretch: float = 1.0


@dataclass(frozen=True)
class Canvas:
    """The size that a frame is worked on. Sizes are pixels of the input frame.

    A side below `least` becomes `least`. Any other becomes the next size that is `offset` more than a multiple of
    `multiple`.

    Attributes:
        least: height and width.
        small: what happens to frames below the least size: `enlarge` resizes them, keeping their shape, and reduces
            the result again; `pad` puts them onto the canvas.
        multiple: of every larger side, less its offset.
        offset: of a height and of a width.
        ample: whether a side above the least that fits already becomes the next larger one.
        border: value of the pixels around a frame, 0 to 255, which this side adds and cuts off again. None: the
            networks do that themselves.
        centred: whether frames stand in the middle of a canvas of the least size, instead of in its upper left.
    """

    least: tuple[int, int]
    multiple: int
    small: Literal["enlarge", "pad"] = "pad"
    offset: tuple[int, int] = (0, 0)
    ample: bool = False
    border: int | None = None
    centred: bool = False


@dataclass(frozen=True)
class Loop:
    """Consecutive stages that run several times for each window; those with chunks take all of them in every step.

    Attributes:
        steps: how often, or the name of the option that says so. A tensor's size `s` is this number.
        carries: buffer that the body reads -> buffer that it writes: from the second time on, the body reads what it
            wrote the time before.
        rows: what has a row for each step, `name[i]` among a stage's reads: constants from files, and what stages
            before the loop write, whose first axis is the step; and noise, which is drawn anew for each.
    """

    steps: int | str
    carries: dict[str, str]
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Option:
    """Something that a user may choose.

    Attributes:
        type: `choice` of names, or a number.
        default: what is taken where nobody chooses.
        help: a line about it.
        choices: the names.
        least, most: of a number.
    """

    type: Literal["choice", "integer", "number"]
    default: str | int | float
    help: str
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class Input:
    """A buffer that the runtime supplies.

    Attributes:
        source: the `frame`, a `file` of the bundle, the value of an `option`, or `noise`: standard normal numbers,
            drawn for each frame as `runtime.restore.noise` has it.
        name: of the file (.npy), the option or the noise. In a file's, `{option}` stands for what was chosen, and there
            is a file for each choice that is possible.
        seed: of noise: the option that it is drawn by.
    """

    source: Literal["frame", "file", "option", "noise"]
    name: str | None = None
    seed: str | None = None


@dataclass(frozen=True)
class Profile:
    """Shapes of a network's input that an engine takes; all three alike for a static one."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class Engine:
    """A compiled network.

    Attributes:
        network: which one.
        backend: what compiled it and runs it.
        version: of that library; engines run on this version only, unless `flags` say `compatible`.
        target: folder it lies in: a compute capability (`sm_89`), `portable`, or what the CPU is called.
        targets: the compute capabilities whose GPUs run it; empty for a CPU.
        device: name of the only GPU that runs it, None for all of its targets.
        precision: of the graph that it was compiled from.
        profiles: input -> shapes; empty where any shape within the network's bounds is taken.
        flags: builder options that make a difference; `strips`: it computes its network in strips of rows.
        file: the plan, or the optimised graph. Further files of it lie beside.
        report: JSON about the build.
        key: address in the build cache, a hash over all that made it.
        platform: system and architecture that run it, None for all.
    """

    network: str
    backend: Literal["tensorrt_rtx", "tensorrt", "onnxruntime"]
    version: str
    target: str
    targets: tuple[str, ...]
    device: str | None
    precision: Literal["fp32", "fp16"]
    profiles: dict[str, Profile]
    flags: tuple[str, ...]
    file: str
    report: str
    key: str
    platform: str | None = None


@dataclass(frozen=True)
class Source:
    """A file that the bundle was made from."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Calibration:
    """How the `fp16` graphs were made.

    Attributes:
        clip: whose frames went through the FP32 networks.
        frames: how many.
        limit: share of FP16's range; what went above it stays in FP32.
        file: JSON with the largest value of every tensor, and the nodes that stay in FP32.
    """

    clip: Source
    frames: int
    limit: float
    file: str


@dataclass(frozen=True)
class FileEntry:
    """Size and SHA-256 of a file of the bundle."""

    bytes: int
    sha256: str

    @staticmethod
    def of(path: Path) -> FileEntry:
        """Returns the entry of a file as it is now; reads all of it."""
        return FileEntry(path.stat().st_size, sha256(path))


@dataclass(frozen=True)
class Tokenizer:
    """What makes embeddings of other prompts than the bundle's.

    Attributes:
        file: the tokenizer, as the package `tokenizers` saves it; it cuts and fills up to as many tokens as the network
            takes.
        network: token ids -> embedding.
        behind: text that is put behind a prompt, with nothing between; not behind a negative one.
    """

    file: str
    network: str
    behind: str = ""


@dataclass(frozen=True)
class Prompt:
    """The text that conditions the restoration.

    Attributes:
        text: as it was given.
        file: its embedding (77,C) as .npy; with a negative prompt (2,77,C), that one's last.
        negative: text that the restoration is led away from, None in a family without.
        tokenizer: for other prompts; None where the bundle cannot embed any.
    """

    text: str
    file: str
    negative: str | None = None
    tokenizer: Tokenizer | None = None


@dataclass(frozen=True)
class Provenance:
    """Where the bundle comes from.

    Attributes:
        checkpoint: the checkpoint file; `checkpoint_layout` is the layout recognised in it.
        base_model: the weight files of the Stable Diffusion directory.
        stage: `both` or `consistency`.
        adapters: weight of each merged adapter, LoRA scale excluded.
        merged_sha256: hash over the merged UNet's tensors (names, shapes, FP32 bytes), so that two
            bundles can be seen to hold the same weights.
        tools: versions of the libraries that wrote the bundle.
        created: UTC, ISO 8601.
        stripped_prefixes: part of the weights -> what a wrapper had put before all of its tensors' names, such as
            `module.`; empty where nothing was left out of them.
    """

    checkpoint: Source
    checkpoint_layout: str
    tools: dict[str, str]
    created: str
    base_model: tuple[Source, ...] = ()
    stage: str | None = None
    adapters: dict[str, float] = field(default_factory=dict)
    merged_sha256: str | None = None
    stripped_prefixes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The whole manifest.

    Attributes:
        family: name of the model family, for people and for the build side; nothing on the run side depends on it.
        scale: upscaling factor of the sides.
        precision: `fp32` or `fp16`, of the networks that have an FP16 form.
        canvas: the size that frames are worked on.
        latent_scale: pixels of the scaled frame for one latent, each way.
        networks: by name.
        stages: in order.
        inputs: buffers that the runtime supplies.
        output: the buffer that holds the restored frames.
        files: every file of the bundle but the manifest.
        window: the unit of work of a family without phases.
        phases: name -> unit of work of its stages, in order: all frames of a clip go through one before the next
            begins. What a stage of a later one reads lives as long as the clip, and has an axis `f`. Empty: stages
            of neighbouring windows follow each other, and results come while frames are pushed.
        chunks: by name.
        tilings: by name.
        loops: by name.
        clip: buffers that live as long as the clip: a stage may read what an earlier window left in them; zeros at its
            beginning. They are a stage's outputs under the name that is read with `[n-1]`.
        options: by name.
        top_k: positions that an attention over frames retrieves, None for all.
        prompt: what the restoration is conditioned with, None where there is none.
        provenance: where the bundle comes from, None where that is not known.
        kernels: launch metadata of the GPU kernels, a file for each kernel and target; PTX and cubin are stored
            next to it. Empty where the bundle was built without.
        engines: compiled networks, added by `vsr-build engines`.
        calibration: of the `fp16` graphs, None where there are none.
    """

    family: str
    scale: int
    precision: Literal["fp32", "fp16"]
    canvas: Canvas
    latent_scale: int
    networks: dict[str, Network]
    stages: tuple[Stage, ...]
    inputs: dict[str, Input]
    output: str
    files: dict[str, FileEntry]
    window: Window = field(default_factory=Window)
    phases: dict[str, Window] = field(default_factory=dict)
    chunks: dict[str, Chunks] = field(default_factory=dict)
    tilings: dict[str, Tiling] = field(default_factory=dict)
    loops: dict[str, Loop] = field(default_factory=dict)
    clip: tuple[str, ...] = ()
    options: dict[str, Option] = field(default_factory=dict)
    top_k: int | None = None
    prompt: Prompt | None = None
    provenance: Provenance | None = None
    kernels: tuple[str, ...] = ()
    engines: tuple[Engine, ...] = ()
    calibration: Calibration | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def tile_unit(self) -> int:
        """Latents that the sides of tiles are multiples of: those of the canvas's steps."""
        return max(1, self.canvas.multiple * self.scale // self.latent_scale)

    @property
    def rows(self) -> dict[str, str]:
        """What stages may read row by row, as `name[i]` -> the loop that it has rows for."""
        return {f"{name}{ROW}": loop for loop, record in self.loops.items() for name in record.rows}

    def tiled(self, name: str) -> list[Stage]:
        """The stages of a tiling."""
        return [stage for stage in self.stages if stage.tiling == name]

    def write(self, bundle: Path) -> None:
        """Writes `bundle.json` into the directory, whole or not at all."""
        write_whole(bundle / MANIFEST_NAME, json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
