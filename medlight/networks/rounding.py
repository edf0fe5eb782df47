"""A network whose forward pass is rounded to INT8: for training that feels what quantisation will do to it.

Weights and activations are rounded in the forward pass as the INT8 graph rounds them, and gradients pass as if they
were not (straight-through; Jacob et al., CVPR 2018). What is trained stays a plain fp32 network with its own keys:
export it and quantise it as any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from medlight.errors import UsageError

_LARGEST = 127  # symmetric INT8
_FADING = 0.99  # of the largest activation seen, each step: ranges follow the weights
_TINY = 1e-12
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@contextmanager
def rounded(network: nn.Module) -> Iterator[None]:
    """Round the weights, inputs and outputs of a network's convolutions and linear layers to INT8 within the block.

    Weights symmetric per output channel, activations symmetric per tensor, with the largest value that training has
    shown lately. The network's parameters and their names stay what they are. UsageError where it has no such layer.
    """
    layers = [(module, axis) for module in network.modules() if (axis := _channel_axis(module)) is not None]
    if not layers:
        raise UsageError("the network has no convolution or linear layer that could be INT8")
    handles = []
    for module, axis in layers:
        layer = _Layer(axis)
        handles.append(module.register_forward_pre_hook(layer.before))
        handles.append(module.register_forward_hook(layer.after, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _channel_axis(module: nn.Module) -> int | None:
    """Return along which axis of its weight a layer's output channels lie; None for other modules."""
    if isinstance(module, _TRANSPOSED):
        return 1
    return 0 if isinstance(module, (*_CONV, nn.Linear)) else None


class _Layer:
    """Rounds one layer. Its ranges are no part of the network: they are seen again after a restart."""

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.weight: nn.Parameter | None = None
        self.ranges: dict[str, Tensor] = {}

    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Put the rounded weight in the parameter's place, where the parameter stays in the list of parameters."""
        self.weight = module._parameters["weight"]
        if self.weight is not None:
            module._parameters["weight"] = fake_weight(self.weight, self.axis)  # type: ignore[assignment]
        return (self._activation("input", inputs[0], module.training), *inputs[1:])

    def after(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        """Put the parameter back."""
        module._parameters["weight"] = self.weight
        return output if output is None else self._activation("output", output, module.training)

    def _activation(self, name: str, value: Tensor, training: bool) -> Tensor:
        if training or name not in self.ranges:
            seen = value.detach().abs().amax().float()
            before = self.ranges.get(name)
            self.ranges[name] = seen if before is None else torch.maximum(seen, before.to(seen.device) * _FADING)
        scale = (self.ranges[name].to(value.device) / _LARGEST).clamp_min(_TINY)
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
