"""Convolution kernels for another number of channels or spatial axes.

Carreira and Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017 (averaged inflation: a volume that is the same in
every slice gives the response of the slice); Girdhar et al., "Detect-and-Track", CVPR 2018 (centre inflation: a network
in 3D begins as the one in 2D on each slice).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

Inflation = Literal["centre", "average"]
INFLATIONS = get_args(Inflation)
_Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
_Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def with_channels(weight: Tensor, channels: int) -> Tensor:
    """Return a kernel (out, in, ...) for another number of input channels.

    Each new channel takes the kernels' sum divided by ``channels``: an image whose channels are all the same gives the
    same response as before.
    """
    mean = weight.sum(1, keepdim=True) / channels
    return mean.expand(-1, channels, *weight.shape[2:]).contiguous()


def inflated(weight: Tensor, depth: int, how: Inflation, taps: int | None = None) -> Tensor:
    """Return a kernel (..., I, J) as one of (..., I, J, depth).

    how: ``centre`` puts it into the middle slice, zeros elsewhere; ``average`` repeats it and divides by ``taps``.
    taps: how many slices of the kernel an output voxel sums over (all, except in transposed convolutions).
    """
    whole = weight.unsqueeze(-1)
    taps = taps or depth
    if how == "average" or taps == 1:
        return (whole / taps).expand(*weight.shape, depth).contiguous()
    made = torch.zeros(*weight.shape, depth, dtype=weight.dtype)
    made[..., depth // 2] = weight
    return made


def adapt(layer: nn.Module, weight: Tensor, how: Inflation | None, reads_image: bool) -> Tensor | None:
    """Return a convolution's kernel from a file as ``layer`` needs it, or None where that can't be.

    how: how kernels in 2D become ones in 3D; None leaves them out.
    reads_image: whether the layer's input is the image, of which alone the number of channels may differ.
    """
    if not isinstance(layer, _Conv | _Transposed):
        return None
    wanted = layer.weight.shape
    if how and weight.ndim == 4 and len(wanted) == 5:
        taps = _taps(layer)
        if taps is None:
            return None
        weight = inflated(weight, wanted[-1], how, taps)
    if reads_image and isinstance(layer, _Conv) and weight.ndim == len(wanted) and weight.shape[1] != wanted[1]:
        weight = with_channels(weight, wanted[1])
    return weight if weight.shape == wanted else None


def _taps(layer: nn.Module) -> int | None:
    """How many slices of its kernel one output voxel of a layer sums over; None where it varies."""
    kernel, stride = int(layer.kernel_size[-1]), int(layer.stride[-1])  # type: ignore[index]
    if isinstance(layer, _Conv):
        return kernel
    return 1 if kernel == stride else None
