"""What a compiler says while it builds: its errors, the memory of the plan, the layers that it made.

Without a GPU an engine cannot be loaded and asked, but the builder's log tells all of this. Written for
TensorRT 10.9 to 11.x and TensorRT-RTX 1.x, which use the same words; what is not found is None.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+)")
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+)")
_LAYER = re.compile(r"^Name: (?P<name>[^,]+), LayerType: (?P<kind>\w+),(?P<rest>.*)$", re.MULTILINE)
_ORIGIN = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_FUSED = re.compile(
    r"mha|fmha|flash", re.IGNORECASE
)  # in the names of kernels that compute a whole attention
_KEPT_WARNINGS = 20


@dataclass(frozen=True)
class Layer:
    """A layer of the engine: its name, its kind, and the ONNX nodes that it computes."""

    name: str
    kind: str
    origins: tuple[str, ...]


@dataclass
class BuildLog:
    """Collects what matters of the log.

    Attributes:
        errors: messages of severity ERROR and INTERNAL_ERROR, in order.
        warnings: the first ones.
        activations: bytes of scratch memory that a context needs.
        weights: bytes of weights on the GPU.
        layers: of the engine.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    activations: int | None = None
    weights: int | None = None
    layers: list[Layer] = field(default_factory=list)

    def add(self, severity: str, message: str) -> None:
        """Takes one message."""
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(message)
        elif severity == "WARNING" and len(self.warnings) < _KEPT_WARNINGS:
            self.warnings.append(message)
        if match := _ACTIVATIONS.search(message):
            self.activations = int(match[1])
        if match := _WEIGHTS.search(message):
            self.weights = int(match[1])
        if "LayerType:" in message:
            self.layers += [
                Layer(found["name"], found["kind"], tuple(_ORIGIN.findall(found["rest"])))
                for found in _LAYER.finditer(message)
            ]

    def reasons(self) -> str:
        """The errors in one line, without the frames that TensorRT puts around them."""
        said = [line.strip() for text in self.errors for line in text.splitlines() if line.strip()]
        useful = [line for line in said if "node ---" not in line and not line.startswith("Node name:")]
        # every error without a GPU is followed by one that says so
        caused = [line for line in useful if "catchCudaError" not in line]
        return "; ".join(dict.fromkeys(caused or useful)) or "it gave no reason"

    @property
    def out_of_memory(self) -> bool:
        """Whether the compiler found the memory pool's limit too small."""
        return any("OutOfMemory" in text or "allowed workspace size" in text for text in self.errors)

    @property
    def lacks_fused_attention(self) -> bool:
        """Whether an attention has no kernel of its own at these shapes, which dynamic ones demand."""
        return any("not supported by a dedicated kernel" in text for text in self.errors)

    def attentions(self, nodes: Iterable[str]) -> tuple[int, dict[str, int]]:
        """How many of these ONNX nodes one kernel computes, and the others with their number of layers.

        An attention is fused if a layer that stems from it is a kernel for whole attentions, or if only one
        layer does: then no matrix of scores is ever in memory.
        """
        layers: dict[str, list[Layer]] = defaultdict(list)
        for layer in self.layers:
            for origin in layer.origins:
                layers[origin].append(layer)
        fused, split = 0, {}
        for node in nodes:
            if len(layers[node]) == 1 or any(_FUSED.search(layer.name) for layer in layers[node]):
                fused += 1
            else:
                split[node] = len(layers[node])
        return fused, split


def make_logger(module: Any, log: BuildLog, on_error: Callable[[str], None] = lambda text: None) -> Any:
    """A logger of that TensorRT module that fills `log` and tells errors at once."""

    class Collector(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            name = getattr(severity, "name", str(severity))
            log.add(name, message)
            if name in ("ERROR", "INTERNAL_ERROR"):
                on_error(message)

    return Collector()
