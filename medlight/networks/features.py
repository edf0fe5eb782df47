"""What a network knows of an image: the vector before its last layer, or its coarsest feature map."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from medlight.errors import UsageError
from medlight.networks.heads import final_head

POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


@dataclass(frozen=True)
class Place:
    """Where features are taken: a module's input (``before``) or output, at its ``call``-th call of a forward pass.

    module: its name in the network; width: how many features it gives.
    """

    module: str
    call: int
    before: bool
    width: int


@dataclass(frozen=True)
class _Seen:
    """A tensor that went into or came out of a module."""

    module: str
    kind: nn.Module
    call: int
    before: bool
    shape: tuple[int, ...]


class _Reached(Exception):  # noqa: N818 (no error)
    """Ends a forward pass where the features are known."""


def features(network: nn.Module, image: Tensor, place: Place | None = None) -> Tensor:
    """Return features (B, F) of images (B, C, ...); what a network computes after them is left out.

    A network that puts out (B, L): the input of its last linear layer (or 1x1 convolution). One that puts out images:
    its feature map of the lowest resolution, averaged over space. place: as `find_place` gives; it is looked for (one
    forward pass more) where it is None.
    """
    place = place or find_place(network, tuple(image.shape))
    found: list[Tensor] = []

    def take(tensor: Tensor) -> None:
        found.append(tensor)
        raise _Reached

    with _hooked(network.get_submodule(place.module), place, take):
        try:
            network(image)
        except _Reached:
            return _vector(found[0], image.ndim - 2)
    raise RuntimeError(f"{type(network).__name__}: its forward pass no longer comes by {place.module}")


def find_place(network: nn.Module, image_shape: Sequence[int]) -> Place:
    """Return where a network's features are, found by running it once on zeros (B, C, I, J[, K]).

    Raises UsageError where there is no such place.
    """
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    dims = len(image_shape) - 2
    training = network.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _watched(network) as seen:
            output = final_head(network, network.eval()(torch.zeros(*image_shape, device=device)), dims)
    finally:
        network.train(training)
    chosen = _last_layer(seen, output.numel()) if output.ndim == 2 else _coarsest(seen, tuple(image_shape)[2:])
    if chosen is None:
        raise UsageError(f"network {type(network).__name__}: has no last linear layer and no feature map to learn from")
    return Place(chosen.module, chosen.call, chosen.before, chosen.shape[2 if len(chosen.shape) == 3 else 1])


def freeze_unused(network: nn.Module, run: Callable[[], Tensor]) -> list[str]:
    """Stop training the parameters that ``run()`` (a tensor of the network) does not depend on; return their names.

    DDP waits for a gradient of every parameter that is trained, and weight decay would shrink those that get none.
    """
    named = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    training = network.training
    try:
        network.eval()
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            gradients = torch.autograd.grad(run().sum(), [parameter for _, parameter in named], allow_unused=True)
    finally:
        network.train(training)
    unused = [entry for entry, gradient in zip(named, gradients, strict=True) if gradient is None]
    for _, parameter in unused:
        parameter.requires_grad_(False)
    return [name for name, _ in unused]


def _last_layer(seen: list[_Seen], result: int) -> _Seen | None:
    """The input of the last linear layer or 1x1 convolution that gives as many numbers as the network."""
    layers = [(one, after) for one, after in pairwise(seen) if one.before and _is_last(one.kind)]
    return next((one for one, after in reversed(layers) if math.prod(after.shape) == result), None)


def _is_last(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return set(module.kernel_size) == {1}
    return isinstance(module, nn.Linear)


def _coarsest(seen: list[_Seen], size: tuple[int, ...]) -> _Seen | None:
    """The richest map of the lowest resolution, the last of those that are equal.

    Maps of one voxel are what squeeze-and-excitation pools: they count only in a network that pools nothing. A tensor
    whose channels come last shows itself by an axis that is longer than the image's.
    """
    maps = [one for one in seen if len(one.shape) == len(size) + 2 and _fits(one.shape[2:], size)]
    if any(isinstance(one.kind, POOLS) for one in seen):
        maps = [one for one in maps if math.prod(one.shape[2:]) > 1]
    lowest = min((math.prod(one.shape[2:]) for one in maps), default=0)
    maps = [one for one in maps if math.prod(one.shape[2:]) == lowest]
    most = max((one.shape[1] for one in maps), default=0)
    return next((one for one in reversed(maps) if one.shape[1] == most), None)


def _fits(found: tuple[int, ...], size: tuple[int, ...]) -> bool:
    """Whether a map is a coarser one of the image."""
    return all(n <= m for n, m in zip(found, size, strict=True)) and found != size


@contextmanager
def _watched(network: nn.Module) -> Iterator[list[_Seen]]:
    """Note every tensor that goes into or out of the network's modules, in the order of the forward pass."""
    seen: list[_Seen] = []
    calls: dict[str, int] = {}

    def note(name: str, module: nn.Module, before: bool, value: Any) -> None:
        if before:
            calls[name] = calls.get(name, 0) + 1
        tensor = value[0] if isinstance(value, tuple) and value else value
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else ()
        seen.append(_Seen(name, module, calls[name], before, shape))

    handles = []
    for name, module in network.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(lambda m, args, n=name: note(n, m, True, args)))
            handles.append(module.register_forward_hook(lambda m, args, out, n=name: note(n, m, False, out)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _hooked(module: nn.Module, place: Place, take: Callable[[Tensor], None]) -> Iterator[None]:
    """Hand over the tensor at a place each time that a forward pass comes by."""
    count = 0

    def see(value: Any) -> None:
        nonlocal count
        count += 1
        if count == place.call:
            take(value[0] if isinstance(value, tuple) else value)

    if place.before:
        handle = module.register_forward_pre_hook(lambda _, args: see(args))
    else:
        handle = module.register_forward_hook(lambda _, args, output: see(output))
    try:
        yield
    finally:
        handle.remove()


def _vector(found: Tensor, dims: int) -> Tensor:
    """Average a feature map (B, F, ...) over space, or tokens (B, N, F) over the tokens."""
    if found.ndim == dims + 2:
        return found.flatten(2).mean(dim=2)
    return found.mean(dim=1) if found.ndim == 3 else found
