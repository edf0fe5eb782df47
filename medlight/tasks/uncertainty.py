"""UA-MT: Mean Teacher that learns only where the teacher is sure (Yu et al., MICCAI 2019)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from medlight.errors import UsageError
from medlight.losses.consistency import entropy, squared_distance
from medlight.losses.ramp_up import sigmoid_ramp_up
from medlight.tasks import optimisation
from medlight.tasks.deployable import activate
from medlight.tasks.mean_teacher import MeanTeacherSegmentation

NOISE, MOST = 0.1, 0.2  # standard deviation and limit, in units of the normalised image


class UncertaintyAwareSegmentation(MeanTeacherSegmentation):
    """Mean Teacher whose distance counts only voxels of low predictive entropy.

    passes: how often the teacher looks at each unlabelled sample to tell how sure it is.

    Each pass has the teacher's own dropout and gaussian noise on the input (0.1, limited to 0.2); a network without
    dropout varies by the noise alone. The entropy of the mean of the passes' probabilities has to be under
    ``(3/4 + 1/4 r) ln L``, where r rises over the whole fit as the weight does over its ramp-up, and L is the number of
    labels with the background. Logged besides: ``train/sure``, the share of voxels that count.
    """

    train_metrics: ClassVar[tuple[str, ...]] = (*MeanTeacherSegmentation.train_metrics, "sure")

    def __init__(self, passes: int = 8, **common: Any) -> None:
        super().__init__(**common)
        if passes < 1:
            raise UsageError(f"model.passes: {passes} is too small; write a whole number of at least 1")
        self._steps: int | None = None

    def check_optimizers(self, endless: bool = False) -> None:
        """Refuse a fit without an end too: the threshold rises over all of it."""
        super().check_optimizers(endless)
        if endless:
            raise UsageError("trainer: the threshold of UA-MT rises over the fit: set max_epochs or max_steps")

    def on_fit_start(self) -> None:
        """Measure the fit anew."""
        super().on_fit_start()
        self._steps = None

    def threshold(self) -> float:
        """Return the entropy, in nats, under which a voxel counts at the current optimiser step."""
        if self._steps is None:
            self._steps = optimisation.fit_length(self.trainer, "step")
        return (0.75 + 0.25 * sigmoid_ramp_up(self.trainer.global_step, self._steps)) * math.log(len(self.outputs))

    def distance(self, logits: Tensor, image: Tensor) -> Tensor:
        """Return the distance over the voxels of which the teacher is sure."""
        target = activate(self.teach(image), self.activation)
        mean = torch.zeros_like(target)
        for _ in range(int(self.hparams["passes"])):
            noise = (NOISE * torch.randn_like(image)).clamp(-MOST, MOST)
            mean = mean + activate(self.teach(image + noise), self.activation) / self.hparams["passes"]
        sure = entropy(mean) < self.threshold()
        self.log_train(sure=sure.float().mean())
        return squared_distance(activate(logits, self.activation), target, sure)
