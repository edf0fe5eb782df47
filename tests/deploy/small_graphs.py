"""Small ONNX graphs made by hand: no exporter, so a test can make many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def save(path: Path, nodes: Sequence[onnx.NodeProto], weights: dict[str, np.ndarray], channels: int, dims: int) -> Path:
    """A graph from ``image`` (B, C, ...) to ``probabilities``."""
    shape = ["batch", channels, *(f"s{axis}" for axis in range(dims))]
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    graph.output[0].type.tensor_type.shape.CopyFrom(onnx.TensorShapeProto())
    for _ in range(dims + 2):
        graph.output[0].type.tensor_type.shape.dim.add()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


def layer(path: Path, weight: np.ndarray, op: str = "Conv", groups: int = 1) -> Path:
    """One convolution or transposed one with these weights."""
    channels = weight.shape[1] * groups if op == "Conv" else weight.shape[0]
    node = helper.make_node(op, ["image", "weight"], ["probabilities"], name="layer", group=groups)
    return save(path, [node], {"weight": weight.astype(np.float32)}, channels, weight.ndim - 2)


def chain(path: Path, weights: Sequence[np.ndarray]) -> Path:
    """Convolutions one after the other, each but the last followed by a ReLU: ``layer0``, ``layer1``, ..."""
    nodes, tensor = [], "image"
    for index in range(len(weights)):
        given = "probabilities" if index == len(weights) - 1 else f"conv{index}"
        nodes.append(helper.make_node("Conv", [tensor, f"w{index}"], [given], name=f"layer{index}"))
        if given != "probabilities":
            nodes.append(helper.make_node("Relu", [given], [f"relu{index}"]))
            tensor = f"relu{index}"
    named = {f"w{index}": weight.astype(np.float32) for index, weight in enumerate(weights)}
    return save(path, nodes, named, weights[0].shape[1], weights[0].ndim - 2)


def skip(path: Path, between: Sequence[str] = ()) -> Path:
    """A convolution over a skip connection: conv, Concat with the image, operations of one input, conv."""
    rng = np.random.default_rng(0)
    weights = {
        "w0": rng.normal(0, 0.2, (4, 4, 3, 3, 3)).astype(np.float32),
        "w1": rng.normal(0, 0.1, (4, 8, 3, 3, 3)).astype(np.float32),
        "per_channel": rng.uniform(0.5, 2, (1, 8, 1, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w0"], ["first"], name="first", pads=[1] * 6),
        helper.make_node("Concat", ["first", "image"], ["joined"], axis=1),
    ]
    tensor = "joined"
    for index, op in enumerate(between):
        more = ["per_channel"] if op in ("Mul", "Add") else []
        nodes.append(helper.make_node(op, [tensor, *more], [f"between{index}"]))
        tensor = f"between{index}"
    nodes.append(helper.make_node("Conv", [tensor, "w1"], ["probabilities"], name="second", pads=[1] * 6))
    return save(path, nodes, weights, 4, 3)
