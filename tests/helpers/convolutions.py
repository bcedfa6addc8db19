"""Small networks of convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

PADS = [1, 1, 1, 1]


class Network:
    """Writes a graph node by node; each method returns its result's name."""

    def __init__(self, seed: int = 0, dtype: type = np.float32) -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.channels: dict[str, int] = {}  # of results whose shape onnx does not infer

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def conv(
        self, x: str, inputs: int, outputs: int, side: int = 3, bias: bool = True, **attributes: object
    ) -> str:
        group = attributes.get("group", 1)
        shape = (outputs, inputs // group, side, side)
        weight = self.rng.standard_normal(shape) / np.sqrt(side * side * inputs)
        parameters = [self.constant(weight.astype(self.dtype))]
        if bias:
            parameters.append(self.constant(self.rng.standard_normal(outputs).astype(self.dtype)))
        attributes = {"kernel_shape": [side, side], "pads": PADS if side == 3 else [0] * 4} | attributes
        return self.node("Conv", x, *parameters, **attributes)

    def norm(self, x: str, channels: int, groups: int) -> str:
        scale, bias = self.rng.standard_normal((2, channels)).astype(self.dtype)
        parameters = [self.constant(scale), self.constant(bias)]
        y = self.node("GroupNormalization", x, *parameters, num_groups=groups, epsilon=1e-6)
        self.channels[y] = channels
        return y

    def silu(self, x: str) -> str:
        return self.node("Mul", x, self.node("Sigmoid", x))

    def double(self, x: str) -> str:
        scales = self.constant(np.array([1, 1, 2, 2], np.float32))
        asymmetric = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.node("Resize", x, "", scales, mode="nearest", **asymmetric)

    def model(self, result: str, channels: int, sides: Sequence[object] = ("8*h", "8*w")) -> onnx.ModelProto:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        graph = helper.make_graph(
            [*self.nodes, helper.make_node("Identity", [result], ["y"])],
            "network",
            [helper.make_tensor_value_info("x", kind, ["n", channels, *sides])],
            [helper.make_tensor_value_info("y", kind, None)],
            self.tensors,
            value_info=[
                helper.make_tensor_value_info(name, kind, ["n", count, *sides])
                for name, count in self.channels.items()
            ],
        )
        opsets = [helper.make_opsetid("", 23)]
        return onnx.shape_inference.infer_shapes(
            helper.make_model(graph, opset_imports=opsets, ir_version=10), data_prop=True
        )


def run(network: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]
