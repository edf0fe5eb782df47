"""Resampling of images and label maps that share a grid, by one movement and in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from medlight.data.augment.movement import Matrix, Movement
from medlight.data.patches import Window, cut

_AT_ONCE = 1 << 15  # voxels worked on at a time: few enough that all intermediate values stay in the cache


@dataclass(frozen=True, eq=False)
class Source:
    """An array ``(C, I, J, K)`` to be moved.

    is_label: nearest neighbour and 0 outside, any type; otherwise linear, float32, and ``pad`` outside (a number, or
    one per channel of shape ``(C, 1, 1, 1)``).
    """

    array: torch.Tensor
    is_label: bool = False
    pad: float | torch.Tensor = 0.0


def move(sources: Sequence[Source], movement: Movement, window: Window) -> list[torch.Tensor]:
    """Return the moved window of each source, all of which have the same voxels along I, J and K.

    Between the outermost voxels and one voxel further out, images fade to the value outside.
    """
    arrays = [_without_pad(source) for source in sources]
    if movement.is_flip:
        axes = [axis + 1 for axis in movement.flipped_axes]
        parts = [cut(array, window) for array in arrays]
        moved = [part.flip(axes) if axes else part for part in parts]
    elif movement.is_separable:
        at = movement.positions(window)
        both = zip(sources, arrays, strict=True)
        moved = [
            _nearest_by_axis(array, at) if source.is_label else _linear_by_axis(array, at) for source, array in both
        ]
    else:
        moved = _gather(sources, arrays, movement, window)
    return [array + s.pad if _has_pad(s) else array for array, s in zip(moved, sources, strict=True)]


def _has_pad(source: Source) -> bool:
    return not source.is_label and (isinstance(source.pad, torch.Tensor) or source.pad != 0)


def _without_pad(source: Source) -> torch.Tensor:
    return source.array - source.pad if _has_pad(source) else source.array


def _linear_by_axis(image: torch.Tensor, at: list[Matrix]) -> torch.Tensor:
    weights = [_linear_weights(a, n) for a, n in zip(at, image.shape[1:], strict=True)]
    return along_axes(image, list(weights))


def _linear_weights(at: Matrix, length: int) -> torch.Tensor:
    """Matrix ``(len(at), length)`` that interpolates linearly at coordinates; zero counts outside."""
    return torch.from_numpy(np.clip(1 - np.abs(at[:, None] - np.arange(length)), 0, None).astype(np.float32))


def along_axes(image: torch.Tensor, matrices: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Multiply a ``(C, I, J, K)`` image by a matrix along each of I, J and K; ``None`` leaves an axis alone."""
    over_i, over_j, over_k = matrices
    if over_k is not None:
        image = image @ over_k.T
    if over_j is not None:
        image = over_j @ image
    if over_i is not None:
        channels, _, j, k = image.shape
        image = (over_i @ image.reshape(channels, -1, j * k)).view(channels, -1, j, k)
    return image


def _nearest_by_axis(label: torch.Tensor, at: list[Matrix]) -> torch.Tensor:
    for axis, positions in enumerate(at, start=1):
        length = label.shape[axis]
        nearest = np.floor(positions + 0.5).astype(np.int64)
        outside = torch.from_numpy(np.flatnonzero((nearest < 0) | (nearest >= length)))
        label = label.index_select(axis, torch.from_numpy(nearest.clip(0, length - 1)))
        label = label.index_fill_(axis, outside, 0) if len(outside) else label
    return label


def _gather(
    sources: Sequence[Source], arrays: Sequence[torch.Tensor], movement: Movement, window: Window
) -> list[torch.Tensor]:
    """Move in general: corners and weights are found once for all arrays, some planes at a time.

    In torch operations over whole planes this takes half the time of ``grid_sample``, which goes voxel by voxel in 3D.
    """
    # A rim of zeros, one voxel below and two above, lets all coordinates be clamped instead of tested.
    padded = [functional.pad(array, (1, 2) * 3).flatten(1) for array in arrays]
    shape = tuple(int(n) for n in arrays[0].shape[1:])
    strides = ((shape[1] + 3) * (shape[2] + 3), shape[2] + 3, 1)
    highest = torch.tensor(shape, dtype=torch.float32).view(3, 1) + 1
    results = [a.new_empty((len(a), *window.size)) for a in arrays]
    flat = [result.flatten(1) for result in results]
    coordinates = movement.coordinates(window)
    plane = window.size[1] * window.size[2]
    step = max(1, _AT_ONCE // plane)
    for first in range(0, window.size[0], step):
        last = min(first + step, window.size[0])
        at = torch.minimum(coordinates.rows(first, last).add_(1).clamp_(min=0), highest)
        low = at.floor()
        weights = at.sub_(low)
        i, j, k = low.int()
        corner = i.mul_(strides[0]).add_(j.mul_(strides[1])).add_(k)
        for source, array, result in zip(sources, padded, flat, strict=True):
            out = result[:, first * plane : last * plane]
            (_pick_nearest if source.is_label else _interpolate)(array, corner, weights, strides, out)
    return results


def _interpolate(
    array: torch.Tensor, corner: torch.Tensor, weights: torch.Tensor, strides: tuple[int, ...], out: torch.Tensor
) -> None:
    over_i, over_j, over_k = weights
    a, b, _ = strides
    for channel, result in zip(array, out, strict=True):
        at = [channel[offset:].index_select(0, corner) for offset in (0, 1, b, b + 1, a, a + 1, a + b, a + b + 1)]
        edges = [torch.lerp(at[n], at[n + 1], over_k) for n in (0, 2, 4, 6)]
        sides = [torch.lerp(edges[n], edges[n + 1], over_j) for n in (0, 2)]
        torch.lerp(sides[0], sides[1], over_i, out=result)


def _pick_nearest(
    array: torch.Tensor, corner: torch.Tensor, weights: torch.Tensor, strides: tuple[int, ...], out: torch.Tensor
) -> None:
    upper = (weights >= 0.5).int()
    chosen = upper[0].mul_(strides[0]).add_(upper[1].mul_(strides[1])).add_(upper[2]).add_(corner)
    for channel, result in zip(array, out, strict=True):
        torch.index_select(channel, 0, chosen, out=result)
