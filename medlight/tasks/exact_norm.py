"""Normalisation over space that gives the trained network's values in every runtime."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ExactNorm(nn.Module):
    """Instance or group normalisation written out, with means taken axis by axis.

    onnxruntime 1.32 adds up the voxels of an ONNX ``InstanceNormalization`` one after the other in float32. On a
    constant background the rounding errors all point one way: probabilities came out 5e-4 off a float64 reference,
    against 5e-6 for torch; OpenVINO 2026 is 1e-4 off. Sums along one axis at a time stay short. Of two
    ``ReduceMean`` behind each other OpenVINO makes one again, and an ``MVN`` of a whole normalisation, so the last
    is a ``ReduceSum`` of shares: as exact, and no slower than its ``MVN``.
    """

    def __init__(self, groups: int, eps: float, weight: Tensor | None, bias: Tensor | None) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight: Tensor | None
        self.bias: Tensor | None
        self.register_buffer("weight", None if weight is None else weight.detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, image: Tensor) -> Tensor:
        """Normalise (B, C, ...) over space and over the channels of a group."""
        channels = image.shape[1]
        grouped = image
        if self.groups < channels:
            grouped = image.reshape(image.shape[0], self.groups, -1, *image.shape[3:])
        centred = grouped - _mean(grouped)
        scaled = (centred * torch.rsqrt(_mean(centred * centred) + self.eps)).reshape(image.shape)
        shape = (1, channels) + (1,) * (image.ndim - 2)
        if self.weight is not None:
            scaled = scaled * self.weight.reshape(shape)
        return scaled if self.bias is None else scaled + self.bias.reshape(shape)


def _mean(grouped: Tensor) -> Tensor:
    for axis in range(grouped.ndim - 1, 2, -1):
        grouped = grouped.mean(dim=axis, keepdim=True)
    return (grouped * (1 / grouped.shape[2])).sum(dim=2, keepdim=True)


def write_out_norms(network: nn.Module) -> None:
    """Replace instance and group normalisations inside a network, in place; the values stay."""
    for name, child in list(network.named_children()):
        match child:
            case nn.GroupNorm():
                setattr(network, name, ExactNorm(child.num_groups, child.eps, child.weight, child.bias))
            case nn.InstanceNorm1d() | nn.InstanceNorm2d() | nn.InstanceNorm3d() if not child.track_running_stats:
                setattr(network, name, ExactNorm(child.num_features, child.eps, child.weight, child.bias))
            case _:
                write_out_norms(child)
