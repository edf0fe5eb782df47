"""One spatial movement of a patch: an affine map, an elastic field and flips, resampled in a single pass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from medlight.data.patches import Triple, Window, cut

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Movement:
    """Says where each voxel of the output comes from, both counted in voxels from the middle of the window.

    ``source = matrix @ output + shift + field(output)``. ``matrix`` is 3x3 and has the flips in it, ``shift`` is in
    voxels; ``field`` interpolates ``control``, displacements in voxels of shape ``(ni, nj, nk, 3)``, by uniform cubic
    B-splines whose ``n - 3`` intervals span the window.
    """

    matrix: Matrix
    shift: Matrix
    control: Matrix | None = None

    def reach(self, size: Triple) -> Triple:
        """Voxels of the source that an output window of this size needs beyond its own box, on each side."""
        half = (np.asarray(size) - 1) / 2
        extent = np.abs(self.matrix) @ half + np.abs(self.shift)
        if self.control is not None:  # a B-spline stays within its control points
            extent += np.abs(self.control).max(axis=(0, 1, 2))
        i, j, k = (int(max(np.ceil(e - h), 0)) for e, h in zip(extent, half, strict=True))
        return i, j, k

    @property
    def is_flip(self) -> bool:
        """Whether nothing but flips (or nothing at all) is to be done."""
        unit = np.array_equal(np.abs(self.matrix), np.eye(3))
        return unit and self.control is None and not self.shift.any()

    @property
    def is_separable(self) -> bool:
        """Whether each axis can be resampled by itself: no rotation and no elastic field."""
        return self.control is None and np.count_nonzero(self.matrix - np.diag(np.diag(self.matrix))) == 0


@lru_cache(maxsize=64)
def _basis(points: int, size: int) -> Matrix:
    """Cubic B-spline weights ``(size, points)`` of evenly spread control points at the voxels of one axis."""
    at = (np.arange(size) + 0.5) / size * (points - 3)
    first = np.minimum(at.astype(int), points - 4)
    t = at - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    basis = np.zeros((size, points))
    np.put_along_axis(basis, first[:, None] + np.arange(4), weights, axis=1)
    return basis


@lru_cache(maxsize=16)
def _middle(size: int) -> Matrix:
    return np.arange(size, dtype=np.float64) - (size - 1) / 2


def grid(movement: Movement, window: Window, shape: Triple) -> torch.Tensor:
    """Sampling grid ``(I, J, K, 3)`` of a window, as ``grid_sample`` wants it for a source of ``shape``.

    Its coordinates are linear along K except for the field, so all of it is one matrix product of a factor that
    varies over I and J with one that varies over K.
    """
    size = window.size
    i, j, k = (_middle(n) for n in size)
    middle = np.asarray(window.low) + (np.asarray(size) - 1) / 2 + movement.shift
    to_grid = 2 / np.asarray(shape, dtype=float)  # grid_sample without aligned corners: -1 and 1 are the outer faces
    matrix = (movement.matrix * to_grid[:, None])[::-1]  # and its last axis comes first
    start = ((2 * middle + 1) / shape - 1)[::-1]
    over_ij = (i[:, None, None] * matrix[:, 0] + j[:, None] * matrix[:, 1] + start).reshape(-1, 3)
    left: list[npt.NDArray[np.floating[Any]]] = [over_ij, np.ones((len(over_ij), 1))]
    over_k = (k[:, None] * matrix[:, 2]).reshape(1, -1)
    right: list[npt.NDArray[np.floating[Any]]] = [np.tile(np.eye(3), len(k)), over_k]
    if movement.control is not None:
        control = (movement.control * to_grid)[..., ::-1]
        ni, nj, nk, _ = control.shape
        over_i = (_basis(ni, size[0]) @ control.reshape(ni, -1)).reshape(size[0], nj, nk * 3)
        left.append((_basis(nj, size[1]) @ over_i).reshape(-1, nk * 3))
        right.append(np.kron(_basis(nk, size[2]).T, np.eye(3)))
    product = _float32(np.concatenate(left, axis=1)) @ _float32(np.concatenate(right, axis=0))
    return product.view(*size, 3)


def _float32(array: npt.NDArray[np.floating[Any]]) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32))


def _axis_positions(movement: Movement, window: Window) -> list[Matrix]:
    """Source coordinate of each output voxel, axis by axis; for separable movements."""
    scale, shift = np.diag(movement.matrix), movement.shift
    return [scale[a] * _middle(n) + shift[a] + window.low[a] + (n - 1) / 2 for a, n in enumerate(window.size)]


def _linear_weights(at: Matrix, length: int) -> torch.Tensor:
    """Matrix ``(len(at), length)`` that interpolates linearly at coordinates; zero counts outside."""
    return _float32(np.clip(1 - np.abs(at[:, None] - np.arange(length)), 0, None))


def move_image(image: torch.Tensor, movement: Movement, window: Window, pad: float | torch.Tensor) -> torch.Tensor:
    """Return the moved window of a float ``(C, I, J, K)`` image, linearly interpolated; ``pad`` lies outside of it.

    ``pad``: a number, or one per channel of shape ``(C, 1, 1, 1)``.
    """
    if movement.is_flip:
        return _flipped(_padded(image, window, pad), movement)
    source = image - pad if isinstance(pad, torch.Tensor) or pad else image
    if movement.is_separable:
        positions = _axis_positions(movement, window)
        wi, wj, wk = (_linear_weights(at, n) for at, n in zip(positions, image.shape[1:], strict=True))
        moved = (source @ wk.T).flatten(2)  # (C, I, J * K')
        moved = (wi @ moved.view(len(image), image.shape[1], -1)).view(len(image), len(wi), image.shape[2], -1)
        moved = wj @ moved
    else:
        shape = (int(image.shape[1]), int(image.shape[2]), int(image.shape[3]))
        at = grid(movement, window, shape)[None]
        moved = functional.grid_sample(source[None], at, mode="bilinear", align_corners=False)[0]
    return moved.add_(pad) if isinstance(pad, torch.Tensor) or pad else moved


def _padded(image: torch.Tensor, window: Window, pad: float | torch.Tensor) -> torch.Tensor:
    if isinstance(pad, torch.Tensor):
        return cut(image - pad, window) + pad
    return cut(image, window, pad)


def _flipped(array: torch.Tensor, movement: Movement) -> torch.Tensor:
    axes = [axis + 1 for axis in range(3) if movement.matrix[axis, axis] < 0]
    return array.flip(axes) if axes else array


def move_label(label: torch.Tensor, movement: Movement, window: Window) -> torch.Tensor:
    """Return the moved window of a ``(C, I, J, K)`` label map of any type, by nearest voxel; 0 lies outside of it."""
    if movement.is_flip:
        return _flipped(cut(label, window), movement)
    if movement.is_separable:
        for axis, at in enumerate(_axis_positions(movement, window), start=1):
            length = label.shape[axis]
            nearest = np.floor(at + 0.5).astype(np.int64)
            outside = torch.from_numpy((nearest < 0) | (nearest >= length))
            label = label.index_select(axis, torch.from_numpy(nearest.clip(0, length - 1)))
            label = label.index_fill(axis, outside.nonzero()[:, 0], 0)
        return label
    shape = (int(label.shape[1]), int(label.shape[2]), int(label.shape[3]))
    points = grid(movement, window, shape)[None]
    return functional.grid_sample(label[None].float(), points, mode="nearest", align_corners=False)[0].to(label.dtype)
