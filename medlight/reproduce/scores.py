"""A metric of a set of cases under many resamplings of these cases at once.

A resampling is a row of weights: how often each case was drawn. Every metric of ``cases.csv`` is a function of weights:
a mean over cases, or (auroc, accuracy, f1, ece) a score of the whole set, defined as in medlight.tasks.class_metrics.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from medlight.compare.metric import CaseRows, case_values

Floats = NDArray[np.float64]
Score = Callable[[Floats], Floats]  # weights (R, N) -> values (R,)
WHOLE_SET = ("auroc", "accuracy", "f1", "ece")
_BINS = 15


def score(rows: CaseRows, base: str, cases: list[str]) -> Score | None:
    """The function of weights (R, N) over ``cases`` that gives a metric (R,); None where cases.csv can't give it.

    base: the metric's name without its split.
    """
    if base in WHOLE_SET:
        found = _tables(rows, cases)
        return None if found is None else _whole_set(base, *found)
    values = case_values(rows, base)
    if not values:
        return None
    return mean(np.array([values.get(case, np.nan) for case in cases]))


def mean(values: Floats) -> Score:
    """The weighted mean of the values (N,) that are finite."""
    known = np.isfinite(values).astype(float)
    filled = np.where(np.isfinite(values), values, 0.0)
    return lambda weights: _share(weights @ filled, weights @ known)


def _tables(rows: CaseRows, cases: list[str]) -> tuple[Floats, Floats, bool] | None:
    """Probabilities and truths (N, L), and whether several labels may be true of a case."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    names = [column.removeprefix("probability/") for column in columns if column.startswith("probability/")]
    if not names or any(case not in rows for case in cases):
        return None
    probabilities = np.array([[rows[case][f"probability/{name}"] for name in names] for case in cases])
    if "target" in columns:
        target = np.array([int(rows[case]["target"]) for case in cases])
        return probabilities, np.eye(len(names))[target], False
    return probabilities, np.array([[rows[case][f"target/{name}"] for name in names] for case in cases]), True


def _whole_set(base: str, probabilities: Floats, truth: Floats, multilabel: bool) -> Score:
    labels = range(truth.shape[1])
    if base == "auroc":
        parts = [auroc(probabilities[:, k], truth[:, k]) for k in labels]
        return lambda weights: _mean_of([part(weights) for part in parts])
    exclusive = np.eye(len(labels))[probabilities.argmax(axis=1)]
    predicted = (probabilities >= 0.5).astype(float) if multilabel else exclusive
    if base == "f1":
        return lambda weights: _mean_of([_f1(weights, predicted[:, k], truth[:, k]) for k in labels])
    if base == "accuracy":
        right = (predicted == truth).mean(axis=1) if multilabel else (predicted == truth).all(axis=1).astype(float)
        return mean(right)
    if multilabel:
        return lambda weights: _ece(np.repeat(weights, len(labels), axis=1), probabilities.ravel(), truth.ravel())
    right = (predicted * truth).sum(axis=1)
    return lambda weights: _ece(weights, probabilities.max(axis=1), right)


def auroc(values: Floats, truth: Floats) -> Score:
    """The chance that a positive case has a higher value than a negative one, ties counted half (Mann and Whitney)."""
    order = np.argsort(values, kind="stable")
    ties = np.unique(values[order], return_index=True)[1]  # where each distinct value begins

    def of(weights: Floats) -> Floats:
        drawn = weights[:, order]
        positive = np.add.reduceat(drawn * truth[order], ties, axis=1)
        negative = np.add.reduceat(drawn * (1 - truth[order]), ties, axis=1)
        below = np.cumsum(negative, axis=1) - negative
        won = (positive * (below + 0.5 * negative)).sum(axis=1)
        return _share(won, positive.sum(axis=1) * negative.sum(axis=1))

    return of


def _f1(weights: Floats, predicted: Floats, truth: Floats) -> Floats:
    return _share(2 * (weights @ (predicted * truth)), weights @ (predicted + truth))


def _ece(weights: Floats, confidence: Floats, right: Floats) -> Floats:
    place = np.searchsorted(np.linspace(0, 1, _BINS + 1), confidence, side="right")  # 1 has a bin of its own
    gaps = [np.abs(weights[:, place == b] @ (right - confidence)[place == b]) for b in np.unique(place)]
    return _share(np.sum(gaps, axis=0), weights.sum(axis=1))


def _share(part: Floats, whole: Floats) -> Floats:
    """Part / whole, nan where there is nothing."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _mean_of(parts: list[Floats]) -> Floats:
    """The mean over the classes that have a value in a resampling."""
    stacked = np.stack(parts)
    known = np.isfinite(stacked)
    return _share(np.where(known, stacked, 0.0).sum(axis=0), known.sum(axis=0).astype(float))
