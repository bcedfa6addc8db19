"""A `tensorrt` module for machines where TensorRT's libraries are absent.

The Python half of TensorRT's plugin interface, `tensorrt.plugin`, is the real one: the sources in NVIDIA's
bindings wheel, run as they are. Only what these take from the native half is made here, from their own references:
every `trt.X` and `trt.X.Y` in the sources becomes a class or an enumeration with just these members. So a
name that we use and the real sources do not know, or a changed call between the two halves, fails a test.
"""

from __future__ import annotations

import ast
import enum
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any


def bindings() -> Path | None:
    """The folder of the bindings' package, None where it is not installed. Nothing native is loaded."""
    spec = find_spec("tensorrt_bindings")
    return Path(spec.origin).parent if spec and spec.origin else None


@contextmanager
def standin() -> Iterator[ModuleType]:
    """`import tensorrt` gives the stand-in, `tensorrt.plugin` the real sources, until the context ends."""
    folder = bindings()
    assert folder is not None
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "tensorrt"}
    try:
        sys.modules["tensorrt"] = _native(folder)
        yield sys.modules["tensorrt"]
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "tensorrt"]:
            del sys.modules[name]
        sys.modules.update(hidden)


def _references(folder: Path) -> dict[str, set[str]]:
    """What the sources use of `trt`: name -> names under it."""
    found: dict[str, set[str]] = {}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute):
                continue
            if isinstance(node.value, ast.Name) and node.value.id == "trt":
                found.setdefault(node.attr, set())
            inner = node.value
            if (
                isinstance(inner, ast.Attribute)
                and isinstance(inner.value, ast.Name)
                and inner.value.id == "trt"
            ):
                found.setdefault(inner.attr, set()).add(node.attr)
    return found


def _native(folder: Path) -> ModuleType:
    module = ModuleType("tensorrt")
    module.__path__ = [str(folder)]  # so that tensorrt.plugin is found there
    module.__dict__["__version__"] = "stand-in"
    behaviour = {kind.__name__: kind for kind in (Logger, Dims, DimsExprs, IDimensionExpr, PluginField)}
    behaviour |= {kind.__name__: kind for kind in (PluginTensorDesc, DynamicPluginTensorDesc)}
    registry = Registry()
    for name, members in _references(folder / "plugin").items():
        members = {member for member in members if not member.startswith("__")}
        if name in behaviour:
            unknown = [member for member in members if not hasattr(behaviour[name], member)]
            assert not unknown, f"trt.{name} is asked for {unknown}, which its stand-in lacks"
            setattr(module, name, behaviour[name])
        elif name == "PluginFieldCollection":
            setattr(module, name, list)
        elif name == "get_plugin_registry":
            setattr(module, name, lambda: registry)
        elif members:
            setattr(module, name, enum.Enum(name, sorted(members)))
        elif name[0].isupper():
            setattr(module, name, type(name, (), {"__init__": lambda self: None}))
        else:
            setattr(module, name, f"trt.{name}")
    return module


class Logger:
    """Says nothing."""

    WARNING = "warning"

    def log(self, severity: str, message: str) -> None:
        """Nothing to see."""


class Registry:
    """Plugin creators by name, version and namespace, as TensorRT's parser asks for them."""

    def __init__(self) -> None:
        self.creators: dict[tuple[str, str, str], Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> bool:
        """Stores a creator."""
        self.creators[creator.name, creator.plugin_version, namespace] = creator
        return True

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        """The creator, or None."""
        return self.creators.get((name, version, namespace))


class Dims(list[int]):
    """Sizes of a tensor, -1 for those that are not known yet."""

    MAX_DIMS = 8

    def __init__(self, sizes: Any) -> None:
        super().__init__([0] * sizes if isinstance(sizes, int) else sizes)


class DimsExprs(list[Any]):
    """Expressions of a tensor's sizes."""

    def __init__(self, length: int) -> None:
        super().__init__([None] * length)


class IDimensionExpr:
    """A number, a named size, or an operation on two expressions."""

    def __init__(self, value: int | str | tuple[str, IDimensionExpr, IDimensionExpr]) -> None:
        self.value = value

    def is_constant(self) -> bool:
        """Whether it is a number."""
        return isinstance(self.value, int)

    def get_constant_value(self) -> int:
        """The number."""
        assert isinstance(self.value, int)
        return self.value

    def evaluate(self, sizes: dict[str, int]) -> int:
        """Its value for these sizes."""
        if isinstance(self.value, int):
            return self.value
        if isinstance(self.value, str):
            return sizes[self.value]
        operation, first, second = self.value
        return _OPERATIONS[operation](first.evaluate(sizes), second.evaluate(sizes))


_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "SUM": int.__add__,
    "SUB": int.__sub__,
    "PROD": int.__mul__,
    "FLOOR_DIV": int.__floordiv__,
    "CEIL_DIV": lambda a, b: -(-a // b),
}


class ExprBuilder:
    """Makes expressions, of those that it made itself and the inputs' sizes only."""

    def constant(self, value: int) -> IDimensionExpr:
        """A number."""
        assert type(value) is int
        return IDimensionExpr(value)

    def operation(self, kind: enum.Enum, first: IDimensionExpr, second: IDimensionExpr) -> IDimensionExpr:
        """An operation on two expressions."""
        assert isinstance(first, IDimensionExpr)
        assert isinstance(second, IDimensionExpr)
        return IDimensionExpr((kind.name, first, second))


class PluginField:
    """An attribute of a node."""

    def __init__(self, name: str, data: Any = None, type: Any = None) -> None:
        self.name, self.data, self.type = name, data, type


class PluginTensorDesc:
    """Type, layout and sizes of a tensor."""

    def __init__(self, type: Any = None, format: Any = None, dims: Any = ()) -> None:
        self.type, self.format, self.dims, self.scale = type, format, Dims(dims), 1.0


class DynamicPluginTensorDesc:
    """The same for sizes that change, with their bounds."""

    def __init__(self, desc: PluginTensorDesc, low: Any, best: Any, high: Any) -> None:
        self.desc, self.min, self.opt, self.max = desc, Dims(low), Dims(best), Dims(high)
