"""Dice of label maps, in numpy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medlight.prepare.case import Label

Map = npt.NDArray[np.integer[Any]]


def dice(prediction: Map, truth: Map, labels: Sequence[Label]) -> dict[str, float]:
    """Return 2 |A and B| / (|A| + |B|) by label name, background aside; both maps have the same shape.

    The rule for empty masks is validation's: absent in both, NaN (does not count); absent in one of them, 0.
    """
    scores = {}
    for label in labels:
        if label.value == 0:
            continue
        a, b = prediction == label.value, truth == label.value
        total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
        scores[label.name] = 2 * int(np.count_nonzero(a & b)) / total if total else math.nan
    return scores


def mean(values: Iterable[float]) -> float:
    """Return the mean of what is not NaN; NaN where there is nothing."""
    kept = [value for value in values if not math.isnan(value)]
    return math.fsum(kept) / len(kept) if kept else math.nan
