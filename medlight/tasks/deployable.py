"""The plain module that leaves the house: normalisation (where it can), network, activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medlight.networks import final_head

Activation = Literal["softmax", "sigmoid"]


class PerVoxelScaling(nn.Module):
    """``(clip(x, low, high) - shift) / scale``, with one set of numbers a channel."""

    def __init__(self, scalings: Sequence[Any], spatial_dims: int) -> None:
        super().__init__()
        shape = (1, len(scalings)) + (1,) * spatial_dims
        for name in ("low", "high", "shift", "scale"):
            values = torch.tensor([float(getattr(s, name)) for s in scalings], dtype=torch.float32)
            self.register_buffer(name, values.reshape(shape))

    def forward(self, image: Tensor) -> Tensor:
        """Scale an image (B, C, ...) in the scanner's own values."""
        low, high, shift, scale = self.low, self.high, self.shift, self.scale
        return (torch.minimum(torch.maximum(image, low), high) - shift) / scale  # type: ignore[arg-type,operator]


class Deployable(nn.Module):
    """Image (B, C, ...) to float32 probabilities (B, L, ...) or (B, L).

    The image is in the scanner's own values where ``scaling`` is given, normalised by the caller where not.
    """

    def __init__(
        self, network: nn.Module, activation: Activation, spatial_dims: int, scaling: PerVoxelScaling | None = None
    ) -> None:
        super().__init__()
        self.scaling = scaling or nn.Identity()
        self.network = network
        self.activation = activation
        self.spatial_dims = spatial_dims

    def forward(self, image: Tensor) -> Tensor:
        """Return probabilities."""
        logits = final_head(self.network, self.network(self.scaling(image)), self.spatial_dims)
        return activate(logits, self.activation)


def activate(logits: Tensor, activation: Activation) -> Tensor:
    """Turn logits (B, L, ...) into float32 probabilities."""
    match activation:
        case "softmax":
            return logits.float().softmax(dim=1)
        case "sigmoid":
            return logits.float().sigmoid()


def in_graph_scaling(signature: dict[str, Any]) -> PerVoxelScaling | None:
    """Return the normalisation as a module where no channel needs statistics of the whole scan, else ``None``."""
    from medlight.prepare import normaliser_from

    normalisers = [normaliser_from(spec) for spec in signature["normalise"]]
    if not normalisers or not all(n.per_voxel for n in normalisers):
        return None
    return PerVoxelScaling([n.scaling({}) for n in normalisers], int(signature["spatial_dims"]))
