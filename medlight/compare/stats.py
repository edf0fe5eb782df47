"""Intervals and paired tests over cases.

A run's score on a set of cases is a sample: the interval says how far the mean would move with other cases, the
paired test whether two runs differ on the same cases. Neither says anything of another training seed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 9999
LEVEL = 0.95
MINIMUM_PAIRS = 6  # with 5 pairs no outcome of the two-sided signed-rank test is below 0.05
MINIMUM_CASES = 6  # resamples of fewer cases hardly vary: their interval is far too narrow
TOLERANCE = 1e-12  # differences below it are rounding, and count as none

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` cases and its 95 % bootstrap interval (nan with fewer than six cases)."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Paired:
    """Difference of two runs on the cases both have: estimate, and the two-sided p (None: too few pairs)."""

    difference: Estimate
    p: float | None


def estimate(values: Sequence[float] | Floats, seed: int = 0) -> Estimate:
    """Mean of the finite values with its bias-corrected accelerated bootstrap interval (Efron 1987).

    Values that are not finite (a distance to an empty mask) are left out; ``n`` says how many stayed. Fewer than six
    have no interval (nan); equal values have one of no width.
    """
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if finite.size == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    mean = float(finite.mean())
    if finite.size < MINIMUM_CASES:
        return Estimate(mean, math.nan, math.nan, int(finite.size))
    if np.ptp(finite) <= TOLERANCE:
        return Estimate(mean, mean, mean, int(finite.size))
    low, high = _interval(finite, seed)
    return Estimate(mean, low, high, int(finite.size))


def _interval(values: Floats, seed: int) -> tuple[float, float]:
    from scipy.stats import bootstrap

    batch = max(1, min(RESAMPLES, 10_000_000 // values.size))  # 80 MB of resamples at a time
    for method in ("BCa", "percentile"):  # BCa has no answer where no resample falls on one side of the mean
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = bootstrap(
                (values,),
                np.mean,
                n_resamples=RESAMPLES,
                confidence_level=LEVEL,
                method=method,
                batch=batch,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if np.isfinite([found.low, found.high]).all():
            break
    return float(found.low), float(found.high)


def signed_rank(differences: Sequence[float] | Floats) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test (1945); None below six pairs.

    Pairs without a difference keep their ranks, half counted on each side (``zsplit``): two runs that agree on most
    cases are not made to look different by dropping those. scipy takes the exact distribution for up to 50 pairs
    without ties, all sign changes for up to 13 pairs with ties, and the normal approximation beyond.
    """
    from scipy.stats import wilcoxon

    values = np.asarray(differences, dtype=np.float64)
    values = np.where(np.abs(values) <= TOLERANCE, 0.0, values)
    if values.size < MINIMUM_PAIRS:
        return None
    if not values.any():
        return 1.0
    return float(wilcoxon(values, zero_method="zsplit", alternative="two-sided", method="auto").pvalue)


def paired(values: Sequence[float] | Floats, reference: Sequence[float] | Floats, seed: int = 0) -> Paired:
    """Compare two runs case by case: ``values`` and ``reference`` hold the same cases in the same order.

    A pair with a value that is not finite is left out. The difference is values - reference.
    """
    difference = np.asarray(values, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    difference = difference[np.isfinite(difference)]
    return Paired(estimate(difference, seed), signed_rank(difference))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): the chance of one false finding in the whole table stays below the level."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
