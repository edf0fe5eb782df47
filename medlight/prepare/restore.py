"""Back to a scan's own grid, slab by slab: what was computed on a prepared grid need never be held as a whole."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medlight.prepare.interpolate import ROUNDING, Array, Box, Parallel, Shape, bend
from medlight.scans.orientation import Affine, orientation, reorient


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
        self._affine, self._codes, self._shape = affine, orientation(original_affine), original_shape
        to_index = np.linalg.inv(start) @ original_affine
        skew = to_index.copy()
        skew[:3, 3] = 0
        np.fill_diagonal(skew, 0)
        if bend(skew, original_shape) >= ROUNDING:
            raise ValueError("the prepared grid is turned against the scan's")
        same = turned.shape == tuple(original_shape) and bend(to_index - np.eye(4), original_shape) < ROUNDING
        self._mover = None if same else Parallel(to_index, turned.shape, original_shape, (1, 1, 1))
        if self._mover is not None:
            self._low, self._high = self._mover.needs(self._axis)
        self._rows = shape[0]
        self._done = 0  # rows that came
        self._left = slice(0, original_shape[self._axis])  # rows that were not given yet
        self._held: Array | None = None

    def add(self, slab: Array) -> Iterator[tuple[Box, Iterator[Array]]]:
        """Take the next slab ``(L, i, J, K)``; give, if there is any, where in ``(I, J, K)`` and what, label by label.

        Take all of it before the next slab comes.
        """
        turned = reorient(slab, self._affine, self._codes)[0]
        self._done += slab.shape[1]
        if self._mover is None:
            first = self._rows - self._done if self._back else self._done - slab.shape[1]
            yield self._box(slice(first, first + slab.shape[1])), iter(turned)
            return
        parts = [turned] if self._held is None else [turned, self._held] if self._back else [self._held, turned]
        held = np.concatenate(parts, axis=1 + self._axis)
        first = self._rows - self._done if self._back else self._done - held.shape[1 + self._axis]
        rows = self._ready()
        if rows.start < rows.stop:
            mover, axis = self._mover, self._axis
            yield self._box(rows), (mover.move_rows(channel, axis, first, rows) for channel in held)
        self._held = self._still_needed(held, first)

    def _box(self, rows: slice) -> Box:
        box = [slice(0, n) for n in self._shape]
        box[self._axis] = rows
        return tuple(box)

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
