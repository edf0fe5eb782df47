"""Back to a scan's own grid, slab by slab: what was computed on a prepared grid need never be held as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from medlight.prepare.interpolate import ROUNDING, Array, Box, Parallel, Shape, bend
from medlight.scans.orientation import Affine, orientation, reorient

_VOXELS = 2**20  # brought back together: memory for so few is used again, where that for many is cleared each time


class SlabRestore:
    """Takes probabilities in slabs along the prepared grid's first axis, and gives slabs of the scan's own grid.

    Together they hold what `resample.restore` makes of the whole, to the last bit.
    """

    def __init__(self, affine: Affine, shape: Shape, original_affine: Affine, original_shape: Shape) -> None:
        """affine, shape: of the prepared grid; ValueError where its axes are not parallel to the original's."""
        turned, start = reorient(np.broadcast_to(np.uint8(0), shape), affine, orientation(original_affine))
        turn = np.linalg.inv(affine) @ start
        self._axis = int(np.abs(turn[0, :3]).argmax())  # of the original, along which slabs come
        self._back = bool(turn[0, self._axis] < 0)
        self._affine, self._codes = affine, orientation(original_affine)
        to_index = np.linalg.inv(start) @ original_affine
        skew = to_index.copy()
        skew[:3, 3] = 0
        np.fill_diagonal(skew, 0)
        if bend(skew, original_shape) >= ROUNDING:
            raise ValueError("the prepared grid is turned against the scan's")
        same = turned.shape == tuple(original_shape) and bend(to_index - np.eye(4), original_shape) < ROUNDING
        self._mover = None if same else Parallel(to_index, turned.shape, original_shape, (1, 1, 1))
        self._needs = [self._mover.needs(axis) for axis in range(3)] if self._mover else []
        if self._needs:
            self._low, self._high = self._needs[self._axis]
        self._rows = shape[0]
        self._done = 0  # rows that came
        self._left = slice(0, original_shape[self._axis])  # rows that were not given yet
        self._held: Array | None = None

    def add(self, slab: Array, wanted: Callable[[Array], Array] | None = None) -> Iterator[tuple[Box, Iterator[Array]]]:
        """Take the next slab ``(L, i, J, K)``; give, if there is any, where in ``(I, J, K)`` and what, label by label.

        wanted: of ``(L, i, j, k)`` says which of its voxels ``(i, j, k)`` matter; then a box is given that holds all
        that is made of these, or nothing. Take all of it before the next slab comes.
        """
        turned = reorient(slab, self._affine, self._codes)[0]
        self._done += slab.shape[1]
        if self._mover is None:
            first = self._rows - self._done if self._back else self._done - slab.shape[1]
            part = _bounds(turned, wanted)
            if part is not None:
                shift = [first if axis == self._axis else 0 for axis in range(3)]
                box = tuple(slice(s.start + n, s.stop + n) for s, n in zip(part, shift, strict=True))
                yield box, iter(turned[(slice(None), *part)])
            return
        parts = [turned] if self._held is None else [turned, self._held] if self._back else [self._held, turned]
        held = np.concatenate(parts, axis=1 + self._axis)
        first = self._rows - self._done if self._back else self._done - held.shape[1 + self._axis]
        rows = self._ready()
        if rows.start < rows.stop:
            yield from self._moved(held, first, rows, wanted)
        self._held = self._still_needed(held, first)

    def _moved(
        self, held: Array, first: int, rows: slice, wanted: Callable[[Array], Array] | None
    ) -> Iterator[tuple[Box, Iterator[Array]]]:
        """Interpolate ``rows`` of the scan's grid, as far as wanted voxels reach; ``held`` begins at row ``first``."""
        mover = self._mover
        part = _bounds(held, wanted)
        if mover is None or part is None:
            return
        starts = [first if axis == self._axis else 0 for axis in range(3)]
        box = []
        for axis, (low, high) in enumerate(self._needs):
            begin = int(np.searchsorted(high, part[axis].start + starts[axis], side="right"))
            end = int(np.searchsorted(low, part[axis].stop + starts[axis], side="left"))
            if axis == self._axis:
                begin, end = max(begin, rows.start), min(end, rows.stop)
            if begin >= end:
                return
            box.append(slice(begin, end))
        along = box[self._axis]
        area = int(np.prod([side.stop - side.start for axis, side in enumerate(box) if axis != self._axis]))
        step = max(1, _VOXELS // area)
        for begin in range(along.start, along.stop, step):
            box[self._axis] = slice(begin, min(begin + step, along.stop))
            yield tuple(box), self._scores(mover, held, starts, tuple(box))

    def _scores(self, mover: Parallel, held: Array, starts: list[int], box: Box) -> Iterator[Array]:
        """Interpolate a box of the scan's grid, label by label; ``held`` begins at ``starts``."""
        source = []
        for (low, high), side, start in zip(self._needs, box, starts, strict=True):
            source.append(slice(int(low[side.start]) - start, int(high[side.stop - 1]) - start))
        begins = [start + side.start for start, side in zip(starts, source, strict=True)]
        return (mover.move_box(channel[tuple(source)], begins, box) for channel in held)

    def _ready(self) -> slice:
        """The rows that can be made of what came and were not given yet."""
        if self._back:
            rows = slice(int(np.searchsorted(self._low, self._rows - self._done)), self._left.stop)
            self._left = slice(self._left.start, min(rows.start, rows.stop))
        else:
            rows = slice(self._left.start, int(np.searchsorted(self._high, self._done, side="right")))
            self._left = slice(max(rows.start, rows.stop), self._left.stop)
        return rows

    def _still_needed(self, held: Array, first: int) -> Array:
        """The rows that those to come are made of too; ``held`` begins at row ``first``."""
        end = first + held.shape[1 + self._axis]
        if self._left.start == self._left.stop:
            kept = slice(0, 0)
        elif self._back:
            kept = slice(0, max(int(self._high[self._left.stop - 1]) - first, 0))
        else:
            kept = slice(min(int(self._low[self._left.start]), end) - first, None)
        part: Array = held[(slice(None),) * (1 + self._axis) + (kept,)]
        return part.copy()


def _bounds(voxels: Array, wanted: Callable[[Array], Array] | None) -> Box | None:
    """The box that holds all wanted voxels of ``(L, i, j, k)``; None where there are none."""
    if wanted is None:
        return tuple(slice(0, n) for n in voxels.shape[1:])
    mask = wanted(voxels)
    spans = []
    for axis in range(3):
        found = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if not found.size:
            return None
        spans.append(slice(int(found[0]), int(found[-1]) + 1))
    return tuple(spans)
