"""How far two answers for the same samples lie apart, and what an unlabelled sample is worth.

Probabilities and logits are (B, L, ...); everything is computed in float32 whatever the precision of the fit.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def squared_distance(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean over samples, classes and voxels of the squared difference of two probabilities (B, L, ...).

    mask: (B, 1, ...) of bool: only those voxels count; 0 where there are none.
    """
    distance = (student.float() - teacher.float()).square()
    if mask is None:
        return distance.mean()
    return (distance * mask).sum() / (distance.shape[1] * mask.sum()).clamp_min(1)


def entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy (B, 1, ...), in nats, of probabilities (B, L, ...): 0 for certainty, ln L for none."""
    floats = probabilities.float()
    return -torch.xlogy(floats, floats).sum(dim=1, keepdim=True)


def confident_cross_entropy(logits: Tensor, probabilities: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Return FixMatch's loss of unlabelled samples, and which of them count (B,) as bool.

    logits: (B, L) of the strong views. probabilities: (B, L) of the weak views; no gradient goes through them.
    threshold: a sample counts where the likeliest class of its weak view has at least this probability; the target is
    that class. The mean is over all B samples, those that don't count are 0 (Sohn et al. 2020, eq. 4).
    """
    sure, target = probabilities.detach().float().max(dim=1)
    counts = sure >= threshold
    each = F.cross_entropy(logits.float(), target, reduction="none")
    return (each * counts).mean(), counts


def two_part_loss(logits: Tensor, target: Tensor, labelled: Tensor, alpha: float, epsilon: float = 1e-5) -> Tensor:
    """Return cross-entropy plus Dice loss of the labelled voxels, plus ``alpha`` times that of the others.

    logits: (B, L, ...). target: (B, 1, ...) of class indices. labelled: (B, 1, ...) of bool, where the target is the
    truth and not a guess. Each part is taken over its voxels in the whole batch (Bai et al. 2023, eq. 6 and 7); the
    Dice loss is the mean over the classes but the background. A part without voxels adds 0.
    """
    logits, target = logits.float(), target.long()
    each = F.cross_entropy(logits, target[:, 0], reduction="none")[:, None]
    truth = F.one_hot(target[:, 0], logits.shape[1]).movedim(-1, 1).float()
    probabilities, axes = logits.softmax(dim=1), [0, *range(2, logits.ndim)]
    total = logits.new_zeros(())
    for part, weight in ((labelled, 1.0), (~labelled, alpha)):
        overlap = (probabilities * truth * part).sum(dim=axes)
        size = ((probabilities.square() + truth) * part).sum(dim=axes)
        dice = 1 - (2 * overlap + epsilon) / (size + epsilon)
        crossed = (each * part).sum() / part.sum().clamp_min(1)
        total = total + weight * (crossed + dice[1:].mean())
    return total
