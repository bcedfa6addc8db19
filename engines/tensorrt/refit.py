"""Puts weights back into a weight-stripped engine, from the ONNX file that it was built from.

A fleet of GPUs then shares one file of weights: each card's stripped plans are a few MB.
"""

from __future__ import annotations

from vsr_trt.engines import report as build_report
from vsr_trt.engines.plan import inspect, refuse_changed
from vsr_trt.engines.tensorrt.library import CompilerLibrary
from vsr_trt.engines.tensorrt.log import BuildLog, make_logger
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Engine
from vsr_trt.runtime.errors import EngineError


def refit(library: CompilerLibrary, bundle: Bundle, engine: Engine) -> bytes:
    """The whole plan. Needs a GPU that the plan is for.

    Args:
        library: that built the plan.
        bundle: that holds the plan and the ONNX file.
        engine: a stripped one, from `vsr-build engines --strip`.

    Raises:
        EngineError: the plan does not run here, or the bundle's weights are not those it was built from, which
            TensorRT itself would not notice.
    """
    network = bundle.manifest.networks[engine.network]
    file = network.graph(engine.precision, bundle.manifest.precision)
    if file is None:
        raise EngineError(
            f"{bundle.path} has no {engine.precision} graph of {engine.network} to take weights from."
        )
    refuse_changed(bundle, [bundle.file(file)])
    graph, report = inspect(bundle, file), build_report.read(bundle.file(engine.report))
    if (graph.sha256, graph.data_sha256) != (report.get("graph"), report.get("graph_weights")):
        raise EngineError(
            f"{engine.file} was built from another {file}; its weights do not fit. Build it again: vsr-build "
            f"engines {bundle.path} --backend tensorrt --strip"
        )
    module, log = library.module, BuildLog()
    logger = make_logger(module, log)
    loaded = module.Runtime(logger).deserialize_cuda_engine(bundle.file(engine.file).read_bytes())
    if loaded is None:
        raise EngineError(f"{library.title} {library.version} does not load {engine.file}: {log.reasons()}.")
    refitter = module.Refitter(loaded, logger)
    parser = module.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(graph.path)) or not refitter.refit_cuda_engine():
        raise EngineError(f"{engine.file} cannot be refitted from {file}: {log.reasons()}.")
    config = loaded.create_serialization_config()
    config.clear_flag(module.SerializationFlag.EXCLUDE_WEIGHTS)
    whole = loaded.serialize_with_config(config)
    if whole is None:
        raise EngineError(f"{engine.file} cannot be written with its weights: {log.reasons()}.")
    return bytes(whole)
