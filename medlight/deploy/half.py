"""A float32 ONNX graph in half precision: float32 in and out, sums and normalisations in float32.

TensorRT's networks are strongly typed, so that precision is the graph's business. In float16 are convolutions, matrix
products, activations and what moves values; the rest is small or loses too much: sums over thousands of voxels,
exponentials, what is done to the scanner's own values, weights and values beyond float16's range.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medlight.errors import MedlightError, needs
from medlight.scans.files import replacing

Array = npt.NDArray[np.float32]
LARGEST = 65504.0  # of float16
_ROOM = 8.0  # another image may have larger values than those that were looked at

_PRODUCTS = {"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"}
_MOVES = {
    *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Resize"),
    *(
        "Shape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
        "ConstantOfShape",
    ),
}
_ACTIVATIONS = {"Clip", "Elu", "LeakyRelu", "PRelu", "Relu"}
_ARITHMETIC = {"Add", "Div", "Max", "Min", "Mul", "Sub"}
_PLAIN = {"Add", "Mul", "Sub"}  # in float16 where no sum or normalisation is near
_SUMS = {"ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2"}
_NEAR_SUMS = _ARITHMETIC | {"Neg", "Pow", "Reciprocal", "Reshape", "Sqrt"}


def to_fp16(source: Path, out: Path, batches: Sequence[Array] = ()) -> int:
    """Write a float32 graph in half precision; returns how many convolutions and matrix products are in it.

    batches: images ``(B, C, ...)`` as the graph takes them. Nodes whose values come near float16's largest on them stay
        in float32; without any, only weights are looked at.

    Raises MedlightError where nothing can be in float16, UsageError where the extra ``onnx`` is absent.
    """
    try:
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel
    except ImportError as error:
        raise needs("onnx", error.name or "onnxruntime") from None
    model = onnx.load(source)
    graph = model.graph
    for index, node in enumerate(graph.node):
        node.name = node.name or f"node_{index}"
    large = {name for name, peak in _weights(model).items() if peak > LARGEST}
    large |= {name for name, peak in peaks(model, batches).items() if peak * _ROOM > LARGEST}
    kept = _kept(graph, large)
    half = sum(node.op_type in _PRODUCTS and node.name not in kept for node in graph.node)
    if not half:
        raise MedlightError(f"{source}: nothing of this graph can be in float16; mend: leave fp16 out")
    names = [node.name for node in graph.node if node.name in kept]
    model = convert_float_to_float16(model, keep_io_types=True, op_block_list=[], node_block_list=names)
    _join_casts(model.graph)
    OnnxModel.graph_topological_sort(model.graph)
    del model.graph.value_info[:]  # what was said of tensors between is no longer so
    onnx.checker.check_model(model, full_check=True)
    with replacing(out) as temporary:
        onnx.save(model, temporary)
    return half


def _weights(model: Any) -> dict[str, float]:
    """Return the largest absolute value of each weight."""
    import onnx

    arrays = {weight.name: onnx.numpy_helper.to_array(weight) for weight in model.graph.initializer}
    return {name: float(np.abs(array).max(initial=0)) for name, array in arrays.items() if array.dtype == np.float32}


def peaks(model: Any, batches: Sequence[Array]) -> dict[str, float]:
    """Return the largest absolute value of each float tensor in a graph over some images (infinite where it is NaN).

    Only the peaks are kept while the graph runs, not the tensors.
    """
    import onnx
    import onnxruntime

    if not batches:
        return {}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    typed = onnx.shape_inference.infer_shapes(model).graph.value_info
    watched = [value.name for value in typed if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
    outputs = []
    for index, name in enumerate(watched):
        magnitude, peak = f"_magnitude_{index}", f"_peak_{index}"
        probe.graph.node.append(onnx.helper.make_node("Abs", [name], [magnitude]))
        probe.graph.node.append(onnx.helper.make_node("ReduceMax", [magnitude], [peak], keepdims=0))
        outputs.append(onnx.helper.make_tensor_value_info(peak, onnx.TensorProto.FLOAT, []))
    probe.graph.output.extend(outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: dict[str, float] = {}
    for batch in batches:
        values = session.run([output.name for output in outputs], {model.graph.input[0].name: batch})
        for name, value in zip(watched, values, strict=True):
            found[name] = max(float(value) if np.isfinite(value) else np.inf, found.get(name, 0.0))
    return found


def _kept(graph: Any, large: set[str]) -> set[str]:
    """Return the names of the nodes that stay in float32."""
    makers = {value: node for node in graph.node for value in node.output}
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for value in node.input:
            users.setdefault(value, []).append(node)
    sums = [node for node in graph.node if node.op_type in _SUMS]
    kept = {node.name for node in graph.node if node.op_type not in _PRODUCTS | _MOVES | _ACTIVATIONS | _PLAIN}
    kept |= {node.name for node in graph.node if large & {*node.input, *node.output}}

    def before(node: Any) -> Iterable[Any]:
        return (makers[value] for value in node.input if value in makers)

    def after(node: Any) -> Iterable[Any]:
        return (user for value in node.output for user in users.get(value, ()))

    kept |= _reached(sums, before, _NEAR_SUMS) | _reached(sums, after, _NEAR_SUMS)
    scaling = _ARITHMETIC | {"Clip"}  # of the scanner's own values
    first = [node for value in graph.input for node in users.get(value.name, ()) if node.op_type in scaling]
    return kept | _reached(first, after, scaling)


def _reached(start: Sequence[Any], step: Any, through: set[str]) -> set[str]:
    """Return the names of the nodes that a walk meets which ends where an operator is none of ``through``."""
    found, waiting = {node.name for node in start}, list(start)
    while waiting:
        for node in step(waiting.pop()):
            if node.op_type in through and node.name not in found:
                found.add(node.name)
                waiting.append(node)
    return found


def _join_casts(graph: Any) -> None:
    """Take out float32 -> float16 -> float32: neighbours that stay in float32 would lose digits between them."""
    import onnx

    def casts(kind: int) -> list[Any]:
        return [
            n for n in graph.node if n.op_type == "Cast" and any(a.name == "to" and a.i == kind for a in n.attribute)
        ]

    outputs = {value.name for value in graph.output}
    narrowed = {node.output[0]: node.input[0] for node in casts(onnx.TensorProto.FLOAT16)}
    rejoined = {}
    for node in casts(onnx.TensorProto.FLOAT):
        if node.input[0] not in narrowed:
            continue
        if node.output[0] in outputs:  # its name must stay
            node.input[0] = narrowed[node.input[0]]
        else:
            rejoined[node.output[0]] = narrowed[node.input[0]]
            graph.node.remove(node)
    for node in graph.node:
        for index, value in enumerate(node.input):
            node.input[index] = rejoined.get(value, value)
    used = {value for node in graph.node for value in node.input} | outputs
    for node in casts(onnx.TensorProto.FLOAT16):
        if node.output[0] not in used:
            graph.node.remove(node)
