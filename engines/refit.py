"""Puts weights back into a weight-stripped engine, from the ONNX file that it was built from.

A fleet of GPUs then shares one file of weights: each card's stripped plans are a few MB.
"""

from __future__ import annotations

from pathlib import Path

from engines.build_log import BuildLog, make_logger
from engines.library import Library
from runtime.errors import EngineError


def refit(library: Library, plan: bytes, graph: Path) -> bytes:
    """The whole plan. Needs a GPU that the plan is for.

    Args:
        library: that built the plan.
        plan: a stripped one, from `build.py engines --strip`.
        graph: the bundle's ONNX file; its weights lie beside it.

    Raises:
        EngineError: the plan does not run here, or the file's weights are not those it was built from.
    """
    module, log = library.module, BuildLog()
    logger = make_logger(module, log)
    engine = module.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(
            f"{library.title} {library.version} does not load the stripped plan: {log.reasons()}."
        )
    refitter = module.Refitter(engine, logger)
    parser = module.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
        raise EngineError(f"the weights of {graph.name} do not fit the stripped plan: {log.reasons()}.")
    config = engine.create_serialization_config()
    config.clear_flag(module.SerializationFlag.EXCLUDE_WEIGHTS)
    return bytes(engine.serialize_with_config(config))
