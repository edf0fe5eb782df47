"""One spatial movement of a patch: an affine map, an elastic field and flips together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from medlight.data.patches import Triple, Window

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
    def flipped_axes(self) -> list[int]:
        """Axes that run the other way round, where the movement has no rotation."""
        return [axis for axis in range(3) if self.matrix[axis, axis] < 0]

    @property
    def is_flip(self) -> bool:
        """Whether nothing but flips (or nothing at all) is to be done."""
        return self.is_separable and not self.shift.any() and bool((np.abs(np.diag(self.matrix)) == 1).all())

    @property
    def is_separable(self) -> bool:
        """Whether each axis can be resampled by itself: no rotation and no elastic field."""
        return self.control is None and np.count_nonzero(self.matrix - np.diag(np.diag(self.matrix))) == 0

    def positions(self, window: Window) -> list[Matrix]:
        """Source coordinates of the window's voxels, axis by axis; for separable movements."""
        scale, start = np.diag(self.matrix), self._start(window)
        return [scale[axis] * _from_middle(n) + start[axis] for axis, n in enumerate(window.size)]

    def _start(self, window: Window) -> Matrix:
        """Source coordinate of the window's middle."""
        return np.asarray(window.low) + (np.asarray(window.size) - 1) / 2 + self.shift

    def coordinates(self, window: Window) -> Coordinates:
        """Source coordinates of the window's voxels, not yet worked out."""
        i, j, k = (_from_middle(n) for n in window.size)
        start = self._start(window)
        over_ij = i[:, None, None] * self.matrix[:, 0] + j[:, None] * self.matrix[:, 1] + start
        left = np.ones((3, len(i), len(j), 2))
        left[..., 0] = over_ij.transpose(2, 0, 1)
        right = np.ones((3, 2, len(k)))
        right[:, 1] = self.matrix[:, 2:] * k
        if self.control is not None:
            ni, nj, nk, _ = self.control.shape
            over_i = np.tensordot(_basis(ni, len(i)), self.control, 1)  # (I, nj, nk, 3)
            field = _basis(nj, len(j)) @ over_i.transpose(3, 0, 1, 2)  # (3, I, J, nk)
            left = np.concatenate([left, field], axis=-1)
            right = np.concatenate([right, np.broadcast_to(_basis(nk, len(k)).T, (3, nk, len(k)))], axis=1)
        return Coordinates(_float32(left), _float32(right))


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Coordinates as products: but for the field they are linear along K, and the field is a sum of few terms.

    left: ``(3, I, J, terms)``. right: ``(3, terms, K)``.
    """

    left: torch.Tensor
    right: torch.Tensor

    def rows(self, first: int, last: int) -> torch.Tensor:
        """Coordinates of the voxels in some planes along I, ``(3, (last - first) * J * K)``."""
        return (self.left[:, first:last].flatten(1, 2) @ self.right).flatten(1)


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
def _from_middle(size: int) -> Matrix:
    return np.arange(size, dtype=np.float64) - (size - 1) / 2


def _float32(array: Matrix) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32))
