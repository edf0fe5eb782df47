"""Polygons to pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_AT_ONCE = 4_000_000  # crossings held in memory


def fill(polygons: Sequence[npt.NDArray[np.float64]], shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the pixels whose centre lies inside an odd number of the polygons, so that a hole is a polygon of its own.

    polygons: ``(N, 2)`` corners each, closed by the line from the last to the first, in pixels: the centre of the first
    pixel is ``(0, 0)``. A line that goes to a hole and comes back the same way (a keyhole) leaves no trace. Where two
    areas share a border each centre on it belongs to one: left and lower borders are inside. Returns bools.
    """
    width, height = shape
    crossings = np.zeros((height, width + 1), np.int64)
    starts = np.concatenate(polygons)
    ends = np.concatenate([np.roll(corners, -1, axis=0) for corners in polygons])
    step = max(1, _AT_ONCE // max(1, height))
    for low in range(0, len(starts), step):
        crossings += _crossings(starts[low : low + step], ends[low : low + step], shape)
    return (np.cumsum(crossings, axis=1)[:, :width] % 2 == 1).T


def _crossings(
    starts: npt.NDArray[np.float64], ends: npt.NDArray[np.float64], shape: tuple[int, int]
) -> npt.NDArray[np.int64]:
    """Count, for each row of centres, the edges that cross it left of or at each centre and right of the one before."""
    width, height = shape
    low, high = (
        np.clip(np.ceil(side), 0, height).astype(np.int64)
        for side in (np.minimum(starts[:, 1], ends[:, 1]), np.maximum(starts[:, 1], ends[:, 1]))
    )
    counts = high - low  # an edge crosses the rows from its lower end up to, not with, its upper end
    edge = np.repeat(np.arange(len(starts)), counts)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts - low, counts)
    (x, y), (to_x, to_y) = starts[edge].T, ends[edge].T
    column = np.clip(np.ceil(x + (row - y) * (to_x - x) / (to_y - y)), 0, width).astype(np.int64)
    counted = np.bincount(row * (width + 1) + column, minlength=height * (width + 1))
    return counted.reshape(height, width + 1)
