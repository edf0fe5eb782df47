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

How values are found, and in how little memory, is in interpolate.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Literal

import numpy as np
import numpy.typing as npt

from medlight.prepare.interpolate import ROUNDING, Array, Mover, Shape, bend, mover_for
from medlight.scans.orientation import Affine, orientation, reorient

Kind = Literal["image", "label", "probabilities"]


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
    i, j, k = (1 + ceil((n - 1) * s / t - 0.5 - ROUNDING) for n, s, t in zip(shape, current, wanted, strict=True))
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


def to_grid(
    array: Array,
    affine: Affine,
    grid: Affine,
    shape: Shape,
    kind: Kind,
    threshold: float = 3.0,
    out: Array | None = None,
) -> Array:
    """Resample an array ``(..., I, J, K)`` onto a grid.

    threshold: beyond this ratio of longest to shortest voxel the thick axis is handled on its own.
    out: takes the result, and saves its memory where it is a part of something larger.
    Images and probabilities come back as float32; a label map keeps its type; on an equal grid no value changes.
    """
    turned, start = reorient(array, affine, orientation(grid))
    dtype = turned.dtype if kind == "label" else np.dtype(np.float32)
    to_index = np.linalg.inv(start) @ grid
    if turned.shape[-3:] == tuple(shape) and bend(to_index - np.eye(4), shape) < ROUNDING:
        if out is None:
            return np.ascontiguousarray(turned, dtype=dtype)
        out[...] = turned
        return out
    result = np.empty((*turned.shape[:-3], *shape), dtype) if out is None else out
    thick = None
    if kind != "probabilities":
        thick = thick_axis(turned.shape[-3:], (spacing_of(start), spacing_of(grid)), threshold)
    order = 3 if kind == "image" else 1
    orders = tuple((order if axis != thick else 1 if kind == "image" else 0) for axis in range(3))
    mover = mover_for(to_index, turned.shape[-3:], shape, orders)
    for index in np.ndindex(turned.shape[:-3]):
        if kind == "label":
            mover.move_labels(turned[index], result[index])
        else:
            _move(turned[index], mover, kind, result[index])
    return result


def _move(channel: Array, mover: Mover, kind: Kind, out: Array) -> None:
    mover.move(channel, out)
    low, high = channel.min(), channel.max()
    if kind == "image":
        np.clip(out, low, high, out=out)
    mover.clear(out, low if kind == "image" else 0)
