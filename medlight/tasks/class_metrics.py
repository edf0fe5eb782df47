"""Scores of a classifier over all cases of an epoch."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional import classification as tm

from medlight.tasks.metrics import mean

BINS = 15


def class_scores(probabilities: Tensor, target: Tensor, multilabel: bool) -> dict[str, float]:
    """Return ``auroc``, ``accuracy``, ``f1`` and ``ece`` of N predictions.

    probabilities: (N, L), float; rows sum to 1 unless multi-label.
    target: (N,) class indices, or (N, L) of 0 and 1 where multi-label.

    auroc: one class against the rest, mean over the classes of which there are cases and others (NaN if none are).
    accuracy: share of cases whose class is right; multi-label: share of right answers over all cases and labels,
    at 0.5.
    f1: mean over the classes that occur in truth or prediction.
    ece: expected calibration error of the likeliest class (Guo et al., ICML 2017), 15 bins; multi-label: of all
    answers' probabilities taken together.
    """
    if not len(target):
        return dict.fromkeys(("auroc", "accuracy", "f1", "ece"), float("nan"))
    if multilabel:
        truth, predicted = target.long(), (probabilities >= 0.5).long()
        ece = tm.binary_calibration_error(probabilities.flatten(), truth.flatten(), n_bins=BINS)
    else:
        truth = torch.nn.functional.one_hot(target.long(), probabilities.shape[1])
        predicted = torch.nn.functional.one_hot(probabilities.argmax(dim=1), probabilities.shape[1])
        ece = tm.multiclass_calibration_error(probabilities, target.long(), probabilities.shape[1], n_bins=BINS)
    right = (predicted == truth) if multilabel else (predicted == truth).all(dim=1)
    return {
        "auroc": _auroc(probabilities, truth),
        "accuracy": float(right.double().mean()),
        "f1": _f1(predicted, truth),
        "ece": float(ece),
    }


def _auroc(probabilities: Tensor, truth: Tensor) -> float:
    both = [c for c in range(truth.shape[1]) if 0 < int(truth[:, c].sum()) < len(truth)]
    return mean(float(tm.binary_auroc(probabilities[:, c], truth[:, c])) for c in both)


def _f1(predicted: Tensor, truth: Tensor) -> float:
    both, total = (predicted * truth).sum(dim=0).tolist(), (predicted + truth).sum(dim=0).tolist()
    return mean(2 * hit / count for hit, count in zip(both, total, strict=True) if count)
