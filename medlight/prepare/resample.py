"""Resampling: images, label maps and probabilities from one grid to another.

A grid is an affine (voxel index to RAS+ mm) and a shape. The centre of the corner voxel keeps its place when the
spacing changes, as in ITK and nibabel; there is no shift by half a voxel.

- Images: cubic B-spline (P. Thevenaz, T. Blu, M. Unser, Interpolation Revisited, IEEE TMI 19, 2000), with its overshoot
  clipped to the range of the input, so that no air gets below the scanner's lowest value.
- Probabilities: linear.
- Label maps: each value's mask linearly, the largest wins (background where they tie).
- Along an axis with far thicker slices than the others, images linearly and labels by the nearest slice (F. Isensee et
  al., nnU-Net, Nature Methods 18, 2021): a spline through thick slices invents what lies between them.

Up to half a voxel (of the coarser grid) beyond the last centre the edge value goes on; further out an image has its
lowest value, and label maps and probabilities are 0. No low-pass filter is applied when the spacing grows.

Where the two grids have parallel axes, interpolation is one small sparse matrix an axis (taken from scipy's own
splines), which is exact, several times as fast as scipy's loop over neighbours, and the same to the last bit whatever
the number of threads; oblique grids go through scipy's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import ceil
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse

from medlight.scans.orientation import Affine, orientation, reorient

Kind = Literal["image", "label", "probabilities"]
Array = npt.NDArray[Any]
Shape = tuple[int, int, int]
_ROUNDING = 1e-3  # voxels: less than this, over a whole axis, is rounding of the file's header


def spacing_of(affine: Affine) -> npt.NDArray[np.float64]:
    """Voxel size along I, J, K in millimetres."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def thick_axis(shape: Shape, spacings: Sequence[npt.NDArray[np.float64]], threshold: float) -> int | None:
    """Return the axis whose voxels are more than ``threshold`` times as long as the shortest.

    The first of ``spacings`` with such an axis decides. Axes of one voxel (2D images) don't count.
    """
    real = [axis for axis in range(3) if shape[axis] > 1]
    for spacing in spacings:
        sizes = [spacing[axis] for axis in real]
        if sizes and max(sizes) > threshold * min(sizes):
            return real[int(np.argmax(sizes))]
    return None


def spaced_grid(affine: Affine, shape: Shape, spacing: Sequence[float]) -> tuple[Affine, Shape]:
    """Return the grid from the same corner with another voxel size; an axis of one voxel stays as it is.

    Its last voxel lies within half a (new) voxel of the old one's last, on either side.
    """
    current = spacing_of(affine)
    wanted = np.where(np.asarray(shape) > 1, np.asarray(spacing, dtype=np.float64), current)
    grid = affine.copy()
    grid[:3, :3] = affine[:3, :3] * (wanted / current)
    i, j, k = (1 + ceil((n - 1) * s / t - 0.5 - _ROUNDING) for n, s, t in zip(shape, current, wanted, strict=True))
    return grid, (i, j, k)


def to_spacing(
    array: Array, affine: Affine, spacing: Sequence[float], kind: Kind, threshold: float = 3.0
) -> tuple[Array, Affine]:
    """Resample the last three axes of an array to a voxel size in millimetres; returns the array and its affine."""
    grid, shape = spaced_grid(affine, array.shape[-3:], spacing)
    return to_grid(array, affine, grid, shape, kind, threshold), grid


def restore(array: Array, affine: Affine, original_affine: Affine, original_shape: Shape) -> Array:
    """Bring what was computed on a prepared grid back to the scan's own: the inverse of the preparation.

    array: probabilities ``(L, I, J, K)`` of any floating type (linear, float32 out) or a label map ``(I, J, K)`` of
    integers. The result has ``original_shape`` in its last three axes.
    """
    kind: Kind = "probabilities" if np.issubdtype(array.dtype, np.floating) else "label"
    return to_grid(array, affine, original_affine, original_shape, kind)


def to_grid(array: Array, affine: Affine, grid: Affine, shape: Shape, kind: Kind, threshold: float = 3.0) -> Array:
    """Resample an array ``(..., I, J, K)`` onto a grid.

    threshold: beyond this ratio of longest to shortest voxel the thick axis is handled on its own.
    Images and probabilities come back as float32; a label map keeps its type; on an equal grid no value changes.
    """
    turned, start = reorient(array, affine, orientation(grid))
    turned = turned if kind == "label" else turned.astype(np.float32, copy=False)
    to_index = np.linalg.inv(start) @ grid
    if turned.shape[-3:] == tuple(shape) and _bend(to_index - np.eye(4), shape) < _ROUNDING:
        return np.ascontiguousarray(turned)
    thick = None
    if kind != "probabilities":
        thick = thick_axis(turned.shape[-3:], (spacing_of(start), spacing_of(grid)), threshold)
    order = 3 if kind == "image" else 1
    orders = tuple((order if axis != thick else 1 if kind == "image" else 0) for axis in range(3))
    mover = _mover(to_index, turned.shape[-3:], shape, orders)
    if kind == "label":
        return _move_labels(turned, mover)
    flat = turned.reshape(-1, *turned.shape[-3:])
    moved = np.stack([_move(channel, mover, kind) for channel in flat])
    return moved.reshape(*turned.shape[:-3], *shape)


def _bend(matrix: Affine, shape: Shape) -> float:
    """The furthest that a displacement field ``matrix`` carries a voxel of a grid, in voxels."""
    corners = np.array([[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])])
    return float(np.abs(corners @ matrix[:3].T).max())


class _Parallel:
    """Interpolation between grids with parallel axes: one matrix an axis."""

    def __init__(self, to_index: Affine, source: Shape, shape: Shape, orders: tuple[int, ...]) -> None:
        self.shape = shape
        self.matrices, self.inside = [], []
        for axis in range(3):
            step, offset = float(to_index[axis, axis]), float(to_index[axis, 3])
            matrix, inside = _axis_matrix(source[axis], shape[axis], step, offset, orders[axis])
            self.matrices.append(matrix)
            self.inside.append(inside)

    def __call__(self, channel: Array) -> Array:
        """Interpolate ``(I, J, K)``."""
        order = sorted(range(3), key=lambda axis: self.shape[axis] / channel.shape[axis])  # shrink first
        for axis in order:
            channel = _along(self.matrices[axis], channel, axis)
        return channel

    def outside(self) -> npt.NDArray[np.bool_] | None:
        """Voxels beyond the source's edge, or None where there are none."""
        if all(inside.all() for inside in self.inside):
            return None
        i, j, k = self.inside
        return ~(i[:, None, None] & j[None, :, None] & k[None, None, :])

    def reach(self, box: tuple[slice, ...]) -> tuple[slice, ...]:
        """Return the part of the target that voxels in ``box`` of the source touch."""
        spans = []
        for matrix, part in zip(self.matrices, box, strict=True):
            rows = np.flatnonzero(np.diff(matrix[:, part].indptr))
            spans.append(slice(int(rows[0]), int(rows[-1]) + 1) if rows.size else slice(0, 0))
        return tuple(spans)

    def masked(self, mask: Array, box: tuple[slice, ...], reach: tuple[slice, ...]) -> Array:
        """Interpolate the mask of one label inside its box, onto the part of the target that it reaches."""
        channel = mask.astype(np.float32)
        for axis in range(3):
            channel = _along(self.matrices[axis][reach[axis], box[axis]], channel, axis)
        return channel


class _Oblique:
    """Interpolation between grids that are turned against each other."""

    def __init__(self, to_index: Affine, source: Shape, shape: Shape, orders: tuple[int, ...]) -> None:
        self.to_index, self.source, self.shape = to_index, source, shape
        self.order = max(orders)

    def __call__(self, channel: Array) -> Array:
        """Interpolate ``(I, J, K)``; up to half a voxel beyond the edge the scan is mirrored."""
        matrix, offset = self.to_index[:3, :3], self.to_index[:3, 3]
        moved: Array = ndimage.affine_transform(
            channel, matrix, offset, self.shape, np.float32, order=self.order, mode="mirror"
        )
        return moved

    def outside(self) -> npt.NDArray[np.bool_] | None:
        """Voxels beyond the source's edge."""
        i, j, k = np.ogrid[: self.shape[0], : self.shape[1], : self.shape[2]]
        outside = np.zeros(self.shape, bool)
        for axis, size in enumerate(self.source):
            a, b, c, d = self.to_index[axis]
            margin = _margin(float(np.linalg.norm(self.to_index[axis, :3])))
            at = a * i + b * j + c * k + d
            outside |= (at < -margin) | (at > size - 1 + margin)
        return outside

    def reach(self, box: tuple[slice, ...]) -> tuple[slice, ...]:
        """All of the target: turned grids are rare, and are not hurried."""
        return tuple(slice(0, size) for size in self.shape)

    def masked(self, mask: Array, box: tuple[slice, ...], reach: tuple[slice, ...]) -> Array:
        """Interpolate the mask of one label."""
        whole = np.zeros(self.source, np.float32)
        whole[box] = mask
        return self(whole)


_Mover = _Parallel | _Oblique


def _mover(to_index: Affine, source: Shape, shape: Shape, orders: tuple[int, ...]) -> _Mover:
    skew = to_index.copy()
    skew[:3, 3] = 0
    np.fill_diagonal(skew, 0)
    kind = _Parallel if _bend(skew, shape) < _ROUNDING else _Oblique
    return kind(to_index, source, shape, orders)


def _margin(step: float) -> float:
    """How far beyond its last centre an axis still has a value, in its own voxels; ``step`` is the target's voxel."""
    return 0.5 * max(1.0, step) + _ROUNDING


@lru_cache(maxsize=64)
def _axis_matrix(source: int, target: int, step: float, offset: float, order: int) -> tuple[Any, npt.NDArray[np.bool_]]:
    """Interpolation of one axis as a sparse matrix ``(target, source)``, and which target voxels lie on the source."""
    at = np.arange(target) * step + offset
    margin = _margin(abs(step))
    inside = (at >= -margin) & (at <= source - 1 + margin)
    if source == 1:
        matrix = np.ones((target, 1))
    else:
        where = np.meshgrid(np.clip(at, 0, source - 1), np.arange(source), indexing="ij")
        matrix = ndimage.map_coordinates(np.eye(source), where, order=order, mode="mirror")
    matrix[np.abs(matrix) < 1e-7] = 0  # a spline reaches over the whole axis, but a float32 not further than this
    return sparse.csr_array((matrix * inside[:, None]).astype(np.float32)), inside


def _along(matrix: Any, channel: Array, axis: int) -> Array:
    """Multiply a matrix onto one axis of ``(I, J, K)``."""
    first = np.moveaxis(channel, axis, 0)
    moved = matrix @ np.ascontiguousarray(first).reshape(first.shape[0], -1)
    return np.moveaxis(moved.reshape(-1, *first.shape[1:]), 0, axis)


def _move(channel: Array, mover: _Mover, kind: Kind) -> Array:
    moved = mover(channel)
    low, high = channel.min(), channel.max()
    if kind == "image":
        np.clip(moved, low, high, out=moved)
    outside = mover.outside()
    if outside is not None:
        moved[outside] = low if kind == "image" else 0
    return moved


def _move_labels(labels: Array, mover: _Mover) -> Array:
    """Interpolate each label's mask within its own bounding box, and keep the largest."""
    shape = mover.shape
    best, total = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    winner = np.zeros(shape, labels.dtype)
    for value, box in _boxes(labels):
        reach = mover.reach(box)
        score = mover.masked(labels[box] == value, box, reach)
        total[reach] += score
        better = score > best[reach]
        best[reach][better] = score[better]
        winner[reach][better] = value
    winner[best <= 1 - total + 1e-6] = 0
    outside = mover.outside()
    if outside is not None:
        winner[outside] = 0
    return winner


def _boxes(labels: Array) -> list[tuple[int, tuple[slice, ...]]]:
    """The values of a label map other than 0, each with its bounding box."""
    values = np.unique(labels)
    values = values[values != 0]
    indexed = np.searchsorted(values, labels) + 1
    indexed[labels == 0] = 0
    boxes = ndimage.find_objects(indexed)
    return [(value, box) for value, box in zip(values.tolist(), boxes, strict=True) if box is not None]
