"""Sliding-window inference in numpy, equal to MONAI's ``sliding_window_inference`` with Gaussian blending.

The positions, the weights and the order of the sums are MONAI 1.6's, so that a bundle gives what validation gave.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Model = Callable[[Array], Array]


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """Return where windows begin along one axis; the last one is shifted back to end with the image."""
    if size <= window:
        return [0]
    step = max(int(window * (1 - overlap)), 1)
    count = math.ceil((size - window) / step) + 1
    return [min(index * step, size - window) for index in range(count)]


def gaussian_weights(window: Sequence[int], sigma_scale: float = 0.125) -> Array:
    """Return a window's blending weights: a Gaussian of ``sigma_scale`` times the side, no smaller than 1e-3."""
    weights = np.ones((), np.float32)
    for side in window:
        x = np.arange(side, dtype=np.float32) - np.float32((side - 1) / 2)
        line = np.exp(x**2 / np.float32(-2 * (sigma_scale * side) ** 2))
        weights = weights[..., None] * line
    return np.maximum(weights, max(float(weights.min()), 1e-3), dtype=np.float32)


def joined(slabs: Iterable[Array], shape: Sequence[int]) -> Array:
    """Lay slabs ``(L, i, ...)`` behind each other: ``(L, *shape)``."""
    whole: Array | None = None
    row = 0
    for slab in slabs:
        if whole is None:
            whole = np.empty((len(slab), *shape), np.float32)
        whole[:, row : row + slab.shape[1]] = slab
        row += slab.shape[1]
    assert whole is not None
    return whole


def blended(
    image: Array,
    window: Sequence[int],
    model: Model,
    *,
    overlap: float = 0.5,
    batch: int = 1,
    pad_value: Sequence[float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Array]:
    """Run a model over an image of any size in overlapping windows; give the blended outputs as slabs along I.

    image: ``(C, I, J)`` or ``(C, I, J, K)`` float32; padded on both sides with ``pad_value`` (one a channel, 0 by
        default) where it is smaller than the window.
    model: ``(B, C, *window)`` to ``(B, L, *window)``. B is ``batch``, and 1 for the windows that are left over: some
        runtimes compile the network for each size they meet.
    progress: called with the windows done and their total.

    Slabs are ``(L, i, J)`` or ``(L, i, J, K)`` float32, see `joined`. One comes as soon as no window that is left
    reaches it, so that the sums are never longer than a window. It is a view of them: use it before the next one is
    taken.
    """
    padded, inside = _pad(image, window, pad_value or [0.0] * image.shape[0])
    places = list(_windows(padded.shape[1:], window, overlap))
    weights = gaussian_weights(window)
    sums: _Sums | None = None
    whole = len(places) - len(places) % batch
    done = 0
    while done < len(places):
        group = places[done : done + (batch if done < whole else 1)]
        done += len(group)
        outputs = model(np.stack([padded[:, *place] for place in group]))
        sums = sums or _Sums(outputs.shape[1], (window[0], *padded.shape[2:]), inside)
        for place, output in zip(group, outputs, strict=True):
            if place[0].start > sums.row:
                yield from sums.finished(place[0].start)
            sums.add(place, output, weights)
        if progress is not None:
            progress(done, len(places))
    assert sums is not None
    yield from sums.finished(padded.shape[1])


class _Sums:
    """Weighted outputs and weights of the rows along I that windows may still reach; ``row`` is the first of them."""

    def __init__(self, channels: int, shape: Sequence[int], inside: tuple[slice, ...]) -> None:
        self.row = 0
        self._total = np.zeros((channels, *shape), np.float32)
        self._count = np.zeros(shape, np.float32)
        self._inside = inside

    def add(self, place: tuple[slice, ...], output: Array, weights: Array) -> None:
        """Add one window's output."""
        rows = slice(place[0].start - self.row, place[0].stop - self.row)
        self._total[:, rows, *place[1:]] += output * weights
        self._count[rows, *place[1:]] += weights

    def finished(self, end: int) -> Iterator[Array]:
        """Give the rows before ``end`` that lie in the image, and make room for as many."""
        rows = end - self.row
        self._total[:, :rows] /= self._count[:rows]
        low = max(self._inside[0].start - self.row, 0)
        high = min(self._inside[0].stop - self.row, rows)
        if low < high:
            yield self._total[:, low:high, *self._inside[1:]]
        for sums in (*self._total, self._count):
            sums[:-rows] = sums[rows:]
            sums[-rows:] = 0
        self.row = end


def fitted(image: Array, window: Sequence[int], pad_value: Sequence[float] | None = None) -> Array:
    """Return an image ``(C, ...)`` of exactly the window's size: padded on both sides, or its middle cut out."""
    padded, _ = _pad(image, window, pad_value or [0.0] * image.shape[0])
    starts = [-((side - size) // 2) for size, side in zip(padded.shape[1:], window, strict=True)]
    cut = tuple(slice(start, start + side) for start, side in zip(starts, window, strict=True))
    return np.ascontiguousarray(padded[:, *cut])


def _pad(image: Array, window: Sequence[int], values: Sequence[float]) -> tuple[Array, tuple[slice, ...]]:
    """Pad an image to at least a window; return it and where the image lies in it."""
    missing = [max(side - size, 0) for side, size in zip(window, image.shape[1:], strict=True)]
    inside = tuple(slice(m // 2, m // 2 + size) for m, size in zip(missing, image.shape[1:], strict=True))
    if not any(missing):
        return image, inside
    shape = [size + m for size, m in zip(image.shape[1:], missing, strict=True)]
    padded = np.empty((image.shape[0], *shape), np.float32)
    padded[:] = np.asarray(values, np.float32).reshape(-1, *[1] * len(shape))
    padded[:, *inside] = image
    return padded, inside


def _windows(shape: Sequence[int], window: Sequence[int], overlap: float) -> Iterator[tuple[slice, ...]]:
    starts = [window_starts(size, side, overlap) for size, side in zip(shape, window, strict=True)]
    for corner in itertools.product(*starts):
        yield tuple(slice(start, start + side) for start, side in zip(corner, window, strict=True))
