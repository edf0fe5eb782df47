"""BCP: labelled and unlabelled images pasted into each other, both ways (Bai et al., CVPR 2023)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from medlight.errors import UsageError
from medlight.losses.consistency import two_part_loss
from medlight.tasks.base import Batch
from medlight.tasks.teacher import TeacherSegmentation


class CopyPasteSegmentation(TeacherSegmentation):
    """Bidirectional copy-paste: first labelled into labelled, then labelled into unlabelled and the other way round.

    pretraining: optimiser steps of the first phase, in which each labelled image gets a box of another one; the loss is
        the task's own, on the mixed label maps.
    alpha: weight of the loss in the unlabelled part of the mixed images.

    In the second phase the labels of the unlabelled images are the teacher's answers to their second view, of which
    each label keeps its largest connected component. One box a step, 2/3 of the patch along each axis, somewhere inside
    the patch; half of the mixed images have it from the unlabelled image, half from the labelled one. As many images
    are mixed as the batch has of the more frequent kind; the other kind is used again. The loss is Dice +
    cross-entropy, over all heads.

    What differs from the authors' code: the average begins with the first step, so the teacher of the second phase is
    the average of the first and not a copy of its best student; the optimiser goes on as it was; the Dice loss leaves
    the background out. Logged: ``train/loss`` (of the mixed images), ``train/pseudo_foreground`` (share of voxels that
    the teacher gives a label).
    """

    train_metrics: ClassVar[tuple[str, ...]] = ("pseudo_foreground",)

    def __init__(self, pretraining: int = 500, alpha: float = 0.5, **common: Any) -> None:
        super().__init__(**common)
        if pretraining < 0:
            raise UsageError(f"model.pretraining: {pretraining} is negative; write a number of optimiser steps")
        if alpha < 0:
            raise UsageError(f"model.alpha: {alpha} is negative; write a weight of at least 0")
        if self.hparams["loss"] is not None:
            raise UsageError("model.loss: CopyPasteSegmentation has its own, which knows the parts; leave loss out")

    def check_training_data(self, data: Any) -> None:
        """Refuse one labelled sample in a batch, or one labelled case, too: it would be pasted into itself."""
        super().check_training_data(data)
        few = data.signature()["few_labels"]
        for key in ("labelled_per_batch", "labelled") if self.hparams["pretraining"] else ():
            if few[key] < 2:
                raise UsageError(f"data.{key}: copy-paste among labelled samples needs at least 2; or pretraining: 0")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of the mixed images of a batch whose first samples are labelled."""
        image, known, target = batch["views"][:, 0], self.known(batch), self.target(batch)
        box = draw_box(image.shape[2:]).to(image.device)
        if self.trainer.global_step < self.hparams["pretraining"]:
            image, target = image[:known], target[:known]
            mixed = torch.where(box, image.roll(1, dims=0), image)
            loss = self.compute_loss(self.run_network(mixed), torch.where(box, target.roll(1, dims=0), target))
        else:
            guess = largest_components(self.teach(batch["views"][known:, 1]).argmax(dim=1, keepdim=True))
            self.log_train(pseudo_foreground=(guess > 0).float().mean())
            mixed, answer, true = mix(image[:known], target[:known], image[known:], guess, box)
            loss = self.mixed_loss(self.run_network(mixed), answer, true)
        self.log_train_loss(loss.detach(), len(mixed))
        return loss

    def mixed_loss(self, heads: list[Tensor], target: Tensor, true: Tensor) -> Tensor:
        """Return the loss over all heads (weights 1, 1/2, 1/4, ...), in float32 whatever the precision."""
        total = heads[0].new_zeros((), dtype=torch.float32)
        with torch.autocast(heads[0].device.type, enabled=False):
            for number, head in enumerate(heads):
                size = head.shape[2:]
                at, where = (F.interpolate(part.float(), size=size, mode="nearest") for part in (target, true))
                total = total + two_part_loss(head, at, where > 0.5, float(self.hparams["alpha"])) / 2**number
        return total


def draw_box(size: torch.Size) -> Tensor:
    """Return a bool map of a patch's size that is true in a box of 2/3 of each side, drawn from torch's generator."""
    inside = torch.zeros(tuple(size), dtype=torch.bool)
    sides = [max(1, 2 * n // 3) for n in size]
    low = [int(torch.randint(n - side + 1, ())) for n, side in zip(size, sides, strict=True)]
    inside[tuple(slice(a, a + side) for a, side in zip(low, sides, strict=True))] = True
    return inside


def mix(image: Tensor, label: Tensor, other: Tensor, guess: Tensor, box: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mixed images (P, C, ...), their label maps (P, 1, ...), and where these are true labels (P, 1, ...).

    image, label: labelled images (N, C, ...) and their label maps (N, 1, ...). other, guess: unlabelled images
    (M, C, ...) and their pseudo-labels. P is the larger of N and M; pair p is labelled image p mod N and unlabelled
    image p mod M. The first half (rounded up) has the unlabelled image in the box, the others outside of it.
    """
    pairs = torch.arange(max(len(image), len(other)), device=image.device)
    first, second = pairs % len(image), pairs % len(other)
    swapped = (pairs >= (len(pairs) + 1) // 2).reshape(-1, *[1] * (image.ndim - 1))
    true = box ^ ~swapped  # (P, 1, ...): outside the box for the first half, inside for the second
    return torch.where(true, image[first], other[second]), torch.where(true, label[first], guess[second]), true


def largest_components(labels: Tensor) -> Tensor:
    """Keep of each label other than 0 the largest connected component (neighbours by corners too).

    labels: (B, 1, ...) of class indices; done on the CPU, sample by sample.
    """
    found = [_largest(sample) for sample in labels[:, 0].cpu().numpy()]
    return torch.from_numpy(np.stack(found)).to(labels)[:, None]


def _largest(labels: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.integer[Any]]:
    kept = np.zeros_like(labels)
    around = ndimage.generate_binary_structure(labels.ndim, labels.ndim)
    for value in np.unique(labels[labels > 0]):
        parts, _ = ndimage.label(labels == value, structure=around)
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        kept[parts == sizes.argmax()] = value
    return kept
