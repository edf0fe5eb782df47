"""Which voxels of a label map have which value, found block by block."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from medlight.prepare.interpolate import SLAB

FOREGROUND_LIMIT = 10_000  # voxels kept for each label: enough to draw patches from, small beside the scan
Voxels = npt.NDArray[np.int32]


def foreground(label: npt.NDArray[Any]) -> tuple[dict[int, Voxels], dict[int, int]]:
    """Voxel indices ``(N, 3)`` of each value other than 0, thinned to a fixed number, and how many there were.

    label: ``(I, J, K)`` of unsigned integers.
    """
    flat = label.reshape(-1)
    blocks = range(0, flat.size, SLAB)
    totals = np.zeros(int(flat.max(initial=0)) + 1, np.int64)
    for start in blocks:
        totals += np.bincount(flat[start : start + SLAB], minlength=totals.size)
    counts = {int(value): int(totals[value]) for value in np.flatnonzero(totals) if value}
    chosen = {value: _chosen(value, count) for value, count in counts.items()}
    seen = dict.fromkeys(counts, 0)
    found: dict[int, list[npt.NDArray[np.int64]]] = {value: [] for value in counts}
    for start in blocks:
        for value, voxels in _by_value(flat[start : start + SLAB]):
            ranks = chosen[value] - seen[value]
            found[value].append(start + voxels[ranks[(ranks >= 0) & (ranks < voxels.size)]])
            seen[value] += voxels.size
    index = {value: np.unravel_index(np.concatenate(parts), label.shape) for value, parts in found.items()}
    return {value: np.stack(places, axis=1).astype(np.int32) for value, places in index.items()}, counts


def _chosen(value: int, count: int) -> npt.NDArray[np.int64]:
    """Which of a value's voxels are kept, by their place in the label map."""
    if count <= FOREGROUND_LIMIT:
        return np.arange(count)
    return np.sort(np.random.default_rng(value).choice(count, FOREGROUND_LIMIT, replace=False))


def _by_value(block: npt.NDArray[Any]) -> list[tuple[int, npt.NDArray[np.int64]]]:
    """The places of each value other than 0 in a block, in their order."""
    where = np.flatnonzero(block)
    values = block[where]
    order = np.argsort(values, kind="stable")
    where, values = where[order], values[order]
    found, starts = np.unique(values, return_index=True)
    return list(zip(map(int, found), np.split(where, starts[1:]), strict=True)) if found.size else []
