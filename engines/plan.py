"""Which engines a request needs, what makes each of them, and where it is already: bundle, cache, or nowhere."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import google.protobuf.message
import onnx
import onnx.external_data_helper

from vsr_trt.engines.cache import SCHEMA_VERSION, Cache, differences, key_of
from vsr_trt.engines.tensorrt import shapes
from vsr_trt.engines.tensorrt.builder import BuildOrder
from vsr_trt.engines.tensorrt.library import CompilerLibrary
from vsr_trt.engines.tensorrt.targets import PORTABLE, Target
from vsr_trt.kernels import DOMAIN, OPERATORS
from vsr_trt.kernels.gated_topk.onnx_function import DType
from vsr_trt.kernels.gpu.build import fingerprint
from vsr_trt.kernels.gpu.build import is_available as can_compile_kernels
from vsr_trt.kernels.gpu.targets import TARGETS as KERNEL_TARGETS
from vsr_trt.runtime.bundle.checks import is_inside
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.engine_check import this_platform
from vsr_trt.runtime.bundle.manifest import COMPATIBLE, STRIP, STRIPS, Profile, sha256
from vsr_trt.runtime.errors import BundleError, EngineError, InputError
from vsr_trt.runtime.machine import gpu

Precision = Literal["fp32", "fp16"]

# Peak memory of a build: the compiler itself, and copies of the weights that it makes. Measured with
# TensorRT-RTX 1.7.1 on networks of 0.01 to 1.7 GB of weights; `engines` prints the estimate next to the peak.
BASE_MEMORY = 900_000_000
WEIGHT_COPIES = 3.2


def memory_estimate(weights: int) -> int:
    """Bytes that building a network of so many bytes of weights takes at most."""
    return BASE_MEMORY + int(WEIGHT_COPIES * weights)


@dataclass(frozen=True)
class EngineRequest:
    """What `vsr-build engines` was asked for.

    Attributes:
        targets: what for.
        sizes: of restored pictures.
        layout: tiles, batch, static or dynamic.
        precision: of the graphs.
        networks: only these; empty for all that stages run.
        flags: of `runtime.bundle.manifest.STRIP` and `COMPATIBLE`.
        workspace: largest scratch memory of an engine in bytes, None for no limit.
        force: build even what is there.
        operator: whether networks that a kernel of the bundle computes get engines, too: `inside` one, or left to
            the `kernel`.
    """

    targets: tuple[Target, ...]
    sizes: tuple[shapes.Size, ...]
    layout: shapes.Layout = field(default_factory=shapes.Layout)
    precision: Precision = "fp16"
    networks: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    workspace: int | None = None
    force: bool = False
    operator: Literal["inside", "kernel"] = "inside"


@dataclass(frozen=True)
class Item:
    """One engine of a request.

    Attributes:
        order: for the compiler.
        target: what for.
        precision: of its graph.
        shape: in words, e.g. `n1-h96-w96`.
        parts: of the cache's key.
        key: the cache's.
        folder: where it goes in the bundle.
        name: of its file, without suffix.
        file: its file's name.
        weights: bytes of its graph and weights.
        memory: estimated peak of building it, bytes.
        state: `bundle` and `cache` say where it is; `build` that it must be built.
        why: in words.
        forced: build it whatever there is.
    """

    order: BuildOrder
    target: Target
    precision: Precision
    shape: str
    parts: dict[str, Any]
    key: str
    folder: str
    name: str
    file: str
    weights: int
    memory: int
    state: Literal["bundle", "cache", "build"]
    why: str
    forced: bool = False


@dataclass(frozen=True)
class SourceGraph:
    """An ONNX file as the compiler will see it.

    Attributes:
        path: of the file.
        sha256: its hash.
        data_sha256: file of weights -> hash.
        bytes: of all these.
        attentions: names of its Attention nodes.
        operators: its calls of GatedTopKAttention: type of the latents, and whether only the k best count.
    """

    path: Path
    sha256: str
    data_sha256: dict[str, str]
    bytes: int
    attentions: tuple[str, ...]
    operators: tuple[tuple[DType, bool], ...]


def list_engines(
    bundle: Bundle, request: EngineRequest, library: CompilerLibrary, cache: Cache
) -> list[Item]:
    """Lists the engines, in the order of targets and networks.

    Raises:
        InputError: no such network, sizes that do not fit.
        EngineError: the bundle lacks the precision, or the flags cannot be had here.
        BundleError: a graph was changed.
    """
    _check_flags(request, library)
    layout = request.layout
    manifest = bundle.manifest
    used = {name: layout.side(manifest, name) for name in manifest.tilings if manifest.tiled(name)}
    dataclasses.replace(layout.options, tiles=used).check(manifest)
    items = []
    graphs = {name: _graph(bundle, name, request.precision) for name in networks_of(bundle, request)}
    for target in request.targets:
        for name, graph in graphs.items():
            _check_turing(bundle, request, library, target, name)
            for ranges, profile in shapes.profiles(bundle.manifest, name, request.sizes, request.layout):
                items.append(_item(bundle, request, library, cache, target, name, graph, ranges, profile))
    return items


def _check_flags(request: EngineRequest, library: CompilerLibrary) -> None:
    if request.flags and not library.needs_gpu:
        flag = request.flags[0]
        raise EngineError(
            f"--{flag} needs --backend tensorrt on a machine with a GPU: {library.title} {library.version} "
            + (
                "asks for a GPU to build weight-stripped plans."
                if flag == STRIP
                else "has no plans that run on other versions."
            )
        )


def _check_turing(
    bundle: Bundle, request: EngineRequest, library: CompilerLibrary, target: Target, name: str
) -> None:
    heavy = bundle.manifest.networks[name].always_fp32 is None
    if (
        library.backend == "tensorrt_rtx"
        and "sm_75" in target.capabilities
        and request.precision == "fp32"
        and heavy
    ):
        raise EngineError(
            f"{library.title} has no FP32 matrix product for sm_75, which {name} needs; compile FP16 for it, "
            "--precision fp16, or name other targets."
        )


def networks_of(bundle: Bundle, request: EngineRequest) -> tuple[str, ...]:
    """The networks that a request names, all that stages run if it names none, but for those left to kernels.

    Raises:
        InputError: a name that is none of them.
        EngineError: networks are to be left to kernels, and the bundle has none.
    """
    known = shapes.networks(bundle.manifest)
    left = left_to_kernels(bundle, request)
    for name in request.networks:
        if name not in known:
            raise InputError(f"--network {name}: no stage runs it; expected one of {', '.join(known)}.")
        if name in left:
            raise InputError(
                f"--network {name} is left to its kernel by --operator kernel; leave out one of both."
            )
    return tuple(name for name in known if name not in left and name in (request.networks or known))


def left_to_kernels(bundle: Bundle, request: EngineRequest) -> tuple[str, ...]:
    """The networks that get no engine, because a kernel of the bundle computes them.

    Raises:
        EngineError: they are asked for, and the bundle has none.
    """
    if request.operator != "kernel":
        return ()
    networks = bundle.manifest.networks
    left = tuple(name for name in shapes.networks(bundle.manifest) if networks[name].kernel is not None)
    if not left:
        raise EngineError(
            f"{bundle.path} has no GPU kernel for any network (--operator kernel). Build it on Linux, with Triton and "
            "without --no-kernels; or leave out --operator."
        )
    return left


def _graph(bundle: Bundle, name: str, precision: Precision) -> SourceGraph:
    manifest = bundle.manifest
    file = manifest.networks[name].graph(precision, manifest.precision)
    if file is None:
        other = "fp32" if precision == "fp16" else "fp16"
        mend = (
            f"Add them with: vsr-build calibrate {bundle.path} --clip VIDEO; or compile in FP32: --precision "
            "fp32."
            if precision == "fp16"
            else "Build the bundle with --precision fp32, or compile in FP16: --precision fp16."
        )
        raise EngineError(
            f"{bundle.path} has {other.upper()} graphs only, and --precision is {precision}. {mend}"
        )
    return inspect(bundle, file)


def inspect(bundle: Bundle, file: str) -> SourceGraph:
    """Reads a graph, without its weights. Hashes are the manifest's; `refuse_changed` compares them with the files.

    Raises:
        BundleError: it is no graph, or the weights lie elsewhere.
    """
    path, digest = bundle.file(file), bundle.manifest.files[file].sha256
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, ValueError, google.protobuf.message.Error) as error:
        refuse_changed(bundle, [path])
        raise BundleError(
            f"{bundle.path}: {file} is no ONNX graph ({error}). Build the bundle again."
        ) from error
    folder = Path(file).parent
    data: dict[str, str] = {}
    referred = Counter[str]()
    for location, length in _external(model):
        referred[location] += length
    for location in sorted(referred):
        beside = (folder / location).as_posix()
        if not is_inside(beside) or beside not in bundle.manifest.files:
            raise BundleError(
                f"{bundle.path}: {file} reads its weights from {location}, which is not the bundle's."
            )
        data[location] = bundle.manifest.files[beside].sha256
    size = bundle.manifest.files[file].bytes + referred.total()
    types = {operator: dtype for dtype, operator in OPERATORS.items()}
    calls = [node for node in model.graph.node if node.domain == DOMAIN and node.op_type in types]
    return SourceGraph(
        path=path,
        sha256=digest,
        data_sha256=data,
        bytes=size,
        attentions=tuple(n.name for n in model.graph.node if n.op_type == "Attention" and not n.domain),
        operators=tuple((types[node.op_type], _k(node) > 0) for node in calls),
    )


def _k(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "k"), 0)


def _external(model: onnx.ModelProto) -> Iterator[tuple[str, int]]:
    """File and length of each tensor of the model that lies in one: an initializer, or an attribute of a node, in
    functions too. The length is 0 where the model does not tell it as a number."""
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    constants = (attribute.t for node in nodes for attribute in node.attribute if attribute.HasField("t"))
    for tensor in itertools.chain(model.graph.initializer, constants):
        if onnx.external_data_helper.uses_external_data(tensor):
            entries = {entry.key: entry.value for entry in tensor.external_data}
            if "location" in entries:
                length = entries.get("length", "")
                yield entries["location"], int(length) if re.fullmatch(r"\d{1,18}", length, re.ASCII) else 0


def refuse_changed(bundle: Bundle, graphs: Iterable[Path]) -> None:
    """Reads all of some graphs and their weights: what is compiled is what was checked.

    Raises:
        BundleError: a file is not the one that the manifest names.
    """
    same: set[str] = set()

    def check(name: str) -> None:
        if name not in same and sha256(bundle.file(name)) != bundle.manifest.files[name].sha256:
            raise BundleError(
                f"{bundle.path}: {name} was changed since the bundle was built; it was not compiled. Copy the bundle "
                "again, or build it again with vsr-build bundle."
            )
        same.add(name)

    for graph in graphs:
        check(graph.relative_to(bundle.path).as_posix())
        for location, _ in _external(onnx.load(graph, load_external_data=False)):
            check((graph.parent / location).relative_to(bundle.path).as_posix())


def _item(
    bundle: Bundle,
    request: EngineRequest,
    library: CompilerLibrary,
    cache: Cache,
    target: Target,
    name: str,
    graph: SourceGraph,
    ranges: Mapping[str, shapes.Range],
    profile: dict[str, Profile],
) -> Item:
    shape = shapes.describe(ranges)
    strips = 1
    if shapes.in_strips(bundle.manifest, name, ranges, request.layout):
        strips = bundle.manifest.networks[name].strips
    flags = tuple(
        sorted(
            (
                *request.flags,
                *((STRIPS,) if strips > 1 else ()),
            )
        )
    )
    plugin = _plugin(library, target) if graph.operators else None
    # a network that is FP32 in every bundle is one engine, whatever was asked for
    precision: Precision = (
        "fp32" if bundle.manifest.networks[name].always_fp32 is not None else request.precision
    )
    parts = {
        "schema_version": SCHEMA_VERSION,
        "network": name,
        "graph": graph.sha256,
        "weights": graph.data_sha256,
        "precision": precision,
        "shapes": {tensor: [list(p.min), list(p.opt), list(p.max)] for tensor, p in sorted(profile.items())},
        "backend": library.backend,
        "version": library.version,
        "target": target.name,
        "capabilities": list(target.capabilities),
        "device": target.device,
        "driver": target.driver,
        "flags": list(flags),
        "workspace": request.workspace,
        "plugin": None if plugin is None else _kernels(plugin, graph.operators),
        "platform": this_platform() if library.needs_gpu else None,
    }
    if strips > 1:
        parts["strips"] = strips
    folder = f"engines/{library.backend}-{target.name}"
    stem = ".".join([name, precision, shape, *flags])
    order = BuildOrder(
        network=name,
        graph=graph.path,
        capabilities=target.capabilities,
        profiles=profile,
        portable=target.name == PORTABLE,
        flags=flags,
        workspace=request.workspace,
        plugin=plugin,
        timing_cache=_timing_file(library, target, cache),
        attentions=graph.attentions,
        strips=strips,
    )
    file = f"{stem}.engine"
    state, why = state_of(bundle, cache, parts, f"{folder}/{file}", request.force)
    return Item(
        order=order,
        target=target,
        precision=precision,
        shape=shape,
        parts=parts,
        key=key_of(parts),
        folder=folder,
        name=stem,
        file=file,
        weights=graph.bytes,
        memory=memory_estimate(graph.bytes),
        state=state,
        why=why,
        forced=request.force,
    )


def _timing_file(library: CompilerLibrary, target: Target, cache: Cache) -> Path | None:
    """What was measured on one card says nothing about another."""
    here = gpu.detect()
    if not library.needs_gpu or here is None:
        return None
    card = re.sub(r"\W+", "_", f"{here.name}-{here.capability}-{here.driver}")
    return cache.timing_file(f"{library.backend}-{library.version}-{card}")


@functools.cache
def _kernels(target: str, operators: tuple[tuple[DType, bool], ...]) -> list[str]:
    """What decides about the PTX that the engine will carry."""
    return [fingerprint(target, dtype, top_k) for dtype, top_k in operators]


def _plugin(library: CompilerLibrary, target: Target) -> str | None:
    """The target whose kernel becomes a plugin: TensorRT only, where Triton can compile it."""
    if library.backend != "tensorrt" or not can_compile_kernels():
        return None
    (capability, *_) = target.capabilities
    return capability if capability in KERNEL_TARGETS else None


def state_of(
    bundle: Bundle, cache: Cache, parts: dict[str, Any], file: str, force: bool
) -> tuple[Literal["bundle", "cache", "build"], str]:
    """Where the engine is that these parts make, or why it must be built."""
    key = key_of(parts)
    if force:
        return "build", "--force"
    if any(engine.key == key and engine.file == file for engine in bundle.manifest.engines):
        return "bundle", "as it should be"
    if cache.find(key) is not None:
        return "cache", "built before from the same"
    nearest = cache.nearest(parts)
    if nearest is None:
        return "build", "never built"
    return "build", "; ".join(differences(parts, nearest.parts)[:3])


def refuse_mixed(flags: tuple[str, ...]) -> None:
    """Refuses flags that exclude each other.

    Raises:
        InputError: naming them.
    """
    if STRIP in flags and COMPATIBLE in flags:
        raise InputError(
            "--strip and --compatible exclude each other: a stripped list_engines is refitted by its own version."
        )


def as_json(item: Item) -> dict[str, Any]:
    """Returns the values that `--dry-run --json` prints."""
    return {
        "target": item.target.name,
        "engine": f"{item.folder}/{item.file}",
        "state": item.state,
        "why": item.why,
        "estimated_memory": item.memory,
        "key": item.key,
        "parts": item.parts,
    }
