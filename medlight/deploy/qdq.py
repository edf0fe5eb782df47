"""A graph with the ranges of its tensors, of which any choice of layers can be had in INT8, as explicit Q/DQ nodes."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medlight.errors import MedlightError, UsageError, needs
from medlight.scans.files import replacing

Array = npt.NDArray[np.float32]
LAYERS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_SEEN_THROUGH = frozenset(("Add", "Div", "Identity", "Mul", "Relu", "Reshape", "Sub"))


@dataclass(frozen=True)
class Quantised:
    """What `quantise` did. nodes: layers that are INT8 now; kept: names of those left in fp32."""

    nodes: int
    kept: list[str]


@dataclass(frozen=True)
class Sensitivity:
    """Mean absolute difference of the probabilities with this layer alone in INT8."""

    node: str
    error: float


class Calibrated:
    """A graph and the ranges of its tensors, from which any choice of INT8 layers is made."""

    def __init__(self, source: Path, batches: Sequence[Array]) -> None:
        self.source = Path(source)
        self.model = load(self.source)
        self.layers = layers_of(self.model)
        if not self.layers:
            raise MedlightError(f"{source}: has no layer that could be INT8 ({', '.join(LAYERS)})")
        _check(batches)
        self.ranges = _ranges(self.model, batches, self.source)

    def write(self, out: Path, keep: Collection[str]) -> Quantised:
        """Write the graph with all layers in INT8 but those named; UsageError for a name that it does not have."""
        if unknown := sorted(set(keep) - set(self.layers)):
            raise UsageError(f"{self.source}: has no layer {unknown[0]!r}; mend: one of {', '.join(self.layers)}")
        made = self.quantised([name for name in self.layers if name not in keep])
        with replacing(out) as part:
            part.write_bytes(made)
        return Quantised(len(self.layers) - len(set(keep)), [name for name in self.layers if name in keep])

    def quantised(self, nodes: Sequence[str]) -> bytes:
        """Return the file with these layers in INT8."""
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        model = copy.deepcopy(self.model)  # the quantizer works in place
        if nodes:
            options = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
            kinds = (QuantType.QInt8, QuantType.QInt8)
            with _quiet():
                quantizer = QDQQuantizer(model, True, False, *kinds, self.ranges, nodes, [], list(LAYERS), options)
                model = quantizer.quantize_model()
                quantizer.model.topological_sort()  # its nodes were added at the end
            _hold_after_concat(model)
        made: bytes = model.SerializeToString(deterministic=True)
        return made

    def sweep(self, batches: Sequence[Array]) -> list[Sensitivity]:
        """Return the error of each layer, the largest first."""
        run = _session(self.model.SerializeToString())
        expected = [run(batch)[0] for batch in batches]
        found = []
        for name in self.layers:
            run = _session(self.quantised([name]))
            errors = [
                np.abs(run(batch)[0] - e).mean(dtype=np.float64) for batch, e in zip(batches, expected, strict=True)
            ]
            found.append(Sensitivity(name, float(np.mean(errors))))
        return sorted(found, key=lambda layer: -layer.error)


def load(source: Path) -> Any:
    """Read a graph with the shapes of its tensors; each node has a name of its own."""
    try:
        import onnx
        import onnxruntime.quantization  # noqa: F401 (used below, where nobody looks for its absence)
    except ImportError as error:
        raise needs("onnx", error.name or "onnxruntime") from None
    try:
        model = onnx.shape_inference.infer_shapes(onnx.load(source))
    except Exception as error:
        raise MedlightError(f"{source}: not an ONNX graph: {_line(error)}") from None
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}_int8"
        taken.add(node.name)
    return model


def layers_of(model: Any) -> list[str]:
    """Return the names of the layers that can be INT8, in the graph's order."""
    return [node.name for node in model.graph.node if node.op_type in LAYERS]


def _check(batches: Sequence[Array]) -> None:
    if not batches:
        raise UsageError("there are no batches to calibrate INT8 on; mend: give some training patches")
    if any(not np.isfinite(batch).all() for batch in batches):
        raise MedlightError("a calibration batch has values that are not finite (NaN or infinite)")


def _ranges(model: Any, batches: Sequence[Array], source: Path) -> Any:
    """Return the least and largest value of the tensors at the layers.

    One batch is run at a time, in a graph that gives ranges alone: onnxruntime's calibrators keep what a graph gives
    for all batches, and ``CalibMaxIntermediateOutputs`` (1.32) drops it before it was looked at.
    """
    import onnx
    from onnxruntime.quantization.calibrate import MinMaxCalibrater

    with tempfile.TemporaryDirectory() as folder, _quiet():
        plain, augmented = Path(folder) / "plain.onnx", Path(folder) / "augmented.onnx"
        onnx.save(model, plain)
        calibrater = MinMaxCalibrater(plain, list(LAYERS), str(augmented))
        calibrater.augment_graph()
        calibrater.infer_session = _open(str(augmented))
        name = calibrater.infer_session.get_inputs()[0].name
        for batch in batches:
            try:
                calibrater.collect_data(_Reader({name: batch}))
            except Exception as error:
                raise MedlightError(f"{source}: a batch of shape {batch.shape} does not run: {_line(error)}") from None
        ranges = calibrater.compute_data()
    for tensor, found in ranges.items():
        if not (np.isfinite(found.lowest).all() and np.isfinite(found.highest).all()):
            raise MedlightError(f"{source}: {tensor} is not finite on the calibration patches")
    return ranges


class _Reader:
    """Hands onnxruntime's calibrater one batch."""

    def __init__(self, feed: dict[str, Array]) -> None:
        self._feeds = [feed]

    def get_next(self) -> dict[str, Array] | None:
        return self._feeds.pop() if self._feeds else None


def _session(graph: bytes) -> Callable[[Array], Sequence[Array]]:
    session = _open(graph)
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})


def _open(graph: bytes | str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _hold_after_concat(model: Any) -> None:
    """Put a Clip to the quantised range, which changes nothing, between a Concat and a QuantizeLinear that follows it.

    Without it OpenVINO's CPU plugin (2026.4) moves the quantisation before the Concat, and there loses a bit or more
    of each signed value: convolutions over skip connections are wrong by a third.
    """
    import onnx

    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    scales = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and _after_concat(node.input[0], producers):
            tensor, largest = node.input[0], 127 * float(onnx.numpy_helper.to_array(scales[node.input[1]]))
            names = [f"{tensor}_{end}" for end in ("lowest", "highest", "held")]
            for name, value in zip(names, (-largest, largest), strict=False):
                graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.float32), name))
            nodes.append(onnx.helper.make_node("Clip", [tensor, *names[:2]], names[2:], name=f"{tensor}_hold"))
            node.input[0] = names[2]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _after_concat(tensor: str, producers: dict[str, Any]) -> bool:
    """Whether a tensor comes from a Concat through nothing but operations that OpenVINO sees through."""
    todo, seen = [tensor], set()
    while todo:
        name = todo.pop()
        node = producers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)  # residual connections: there are far more paths than tensors
        if node.op_type == "Concat":
            return True
        if node.op_type in _SEEN_THROUGH:
            todo.extend(node.input)
    return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantizer, whose ``logging.warning`` would also give the root logger a handler for good."""
    handlers, level = list(logging.root.handlers), logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)
        logging.root.handlers[:] = handlers


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
