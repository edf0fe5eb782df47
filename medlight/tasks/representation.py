"""How good features are, without training anything: collapse, and what the nearest neighbours say."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

UNKNOWN = -1  # the class of a sample whose truth is not known
SHARPNESS = 0.07
BLOCK = 1024


def feature_std(features: Tensor) -> float:
    """Return the mean over dimensions of the standard deviation of unit-length features (N, F).

    0 where all samples have the same features; near ``1 / sqrt(F)`` where they lie all around (Chen & He, CVPR 2021).
    """
    return float(functional.normalize(features.float(), dim=1).std(dim=0, correction=0).mean())


def effective_rank(features: Tensor) -> float:
    """Return the effective rank of features (N, F): the exponential of the entropy of their singular values' shares.

    From 1 (all samples lie on one line through the origin) to min(N, F) (Roy & Vetterli, EUSIPCO 2007; Garrido et al.,
    RankMe, ICML 2023). 0 where all features are 0.
    """
    matrix = features.double()
    gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    shares = values[values > 0] / values.sum()
    return float(torch.exp(-(shares * shares.log()).sum())) if len(shares) else 0.0


def knn_accuracy(features: Tensor, truth: Tensor, bank: Tensor, bank_truth: Tensor, neighbours: int) -> float:
    """Return the share of samples whose class their nearest neighbours in the bank tell; NaN where none is known.

    features (N, F), bank (M, F): compared by cosine. truth (N,), bank_truth (M,): classes, -1 where unknown.
    neighbours: how many vote, each with weight exp(cosine / 0.07) (Wu et al., CVPR 2018); all where there are fewer.
    """
    known, bank_known = truth != UNKNOWN, bank_truth != UNKNOWN
    features, truth, bank, bank_truth = features[known], truth[known], bank[bank_known], bank_truth[bank_known]
    if not len(truth) or not len(bank_truth):
        return float("nan")
    count = int(max(truth.max(), bank_truth.max())) + 1
    keys = functional.normalize(bank.float(), dim=1)
    right = 0
    for part, expected in zip(features.split(BLOCK), truth.split(BLOCK), strict=True):
        nearest = (functional.normalize(part.float(), dim=1) @ keys.T).topk(min(neighbours, len(keys)))
        weights = (nearest.values / SHARPNESS).softmax(dim=1)
        votes = torch.zeros(len(part), count).scatter_add(1, bank_truth[nearest.indices], weights)
        right += int((votes.argmax(dim=1) == expected).sum())
    return right / len(truth)


def accuracy(logits: Tensor, truth: Tensor) -> float:
    """Return the share of samples (N, L) whose largest logit is their class (N,); NaN where none is known."""
    known = truth != UNKNOWN
    return float((logits[known].argmax(dim=1) == truth[known]).float().mean())
