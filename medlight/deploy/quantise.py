"""fp32 ONNX -> INT8 ONNX with explicit Q/DQ nodes, which onnxruntime, OpenVINO and TensorRT take alike.

Weights are symmetric per output channel, activations symmetric per tensor with the range seen on calibration patches.
TensorRT takes no zero points and no INT32 biases, so there are none. What a layer gives is INT8 too: that doubles what
OpenVINO gains in 3D, where memory is what counts. Layers that lose too much stay fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from medlight.deploy.qdq import Array, Calibrated, Quantised, Sensitivity, layers_of, load
from medlight.errors import MedlightError

_SWEEP = 4  # batches that the sweep over layers looks at: it runs the network once a layer and batch
_MOST_KEPT = 0.75  # share of the layers; a network of which less than a quarter is INT8 is not worth the name


def quantise(source: Path, out: Path, batches: Sequence[Array], *, keep: Collection[str] = ()) -> Quantised:
    """Write an INT8 copy of an fp32 ONNX graph; the same input gives the same bytes.

    batches: what the graph takes, ``(B, C, ...)`` each; the range of every tensor is the largest seen on them. One is
        run at a time and only ranges are kept.
    keep: names of layers (see `layers`) that stay in fp32.

    Raises UsageError for a name that the graph does not have, MedlightError where it can't be calibrated: no batches,
    values that are not finite, a shape that the graph does not take, no layer to quantise.
    """
    return Calibrated(source, batches).write(out, keep)


def layers(source: Path) -> list[str]:
    """Return the names of the layers that can be INT8: convolutions and matrix products, in the graph's order."""
    return layers_of(load(source))


def sensitive_layers(source: Path, batches: Sequence[Array], *, tolerance: float = 0.0) -> list[Sensitivity]:
    """Quantise one layer at a time and return those that move the probabilities by more than ``tolerance``.

    The largest error comes first. It takes one run of the network per layer and batch.
    """
    found = Calibrated(source, batches).sweep(batches)
    return [layer for layer in found if layer.error > tolerance]


def quantise_within(
    source: Path, out: Path, batches: Sequence[Array], score: Callable[[Path], float], limit: float
) -> Quantised:
    """Write an INT8 graph whose ``score`` is at most ``limit``, with as few layers left in fp32 as it takes.

    score: of an ONNX file; what is lost by it (Dice points, say), so that fp32 has about 0. How many of the most
        sensitive layers must stay is found by bisection, so it is called some log2(layers) times.

    Raises MedlightError, and leaves nothing at ``out``, where it is too much even with three quarters of the layers
    in fp32.
    """
    graph = Calibrated(source, batches)
    try:
        done, lost = _scored(graph, out, [], score)
        if lost <= limit:
            return done
        order = [layer.node for layer in graph.sweep(batches[:_SWEEP])]
        too_few, enough = 0, math.floor(_MOST_KEPT * len(order))
        done, least = _scored(graph, out, order[:enough], score)
        if not least <= limit:
            raise MedlightError(
                f"{source}: in INT8 the network loses {lost:.3g}, and {least:.3g} with {enough} of its {len(order)} "
                f"layers in fp32; the limit is {limit:g}; mend: fine-tune it with QuantizationAware, or leave int8 out"
            )
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            if _scored(graph, out, order[:middle], score)[1] <= limit:
                enough = middle
            else:
                too_few = middle
        return graph.write(out, order[:enough])
    except BaseException:
        out.unlink(missing_ok=True)
        raise


def _scored(
    graph: Calibrated, out: Path, keep: Sequence[str], score: Callable[[Path], float]
) -> tuple[Quantised, float]:
    return graph.write(out, keep), float(score(out))
