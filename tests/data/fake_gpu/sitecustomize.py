"""Puts a fake GPU into every Python process that has this folder on its PYTHONPATH; see tests/helpers/stub_driver.py.

What Python runs at its start by this name elsewhere on the path still runs.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

_HERE = Path(__file__).resolve().parent
_TESTS = _HERE.parents[1]
# module -> function of helpers.fake_library that changes it once it is imported
_CHANGED = {"tensorrt_rtx": "put_runtime", "vsr_trt.kernels.gpu.build": "keep_kernels"}


class _Finder(importlib.abc.MetaPathFinder):
    """Finds these modules as others do, and has each changed as soon as it has run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in _CHANGED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, _CHANGED[name])
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader, change: str) -> None:
        self._loader, self._change = loader, change

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        if str(_TESTS) not in sys.path:
            sys.path.append(str(_TESTS))
        from helpers import fake_library

        getattr(fake_library, self._change)(module)


def _run_the_next() -> None:
    others = [folder for folder in sys.path if Path(folder or ".").resolve() != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


sys.meta_path.insert(0, _Finder())
_run_the_next()
