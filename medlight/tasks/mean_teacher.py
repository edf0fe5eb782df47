"""Mean Teacher: the student is drawn towards what its own average says of another view (Tarvainen and Valpola 2017)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from medlight.errors import UsageError
from medlight.losses.consistency import squared_distance
from medlight.losses.ramp_up import sigmoid_ramp_up
from medlight.tasks import optimisation
from medlight.tasks.base import Batch
from medlight.tasks.deployable import activate
from medlight.tasks.teacher import TeacherClassification, TeacherSegmentation, TeacherTask


class ConsistencyTask(TeacherTask):
    """Loss of the labelled samples plus a rising weight times the distance of student and teacher on the others.

    consistency: the weight at its full height.
    ramp_up: optimiser steps over which it rises as ``exp(-5 (1 - t)^2)``; by default 0.4 of the fit's steps.

    The student sees view 0 of every sample, the teacher view 1 of the unlabelled ones (as in SSL4MIS; the paper takes
    the labelled ones too). The distance is the mean squared difference of the probabilities of the final head. Logged:
    ``train/loss`` (labelled samples alone), ``train/consistency`` (the distance), ``train/consistency_weight``.
    """

    train_metrics: ClassVar[tuple[str, ...]] = ("consistency", "consistency_weight")

    def __init__(self, consistency: float = 1.0, ramp_up: int | None = None, **common: Any) -> None:
        super().__init__(**common)
        if consistency < 0:
            raise UsageError(f"model.consistency: {consistency} is negative; write a weight of at least 0")
        if ramp_up is not None and ramp_up < 0:
            raise UsageError(f"model.ramp_up: {ramp_up} is negative; write a number of optimiser steps")
        self._length: int | None = None

    def check_optimizers(self, endless: bool = False) -> None:
        """Refuse a ramp-up without a length too."""
        super().check_optimizers(endless)
        if endless and self.hparams["ramp_up"] is None:
            raise UsageError("model.ramp_up: a fit without max_epochs or max_steps has no length; write the steps")

    def on_fit_start(self) -> None:
        """Measure the ramp-up anew."""
        self._length = None

    def weight(self) -> float:
        """Return the weight of the consistency at the current optimiser step."""
        if self._length is None:
            written = self.hparams["ramp_up"]
            self._length = round(0.4 * optimisation.fit_length(self.trainer, "step")) if written is None else written
        return float(self.hparams["consistency"]) * sigmoid_ramp_up(self.trainer.global_step, self._length)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch whose first samples are labelled."""
        views, known = batch["views"], self.known(batch)
        heads = self.run_network(views[:, 0])
        loss = self.supervised_loss(heads, batch, known)
        if known == len(views):
            return loss
        distance, weight = self.distance(heads[0][known:], views[known:, 1]), self.weight()
        self.log_train(consistency=distance.detach(), consistency_weight=weight)
        return loss + weight * distance

    def distance(self, logits: Tensor, image: Tensor) -> Tensor:
        """Return how far the student's logits (B, L, ...) are from what the teacher says of images (B, C, ...)."""
        return squared_distance(activate(logits, self.activation), activate(self.teach(image), self.activation))


class MeanTeacherSegmentation(ConsistencyTask, TeacherSegmentation):
    """Mean Teacher for segmentation in 2D and 3D: the views' voxels are compared one by one.

    Geometric augmentation is shared by both views, exactly: it happens once, before they are made.
    """


class MeanTeacherClassification(ConsistencyTask, TeacherClassification):
    """Mean Teacher for classification; its views may move voxels, since a class stays where it is."""
