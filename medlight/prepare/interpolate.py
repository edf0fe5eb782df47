"""Values between voxels, block by block: moving a scan takes the result and at most one more copy of it.

Where the two grids have parallel axes, interpolation is one small sparse matrix an axis (taken from scipy's own
splines), which is exact, several times as fast as scipy's loop over neighbours, and the same to the last bit whatever
the number of threads or the size of the blocks. Grids that are turned against each other go through scipy's loop.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse

from medlight.scans.orientation import Affine
from medlight.scans.values import values_of

Array = npt.NDArray[Any]
Shape = tuple[int, int, int]
Box = tuple[slice, ...]
ROUNDING = 1e-3  # voxels: less than this, over a whole axis, is rounding of the file's header
SLAB = 2**23  # voxels that are worked on together
_CUBE = 160  # the side of a block of a turned grid
_REACH = 16  # voxels: what lies further off changes a cubic spline by less than a float32 can hold (0.268**16)


class Mover(Protocol):
    """Moves the voxels ``(I, J, K)`` of one grid to another."""

    def move(self, channel: Array, out: Array) -> None:
        """Interpolate an image or a probability into ``out``."""

    def move_labels(self, labels: Array, out: Array) -> None:
        """Interpolate each label's mask, and write the largest one's value into ``out``."""

    def clear(self, out: Array, value: Any) -> None:
        """Give every voxel beyond the source's edge a value."""


def mover_for(to_index: Affine, source: Shape, shape: Shape, orders: tuple[int, ...]) -> Mover:
    """Choose how to go from a source to a target of ``shape``.

    to_index: target voxel to source voxel. orders: of the spline along each axis of the source, 0, 1 or 3.
    """
    skew = to_index.copy()
    skew[:3, 3] = 0
    np.fill_diagonal(skew, 0)
    kind = Parallel if bend(skew, shape) < ROUNDING else _Oblique
    return kind(to_index, source, shape, orders)


def bend(matrix: Affine, shape: Shape) -> float:
    """The furthest that a displacement field ``matrix`` carries a voxel of a grid, in voxels."""
    corners = np.array([[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])])
    return float(np.abs(corners @ matrix[:3].T).max())


class Parallel:
    """Interpolation between grids with parallel axes: one matrix an axis."""

    def __init__(self, to_index: Affine, source: Shape, shape: Shape, orders: tuple[int, ...]) -> None:
        self.shape = shape
        self.order = sorted(range(3), key=lambda axis: shape[axis] / source[axis])  # shrink first
        self.matrices, self.inside = [], []
        for axis in range(3):
            step, offset = float(to_index[axis, axis]), float(to_index[axis, 3])
            matrix, inside = _axis_matrix(source[axis], shape[axis], step, offset, orders[axis])
            self.matrices.append(matrix)
            self.inside.append(inside)

    def move(self, channel: Array, out: Array) -> None:
        """Two axes slab by slab, then the third: what lies between is never larger than both ends."""
        first, second, last = self.order
        size = list(channel.shape)
        size[first], size[second] = self.shape[first], self.shape[second]
        between = np.empty(size, np.float32)
        for part in _slabs(channel.shape, last):
            slab = channel[part].astype(np.float32)
            slab = _along(self.matrices[first], slab, first)
            between[part] = _along(self.matrices[second], slab, second)
        for part in _slabs(between.shape, first):
            out[part] = _along(self.matrices[last], between[part], last)

    def needs(self, axis: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """For each target voxel along an axis the first source voxel that it is made of, and the one after the last.

        A target voxel that is made of none (it lies beyond the source) needs what its neighbours do.
        """
        matrix = self.matrices[axis]
        filled = np.flatnonzero(np.diff(matrix.indptr))
        if not filled.size:
            return np.zeros(self.shape[axis], np.int64), np.zeros(self.shape[axis], np.int64)
        low = np.array([matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]].min() for row in filled])
        high = np.array([matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]].max() for row in filled]) + 1
        nearest = np.clip(np.searchsorted(filled, np.arange(self.shape[axis])), 0, filled.size - 1)
        return low[nearest].astype(np.int64), high[nearest].astype(np.int64)

    def move_box(self, channel: Array, starts: Sequence[int], box: Box) -> Array:
        """Interpolate a box of the target; what is beyond the source's edge is 0.

        channel: the part of the source from ``starts`` on, which reaches as far as the box needs. The values are those
        of `move` to the last bit.
        """
        moved = channel.astype(np.float32)
        for axis in self.order:
            columns = slice(starts[axis], starts[axis] + channel.shape[axis])
            moved = _along(self.matrices[axis][box[axis], columns], moved, axis)
        for axis, inside in enumerate(self.inside):
            moved[(slice(None),) * axis + (~inside[box[axis]],)] = 0
        return moved

    def clear(self, out: Array, value: Any) -> None:
        """Give every voxel beyond the source's edge a value."""
        for axis, inside in enumerate(self.inside):
            out[(slice(None),) * axis + (~inside,)] = value

    def move_labels(self, labels: Array, out: Array) -> None:
        """Each mask is looked at within its own bounding box."""
        boxes = _boxes(labels)
        for part in _slabs(self.shape, 0):
            vote = _Vote(out[part])
            for value, box in boxes:
                reach = self._reach(box, part)
                if reach is not None:
                    within = (slice(reach[0].start - part[0].start, reach[0].stop - part[0].start), *reach[1:])
                    vote.add(value, self._mask(labels, value, box, reach), within)
            vote.end()
        self.clear(out, 0)

    def _reach(self, box: Box, part: Box) -> Box | None:
        """The voxels of a part of the target that voxels in ``box`` of the source touch."""
        spans = []
        for matrix, its, whole in zip(self.matrices, box, (part[0], slice(0, None), slice(0, None)), strict=True):
            rows = np.flatnonzero(np.diff(matrix[whole, its].indptr))
            if not rows.size:
                return None
            spans.append(slice(whole.start + int(rows[0]), whole.start + int(rows[-1]) + 1))
        return tuple(spans)

    def _mask(self, labels: Array, value: int, box: Box, reach: Box) -> Array:
        """The mask of one label, in a box of the source, as it is in a part of the target."""
        matrices = [matrix[rows, columns] for matrix, rows, columns in zip(self.matrices, reach, box, strict=True)]
        used = [slice(int(m.indices.min()), int(m.indices.max()) + 1) for m in matrices]
        needed = tuple(slice(b.start + u.start, b.start + u.stop) for b, u in zip(box, used, strict=True))
        mask = (labels[needed] == value).astype(np.float32)
        for axis, (matrix, columns) in enumerate(zip(matrices, used, strict=True)):
            mask = _along(matrix[:, columns], mask, axis)
        return mask


class _Oblique:
    """Interpolation between grids that are turned against each other; big ones in cubes, each with what it needs."""

    def __init__(self, to_index: Affine, source: Shape, shape: Shape, orders: tuple[int, ...]) -> None:
        self.to_index, self.source, self.shape = to_index, source, shape
        self.order = max(orders)

    def move(self, channel: Array, out: Array) -> None:
        """Interpolate an image; up to half a voxel beyond the edge it is mirrored."""
        for part, box in self._parts():
            out[part] = self._moved(channel[box], part, box)

    def move_labels(self, labels: Array, out: Array) -> None:
        """Interpolate the masks of all labels that a cube may see."""
        for part, box in self._parts():
            seen = labels[box]
            vote = _Vote(out[part])
            for value in _values(seen):
                vote.add(value, self._moved((seen == value).astype(np.float32), part, box), ...)
            vote.end()
        self.clear(out, 0)

    def clear(self, out: Array, value: Any) -> None:
        """Give every voxel beyond the source's edge a value."""
        for part in _slabs(self.shape, 0):
            i, j, k = np.ogrid[part[0], : self.shape[1], : self.shape[2]]
            outside = np.zeros(out[part].shape, bool)
            for axis, size in enumerate(self.source):
                a, b, c, d = self.to_index[axis]
                margin = _margin(float(np.linalg.norm(self.to_index[axis, :3])))
                at = a * i + b * j + c * k + d
                outside |= (at < -margin) | (at > size - 1 + margin)
            out[part][outside] = value

    def _moved(self, channel: Array, part: Box, box: Box) -> Array:
        matrix = self.to_index[:3, :3]
        start = np.array([side.start for side in part])
        offset = self.to_index[:3, 3] + matrix @ start - [side.start for side in box]
        size = tuple(side.stop - side.start for side in part)
        moved: Array = ndimage.affine_transform(
            channel, matrix, offset, size, np.float32, order=self.order, mode="mirror"
        )
        return moved

    def _parts(self) -> Iterator[tuple[Box, Box]]:
        """Parts of the target, each with the box of the source that it is made from."""
        if max(np.prod(self.shape), np.prod(self.source)) <= _CUBE**3:
            yield tuple(slice(0, n) for n in self.shape), tuple(slice(0, n) for n in self.source)
            return
        for part in itertools.product(*(_spans(n, _CUBE) for n in self.shape)):
            corners = np.array([[*corner, 1] for corner in itertools.product(*((s.start, s.stop - 1) for s in part))])
            at = corners @ self.to_index[:3].T
            low = np.clip(np.floor(at.min(axis=0)) - _REACH, 0, np.array(self.source) - 1).astype(int)
            high = np.clip(np.ceil(at.max(axis=0)) + _REACH + 1, low + 1, self.source).astype(int)
            yield part, tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


class _Vote:
    """Which label is the largest in each voxel of a part; background where nothing is larger than it."""

    def __init__(self, winner: Array) -> None:
        self.winner = winner
        self.winner[...] = 0
        self.best, self.total = np.zeros(winner.shape, np.float32), np.zeros(winner.shape, np.float32)

    def add(self, value: int, score: Array, within: Any) -> None:
        """Count one label's mask, which lies ``within`` the part."""
        self.total[within] += score
        better = score > self.best[within]
        self.best[within][better] = score[better]
        self.winner[within][better] = value

    def end(self) -> None:
        """Let the background win where it ties."""
        self.winner[self.best <= 1 - self.total + 1e-6] = 0


def _spans(size: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _slabs(shape: tuple[int, ...], axis: int) -> list[Box]:
    """Cut a grid across an axis into slabs of a bearable size, as indices (whatever the size of the other axes)."""
    plane = int(np.prod(shape)) // max(shape[axis], 1)
    spans = _spans(shape[axis], max(1, SLAB // max(plane, 1)))
    return [((slice(None),) * axis + (span,)) for span in spans]


def _margin(step: float) -> float:
    """How far beyond its last centre an axis still has a value, in its own voxels; ``step`` is the target's voxel."""
    return 0.5 * max(1.0, step) + ROUNDING


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


def _values(labels: Array) -> list[int]:
    """The values of a label map other than 0."""
    return [int(value) for value in values_of(labels) if value]


def _boxes(labels: Array) -> list[tuple[int, Box]]:
    """The values of a label map other than 0, each with its bounding box."""
    if labels.dtype.kind == "u" and labels.dtype.itemsize <= 2:
        boxes = ndimage.find_objects(labels)
        return [(value, box) for value, box in enumerate(boxes, start=1) if box is not None]
    values = _values(labels)
    indexed = np.searchsorted(values, labels) + 1
    indexed[labels == 0] = 0
    found = ndimage.find_objects(indexed)
    return [(value, box) for value, box in zip(values, found, strict=True) if box is not None]
