"""Scores of one segmented case: Dice, 95th percentile Hausdorff distance (mm), normalised surface Dice.

The rule for empty masks, for each class of a case:

* absent in truth and in prediction: the case does not count for this class (NaN, which means leave out);
* absent in one of the two only: Dice 0, NSD 0 and HD95 the diagonal of the volume in mm, the worst that can be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
Map = NDArray[np.integer[Any]]
Scores = tuple[float, float, float]


def mean(values: Iterable[float]) -> float:
    """Return the mean of the values that are not NaN; NaN where there are none."""
    kept = [value for value in values if not math.isnan(value)]
    return math.fsum(kept) / len(kept) if kept else math.nan


def case_scores(
    prediction: Map, truth: Map, classes: Sequence[int], spacing: Sequence[float], tolerance_mm: float
) -> dict[int, Scores]:
    """Return (Dice, HD95 in mm, NSD) for each class of one case, by the module's rule for empty masks.

    prediction, truth: label maps of equal shape (I, J[, K]) with small non-negative values.
    classes: the label values to score.
    spacing: mm along each axis.
    tolerance_mm: surface points within this distance of the other surface count as right (NSD).
    """
    spacing = [float(mm) for mm in spacing][: truth.ndim]
    worst = math.sqrt(sum((n * mm) ** 2 for n, mm in zip(truth.shape, spacing, strict=True)))
    boxes = ndimage.find_objects(prediction.astype(np.int32)), ndimage.find_objects(truth.astype(np.int32))
    scores: dict[int, Scores] = {}
    for value in classes:
        box_p, box_t = (found[value - 1] if value <= len(found) else None for found in boxes)
        if box_p is None and box_t is None:
            scores[value] = (math.nan, math.nan, math.nan)
        elif box_p is None or box_t is None:
            scores[value] = (0.0, worst, 0.0)
        else:
            box = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(box_p, box_t, strict=True))
            scores[value] = _overlapping(prediction[box] == value, truth[box] == value, spacing, tolerance_mm)
    return scores


def _overlapping(prediction: Mask, truth: Mask, spacing: Sequence[float], tolerance: float) -> Scores:
    """Scores of two masks that are both non-empty, cropped to their common box."""
    dice = 2.0 * np.count_nonzero(prediction & truth) / (np.count_nonzero(prediction) + np.count_nonzero(truth))
    there, back = surface_distances(prediction, truth, spacing)
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    near = np.count_nonzero(there <= tolerance) + np.count_nonzero(back <= tolerance)
    return float(dice), float(hd95), float(near / (there.size + back.size))


def surface_distances(
    prediction: Mask, truth: Mask, spacing: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the distances in mm from each surface voxel of either mask to the other's surface.

    A surface voxel is one that has a face neighbour outside its mask, as in MONAI's and DeepMind's metrics (without
    their weights by surface area). Both masks must have at least one voxel.
    """
    edge_p, edge_t = (mask & ~ndimage.binary_erosion(mask) for mask in (prediction, truth))
    to_truth = ndimage.distance_transform_edt(~edge_t, sampling=spacing)
    to_prediction = ndimage.distance_transform_edt(~edge_p, sampling=spacing)
    return to_truth[edge_p], to_prediction[edge_t]
