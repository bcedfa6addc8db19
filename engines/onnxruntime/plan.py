"""`vsr-build engines --backend onnxruntime`: graphs that ONNX Runtime has optimised for this kind of CPU."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from vsr_trt.engines.cache import SCHEMA_VERSION, Cache, key_of
from vsr_trt.engines.plan import EngineRequest, Item, inspect, memory_estimate, networks_of, state_of
from vsr_trt.engines.tensorrt.builder import BuildOrder, Facts
from vsr_trt.engines.tensorrt.targets import Target
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import STRIPS


def list_graphs(bundle: Bundle, request: EngineRequest, cache: Cache) -> list[Item]:
    """Lists the graphs to be optimised: the CPU's form of each network, in the bundle's own precision."""
    import onnxruntime

    from vsr_trt.engines.onnxruntime.save import cpu_target

    target = Target(cpu_target(), ())
    manifest = bundle.manifest
    items = []
    wanted = [
        (name, form)
        for name in networks_of(bundle, request)
        for form in ("cpu", "cpu_strips")
        if form == "cpu" or form in manifest.networks[name].graphs
    ]
    for name, form in wanted:
        graphs = manifest.networks[name].graphs
        graph = inspect(bundle, graphs.get(form, graphs["native"]))
        flags = (STRIPS,) if form == "cpu_strips" else ()
        parts: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "network": name,
            "graph": graph.sha256,
            "weights": graph.data_sha256,
            "precision": manifest.precision,
            "backend": "onnxruntime",
            "version": onnxruntime.__version__,
            "target": target.name,
            "flags": list(flags),
        }
        stem = ".".join([name, manifest.precision, *flags])
        folder = f"engines/onnxruntime-{target.name}"
        state, why = state_of(bundle, cache, parts, f"{folder}/{stem}.onnx", request.force)
        items.append(
            Item(
                order=BuildOrder(name, graph.path, (), {}, flags=flags),
                target=target,
                precision=manifest.precision,
                shape="any",
                parts=parts,
                key=key_of(parts),
                folder=folder,
                name=stem,
                file=f"{stem}.onnx",
                weights=graph.bytes,
                memory=memory_estimate(graph.bytes),
                state=state,
                why=why,
                forced=request.force,
            )
        )
    return items


def optimise(order: BuildOrder, out: Path) -> Facts:
    """Optimises one graph into `out`.

    Raises:
        EngineError: ONNX Runtime refuses the graph.
        OutputError: the disk is full.
    """
    import onnx

    from vsr_trt.engines.onnxruntime.save import save_optimised

    started = time.perf_counter()
    files = save_optimised(order.graph, out)
    model = onnx.load(out, load_external_data=False)
    return Facts(
        bytes=sum(path.stat().st_size for path in files),
        seconds=time.perf_counter() - started,
        layers=dict(Counter(node.op_type for node in model.graph.node)),
        activations=None,
        weights=None,
        fused=0,
        split={},
        outputs={},
    )
