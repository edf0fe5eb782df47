"""Bundles in memory, with a numpy function for a network: what surrounds a network needs no trained one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from medlight.deploy.bundle import Bundle, Model, sha256

Network = Callable[[np.ndarray], np.ndarray]


class Fake:
    """A session that runs a numpy function."""

    reason = "numpy"

    def __init__(self, network: Network) -> None:
        self.network = network

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return self.network(image)


def bundle(labels: int = 3, window: list[int] | None = None, **changes: Any) -> Bundle:
    """A bundle of 3D segmentation of one channel, normalised as CT; ``changes`` go into its data."""
    is_classes = changes.get("task") == "classification"
    data: dict[str, Any] = {
        "spatial_dims": 3,
        "channels": ["image"],
        "labels": [] if is_classes else [{"value": n, "name": f"label {n}"} for n in range(labels)],
        "classes": [],
        "multilabel": False,
        "preparation": {},
        "normalise": [{"class_path": "medlight.prepare.Window", "init_args": {"low": 0.0, "high": 100.0}}],
        "patch_size": window or [8, 8, 8],
    }
    return Bundle(
        root=Path("nowhere"),
        task=changes.pop("task", "segmentation"),
        data=data | {key: value for key, value in changes.items() if key not in ("activation", "outputs")},
        activation=changes.get("activation", "softmax"),
        outputs=changes.get("outputs", [f"label {n}" for n in range(labels)]),
        window={"size": window or [8, 8, 8], "overlap": 0.5, "mode": "gaussian"},
        normalise_in_graph=False,
        models=[],
        tools={},
    )


def bands(labels: int, coarse: bool = False) -> Network:
    """Each label likes a band of values, a little differently in each place of a window; coarse: so that many tie."""

    def network(image: np.ndarray) -> np.ndarray:
        ramp = np.linspace(0, 0.3, image[0, 0].size, dtype=np.float32).reshape(image.shape[2:])
        centres = np.linspace(0, 1, labels, dtype=np.float32).reshape(1, labels, *[1] * (image.ndim - 2))
        score = np.exp(-8 * np.abs(image[:, :1] + ramp - centres))
        score = np.round(score, 1) + np.float32(0.1) if coarse else score
        return (score / score.sum(axis=1, keepdims=True)).astype(np.float32)

    return network


def written(folder: Path, made: Bundle) -> Bundle:
    """Write a bundle with a real ONNX model: a convolution that likes a band of values for each output, and a softmax.

    Of a classification the mean over the image goes through the softmax.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True)
    dims, channels, outputs = len(made.window["size"]), len(made.data["channels"]), len(made.outputs)
    rng = np.random.default_rng(0)
    kernel = rng.normal(0, 0.05, (outputs, channels, *[3] * dims)).astype(np.float32)
    kernel[:, 0, *[1] * dims] = np.linspace(-6, 6, outputs)
    bias = np.linspace(2, -3, outputs).astype(np.float32)
    tensors = [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(bias, "bias")]
    nodes = [helper.make_node("Conv", ["image", "kernel", "bias"], ["maps"], pads=[1] * 2 * dims)]
    if made.task == "classification":
        nodes += [
            helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["scores"]),
        ]
    scores = nodes[-1].output[0]
    nodes.append(helper.make_node("Softmax", [scores], ["probabilities"], axis=1))
    size = ["batch", channels, *"ijk"[:dims]]
    result = ["batch", outputs] if made.task == "classification" else ["batch", outputs, *"ijk"[:dims]]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, result)],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "model.onnx"))
    axes = ["batch", *"ijk"[:dims]]
    one = Model("model.onnx", "onnxruntime", "fp32", sha256(folder / "model.onnx"), axes, 1)
    whole = dataclasses.replace(made, root=folder, models=[one])
    whole.save()
    return Bundle.load(folder)
