"""A network whose forward pass is rounded to INT8: for training that feels what quantisation will do to it.

Weights and activations are rounded in the forward pass as the INT8 graph rounds them, and gradients pass as if they
were not (straight-through; Jacob et al., CVPR 2018). What is trained stays a plain fp32 network with its own keys:
export it and quantise it as any other.

What the graph does is done here at each call of torch inside of the network:

- A tensor that a layer takes or gives is rounded for all who take it: a skip connection, a sum, a concatenation too.
- The export folds a batch norm into the layer right before it, so it is the norm's output that is rounded, and never
  the layer's own. The folded weight is the layer's times one factor an output channel, and so is its scale: rounding
  it gives the rounded weight times that factor, whatever the statistics are. So the weight is rounded as it is.
- A linear layer of anything but (B, C) is a product and a sum: it is rounded before the bias is added.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from medlight.errors import UsageError

_LARGEST = 127  # symmetric INT8
_FADING = 0.99  # of the largest activation seen, each step: ranges follow the weights
_TINY = 1e-12
_LAYERS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    nn.Linear,
)
_OUTPUT_AXIS: dict[Any, int] = {  # of the weight: where the output channels lie
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d, F.linear), 0),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), 1),
}
# Not einsum: the export leaves it one node, which is not INT8.
_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm}
_LOOKS = {Tensor.dim, Tensor.size, Tensor.numel, Tensor.stride, Tensor.is_contiguous, Tensor.is_floating_point}

_Key = tuple[str, int, str]  # the module's name, which of its layers or products, which tensor of that


@contextmanager
def rounded(network: nn.Module) -> Iterator[Rounding]:
    """Round a network to INT8 within the block: weights, inputs and outputs of its layers, and products of activations.

    Layers are convolutions and linear ones. Weights symmetric per output channel, activations symmetric per tensor,
    with the largest value that training has shown lately. The network's parameters and their names stay what they are.

    Not rounded: torch's fused attention (``scaled_dot_product_attention``, ``nn.MultiheadAttention``), and what
    ``SyncBatchNorm`` gives while several GPUs train. Grouped transposed convolutions with a batch norm are rounded
    nearly as in the graph, where groups share a scale.

    Gives the rounding, which can be turned off and on between passes. UsageError where the network has no layer to
    round.
    """
    if not any(isinstance(module, _LAYERS) for module in network.modules()):
        raise UsageError("the network has no convolution or linear layer that could be INT8")
    rounding, handles = Rounding(), []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(partial(rounding.enter, name)))
        handles.append(module.register_forward_hook(rounding.leave, always_call=True))
    try:
        yield rounding
    finally:
        for handle in handles:
            handle.remove()
        rounding.end()


@dataclass
class _Call:
    """A module that is running: its name, whether it trains, how many layers and products it has computed."""

    name: str
    training: bool
    count: int = 0


@dataclass
class _Due:
    """A tensor that is INT8 in the graph: the name of its range, and what it is rounded, once somebody took it.

    norm: the name of the range of a batch norm that takes it before; None where it is no output of a layer.
    """

    key: _Key
    training: bool
    norm: _Key | None = None
    rounded: Tensor | None = None


class Rounding(TorchFunctionMode):
    """Sees each call of torch in the network. Its ranges are no part of the network: a restart sees them anew.

    on: whether the next passes are rounded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on = True
        self.ranges: dict[_Key, Tensor] = {}  # the largest absolute values
        self._running: list[_Call] = []
        self._due = WeakTensorKeyDictionary()

    def enter(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Note that a module begins; the outermost begins the rounding."""
        if not self.on:
            return
        if not self._running:
            self.__enter__()
        self._running.append(_Call(name, module.training))

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Note that a module is through; what the outermost gives is rounded."""
        if not self._running:  # it was off
            return output
        self._running.pop()
        if self._running:
            return output
        self.__exit__(None, None, None)
        found = tree_map_only(Tensor, self._take, output)
        self._due = WeakTensorKeyDictionary()
        return found

    def end(self) -> None:
        """Leave torch as it was where a pass was cut (Ctrl-C): hooks of the modules don't run then."""
        if self._running:
            self._running.clear()
            self.__exit__(None, None, None)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _OUTPUT_AXIS:
            return self._layer(func, *args, **kwargs)
        if func in _PRODUCTS:
            return self._product(func, args, kwargs)
        if func is F.batch_norm:
            return self._norm(*args, **kwargs)
        if func in _LOOKS or getattr(func, "__name__", "") == "__get__":
            return func(*args, **kwargs)
        args, kwargs = tree_map_only(Tensor, self._take, (args, kwargs))
        return func(*args, **kwargs)

    def _layer(
        self, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        name, count, training = self._next()
        image = self._activation(input, (name, count, "input"), training)
        weight = fake_weight(weight, _OUTPUT_AXIS[func])
        key, norm = (name, count, "output"), (name, count, "normed")
        if func is F.linear and image.ndim != 2:
            product = self._round(func(image, weight), key, training)
            return product if bias is None else product + bias.to(product.dtype)
        output: Tensor = func(image, weight, bias, *args, **kwargs)
        self._due[output] = _Due(key, training, norm)
        return output

    def _product(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        name, count, training = self._next()
        places = itertools.count()

        def factor(value: Tensor) -> Tensor:
            return self._activation(value, (name, count, f"factor {next(places)}"), training)

        args, kwargs = tree_map_only(Tensor, factor, (args, kwargs))
        return self._round(func(*args, **kwargs), (name, count, "output"), training)

    def _norm(self, input: Tensor, running_mean: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        due = self._due.get(input)
        if due is None or due.norm is None or running_mean is None:
            return F.batch_norm(self._take(input), running_mean, *args, **kwargs)
        output = F.batch_norm(input, running_mean, *args, **kwargs)
        self._due[output] = _Due(due.norm, due.training)
        return output

    def _next(self) -> tuple[str, int, bool]:
        """Return the running module, the number of this layer or product in it, and whether it trains."""
        call = self._running[-1]
        call.count += 1
        return call.name, call.count, call.training

    def _activation(self, value: Tensor, key: _Key, training: bool) -> Tensor:
        """Return what a layer takes, rounded; whoever takes the same tensor later gets the same."""
        if value not in self._due:
            self._due[value] = _Due(key, training)
        return self._take(value)

    def _take(self, value: Tensor) -> Tensor:
        """Return a tensor as the graph has it: rounded where it is INT8 there."""
        due = self._due.get(value)
        if due is None:
            return value
        if due.rounded is None:
            due.rounded = self._round(value, due.key, due.training)
        return due.rounded

    def _round(self, value: Tensor, key: _Key, training: bool) -> Tensor:
        """Return a tensor rounded with a range, which training widens to hold it."""
        if training or key not in self.ranges:
            seen = value.detach().abs().amax().float()
            before = self.ranges.get(key)
            self.ranges[key] = seen if before is None else torch.maximum(seen, before.to(seen.device) * _FADING)
        scale = (self.ranges[key].to(value.device) / _LARGEST).clamp_min(_TINY)
        zero = torch.zeros((), dtype=torch.int32, device=value.device)
        whole = value.float()
        return torch.fake_quantize_per_tensor_affine(whole, scale, zero, -_LARGEST, _LARGEST).to(value.dtype)


def fake_weight(weight: Tensor, axis: int) -> Tensor:
    """Return a weight rounded to 8 bits along each of the channels on an axis, with the gradient of the original."""
    others = [a for a in range(weight.ndim) if a != axis]
    scale = (weight.detach().float().abs().amax(others) / _LARGEST).clamp_min(_TINY)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    found = torch.fake_quantize_per_channel_affine(weight.float(), scale, zero, axis, -_LARGEST, _LARGEST)
    return found.to(weight.dtype)
