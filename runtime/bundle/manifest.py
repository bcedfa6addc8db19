"""The bundle's manifest, `bundle.json`: what a bundle holds, defined once for both sides.

The build side fills these dataclasses and writes them, the run side reads and obeys them. The same
definition is published as a JSON schema (`bundle.schema.json`, made by `vsr schema`)
for hosts in other languages.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from vsr_trt.runtime.bundle.errors import BundleError
from vsr_trt.runtime.bundle.records import MisfitError, parse

SCHEMA_VERSION = 1
MANIFEST_NAME = "bundle.json"
PREVIOUS = "[n-1]"  # ends the name of a buffer that is read as it was one frame earlier

# Flags of engines. They are part of a build's key in the cache, too.
STRIP = "strip"  # no weights inside
COMPATIBLE = "compatible"  # runs on later versions of its library
WARP = "warp"  # leaves the operator to its kernel
STRIPS = "strips"  # computes pictures in strips of rows

_DIMENSION = re.compile(r"(?:(\d+)\*)?([a-z][a-z0-9_]*)")
_FACTOR = re.compile(r"([a-z][a-z0-9_]*)|ceil\(([a-z][a-z0-9_]*),([1-9]\d*)\)")

Shape = tuple[int | str, ...]
"""A symbolic shape: sizes, names, or a name times a number, e.g. ("n", 3, "8*h", "8*w")."""

Polynomial = dict[str, float]
"""A number that depends on symbolic sizes: products of sizes -> coefficients, e.g. {"1": 9, "h*w": 64}.

A factor is a name, or `ceil(h,32)`: the size rounded up to a multiple of 32. The product "1" is the constant."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of a network: numpy's name of the dtype, and a symbolic shape."""

    name: str
    dtype: str
    shape: Shape


@dataclass(frozen=True)
class Bound:
    """What a symbolic dimension may be: min <= size <= max, and a multiple of `multiple_of`."""

    min: int
    max: int
    multiple_of: int = 1


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
        tiling: None runs the stage on the whole frame; `vae` and `latent` name the tile limit under
            which it may be cut. Consecutive `latent` stages are cut together: each tile goes through
            all of them, and only the last one's outputs are blended.
        variants: values of `option` -> network, where the user has a choice.
        option: name of the runtime option that picks the variant.
    """

    name: str
    network: str
    reads: dict[str, str]
    writes: dict[str, str]
    tiling: Literal["vae", "latent"] | None = None
    variants: dict[str, str] = field(default_factory=dict)
    option: str | None = None


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
        flags: builder options that make a difference; `warp`: it leaves out the bundle's `operator`; `strips`: it
            computes its network in strips of rows.
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
class Operator:
    """The cross-frame attention as a step of its own: its GPU kernel runs after an engine that leaves it out.

    Attributes:
        network: that it is part of.
        current: the network's input that it reads.
        previous: the network's output that it reads.
        output: the network's output that it computes; of the same shape as both.
        operands: `M` (heads,C+1,C+1), `P` (heads,C,C+1), `bias` (C,) -> .npy, float32: what the graph holds, too.
        top_k: positions that it retrieves, None for all.
    """

    network: str
    current: str
    previous: str
    output: str
    operands: dict[str, str]
    top_k: int | None


@dataclass(frozen=True)
class FileEntry:
    """Size and SHA-256 of a file of the bundle."""

    bytes: int
    sha256: str

    @staticmethod
    def of(path: Path) -> FileEntry:
        """Of a file as it is now; reads all of it."""
        return FileEntry(path.stat().st_size, sha256(path))


@dataclass(frozen=True)
class Prompt:
    """The text that conditions the restoration, and its embedding (77, C) as .npy."""

    text: str
    file: str


@dataclass(frozen=True)
class Provenance:
    """Where the bundle comes from.

    Attributes:
        checkpoint: the checkpoint file; `checkpoint_layout` is the layout recognised in it.
        base_model: the weight files of the Stable Diffusion directory.
        stage: `both` or `consistency`.
        adapters: weight of each merged adapter, LoRA scale excluded.
        merged_sha256: hash over the merged UNet's tensors (names, shapes, FP32 bytes), so that two
            bundles can be told to hold the same weights.
        tools: versions of the libraries that wrote the bundle.
        created: UTC, ISO 8601.
        stripped_prefixes: part of the weights -> what a wrapper had put before all of its tensors' names, such as
            `module.`; empty where nothing was left out of them.
    """

    checkpoint: Source
    checkpoint_layout: str
    base_model: tuple[Source, ...]
    stage: str
    adapters: dict[str, float]
    merged_sha256: str
    tools: dict[str, str]
    created: str
    stripped_prefixes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The whole manifest.

    Attributes:
        family: model family whose schedule runs the bundle, e.g. `dloral`.
        scale: upscaling factor of the sides.
        window: frames that one result depends on.
        precision: `fp32` or `fp16`, of the UNet and the VAE; the other networks are always FP32.
        frame_multiple: sides of the scaled frame are padded to multiples of this inside.
        minimum_side: smallest side of an input frame; smaller ones are enlarged first.
        latent_scale: pixels of the scaled frame for one latent, each way.
        top_k: positions that the cross-frame attention retrieves, None for all.
        option_defaults: default value of each option named in `stages`.
        inputs: buffers that the runtime supplies: the frame, and constants from files.
        output: the buffer that holds the restored frame.
        files: every file of the bundle but the manifest.
        kernels: launch metadata of the GPU kernels, a file for each kernel and target; PTX and cubin lie
            beside it. Empty where the bundle was built without.
        engines: compiled networks, added by `build.py engines`.
        calibration: of the `fp16` graphs, None where there are none.
        operator: how the attention's kernel takes part, None where the bundle was built without kernels.
    """

    family: str
    scale: int
    window: int
    precision: Literal["fp32", "fp16"]
    frame_multiple: int
    minimum_side: int
    latent_scale: int
    top_k: int | None
    networks: dict[str, Network]
    stages: tuple[Stage, ...]
    inputs: dict[str, str | None]
    output: str
    option_defaults: dict[str, str]
    prompt: Prompt
    files: dict[str, FileEntry]
    provenance: Provenance
    kernels: tuple[str, ...] = ()
    engines: tuple[Engine, ...] = ()
    calibration: Calibration | None = None
    operator: Operator | None = None
    schema_version: int = SCHEMA_VERSION

    def write(self, bundle: Path) -> None:
        """Writes `bundle.json` into the directory, whole or not at all."""
        path = bundle / MANIFEST_NAME
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)

    @staticmethod
    def read(bundle: Path) -> Manifest:
        """Reads and checks `bundle.json`; touches no other file.

        Raises:
            BundleError: no bundle there, another schema version, a field missing, unknown or of
                another type, a path that leaves the bundle, names that refer to nothing.
        """
        path = bundle / MANIFEST_NAME
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BundleError(
                f"{bundle} is not a bundle: it has no {MANIFEST_NAME}. "
                "Make one with: vsr-build bundle --sd DIR --checkpoint FILE --out BUNDLE"
            ) from error
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} cannot be read: {error}. Build the bundle anew.") from error
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"{path} has schema version {version!r}, this runtime reads version {SCHEMA_VERSION}. "
                "Build the bundle anew with this version's build.py, or use the runtime it was made for."
            )
        try:
            manifest: Manifest = parse(Manifest, data, "bundle.json")
            _check(manifest)
        except MisfitError as error:
            raise BundleError(f"{path} is damaged: {error}. Build the bundle anew.") from error
        return manifest


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def dimension(size: int | str) -> tuple[int, str | None]:
    """Takes a symbolic size apart: 3 -> (3, None), "h" -> (1, "h"), "8*h" -> (8, "h").

    Raises:
        ValueError: not such a size.
    """
    if isinstance(size, int):
        return size, None
    match = _DIMENSION.fullmatch(size)
    if not match:
        raise ValueError(f"{size!r} is not a size")
    return int(match[1] or 1), match[2]


def factors(product: str) -> list[tuple[str, int]]:
    """Takes a product of a polynomial apart into names and the multiples that these are rounded up to.

    Raises:
        ValueError: not such a product.
    """
    if product == "1":
        return []
    found = []
    for factor in product.split("*"):
        match = _FACTOR.fullmatch(factor)
        if not match:
            raise ValueError(f"{product!r} is not a product of sizes")
        found.append((match[1] or match[2], int(match[3] or 1)))
    return found


def evaluate(polynomial: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    """The polynomial's value at the given sizes."""
    return sum(
        coefficient * math.prod(-(-sizes[name] // multiple) * multiple for name, multiple in factors(product))
        for product, coefficient in polynomial.items()
    )


def is_inside(path: str) -> bool:
    """True for a relative path, with forward slashes, that cannot leave the bundle."""
    pure = PurePosixPath(path)
    return bool(
        path
        and not pure.is_absolute()
        and ".." not in pure.parts
        and not any(character in path for character in ("\\", ":", "\0"))
    )


def _check(manifest: Manifest) -> None:
    """Checks what types do not: paths stay inside, names refer to something."""
    referenced = [graph for network in manifest.networks.values() for graph in network.graphs.values()]
    referenced += [
        *manifest.kernels,
        *(path for engine in manifest.engines for path in (engine.file, engine.report)),
        *([manifest.calibration.file] if manifest.calibration else []),
        *(manifest.operator.operands.values() if manifest.operator else []),
        manifest.prompt.file,
        *(file for file in manifest.inputs.values() if file),
    ]
    for path in [*manifest.files, *referenced]:
        if not is_inside(path):
            raise MisfitError(f"the path {path!r} leaves the bundle")
    for path in referenced:
        if path not in manifest.files:
            raise MisfitError(f"{path!r} is used but not among the files")
    for name, network in manifest.networks.items():
        _check_network(name, network)
    for engine in manifest.engines:
        if engine.network not in manifest.networks:
            raise MisfitError(f"the engine {engine.file} is of {engine.network!r}, which is no network")
    if manifest.operator is not None:
        _check_operator(manifest.operator, manifest)
    for name in ("scale", "window", "frame_multiple", "minimum_side", "latent_scale"):
        if getattr(manifest, name) < 1:
            raise MisfitError(f"{name} is {getattr(manifest, name)}, expected at least 1")
    if len({stage.name for stage in manifest.stages}) != len(manifest.stages):
        raise MisfitError("two stages have the same name")
    written = set(manifest.inputs)
    for stage in manifest.stages:
        _check_stage(stage, manifest, written)
        written |= set(stage.writes.values())
    if manifest.output not in written:
        raise MisfitError(f"no stage writes the output {manifest.output!r}")


def _check_network(name: str, network: Network) -> None:
    if "native" not in network.graphs:
        raise MisfitError(f"network {name} has no native graph")
    for tensor in (*network.inputs, *network.outputs):
        for size in tensor.shape:
            try:
                _, symbol = dimension(size)
            except ValueError as error:
                raise MisfitError(f"network {name}, tensor {tensor.name}: {error}") from error
            if symbol and symbol not in network.bounds:
                raise MisfitError(f"network {name}: the dimension {symbol!r} has no bounds")
    if network.work is not None:
        _check_work(name, network, network.work)


def _check_work(name: str, network: Network, work: Work) -> None:
    for product in (*work.multiply_adds, *work.activations, *work.integer_bytes):
        try:
            symbols = {symbol for symbol, _ in factors(product)}
        except ValueError as error:
            raise MisfitError(f"network {name}, its work: {error}") from error
        if unknown := sorted(symbols - set(network.bounds)):
            raise MisfitError(f"network {name}, its work: the dimension {unknown[0]!r} has no bounds")


def _check_operator(operator: Operator, manifest: Manifest) -> None:
    network = manifest.networks.get(operator.network)
    if network is None:
        raise MisfitError(f"the operator is of {operator.network!r}, which is no network")
    inputs = {tensor.name for tensor in network.inputs}
    outputs = {tensor.name for tensor in network.outputs}
    for name, known in (
        (operator.current, inputs),
        (operator.previous, outputs - {operator.output}),
        (operator.output, outputs),
    ):
        if name not in known:
            raise MisfitError(
                f"the operator of {operator.network} stands at {name!r}, expected {sorted(known)}"
            )
    if set(operator.operands) != {"M", "P", "bias"}:
        raise MisfitError(
            f"the operator has the operands {sorted(operator.operands)}, expected M, P and bias"
        )
    if operator.top_k != manifest.top_k:
        raise MisfitError(f"the operator's top_k is {operator.top_k}, and the bundle's {manifest.top_k}")


def _check_stage(stage: Stage, manifest: Manifest, written: set[str]) -> None:
    for name in (stage.network, *stage.variants.values()):
        if name not in manifest.networks:
            raise MisfitError(f"stage {stage.name} runs {name!r}, which is not among the networks")
        network = manifest.networks[name]
        if {tensor.name for tensor in network.inputs} != set(stage.reads):
            raise MisfitError(f"stage {stage.name} does not feed the inputs of {name!r}")
        if not set(stage.writes) <= {tensor.name for tensor in network.outputs}:
            raise MisfitError(f"stage {stage.name} writes what {name!r} does not compute")
    for buffer in stage.reads.values():
        if buffer.removesuffix(PREVIOUS) not in written:
            raise MisfitError(f"stage {stage.name} reads {buffer!r} before it is written")
    if bool(stage.variants) != (stage.option is not None):
        raise MisfitError(f"stage {stage.name} has variants but no option, or an option but no variants")
    if stage.option is not None and manifest.option_defaults.get(stage.option) not in stage.variants:
        raise MisfitError(f"stage {stage.name}: the default of {stage.option!r} is none of its variants")


def json_schema() -> dict[str, Any]:
    """The published JSON schema (draft 2020-12) of `bundle.json`, made from the dataclasses."""
    definitions: dict[str, Any] = {}
    root = _schema_of(Manifest, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"vsr-trt bundle manifest, schema version {SCHEMA_VERSION}",
        **root,
        "$defs": definitions,
    }


def _schema_of(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        name = typing.cast(type, kind).__name__
        if name not in definitions:
            definitions[name] = {}
            definitions[name] = _schema_of_dataclass(typing.cast(type, kind), definitions)
        return {"$ref": f"#/$defs/{name}"}
    if origin is tuple:
        return {"type": "array", "items": _schema_of(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema_of(arguments[1], definitions)}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [_schema_of(argument, definitions) for argument in arguments]}
    names = {int: "integer", float: "number", str: "string", types.NoneType: "null"}
    return {"type": names[kind]}


def _schema_of_dataclass(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    properties = {name: _schema_of(hints[name], definitions) for name in hints}
    if kind is Manifest:
        properties["schema_version"] = {"const": SCHEMA_VERSION}
    return {
        "type": "object",
        "description": (kind.__doc__ or "").strip(),
        "properties": properties,
        "required": [
            f.name
            for f in dataclasses.fields(kind)
            if (f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING)
            or f.name == "schema_version"
        ],
        "additionalProperties": False,
    }
