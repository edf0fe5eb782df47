"""Scores of resampled cases equal those of the cases written out, by torchmetrics and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from medlight.reproduce.scores import WHOLE_SET, auroc, score
from medlight.tasks.class_metrics import class_scores


def table(probabilities: np.ndarray, target: np.ndarray) -> dict[str, dict[str, float]]:
    """Rows as in cases.csv."""
    rows = {}
    for index, given_ in enumerate(probabilities):
        row = {f"probability/{k}": float(p) for k, p in enumerate(given_)}
        if target.ndim == 1:
            row |= {"target": float(target[index]), "predicted": float(given_.argmax())}
        else:
            row |= {f"target/{k}": float(t) for k, t in enumerate(target[index])}
            row |= {f"predicted/{k}": float(p >= 0.5) for k, p in enumerate(given_)}
        rows[f"case-{index:03d}"] = row
    return rows


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(6, 30), st.integers(2, 4), st.booleans(), st.sampled_from(WHOLE_SET))
def test_weights_are_copies(seed: int, count: int, classes: int, multilabel: bool, base: str) -> None:
    random = np.random.default_rng(seed)
    target = random.integers(0, 2, (count, classes)) if multilabel else random.integers(0, classes, count)
    raw = random.choice(random.uniform(0.1, 0.9, 7), (count, classes))  # few values: ties
    probabilities = raw if multilabel else raw / raw.sum(axis=1, keepdims=True)
    rows = table(probabilities, target)
    of = score(rows, base, sorted(rows))
    assert of is not None
    weights = random.multinomial(count, np.full(count, 1 / count), size=3).astype(float)
    for row, value in zip(weights, of(weights), strict=True):
        copies = np.repeat(np.arange(count), row.astype(int))
        oracle = class_scores(torch.tensor(probabilities[copies]), torch.tensor(target[copies]), multilabel)[base]
        assert value == pytest.approx(oracle, abs=1e-5, nan_ok=True)


def test_auroc_with_ties_is_scikit_learns() -> None:
    random = np.random.default_rng(1)
    values, truth = random.integers(0, 9, 60) / 9, random.integers(0, 2, 60)
    weights = random.integers(0, 4, (1, 60)).astype(float)
    expected = roc_auc_score(truth, values, sample_weight=weights[0])
    assert auroc(values, truth)(weights)[0] == pytest.approx(expected)


def test_a_metric_of_single_cases_is_their_mean_and_nan_is_left_out() -> None:
    rows = {"a": {"dice/x": 0.5, "dice/y": 0.7}, "b": {"dice/x": float("nan"), "dice/y": 0.9}, "c": {"dice/x": 0.1}}
    of = score(rows, "dice", ["a", "b", "c"])
    assert of is not None
    assert of(np.array([[1.0, 1, 1], [2, 1, 0]])) == pytest.approx([(0.6 + 0.9 + 0.1) / 3, (1.2 + 0.9) / 3])
    assert score(rows, "hd95", ["a"]) is None
    assert score(rows, "auroc", ["a"]) is None
