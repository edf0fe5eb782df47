"""Structured pruning: whole channels go, so that the network is smaller and faster, not only sparser.

Channels that have to go together (a residual sum, a skip connection) are found and taken out by torch-pruning (Fang et
al., DepGraph: Towards Any Structural Pruning, CVPR 2023); those with the smallest weights go first.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medlight.errors import UsageError, needs

_MULTIPLE = 8  # channels that are left: processors work on eight and more at a time
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True)
class Pruned:
    """A network before and after: number of parameters, and floating-point operations for one example."""

    parameters: tuple[int, int]
    flops: tuple[int, int]

    def line(self) -> str:
        """Return both as one line."""
        (p, q), (f, g) = self.parameters, self.flops
        return f"{q / p:.0%} of the parameters ({p:,} to {q:,}) and {g / f:.0%} of the operations are left"


def prune(network: nn.Module, example: Tensor, ratio: float, outputs: int) -> Pruned:
    """Take a share of the channels out of every layer but those that give the output, in place.

    example: ``(B, C, ...)``, of the sizes that the network will see. ratio: of the channels that go, above 0 and below
    1; what is left is a multiple of 8. outputs: channels of the output layers. Which channels go depends on the
    weights; how many does not, so two networks of one kind have equal shapes after it.

    Raises UsageError where the ratio can't be, the extra ``prune`` is absent, the network can't be pruned (a layer ties
    its channels in a way that is not understood) or nothing could be taken out. It is then broken: build it anew.
    """
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 1:
        raise UsageError(f"a pruning ratio of {ratio!r} can't be; write a number between 0 and 1, as 0.5")
    try:
        import torch_pruning
    except ImportError:
        raise needs("prune", "torch_pruning") from None
    name, before = type(network).__name__, _size(network, example)
    training = network.training
    try:
        with torch.no_grad():
            expected = network.eval()(example).shape
        with _traceable(network), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            heads = [layer for layer in network.modules() if isinstance(layer, _LAYERS) and _width(layer) == outputs]
            importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
            options = {"pruning_ratio": float(ratio), "round_to": _MULTIPLE, "ignored_layers": heads}
            pruner = torch_pruning.BasePruner(network, example, importance=importance, forward_fn=_all_heads, **options)
            pruner.step()
        after = _size(network, example)
        with torch.no_grad():
            found = network.eval()(example).shape
    except Exception as error:  # where a dependency was not understood, layers no longer fit, each in its own words
        raise UsageError(f"{name} can't be pruned: {' '.join(str(error).split())[:200]}") from None
    network.train(training)
    if found != expected:
        raise UsageError(f"{name} can't be pruned: it would give {list(found)} and not {list(expected)}")
    if after.parameters == before.parameters:
        raise UsageError(
            f"{name} has no channels to spare at a ratio of {ratio:g}; mend: a higher one, or wider layers"
        )
    return Pruned((before.parameters, after.parameters), (before.flops, after.flops))


@dataclass(frozen=True)
class _Size:
    parameters: int
    flops: int


def _size(network: nn.Module, example: Tensor) -> _Size:
    training = network.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(example)
    network.train(training)
    return _Size(sum(p.numel() for p in network.parameters()), int(counter.get_total_flops()))


def flops(network: nn.Module, example: Tensor) -> int:
    """Return the floating-point operations of one forward pass in evaluation (a product and a sum are two)."""
    return _size(network, example).flops


def _width(layer: nn.Module) -> int:
    return int(getattr(layer, "out_channels", 0) or getattr(layer, "out_features", 0))


@contextlib.contextmanager
def _traceable(network: nn.Module) -> Iterator[None]:
    """Let the tracer see what it can't otherwise.

    It follows gradients from layer to layer and loses its way where a later step overwrites a layer's output (in-place
    activations and sums): each layer gives a copy meanwhile. It takes a PReLU that has one slope for all channels for a
    layer of one channel: another activation stands in for it.
    """
    layers = [layer for layer in network.modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(_copied) for layer in layers]
    swapped = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.PReLU) and child.num_parameters == 1
    ]
    for parent, name, _ in swapped:
        setattr(parent, name, nn.LeakyReLU())
    try:
        yield
    finally:
        for parent, name, child in swapped:
            setattr(parent, name, child)
        for hook in hooks:
            hook.remove()


def _all_heads(network: nn.Module, example: Tensor) -> object:
    """Run a network with all its heads, which some use in training only; its layers stay as in evaluation."""
    network.train()
    for layer in network.modules():
        if not list(layer.children()):
            layer.eval()
    return network(example)


def _copied(layer: nn.Module, inputs: object, output: object) -> object:
    return output.clone() if isinstance(output, Tensor) else output
