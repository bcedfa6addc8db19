"""One network to one engine, with TensorRT or TensorRT-RTX: the same code for both.

Runs in a process of its own (`engines.worker`): the compiler may crash, has to be stopped at any moment, and
its peak of memory is worth knowing.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vsr_trt.engines.tensorrt.library import CompilerLibrary
from vsr_trt.engines.tensorrt.log import BuildLog, make_logger
from vsr_trt.runtime.bundle.manifest import COMPATIBLE, STRIP, Profile
from vsr_trt.runtime.errors import DISK_FULL, EngineError, OutputError
from vsr_trt.runtime.machine.files import write_whole


@dataclass(frozen=True)
class BuildOrder:
    """What is to be compiled, how, and for what.

    Attributes:
        network: its name.
        graph: the ONNX file; its weights lie next to it.
        capabilities: compute capabilities to build for; those of the GPU in the machine for TensorRT.
        portable: TensorRT only: for this generation of GPUs and later ones.
        profiles: shapes of each input.
        flags: of `STRIP` (no weights inside; refitted from the ONNX file), `COMPATIBLE` (runs on later versions
            of the library).
        workspace: largest scratch memory in bytes, None for no limit.
        plugin: target whose kernel GatedTopKAttention takes as a plugin, None to compile its function.
        timing_cache: file that keeps what TensorRT measured, None without.
        attentions: names of the Attention nodes, to be counted.
        strips: of rows that pictures are computed in, 1 for whole; see `engines.graphs.strips`.
    """

    network: str
    graph: Path
    capabilities: tuple[str, ...]
    profiles: dict[str, Profile]
    portable: bool = False
    flags: tuple[str, ...] = ()
    workspace: int | None = None
    plugin: str | None = None
    timing_cache: Path | None = None
    attentions: tuple[str, ...] = ()
    strips: int = 1


@dataclass(frozen=True)
class Facts:
    """What came out.

    Attributes:
        bytes: of the plan.
        seconds: for parsing and building.
        layers: of the engine by kind.
        activations, weights: bytes on the GPU.
        fused: attentions that one kernel computes.
        split: the others, with the number of their layers.
        outputs: name -> shape at the best sizes, as the parser has it.
        warnings: of the compiler, the first ones.
    """

    bytes: int
    seconds: float
    layers: dict[str, int]
    activations: int | None
    weights: int | None
    fused: int
    split: dict[str, int]
    outputs: dict[str, tuple[int, ...]]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Listener:
    """Called as a build proceeds: phase, steps of it that are done, and how many there are; and each error."""

    phase: Callable[[str, int, int], None] = lambda name, done, total: None
    error: Callable[[str], None] = lambda text: None


def compile_network(
    library: CompilerLibrary, order: BuildOrder, out: Path, listener: Listener | None = None
) -> Facts:
    """Compiles one network and writes its plan to `out`.

    Raises:
        EngineError: the compiler refuses it; the message holds its own reasons.
        OutputError: the plan cannot be written, e.g. because the disk is full.
    """
    listener = listener or Listener()
    module, log = library.module, BuildLog()
    started = time.perf_counter()
    logger = make_logger(module, log, listener.error)
    if order.plugin is not None:
        from vsr_trt.kernels.gated_topk import plugin as tensorrt_plugin

        tensorrt_plugin.register(order.plugin)
    builder = module.Builder(logger)
    network = builder.create_network(library.network_flags())
    parser = module.OnnxParser(network, logger)
    listener.phase("parsing the graph", 0, 0)
    if not _parse(parser, order):
        errors = (parser.get_error(index) for index in range(parser.num_errors))
        said = "; ".join(
            dict.fromkeys(f"node {e.node_name()} ({e.node_operator()}): {e.desc()}" for e in errors)
        )
        raise EngineError(
            f"{library.title} does not parse {order.network} ({order.graph.name}): {said or log.reasons()}"
        )
    config = _config(library, builder, network, order)
    config.progress_monitor = _monitor(module, listener)
    timings = _load_timings(config, order.timing_cache)
    written = _write(library, builder, network, config, out, log, order)
    if order.timing_cache is not None and timings is not None:
        _save_timings(config, order.timing_cache, log)
    if order.workspace is not None and (log.activations or 0) > order.workspace:
        raise _too_large(order)
    fused, split = log.attentions(order.attentions)
    kinds: dict[str, int] = {}
    for layer in log.layers:
        kinds[layer.kind] = kinds.get(layer.kind, 0) + 1
    outputs = (network.get_output(index) for index in range(network.num_outputs))
    return Facts(
        bytes=written,
        seconds=time.perf_counter() - started,
        layers=kinds,
        activations=log.activations,
        weights=log.weights,
        fused=fused,
        split=split,
        outputs={tensor.name: tuple(tensor.shape) for tensor in outputs},
        warnings=log.warnings,
    )


def _parse(parser: Any, order: BuildOrder) -> bool:
    if order.strips > 1:
        import onnx_ir as ir  # it takes two seconds, which only this needs

        from vsr_trt.engines.graphs.strips import cut_into_strips

        model = ir.load(order.graph)
        cut_into_strips(model, order.strips, ordered=True)
        return parser.parse(ir.to_proto(model).SerializeToString(), str(order.graph))
    return parser.parse_from_file(str(order.graph))


def _config(library: CompilerLibrary, builder: Any, network: Any, order: BuildOrder) -> Any:
    module, config = library.module, builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        name = network.get_input(index).name
        shapes = order.profiles[name]
        profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
    config.add_optimization_profile(profile)
    config.profiling_verbosity = (
        module.ProfilingVerbosity.DETAILED
    )  # names of layers, for reports and profilers
    if hasattr(module.BuilderFlag, "TF32"):
        config.clear_flag(module.BuilderFlag.TF32)  # it would cut FP32 products to 11 bits, islands' too
    if hasattr(module.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # The runtime's memory for all of it, none allocated while it runs: or it could not be captured as a graph.
        config.set_flag(module.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if library.targets:
        config.num_compute_capabilities = len(order.capabilities)
        for index, name in enumerate(order.capabilities):
            kind = getattr(module.ComputeCapability, name.replace("sm_", "SM"))
            config.set_compute_capability(kind, index)
    elif order.portable:
        config.hardware_compatibility_level = module.HardwareCompatibilityLevel.AMPERE_PLUS
    if order.workspace is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, order.workspace)
    if STRIP in order.flags:
        config.set_flag(library.builder_flag("STRIP_PLAN"))
        config.set_flag(library.builder_flag("REFIT_IDENTICAL"))
    if COMPATIBLE in order.flags:
        config.set_flag(library.builder_flag("VERSION_COMPATIBLE"))
    return config


def _monitor(module: Any, listener: Listener) -> Any:
    """TensorRT nests its phases; only the innermost one that is at work is reported."""

    class Monitor(module.IProgressMonitor):
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.totals[phase_name] = num_steps
            listener.phase(phase_name, 0, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            self.totals.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            listener.phase(phase_name, step + 1, self.totals.get(phase_name, 0))
            return True  # a build is stopped by ending its process

    return Monitor()


def _write(
    library: CompilerLibrary,
    builder: Any,
    network: Any,
    config: Any,
    out: Path,
    log: BuildLog,
    order: BuildOrder,
) -> int:
    """Builds, and writes the plan as it comes: a plan of 2 GB is not kept in memory besides."""
    try:
        with out.open("wb") as file:
            stream = _stream(library.module, file)
            if hasattr(builder, "build_serialized_network_to_stream") and stream is not None:
                done = builder.build_serialized_network_to_stream(network, config, stream)
                if stream.failure is not None:
                    raise stream.failure
            else:
                plan = builder.build_serialized_network(network, config)
                done = plan is not None
                if plan is not None:
                    file.write(plan)
            if not done:
                if order.workspace is not None and log.out_of_memory:
                    raise _too_large(order)
                if log.lacks_fused_attention:
                    dynamic = any(profile.min[1:] != profile.max[1:] for profile in order.profiles.values())
                    where, mend = (
                        (
                            "at dynamic sizes",
                            "Build static engines: leave out --dynamic and give every --size.",
                        )
                        if dynamic
                        else ("in this precision", "Build it in FP16: --precision fp16.")
                    )
                    raise EngineError(
                        f"{library.title} has no fused kernel for an attention of {order.network} {where} (its heads "
                        f"are too narrow). {mend}"
                    )
                raise EngineError(f"{library.title} cannot build {order.network}: {log.reasons()}.")
            return file.tell()
    except OSError as error:
        raise write_error(order.network, error) from error


def _stream(module: Any, file: io.BufferedWriter) -> Any:
    if not hasattr(module, "IStreamWriter"):
        return None

    class Writer(module.IStreamWriter):
        def __init__(self) -> None:
            module.IStreamWriter.__init__(self)
            self.failure: OSError | None = None

        def write(self, data: bytes) -> int:
            try:
                return file.write(data)
            except OSError as error:  # it cannot pass through the compiler
                self.failure = error
                return 0

    return Writer()


def write_error(network: str, error: OSError) -> OutputError:
    """A plan that could not be written."""
    if error.errno in DISK_FULL:
        return OutputError(
            f"the disk is full: the engine of {network} was not written. Free some space (vsr-build cache "
            "prune --limit GB), or choose another --cache-dir."
        )
    return OutputError(f"the engine of {network} cannot be written: {error.strerror or error}.")


def _load_timings(config: Any, path: Path | None) -> Any:
    """What was measured before. It only saves time: without it, or if it does not fit, all is measured again."""
    if path is None or not hasattr(config, "create_timing_cache"):
        return None
    content = b""
    with contextlib.suppress(OSError):
        content = path.read_bytes()
    timings = config.create_timing_cache(content)
    if not config.set_timing_cache(timings, ignore_mismatch=False):
        timings = config.create_timing_cache(b"")
        config.set_timing_cache(timings, ignore_mismatch=False)
    return timings


def _save_timings(config: Any, path: Path, log: BuildLog) -> None:
    """Joins what others have measured meanwhile, under a lock. A failure costs time later, and no engine now."""
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            ours = config.get_timing_cache()
            if ours is None:
                return
            if path.exists():
                ours.combine(config.create_timing_cache(path.read_bytes()), ignore_mismatch=False)
            write_whole(path, bytes(ours.serialize()))
    except OSError as error:
        log.warnings.append(f"the timing cache {path} was not written: {error}")


def _too_large(order: BuildOrder) -> EngineError:
    assert order.workspace is not None
    shapes = ", ".join(f"{name} {profile.max}" for name, profile in order.profiles.items())
    return EngineError(
        f"{order.network} needs more scratch memory than --workspace allows ({order.workspace / 1e9:g} GB) for {shapes}"
        ". Raise it, or choose a smaller --size, --tile or --batch, or strips for the VAE: a smaller --vae-tile."
    )
