"""Statistics of a prepared scan, found block by block: a big scan is never copied for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

PERCENTILES = (0.5, 1, 2, 5, 25, 50, 75, 95, 98, 99, 99.5)
BLOCK = 2**22  # voxels looked at together
_HALF = 2**16

Values = npt.NDArray[np.float32]


def statistics(channel: Values) -> dict[str, Any]:
    """Describe one channel ``(I, J, K)`` of a prepared scan; its values are finite.

    Keys: count, mean, std, min, max, percentiles (``{"0.5": ...}``), and the same over voxels that are not 0 under
    ``nonzero`` (all zeros where there are none). Plain numbers, so that it can be written as JSON.
    """
    flat = channel.reshape(-1)
    whole = _describe(flat, False)
    filled = sum(int(np.count_nonzero(block)) for block in _blocks(flat, False))
    return {**whole, "nonzero": whole if filled == flat.size else _describe(flat, True)}


def _blocks(flat: Values, filled: bool) -> Iterator[Values]:
    """The values in their order, some millions at a time; with ``filled`` those that are not 0."""
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        yield block[block != 0] if filled else block


def _describe(flat: Values, filled: bool) -> dict[str, Any]:
    count, total, low, high = 0, 0.0, np.inf, -np.inf
    for block in _blocks(flat, filled):
        if block.size:
            count += block.size
            total += float(block.sum(dtype=np.float64))
            low, high = min(low, float(block.min())), max(high, float(block.max()))
    if not count:
        return _describe(np.zeros(1, np.float32), False) | {"count": 0}
    mean = np.float64(total / count)
    squares = sum(float(np.square(block - mean).sum()) for block in _blocks(flat, filled))
    at = np.asarray(PERCENTILES) / 100 * (count - 1)
    below = np.floor(at).astype(int)
    ranks = np.concatenate([below, np.minimum(below + 1, count - 1)])
    lower, upper = np.split(_ranked(flat, filled, ranks).astype(np.float64), 2)
    points = lower + (upper - lower) * (at - below)
    return {
        "count": count,
        "mean": float(mean),
        "std": float(np.sqrt(squares / count)),
        "min": low,
        "max": high,
        "percentiles": {f"{p:g}": float(v) for p, v in zip(PERCENTILES, points, strict=True)},
    }


def _ranked(flat: Values, filled: bool, ranks: Sequence[int] | npt.NDArray[Any]) -> Values:
    """The values that would stand at ``ranks`` if all were sorted.

    Of a big scan these are found in two passes, as a radix sort does: the upper half of each value's bits tells which
    of 65 536 bins it is in, and the lower halves are counted in those bins alone that hold a rank.
    """
    if flat.size <= BLOCK:
        return np.sort(next(_blocks(flat, filled)))[ranks]
    counts = np.zeros(_HALF, np.int64)
    for block in _blocks(flat, filled):
        counts += np.bincount(_ordered(block) >> 16, minlength=_HALF)
    ends = np.cumsum(counts)
    bins = np.searchsorted(ends, ranks, side="right")
    wanted, which = np.unique(bins, return_inverse=True)
    place = np.full(_HALF, -1)
    place[wanted] = np.arange(wanted.size)
    inner = np.zeros(wanted.size * _HALF, np.int64)
    for block in _blocks(flat, filled):
        keys = _ordered(block)
        at = place[keys >> 16]
        inner += np.bincount(at[at >= 0] * _HALF + (keys[at >= 0] & 0xFFFF), minlength=inner.size)
    inside = np.cumsum(inner.reshape(wanted.size, _HALF), axis=1)
    rest = np.asarray(ranks) - (ends - counts)[bins]
    low = [int(np.searchsorted(inside[n], r, side="right")) for n, r in zip(which, rest, strict=True)]
    return _value((bins.astype(np.uint32) << np.uint32(16)) | np.array(low, np.uint32))


def _ordered(values: Values) -> npt.NDArray[np.uint32]:
    """Whole numbers in the order of the values: a float's bits, turned round where it is negative."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))


def _value(keys: npt.NDArray[np.uint32]) -> Values:
    bits = np.where(keys >> 31, keys & np.uint32(0x7FFFFFFF), ~keys)
    return bits.astype(np.uint32).view(np.float32) + np.float32(0)  # -0 becomes 0
