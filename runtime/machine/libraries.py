"""The inference libraries' names, by the name of their backend."""

from __future__ import annotations

EXTRAS = {"tensorrt_rtx": "rtx", "tensorrt": "gpu"}  # of the package that install the library
TITLES = {"tensorrt_rtx": "TensorRT-RTX", "tensorrt": "TensorRT", "onnxruntime": "ONNX Runtime"}
