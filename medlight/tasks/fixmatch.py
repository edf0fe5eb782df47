"""FixMatch: confident answers to weak views are the targets of strong views (Sohn et al., NeurIPS 2020)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from medlight.errors import UsageError
from medlight.losses.consistency import confident_cross_entropy
from medlight.tasks.base import Batch, Signature
from medlight.tasks.deployable import activate
from medlight.tasks.teacher import TeacherClassification


class FixMatchTask(TeacherClassification):
    """Loss of the labelled samples plus that of the unlabelled ones of which the network itself is sure.

    threshold: least probability of the likeliest class in the weak view.
    unlabelled_weight: of the loss of the unlabelled samples.
    decay: of the weights' average, which is what is evaluated; it gives no targets, as in the paper.

    View 0 is the weak one, view 1 the strong one; the labelled samples are seen in their weak view. All go through the
    network together, so that batch norm sees one batch. Unlike the paper's, the average warms up. Logged:
    ``train/loss`` (labelled samples alone), ``train/unlabelled_loss``, ``train/confident`` (share of unlabelled samples
    that count) and ``train/pseudo/<class>`` (share of those that count as this class): where one class takes all, or
    far more than its share of the labels, the threshold lets the network confirm itself.
    """

    train_metrics: ClassVar[tuple[str, ...]] = ("unlabelled_loss", "confident")

    def __init__(
        self, threshold: float = 0.95, unlabelled_weight: float = 1.0, decay: float = 0.999, **common: Any
    ) -> None:
        super().__init__(decay=decay, **common)
        if not 0 <= threshold <= 1:
            raise UsageError(f"model.threshold: {threshold} is no probability; write a number from 0 to 1")
        if unlabelled_weight < 0:
            raise UsageError(f"model.unlabelled_weight: {unlabelled_weight} is negative; write one of at least 0")

    @classmethod
    def metric_names(cls, data: Signature | None) -> list[str]:
        """Return the names of the metrics; those with a class's name only where the data is known."""
        classes = data["classes"] if data else []
        return super().metric_names(data) + [f"train/pseudo/{name}" for name in classes]

    def check_training_data(self, data: Any) -> None:
        """Refuse multi-label data too: there is no likeliest class."""
        super().check_training_data(data)
        if data.signature()["multilabel"]:
            raise UsageError("data: FixMatchTask needs exclusive classes; use MeanTeacherClassification for several")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch whose first samples are labelled."""
        weak, strong, known = batch["views"][:, 0], batch["views"][:, 1], self.known(batch)
        heads = self.run_network(torch.cat([weak, strong[known:]]))
        loss = self.supervised_loss(heads, batch, known)
        if known == len(weak):
            return loss
        answers, logits = activate(heads[0][known : len(weak)], self.activation), heads[0][len(weak) :]
        unlabelled, counts = confident_cross_entropy(logits, answers, float(self.hparams["threshold"]))
        self.log_train(unlabelled_loss=unlabelled.detach(), confident=counts.float().mean())
        self._log_classes(answers.argmax(dim=1), counts)
        return loss + self.hparams["unlabelled_weight"] * unlabelled

    def _log_classes(self, classes: Tensor, counts: Tensor) -> None:
        for number, name in enumerate(self.outputs):
            self.log_train(**{f"pseudo/{name}": ((classes == number) & counts).float().mean()})
